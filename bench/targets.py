"""The targets and their results: one row each, with the size of a miss."""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

from bench.cases import FEW, SEND_TIMEOUT_S, SMALL_TAIL_BYTES, Results, Scale
from bench.processes import AIRY, LIMIT, PEER, STREAMS, Figures

WHOLE_FROM: Final = 100
LOAD_CPU_SHARE_MAX: Final = 0.9
"""The share of its core above which the load client is the limit."""
RSS_BEYOND_TAIL_KIB: Final = 3 * 1024


@frozen(kw_only=True)
class Row:
    """One target. ``bound`` is the minimum, or the maximum if ``more_is_worse``."""

    title: str
    bound: float
    value: float
    unit: str = ""
    more_is_worse: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.value <= self.bound if self.more_is_worse else self.value >= self.bound

    @property
    def target(self) -> str:
        """The target in words."""
        return f"{'≤' if self.more_is_worse else '≥'} {self.bound:,g}{self.unit}"

    @property
    def reached(self) -> str:
        """The value in words, with the unit of the target."""
        return f"{rounded(self.value)}{self.unit}"

    @property
    def verdict(self) -> str:
        """``met``, or by how much it was missed."""
        if self.met:
            return "met"
        if self.bound == 0:
            return f"missed by {rounded(self.value)}"
        return f"**missed by {abs(self.value - self.bound) / self.bound:.0%}**"


def line(row: Row) -> str:
    """Return a row for the terminal."""
    words = f"{'ok  ' if row.met else 'MISS'} {row.title}: {row.reached} (target {row.target})"
    return f"{words}; {row.note}" if row.note else words


def rounded(value: float) -> str:
    """Format a number with a sensible number of digits."""
    if abs(value) >= WHOLE_FROM:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def rows(results: Results, scale: Scale) -> list[Row]:
    """Return all targets whose cases were measured."""
    return [*_fan_out(results, scale), *_latency(results, scale), *_connections(results, scale), *_slow(results, scale)]


def _fan_out(results: Results, scale: Scale) -> Iterator[Row]:
    clients = f"{scale.clients} clients"
    if results.has("strict", AIRY, LIMIT, PEER):
        rate = results.ratio("strict", AIRY, LIMIT, "deliveries_per_s")
        yield Row(title=f"{clients}, one event a write: rate against the C limit", bound=0.70, value=rate, unit="×")
        cpu = results.ratio("strict", AIRY, LIMIT, "server_cpu_us")
        title = f"{clients}, one event a write: CPU of a delivery against the C limit"
        yield Row(title=title, bound=1.5, value=cpu, unit="×", more_is_worse=True)
        rate = results.ratio("strict", AIRY, PEER, "deliveries_per_s")
        yield Row(title=f"{clients}, one event a write: rate against websockets", bound=1.5, value=rate, unit="×")
    if results.has("natural", AIRY, PEER):
        rate = results.ratio("natural", AIRY, PEER, "deliveries_per_s")
        yield Row(title=f"{clients}, two events in flight: rate against websockets", bound=2.6, value=rate, unit="×")
    for name, pace in (("strict", "one event a write"), ("natural", "two events in flight")):
        if results.has(name, STREAMS, AIRY):
            rate = results.ratio(name, STREAMS, AIRY, "deliveries_per_s")
            yield Row(title=f"{clients}, {pace}: rate of event streams against STOMP", bound=0.9, value=rate, unit="×")
    if results.has("bursts", AIRY, PEER):
        rate = results.ratio("bursts", AIRY, PEER, "deliveries_per_s")
        share = results.median("bursts", AIRY, "load_cpu_share")
        note = f"a lower bound: the load client used {share:.0%} of its core" if share > LOAD_CPU_SHARE_MAX else ""
        title = f"{clients}, bursts of 50: rate against websockets"
        yield Row(title=title, bound=25, value=rate, unit="×", note=note)
        cpu = results.median("bursts", AIRY, "server_cpu_us")
        title = f"{clients}, bursts of 50: CPU of a delivery"
        yield Row(title=title, bound=0.3, value=cpu, unit=" µs", more_is_worse=True)


def _latency(results: Results, scale: Scale) -> Iterator[Row]:
    if results.has("100 events/s", AIRY, LIMIT, PEER):
        title = f"p99 from log to client, {FEW} clients × 100 events/s"
        note = f"{rounded(results.median('100 events/s', AIRY, 'p99_ms'))} ms"
        for name, other, bound in (("the C limit", LIMIT, 1.6), ("websockets", PEER, 0.9)):
            ratio = results.ratio("100 events/s", AIRY, other, "p99_ms")
            yield Row(
                title=f"{title}, against {name}", bound=bound, value=ratio, unit="×", more_is_worse=True, note=note
            )
    if results.has("1000 events/s", AIRY):
        p99 = results.median("1000 events/s", AIRY, "p99_ms")
        rate = results.median("1000 events/s", AIRY, "deliveries_per_s")
        title = f"p99 from log to client, {scale.clients} clients × 1000 events/s"
        note = f"{rounded(rate)} deliveries/s"
        yield Row(title=title, bound=50, value=p99, unit=" ms", more_is_worse=True, note=note)


def _connections(results: Results, scale: Scale) -> Iterator[Row]:
    for name, clients in (("strict", scale.clients), ("many", scale.many)):
        if results.has(name, AIRY, PEER):
            kib = results.median(name, AIRY, "kib_per_connection")
            note = f"websockets {rounded(results.median(name, PEER, 'kib_per_connection'))}"
            title = f"idle memory of a connection, {clients} clients"
            yield Row(title=title, bound=11, value=kib, unit=" KiB", more_is_worse=True, note=note)
            ratio = results.ratio(name, AIRY, PEER, "connects_per_s")
            note = f"{rounded(results.median(name, AIRY, 'connects_per_s'))}/s"
            title = f"connects (upgrade, CONNECT, SUBSCRIBE, its RECEIPT), {clients} clients: against websockets"
            yield Row(title=title, bound=1, value=ratio, unit="×", note=note)


def _slow(results: Results, scale: Scale) -> Iterator[Row]:
    healthy, dead = ("all read", AIRY), ("a tenth never reads", AIRY)
    if results.has("all read", AIRY) and results.has("a tenth never reads", AIRY):
        usual = results.compare(healthy, healthy, lambda one, _: _growth(one))
        growth = results.compare(healthy, dead, lambda without, with_dead: _growth(with_dead) - _growth(without))
        yield Row(
            title="10 % never read: growth of memory beyond that if all read",
            bound=RSS_BEYOND_TAIL_KIB,
            value=growth,
            unit=" KiB",
            more_is_worse=True,
            note=f"which is {rounded(usual)} KiB, with a tail of {SMALL_TAIL_BYTES // 1024} KiB of bodies",
        )
        p99 = results.compare(healthy, dead, lambda without, with_dead: with_dead["p99_ms"] / (without["p99_ms"] or 1))
        yield Row(title="10 % never read: p99 of the others", bound=1.25, value=p99, unit="×", more_is_worse=True)
        cut = results.median("a tenth never reads", AIRY, "dead_cut")
        after = results.median("a tenth never reads", AIRY, "latest_cut_ms") / 1000
        yield Row(
            title=f"… and are disconnected, with a send time-out of {SEND_TIMEOUT_S} s",
            bound=FEW // 10,
            value=cut,
            note=f"the last after {rounded(after)} s",
        )
    if results.has("no bystanders", AIRY) and results.has("bystanders", AIRY):
        cost = results.compare(
            ("bystanders", AIRY),
            ("no bystanders", AIRY),
            lambda with_them, without: with_them["server_cpu_us"] / (without["server_cpu_us"] or 1),
        )
        title = f"{scale.bystanders} clients each on its own conversation: CPU of a delivery to the others"
        yield Row(title=title, bound=1.1, value=cost, unit="×", more_is_worse=True)
    if results.has("everything at once", AIRY):
        resumes, pongs = (results.median("everything at once", AIRY, figure) for figure in ("resumes", "pongs"))
        yield Row(
            title="10 % never read, 10 % read slowly, 10 % reconnect repeatedly, all ping, ids of their own: faults",
            bound=0,
            value=results.median("everything at once", AIRY, "faults"),
            more_is_worse=True,
            note=f"{rounded(resumes)} resumes, {rounded(pongs)} pongs",
        )
    faults = sum(figures["faults"] for rounds in results.rounds.values() for figures in rounds)
    deliveries = sum(figures["deliveries"] for rounds in results.rounds.values() for figures in rounds)
    yield Row(
        title="gaps, duplicates, malformed frames, lost connections, in all cases together",
        bound=0,
        value=faults,
        more_is_worse=True,
        note=f"{rounded(deliveries)} deliveries checked",
    )


def _growth(figures: Figures) -> float:
    return figures["rss_peak_kib"] - figures["rss_idle_kib"]
