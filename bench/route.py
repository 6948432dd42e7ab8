"""``make bench-route``: everything from a commit in a real database to a client; writes into ``RESULTS.md``.

Starts the server as it is deployed, with its event log in SQL. Without ``--database-url`` it starts a Postgres with the
settings of a new installation, ``fsync`` among them. ``BENCH='--parts bulk,latency'`` measures only these.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import trio

from airy_trio.log.options import LogOptions
from bench import crowds, current, latency, rates, report
from bench.application import Database, postgres_databases
from bench.costs import measure_contention, measure_writes
from bench.deployed import QUICK, Measured, Sizes, configure, serving
from bench.processes import Figures, loading
from bench.retained import fill, seek
from bench.stores import measure_stores
from bench.targets import Row
from tests.processes import Server

RESULTS: Final = Path(__file__).with_name("RESULTS.md")
SECTION: Final = "The route: from a commit to a client"
BULK_TIMEOUT_MS: Final = 60_000

Make = Callable[[str], Database]
"""Creates a Postgres database by name."""
Part = Callable[[Make, Path, Sizes, Measured], Awaitable[None]]


async def measure_bulk(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure a change of many rows in one transaction, and the replay of its events."""
    for database in _databases("bulk", make, folder):
        database.watch()
        async with serving(configure(database, folder)) as (listening, _):
            await _bulk(listening, sizes.rows, partial(database.insert_messages, sizes.rows))
            await _measure_bulk(database, listening, sizes, measured)
            await _measure_replay(database, listening, sizes, measured)


async def measure_latency(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure single commits on an idle server."""
    for database in _databases("latency", make, folder):
        database.watch()
        async with serving(configure(database, folder)) as (listening, _):
            await latency.measure(database, listening, sizes, measured)


async def measure_rates(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure commits at a steady rate, and an idle server."""
    for database in _databases("rates", make, folder):
        database.watch()
        async with serving(configure(database, folder)) as (listening, _):
            await rates.measure(database, listening, sizes, measured)


async def measure_crowds(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure a crowd that reconnects at once, and clients that come and go."""
    for database in _databases("crowds", make, folder):
        await crowds.measure_storm(database, folder, sizes, measured)
    await crowds.measure_churn(sizes, measured)


async def measure_current(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure the current state, to one client and to a crowd."""
    for database in _databases("current", make, folder):
        await current.measure_one(database, folder, sizes, measured)
    for database in _databases("current_crowd", make, folder):
        await current.measure_crowd(database, folder, sizes, measured)


async def measure_start(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure the start and its memory, with few and with many retained events; and a quiet conversation."""
    for database in _databases("start", make, folder):
        database.watch()
        config = configure(database, folder)
        async with serving(config) as (listening, _):
            await _bulk(listening, 1, partial(database.insert_messages, 1))
        await fill(database.url, sizes.few_retained)
        few_s, few_kib = await _start(config)
        await fill(database.url, sizes.retained)
        many_s, many_kib = await _start(config)
        title = f"{database.name}: from the start of the program to ready with {sizes.retained:,} retained events"
        note = f"{few_s:.2f} s with {sizes.few_retained:,}; the tail holds {LogOptions().tail_events:,}"
        measured.add(Row(title=title, bound=2, value=many_s, unit=" s", more_is_worse=True, note=note))
        title = f"{database.name}: resident memory then, of that with {sizes.few_retained:,} and a full tail"
        note = f"{many_kib / 1024:.0f} MiB; {few_kib / 1024:.0f} MiB with {sizes.few_retained:,} and half a tail"
        measured.note(f"{title}: {note}")
        took_s, count = await seek(database.url)
        measured.note(
            f"{database.name}: all {count} events of one conversation among {sizes.retained:,}: {took_s * 1000:.1f} ms"
        )


async def _start(config: Path) -> tuple[float, int]:
    """Start the server twice, once to warm up; return the seconds until it listened, and its memory."""
    async with serving(config):
        pass
    async with serving(config) as (listening, start_s):
        return start_s, _resident_kib(listening.process.pid)


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


def _databases(part: str, make: Make, folder: Path) -> Iterator[Database]:
    postgres = make(part)
    yield Database("Postgres", postgres.url)
    yield Database("SQLite", f"sqlite:///{folder}/{part}.db")


async def _measure_bulk(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    figures, committed_at = await _bulk(listening, sizes.rows, database.update_messages)
    rate = sizes.rows / (figures["last_us"] / 1e6 - committed_at)
    title = f"{database.name}: {sizes.rows:,} rows changed in bulk, from the commit to the last event at a client"
    note = f"the first after {figures['first_us'] / 1e3 - committed_at * 1e3:.0f} ms"
    measured.add(Row(title=title, bound=30_000, value=rate, unit=" events/s", note=note))


async def _measure_replay(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    figures, _ = await _bulk(listening, sizes.rows, time.monotonic, replay="all")
    events = figures["deliveries_before"] + figures["deliveries"]
    rate = events / ((figures["last_us"] - figures["first_us"]) / 1e6)
    title = f"{database.name}: replay of {sizes.rows:,} events from the store to one client"
    measured.add(Row(title=title, bound=50_000, value=rate, unit=" events/s"))


async def _bulk(
    listening: Server, events: int, change: Callable[[], float], *, replay: str = "none"
) -> tuple[Figures, float]:
    """Make a change while a client listens; return the client's figures for ``events``, and ``change()``."""
    options: dict[str, int | str] = {
        "port": listening.port,
        "clients": 1,
        "replay": replay,
        "settle-ms": 0,
        "warm-up-ms": 0,
        "measure-ms": BULK_TIMEOUT_MS,
        "deliveries-max": events,
    }

    def listen_and_change() -> tuple[Figures, float]:
        with loading(options) as client:
            changed_at = change()
            return client.figures(), changed_at

    figures, changed_at = await trio.to_thread.run_sync(listen_and_change)
    assert not figures["faults"], figures
    assert figures["deliveries_before"] + figures["deliveries"] >= events, figures
    return figures, changed_at


async def _writes(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    await measure_writes(make, folder, sizes, measured)


async def _contention(make: Make, folder: Path, sizes: Sizes, measured: Measured) -> None:
    await measure_contention(make("contention"), folder, sizes, measured)


PARTS: Final[Mapping[str, tuple[str, Part]]] = {
    "bulk": ("Many rows changed at once, and their replay", measure_bulk),
    "latency": ("A single commit", measure_latency),
    "rates": ("Commits at a steady rate, and no commits", measure_rates),
    "crowds": ("A crowd that reconnects, and clients that come and go", measure_crowds),
    "current": ("The current state", measure_current),
    "start": ("Start, with much retained", measure_start),
    "stores": ("The event stores", measure_stores),
    "writes": ("What the application pays", _writes),
    "contention": ("Fan-out next to a recorder", _contention),
}


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--database-url",
        default="",
        help="URL of a Postgres in which databases may be created; without it a Postgres is started",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short run of every part, to see whether it works; writes nothing"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="names of parts, separated by commas (default: all)")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if unknown := sorted(set(names) - PARTS.keys()):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    with (
        tempfile.TemporaryDirectory(prefix="airy-trio-bench-") as folder,
        postgres_databases(arguments.database_url) as make,
    ):
        for name in names:
            title, part = PARTS[name]
            measured, loads = Measured(), [os.getloadavg()[0]]
            trio.run(part, make, Path(folder), QUICK if arguments.quick else Sizes(), measured)
            loads.append(os.getloadavg()[0])
            if not arguments.quick:
                _write(title, name, measured, loads)
    return 0


def _write(title: str, name: str, measured: Measured, loads: Sequence[float]) -> None:
    """Replace one part of ``RESULTS.md``."""
    how = f"`make bench-route BENCH='--parts {name}'`, {datetime.now(UTC):%Y-%m-%d}."
    lines = [how, "", *report.machine(loads), ""]
    if measured.rows:
        lines += [*report.targets(measured.rows), ""]
    lines += [f"- {note}" for note in measured.notes]
    report.write(SECTION, {title: lines}, RESULTS)


if __name__ == "__main__":
    sys.exit(main())
