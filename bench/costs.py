"""What recording costs others: the application that writes, and the fan-out, in the same process and in another."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import trio

from bench.application import KNOWN_ROWS, WRITERS, Database, has_pgbench
from bench.deployed import Measured, Sizes, configure, serving
from bench.pace import NATURAL, Pace, at_rate
from bench.processes import AIRY, Figures, measure
from bench.retained import newest
from bench.targets import Row

STEADY: Final = at_rate(100)


async def measure_writes(make: Callable[[str], Database], folder: Path, sizes: Sizes, measured: Measured) -> None:
    """What the application itself can write: without us, with our triggers, and with a server that records."""
    if not has_pgbench():
        measured.note("the application's own writes were not measured: there is no pgbench")
        return
    alone, watched, served = make("alone"), make("watched"), make("served")
    alone.leave_alone()
    watched.watch()
    served.watch()
    for database in (alone, watched, served):
        database.insert_messages(KNOWN_ROWS)
    config = configure(served, folder)
    rounds: list[tuple[float, float, float]] = []
    for _ in range(sizes.write_rounds):
        without = await trio.to_thread.run_sync(alone.writes_per_s, sizes.write_s)
        triggers = await trio.to_thread.run_sync(watched.writes_per_s, sizes.write_s)
        async with serving(config):
            recorded = await trio.to_thread.run_sync(served.writes_per_s, sizes.write_s)
        rounds.append((without, triggers, recorded))
    what = f"the application's own writes with our triggers, {WRITERS} writers"
    ratio = median(triggers / without for without, triggers, _ in rounds)
    note = f"of {median(without for without, _, _ in rounds):,.0f} transactions/s"
    measured.add(Row(what=what, bound=0.75, value=ratio, unit="×", note=note))
    ratio = median(recorded / without for without, _, recorded in rounds)
    measured.note(f"the same with a server that records on the same cores: {ratio:.2f}×")


async def measure_contention(database: Database, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Fan-out while changes of another log are recorded, in its interpreter or in a process apart, against it alone."""
    database.watch()
    database.insert_messages(sizes.changed_per_s)
    config = configure(database, folder)
    places = {"in the same process": _in_the_same_process, "in a process of its own, as with several workers": _apart}
    ratios: dict[str, dict[Pace, list[float]]] = {place: {NATURAL: [], STEADY: []} for place in places}
    recorded_per_s: dict[str, list[float]] = {place: [] for place in places}
    load: dict[str, int | str] = {"clients": sizes.clients, "measure-ms": sizes.contention_ms}
    for _ in range(sizes.contention_rounds):
        for pace, figure in ((NATURAL, "deliveries_per_s"), (STEADY, "p99_ms")):
            alone = await trio.to_thread.run_sync(measure, AIRY, pace, load)
            for place, beside in places.items():
                figures, speed = await beside(database, config, pace, load)
                assert not alone["faults"] + figures["faults"], (alone, figures)
                ratios[place][pace].append(figures[figure] / alone[figure])
                recorded_per_s[place].append(speed)
    for place in places:
        what = f"fan-out to {sizes.clients} clients beside a recorder {place}: rate, of alone"
        p99, speed = median(ratios[place][STEADY]), median(recorded_per_s[place])
        note = f"p99 at 100 events/s {p99:.2f}×; {speed:,.0f} events/s recorded meanwhile"
        measured.add(Row(what=what, bound=0.7, value=median(ratios[place][NATURAL]), unit="×", note=note))


async def _in_the_same_process(
    database: Database, config: Path, pace: Pace, load: Mapping[str, int | str]
) -> tuple[Figures, float]:
    """What the clients saw, and how many events were recorded in a second."""
    return await _while_changing(database, partial(measure, AIRY, pace, load, server=("--beside", str(config))))


async def _apart(database: Database, config: Path, pace: Pace, load: Mapping[str, int | str]) -> tuple[Figures, float]:
    """The same, where a server without clients records."""
    async with serving(config):
        return await _while_changing(database, partial(measure, AIRY, pace, load))


async def _while_changing(database: Database, measuring: Callable[[], Figures]) -> tuple[Figures, float]:
    before, begun_at = await newest(database.url), time.monotonic()
    with database.changing():
        figures = await trio.to_thread.run_sync(measuring)
        recorded = await newest(database.url) - before
        return figures, recorded / (time.monotonic() - begun_at)
