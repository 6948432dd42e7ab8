"""The cost of recording for the application that writes, and for the fan-out in the same and in another process."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import trio
from attrs import frozen

from bench.application import KNOWN_ROWS, WRITERS, Database, has_pgbench
from bench.deployed import Measured, Sizes, configure, serving
from bench.pace import NATURAL, Pace, at_rate
from bench.processes import AIRY, Figures, measure
from bench.retained import head
from bench.targets import Row

STEADY: Final = at_rate(100)


async def measure_writes(make: Callable[[str], Database], folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure the writes of the application: without us, with our triggers, and with a server that records."""
    if not has_pgbench():
        measured.note("the application's own writes were not measured: there is no pgbench")
        return
    alone, watched, served = make("alone"), make("watched"), make("served")
    alone.create_tables_only()
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
    title = f"the application's own writes with our triggers, {WRITERS} writers"
    ratio = median(triggers / without for without, triggers, _ in rounds)
    note = f"of {median(without for without, _, _ in rounds):,.0f} transactions/s"
    measured.add(Row(title=title, bound=0.75, value=ratio, unit="×", note=note))
    ratio = median(recorded / without for without, _, recorded in rounds)
    measured.note(f"the same with a server that records on the same cores: {ratio:.2f}×")


async def measure_contention(database: Database, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure the fan-out while another log is recorded, in the same interpreter or in another process.

    The application and its Postgres use the same cores. The case without recording shows their cost.
    """
    database.watch()
    database.insert_messages(sizes.changed_per_s)
    config = configure(database, folder)
    load: dict[str, int | str] = {"clients": sizes.clients, "measure-ms": sizes.contention_ms}
    rounds: list[dict[str, _Ratios]] = []
    for _ in range(sizes.contention_rounds):
        found = {}
        natural, steady = [await trio.to_thread.run_sync(measure, AIRY, pace, load) for pace in (NATURAL, STEADY)]
        for place, measure_place in PLACES.items():
            fast, speed = await measure_place(database, config, NATURAL, load)
            slow, _ = await measure_place(database, config, STEADY, load)
            assert not natural["faults"] + steady["faults"] + fast["faults"] + slow["faults"], (place, fast, slow)
            found[place] = _Ratios(
                rate=fast["deliveries_per_s"] / natural["deliveries_per_s"],
                cpu=fast["server_cpu_us"] / natural["server_cpu_us"],
                p99=slow["p99_ms"] / steady["p99_ms"],
                recorded_per_s=speed,
            )
        rounds.append(found)
    for place in PLACES:
        title = f"fan-out to {sizes.clients} clients during changes that {place}: rate, relative to no changes"
        rate, cpu, p99, speed = (
            median(getattr(found[place], name) for found in rounds) for name in ("rate", "cpu", "p99", "recorded_per_s")
        )
        recorded = (
            f"; {speed:,.0f} events/s recorded meanwhile; CPU of a delivery {cpu:.2f}×" if place != UNRECORDED else ""
        )
        measured.note(f"{title}: {rate:.2f}×; p99 at 100 events/s {p99:.2f}×{recorded}")
    title = f"fan-out to {sizes.clients} clients during changes that {SEPARATELY}: rate, relative to no recorder"
    ratio = median(found[SEPARATELY].rate / found[UNRECORDED].rate for found in rounds)
    measured.add(Row(title=title, bound=0.75, value=ratio, unit="×"))


@frozen(kw_only=True)
class _Ratios:
    """Figures relative to the fan-out without changes. ``recorded_per_s``: events recorded at the same time."""

    rate: float
    cpu: float
    p99: float
    recorded_per_s: float


async def _unrecorded(
    database: Database, _config: Path, pace: Pace, load: Mapping[str, int | str]
) -> tuple[Figures, float]:
    """Return the figures of the clients, without recording."""
    return await _while_changing(database, partial(measure, AIRY, pace, load))


async def _in_the_same_process(
    database: Database, config: Path, pace: Pace, load: Mapping[str, int | str]
) -> tuple[Figures, float]:
    """Return the figures of the clients, and the events recorded per second."""
    return await _while_changing(database, partial(measure, AIRY, pace, load, server=("--second-server", str(config))))


async def _in_another_process(
    database: Database, config: Path, pace: Pace, load: Mapping[str, int | str]
) -> tuple[Figures, float]:
    """Return the same, while another server without clients records."""
    async with serving(config):
        return await _while_changing(database, partial(measure, AIRY, pace, load))


async def _while_changing(database: Database, measuring: Callable[[], Figures]) -> tuple[Figures, float]:
    before, begun_at = (await head(database.url)).offset, time.monotonic()
    with database.changing():
        figures = await trio.to_thread.run_sync(measuring)
        recorded = (await head(database.url)).offset - before
        return figures, recorded / (time.monotonic() - begun_at)


UNRECORDED: Final = "no server records"
SEPARATELY: Final = "a process of its own records, as with several workers"
PLACES: Final = {
    UNRECORDED: _unrecorded,
    "the same process records": _in_the_same_process,
    SEPARATELY: _in_another_process,
}
