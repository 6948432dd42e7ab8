"""``make bench-route``: the whole route, from a commit in a real database to a client; writes ``ROUTE.md``.

Starts the server as it is deployed, with its event log in SQL. Without ``--database-url`` it starts a Postgres as the
tests do, whose ``fsync`` is off: a commit costs less than on a disk, so that our triggers weigh more.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import trio

from airy_trio.database import POSTGRES
from airy_trio.testing.client import connect
from bench import report
from bench.application import Database, postgres_databases
from bench.costs import measure_contention, measure_writes
from bench.deployed import QUICK, Measured, Sizes, configure, serving
from bench.processes import Figures, loading
from bench.retained import fill
from bench.targets import Row
from tests.processes import Server

ROUTE: Final = Path(__file__).with_name("ROUTE.md")
HOST: Final = "127.0.0.1"
IDLE_PAUSE_S: Final = 0.02
FRAME_TIMEOUT_S: Final = 10.0
BULK_TIMEOUT_MS: Final = 60_000


async def measure_route(database: Database, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Bulk change, replay, latency and start-up over one database."""
    database.watch()
    config = configure(database, folder)
    async with serving(config) as (listening, start_s):
        measured.note(f"{database.name}: start-up with an empty log {start_s:.2f} s")
        await _bulk(listening, sizes.rows, partial(database.insert_messages, sizes.rows))
        await _measure_bulk(database, listening, sizes, measured)
        await _measure_replay(database, listening, sizes, measured)
        await _measure_latency(database, listening, sizes, measured)
    await fill(database.url, sizes.retained)
    async with serving(config) as (_, start_s):
        measured.note(f"{database.name}: start-up with {sizes.retained:,} retained events {start_s:.2f} s")


async def _measure_bulk(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    figures, committed_at = await _bulk(listening, sizes.rows, database.update_messages)
    rate = sizes.rows / (figures["last_us"] / 1e6 - committed_at)
    what = f"{database.name}: {sizes.rows:,} rows changed in bulk, from the commit to the last event at a client"
    note = f"the first after {figures['first_us'] / 1e3 - committed_at * 1e3:.0f} ms"
    measured.add(Row(what=what, bound=30_000, value=rate, unit=" events/s", note=note))


async def _measure_replay(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    figures, _ = await _bulk(listening, sizes.rows, time.monotonic, replay="all")
    events = figures["deliveries_before"] + figures["deliveries"]
    rate = events / ((figures["last_us"] - figures["first_us"]) / 1e6)
    what = f"{database.name}: replay of {sizes.rows:,} events from the store to one client"
    measured.add(Row(what=what, bound=50_000, value=rate, unit=" events/s"))


async def _measure_latency(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    """From the sending of COMMIT to the frame at the client, with nothing else going on."""
    latencies_ms = []
    async with await connect(HOST, listening.port) as client:
        await client.subscribe("/events/tag.updated", headers=[("replay", "none")])
        with database.tagging() as tagging:
            for number in range(sizes.commits):
                committing_at = tagging.write(f"t{number}")
                with trio.fail_after(FRAME_TIMEOUT_S):
                    await client.receive()
                latencies_ms.append((time.monotonic() - committing_at) * 1000)
                await trio.sleep(IDLE_PAUSE_S)
    bounds = (3, 10) if database.dialect == POSTGRES else (5, 12)
    shares = (("p50", median(latencies_ms)), ("p99", quantiles(latencies_ms, n=100)[98]))
    for (share, value), bound in zip(shares, bounds, strict=True):
        what = f"{database.name}: commit to frame at a client, idle, {share}"
        measured.add(Row(what=what, bound=bound, value=value, unit=" ms", more_is_worse=True))


async def _bulk(
    listening: Server, events: int, change: Callable[[], float], *, replay: str = "none"
) -> tuple[Figures, float]:
    """Make a change while a client listens; what that saw up to so many events, and what ``change`` gave."""
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


async def measure_all(arguments: argparse.Namespace, sizes: Sizes, measured: Measured) -> None:
    """Measure everything over both databases, in a folder that is removed after."""
    with (
        tempfile.TemporaryDirectory(prefix="airy-trio-bench-") as name,
        postgres_databases(arguments.database_url) as make,
    ):
        folder = Path(name)
        await measure_route(make("Postgres"), folder, sizes, measured)
        await measure_route(Database("SQLite", f"sqlite:///{folder}/app.db"), folder, sizes, measured)
        await measure_writes(make, folder, sizes, measured)
        await measure_contention(make("beside"), folder, sizes, measured)


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--database-url", default="", help="a Postgres where databases may be created; else one is started"
    )
    parser.add_argument(
        "--quick", action="store_true", help="little of everything; writes nothing: does it work at all?"
    )
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    measured, loads = Measured(), [os.getloadavg()[0]]
    trio.run(measure_all, arguments, sizes, measured)
    loads.append(os.getloadavg()[0])
    if not arguments.quick:
        how = [f"`make bench-route`, {datetime.now(UTC):%Y-%m-%d}.", "", *report.machine(loads)]
        if not arguments.database_url:
            how.append("- a Postgres as the tests start it: `fsync` off")
        text = ["# The whole route: results", "", *how, "", *report.targets(measured.rows), ""]
        ROUTE.write_text("\n".join([*text, *(f"- {note}" for note in measured.notes), ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
