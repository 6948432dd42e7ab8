"""A crowd that reconnects at once, each client behind; and clients that come and go, with and without the collector.

The crowd: thousands of clients reconnect to a server that has just started, and each resumes from a position far
behind the head. With the default tail their events are in memory; with a small one they are read from the store.
"""

import time
from functools import partial
from pathlib import Path
from typing import Final

import trio

from bench.application import Database
from bench.deployed import Measured, Sizes, configure, serving
from bench.pace import at_rate
from bench.processes import AIRY, Figures, loading, measure
from bench.retained import fill, head
from bench.targets import Row, rounded

TIMEOUT_MS: Final = 100_000
STORM_S_MAX: Final = 12
STORM_KIB_MAX: Final = 128 * 1024
STORE_TIMES_MAX: Final = 2
CHURN_KIB_MAX: Final = 2048
LISTENER: Final = "[listener]\nconnections_max = 20000\nconnections_per_address_max = 20000\n"
SMALL_TAIL: Final = "[log]\ntail_events = 1000\n"
AT_ONCE: Final = 256
"""How many connections of the crowd are opened at the same time."""
VISITORS: Final = 100
VISIT_MS: Final = 300


async def measure_storm(database: Database, folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Let a crowd resume from the tail, and then from the store."""
    database.watch()
    async with serving(configure(database, folder)):
        await trio.to_thread.run_sync(database.insert_messages, 1)
        while not (await head(database.url)).offset:  # noqa: ASYNC110 - another process records
            await trio.sleep(0.1)
    await fill(database.url, 2 * sizes.behind)
    crowd = f"{database.name}: {sizes.crowd:,} clients reconnect, each {sizes.behind:,} events behind"
    tail_s, kib = await _storm(database, folder, "", sizes)
    note = f"{sizes.crowd * sizes.behind / tail_s / 1e6:.1f} M deliveries/s"
    title = f"{crowd}, from the tail"
    measured.add(Row(title=title, bound=STORM_S_MAX, value=tail_s, unit=" s", more_is_worse=True, note=note))
    measured.add(Row(title=f"{title}: memory", bound=STORM_KIB_MAX, value=kib, unit=" KiB", more_is_worse=True))
    store_s, kib = await _storm(database, folder, SMALL_TAIL, sizes)
    note = f"{store_s:.1f} s; memory {rounded(kib)} KiB"
    title = f"{crowd}, from the store: time of that from the tail"
    value = store_s / tail_s
    measured.add(Row(title=title, bound=STORE_TIMES_MAX, value=value, unit="×", more_is_worse=True, note=note))


async def _storm(database: Database, folder: Path, more: str, sizes: Sizes) -> tuple[float, float]:
    """Return the seconds until all clients have all events, and by how many KiB the server grew."""
    config = configure(database, folder)
    config.write_text(config.read_text().replace("[listener]\n", LISTENER) + more)
    async with serving(config) as (listening, _):
        newest = await head(database.url)
        options: dict[str, int | str] = {
            "port": listening.port,
            "server-pid": listening.process.pid,
            "clients": sizes.crowd,
            "at-once": AT_ONCE,
            "last-event-id": str(newest.at(newest.offset - sizes.behind)),
            "settle-ms": 0,
            "warm-up-ms": 0,
            "measure-ms": TIMEOUT_MS,
            "deliveries-max": sizes.crowd * sizes.behind,
        }
        begun_at = time.monotonic()
        figures = await trio.to_thread.run_sync(partial(loaded, options))
    received = figures["deliveries_before"] + figures["deliveries"]
    assert not figures["faults"], figures
    assert received == sizes.crowd * sizes.behind, figures
    return figures["last_us"] / 1e6 - begun_at, figures["rss_peak_kib"] - figures["rss_before_kib"]


def loaded(options: dict[str, int | str]) -> Figures:
    """Run the load client with these options; return its figures."""
    with loading(options) as load:
        return load.figures()


async def measure_churn(sizes: Sizes, measured: Measured) -> None:
    """Let clients come and go. Without the collector, memory grows by everything that a session leaves in a cycle."""
    load: dict[str, int | str] = {
        "clients": VISITORS + 1,
        "visitors": VISITORS,
        "visit-ms": VISIT_MS,
        "warm-up-ms": sizes.churn_ms // 4,
        "measure-ms": sizes.churn_ms,
    }
    for collector, server in (("with the cycle collector", ()), ("without it", ("--no-collector",))):
        figures = await trio.to_thread.run_sync(partial(measure, AIRY, at_rate(10), load, server=server))
        assert not figures["faults"], figures
        value = figures["rss_end_kib"] - figures["rss_start_kib"]
        title = (
            f"{VISITORS} clients reconnect every {VISIT_MS} ms for {sizes.churn_ms / 1000:.0f} s: memory, {collector}"
        )
        note = f"{rounded(figures['resumes'])} connections"
        measured.add(Row(title=title, bound=CHURN_KIB_MAX, value=value, unit=" KiB", more_is_worse=True, note=note))
