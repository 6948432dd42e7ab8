"""The results as Markdown: the machine, the targets and all figures; and the chart."""

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.cases import Results, Scale
from bench.chart import Line, Panel, svg
from bench.pace import NATURAL, STRICT, Pace, at_rate
from bench.processes import AIRY, LIMIT, PEER, STREAMS, Contender
from bench.targets import Row, rounded

_COLUMNS: Final = (
    ("deliveries/s", "deliveries_per_s"),
    ("server CPU, µs a delivery", "server_cpu_us"),
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("KiB a connection", "kib_per_connection"),
    ("connects/s", "connects_per_s"),
    ("load client's core", "load_cpu_share"),
    ("faults", "faults"),
)
GREY, GREEN, LIGHT_GREEN, RED = "#6b7280", "#0b6e4f", "#5fb49c", "#c8553d"
DELIVERY: Final = "Delivery: side by side with the limit and a peer"
"""The section of the results about the fan-out."""
HOW: Final = """\
*delivery*: one MESSAGE (348 octets of body, about 468 on the wire) received and checked by one client. *C limit*:
`limit.c`, which only hands prebuilt bytes to the kernel. *websockets*: `peer_websockets.py`, asyncio and `broadcast()`.
*SSE*: event streams instead of STOMP in a WebSocket, from the same server.
All on loopback, so the sender also pays for the receiver's side of TCP. CPU is user and system time of the server's
process. The load client reports to each producer how many events all readers have. Connects wait for the RECEIPT of
SUBSCRIBE. Ratios are taken within one round; all figures are medians of the rounds.
"""


def parts(
    results: Results, rows: Sequence[Row], scale: Scale, *, rounds: int, loads: Sequence[float]
) -> dict[str, list[str]]:
    """Return the parts of the section on delivery. ``loads``: the load averages of the machine before and after."""
    how = f"`make bench`, {datetime.now(UTC):%Y-%m-%d}; {rounds} interleaved rounds of {scale.measure_ms / 1000:g} s."
    picture = "![deliveries per second and p99 against the number of clients](deliveries.svg)"
    return {
        "Targets of delivery": [how, "", *machine(loads), "", *targets(rows), "", picture, "", HOW],
        "All figures": table(("case", "server", *(title for title, _ in _COLUMNS)), _all_figures(results)),
    }


def write(section: str, parts: Mapping[str, Sequence[str]], results: Path) -> None:
    """Replace parts in a file of results, which is created if it does not exist."""
    before = results.read_text(encoding="utf-8") if results.exists() else "# Results\n\n"
    results.write_text(put_section(before, section, parts), encoding="utf-8")


def put_section(document: str, section: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Return the document with these parts, by title, replaced in one of its sections; the rest is unchanged."""
    sections = _split(document, "## ")
    known = _split(sections.get(section, ""), "### ")
    known |= {title: "\n" + "\n".join(lines).strip("\n") + "\n\n" for title, lines in parts.items()}
    sections[section] = _joined(known, "### ") if "" in known else "\n" + _joined(known, "### ")
    return _joined(sections, "## ").rstrip("\n") + "\n"


def _split(text: str, mark: str) -> dict[str, str]:
    """Return the parts of a text by title, in order. The text before the first title has an empty one."""
    head, *parts = re.split(rf"^{mark}", text, flags=re.MULTILINE)
    found = {"": head} if head.strip() else {}
    for part in parts:
        title, _, rest = part.partition("\n")
        found[title] = "\n" + rest.strip("\n") + "\n\n"
    return found


def _joined(parts: Mapping[str, str], mark: str) -> str:
    return "".join(rest if not title else f"{mark}{title}\n{rest}" for title, rest in parts.items())


def machine(loads: Sequence[float]) -> list[str]:
    """Describe the machine, without names."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("trio", "trio-websocket", "websockets"))
    return [
        f"- {os.cpu_count()} cores ({_processor()}), {memory_gib:.0f} GiB, {kernel}",
        f"- {platform.python_implementation()} {platform.python_version()}, {packages}",
        f"- load average of the machine {loads[0]:.1f} before and {loads[-1]:.1f} after",
    ]


def picture(results: Results, counts: Sequence[int]) -> str:
    """Draw deliveries per second and p99 against the number of clients, as SVG."""

    def line(pace: Pace, contender: Contender, figure: str) -> list[tuple[float, float]]:
        names = [(clients, f"{pace.name}, {clients} clients") for clients in counts]
        found = [
            (clients, results.median(name, contender, figure))
            for clients, name in names
            if results.has(name, contender)
        ]
        return [(float(clients), value) for clients, value in found if value > 0]

    rate, p99 = "deliveries_per_s", "p99_ms"
    rates = {
        "C limit, one event a write": Line(GREY, line(STRICT, LIMIT, rate)),
        "airy-trio, one event a write": Line(GREEN, line(STRICT, AIRY, rate)),
        "airy-trio, two events in flight": Line(LIGHT_GREEN, line(NATURAL, AIRY, rate)),
        "websockets": Line(RED, line(STRICT, PEER, rate)),
    }
    steady = at_rate(100)
    latencies = {
        "C limit": Line(GREY, line(steady, LIMIT, p99)),
        "airy-trio": Line(GREEN, line(steady, AIRY, p99)),
        "websockets": Line(RED, line(steady, PEER, p99)),
    }
    return svg([
        Panel(title="Deliveries a second", x_label="clients", y_label="deliveries/s", lines=rates),
        Panel(title="p99 at 100 events a second", x_label="clients", y_label="ms", lines=latencies),
    ])  # fmt: skip


def table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(line) + " |" for line in lines),
    ]


def targets(rows: Iterable[Row]) -> list[str]:
    """Return the targets as a table."""
    return table(("what", "target", "reached", "", "note"), map(_cells, rows))


def _cells(row: Row) -> tuple[str, ...]:
    return row.title, row.target, row.reached, row.verdict, row.note


def _all_figures(results: Results) -> Iterable[tuple[str, ...]]:
    by_name = {contender.name: contender for contender in (LIMIT, AIRY, STREAMS, PEER)}
    for name, server in results.rounds:
        values = (rounded(results.median(name, by_name[server], figure)) for _, figure in _COLUMNS)
        yield name, server, *values


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
