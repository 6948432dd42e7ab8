"""Delivery of the current state: of many objects to one client, and to many clients at once."""

import time
from functools import partial
from pathlib import Path
from typing import Final

import trio

from bench.application import Database
from bench.crowds import AT_ONCE, LISTENER, loaded
from bench.deployed import Measured, Sizes, configure, serving
from bench.retained import folded
from bench.targets import Row

TIMEOUT_MS: Final = 60_000
RATE_MIN: Final = 50_000
ONE_KIB_MAX: Final = 8 * 1024
CROWD_RATE_MIN: Final = 1_000_000
CROWD_KIB_MAX: Final = 64 * 1024
KEPT: Final = '[log]\nkeep_current = ["message.updated"]\n'


async def measure_one(database: Database, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Send the state of ``rows`` objects to one client."""
    rate, kib = await _measure(database, folder, 1, sizes.rows)
    title = f"{database.name}: the current state of {sizes.rows:,} objects to one client"
    measured.add(Row(title=title, bound=RATE_MIN, value=rate, unit=" events/s"))
    measured.add(Row(title=f"{title}: memory", bound=ONE_KIB_MAX, value=kib, unit=" KiB", more_is_worse=True))


async def measure_crowd(database: Database, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Send the state of a tenth of ``rows`` objects to ``clients`` that ask for it together, after a start."""
    objects = sizes.rows // 10
    rate, kib = await _measure(database, folder, sizes.clients, objects)
    title = f"{database.name}: {sizes.clients:,} clients ask at once for the current state of {objects:,} objects"
    measured.add(Row(title=title, bound=CROWD_RATE_MIN, value=rate, unit=" deliveries/s"))
    measured.add(Row(title=f"{title}: memory", bound=CROWD_KIB_MAX, value=kib, unit=" KiB", more_is_worse=True))


async def _measure(database: Database, folder: Path, clients: int, objects: int) -> tuple[float, float]:
    """Record the objects and restart the server. Return deliveries per second, and by how many KiB the server grew.

    Deliveries are counted from the first connection to the last event.
    """
    database.watch(KEPT)
    config = configure(database, folder)
    config.write_text(config.read_text().replace("[listener]\n", LISTENER) + KEPT)
    async with serving(config):
        await trio.to_thread.run_sync(database.insert_messages, objects)
        while await folded(database.url) < objects:  # noqa: ASYNC110 - another process records
            await trio.sleep(0.1)
    async with serving(config) as (listening, _):
        options: dict[str, int | str] = {
            "port": listening.port,
            "server-pid": listening.process.pid,
            "clients": clients,
            "at-once": AT_ONCE,
            "replay": "current",
            "settle-ms": 0,
            "warm-up-ms": 0,
            "measure-ms": TIMEOUT_MS,
            "deliveries-max": clients * objects,
        }
        begun_at = time.monotonic()
        figures = await trio.to_thread.run_sync(partial(loaded, options))
    received = figures["deliveries_before"] + figures["deliveries"]
    assert not figures["faults"], figures
    assert received == clients * objects, figures
    return received / (figures["last_us"] / 1e6 - begun_at), figures["rss_peak_kib"] - figures["rss_before_kib"]
