"""The measured cases and the figures of all rounds. ``targets`` judges them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

from attrs import define, field, frozen

from bench.pace import BURSTS, NATURAL, STRICT, Pace, at_rate
from bench.processes import AIRY, LIMIT, PEER, STREAMS, Contender, Figures, measure

FEW: Final = 100
"""The number of clients in the cases about latency and about clients that do not read."""
SMALL_TAIL_BYTES: Final = 2 * 1024 * 1024
SMALL_TAIL_EVENTS: Final = 2000
SEND_TIMEOUT_S: Final = 2
_SMALL_TAIL: Final = ("--tail-bytes", str(SMALL_TAIL_BYTES), "--tail-events", str(SMALL_TAIL_EVENTS))
_IMPATIENT: Final = ("--send-timeout-s", str(SEND_TIMEOUT_S))


@frozen(kw_only=True)
class Scale:
    """The scale: clients in the main cases, clients in the case of many, and the durations."""

    clients: int = 1000
    many: int = 5000
    bystanders: int = 10_000
    measure_ms: int = 2000
    patient_ms: int = 7000


@frozen(kw_only=True)
class Case:
    """One server under one load. ``load``: further options of ``load.c``; ``server``: of the server."""

    name: str
    contender: Contender
    pace: Pace
    clients: int
    measure_ms: int
    load: Mapping[str, int | str] = field(factory=dict)
    server: tuple[str, ...] = ()
    bystanders: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """The key of its figures: the case and the contender."""
        return self.name, self.contender.name

    def run(self) -> Figures:
        """Measure it once. Raises ``MeasuringFailedError``."""
        load = {"clients": self.clients, "measure-ms": self.measure_ms, **self.load}
        return measure(self.contender, self.pace, load, server=self.server, bystanders=self.bystanders)


@define
class Results:
    """The figures of every case, in the order of the rounds."""

    rounds: dict[tuple[str, str], list[Figures]] = field(factory=dict)

    def add(self, case: Case, figures: Figures) -> None:
        """Add the figures of one round."""
        self.rounds.setdefault(case.key, []).append(figures)

    def has(self, name: str, *contenders: Contender) -> bool:
        """Return whether a case was measured for all these contenders."""
        return all((name, contender.name) in self.rounds for contender in contenders)

    def median(self, name: str, contender: Contender, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return median(figures[figure] for figures in self.rounds[name, contender.name])

    def ratio(self, name: str, contender: Contender, other: Contender, figure: str) -> float:
        """Return the median ratio of two contenders within each round, because the machine's speed drifts."""
        return self.compare((name, contender), (name, other), lambda ours, theirs: ours[figure] / (theirs[figure] or 1))

    def compare(
        self, ours: tuple[str, Contender], theirs: tuple[str, Contender], how: Callable[[Figures, Figures], float]
    ) -> float:
        """Return the median of a comparison of two cases, round by round."""
        pairs = zip(self.rounds[ours[0], ours[1].name], self.rounds[theirs[0], theirs[1].name], strict=True)
        return median(how(one, other) for one, other in pairs)


def main_cases(scale: Scale) -> list[Case]:
    """Return the cases of one round, in order. Cases that are compared run one after the other."""

    def case(name: str, contender: Contender, pace: Pace, clients: int = scale.clients) -> Case:
        load = {"stream": "/events"} if contender is STREAMS else {}
        return Case(name=name, contender=contender, pace=pace, clients=clients, measure_ms=scale.measure_ms, load=load)

    return [
        *(case("strict", contender, STRICT) for contender in (LIMIT, AIRY, STREAMS, PEER)),
        *(case("natural", contender, NATURAL) for contender in (LIMIT, AIRY, STREAMS, PEER)),
        *(case("bursts", contender, BURSTS) for contender in (LIMIT, AIRY, PEER)),
        *(case("100 events/s", contender, at_rate(100), FEW) for contender in (LIMIT, AIRY, PEER)),
        *(case("1000 events/s", contender, at_rate(1000)) for contender in (LIMIT, AIRY)),
        *_idle_cases(scale),
        *_slow_cases(scale),
        *_bystander_cases(scale),
    ]


def _idle_cases(scale: Scale) -> list[Case]:
    return [
        Case(name="many", contender=contender, pace=STRICT, clients=scale.many, measure_ms=1, load={"warm-up-ms": 1})
        for contender in (AIRY, PEER)
    ]


def _slow_cases(scale: Scale) -> list[Case]:
    """Return the cases with clients that do not read: all read, a tenth never reads, and all disturbances at once."""
    everything: Mapping[str, int | str] = {
        "dead": FEW // 10,
        "slow": FEW // 10,
        "slow-bytes": 16_384,  # every 50 ms: a third of the data
        "visitors": FEW // 10,
        "ping-ms": 100,
        "subscription": "client-%d",
    }

    def case(name: str, load: Mapping[str, int | str], server: tuple[str, ...]) -> Case:
        return Case(
            name=name,
            contender=AIRY,
            pace=at_rate(2000),
            clients=FEW,
            measure_ms=scale.patient_ms,
            load=load,
            server=(*server, *_IMPATIENT),
        )

    return [
        case("all read", {}, _SMALL_TAIL),
        case("a tenth never reads", {"dead": FEW // 10}, _SMALL_TAIL),
        case("everything at once", everything, ()),
    ]


def _bystander_cases(scale: Scale) -> list[Case]:
    def case(name: str, bystanders: int) -> Case:
        return Case(
            name=name,
            contender=AIRY,
            pace=at_rate(500),
            clients=FEW,
            measure_ms=scale.measure_ms,
            bystanders=bystanders,
        )

    return [case("no bystanders", 0), case("bystanders", scale.bystanders)]


def sweep_cases(counts: Sequence[int], scale: Scale) -> list[Case]:
    """Return the cases of the chart: the same load on more and more clients."""
    return [
        Case(
            name=f"{pace.name}, {clients} clients",
            contender=contender,
            pace=pace,
            clients=clients,
            measure_ms=scale.measure_ms,
        )
        for clients in counts
        for pace in (STRICT, NATURAL, at_rate(100))
        for contender in (LIMIT, AIRY, PEER)
        if pace is not NATURAL or contender is AIRY
    ]
