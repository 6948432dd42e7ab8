"""What recording costs others: the application that writes, and the fan-out in the same process."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import trio

from bench.application import KNOWN_ROWS, WRITERS, Database, has_pgbench
from bench.deployed import Measured, Sizes, configure, serving
from bench.pace import NATURAL, at_rate
from bench.processes import AIRY, measure
from bench.retained import newest
from bench.targets import Row


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
    """Fan-out while a recorder works in the same interpreter, on changes of another log, against fan-out alone."""
    database.watch()
    database.insert_messages(sizes.changed_per_s)
    config = configure(database, folder)
    load: dict[str, int | str] = {"clients": sizes.clients, "measure-ms": sizes.contention_ms}
    ratios: dict[str, list[float]] = {"deliveries_per_s": [], "p99_ms": []}
    recorded_per_s = []
    for _ in range(sizes.contention_rounds):
        for pace, figure in ((NATURAL, "deliveries_per_s"), (at_rate(100), "p99_ms")):
            alone = await trio.to_thread.run_sync(measure, AIRY, pace, load)
            before, begun_at = await newest(database.url), time.monotonic()
            with database.changing():
                command = partial(measure, AIRY, pace, load, server=("--beside", str(config)))
                beside = await trio.to_thread.run_sync(command)
                recorded = await newest(database.url) - before
                recorded_per_s.append(recorded / (time.monotonic() - begun_at))
            assert not alone["faults"] + beside["faults"], (alone, beside)
            ratios[figure].append(beside[figure] / alone[figure])
    what = f"fan-out to {sizes.clients} clients beside a recorder in the same process: rate, of alone"
    p99, speed = median(ratios["p99_ms"]), median(recorded_per_s)
    note = f"p99 at 100 events/s {p99:.2f}×; {speed:,.0f} events/s recorded meanwhile"
    measured.add(Row(what=what, bound=0.7, value=median(ratios["deliveries_per_s"]), unit="×", note=note))
