"""The speed of each event store: appends a second as the recorder makes them, and replays a second."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Final

import trio

from airy_trio.database import Database as Pool
from airy_trio.database import DatabaseOptions, Names, postgres_engine, sqlite_engine, sqlite_path
from airy_trio.log.memory import MemoryStore
from airy_trio.log.reads import PAGE_BYTES_MAX, PAGE_EVENTS_MAX
from airy_trio.log.redis.store import open_store
from airy_trio.log.sql import sql_store
from airy_trio.log.store import EventStore
from airy_trio.migrate import migrate_log
from bench.application import Database
from bench.deployed import Measured, Sizes
from bench.retained import APPEND_EVENTS, stored_event
from tests.redis_server import running_redis

OpenStore = Callable[[], AbstractAsyncContextManager[EventStore]]
APPEND_FSYNC: Final = "its own server with appendonly yes, appendfsync everysec"


async def measure_stores(make: Callable[[str], Database], folder: Path, sizes: Sizes, measured: Measured) -> None:
    """Measure appends and replays of each back end."""
    await _measure("memory", _memory, sizes, measured)
    await _measure("sql on SQLite", lambda: _sql(f"sqlite:///{folder}/events.db"), sizes, measured)
    await _measure("sql on Postgres", lambda: _sql(make("events").url), sizes, measured)
    if shutil.which("redis-server") is None:
        measured.note("redis was not measured: there is no redis-server")
        return
    with running_redis() as server:
        await _measure(f"redis ({APPEND_FSYNC})", lambda: open_store(server.url), sizes, measured)


async def _measure(name: str, open_it: OpenStore, sizes: Sizes, measured: Measured) -> None:
    async with open_it() as store:
        start = head = (await store.bounds()).head
        begun_at = trio.current_time()
        while head.offset - start.offset < sizes.stored:
            events = [stored_event(number) for number in range(head.offset + 1, head.offset + 1 + APPEND_EVENTS)]
            head = head.at((await store.append(head, events, "point"))[-1].offset)
        appended = (head.offset - start.offset) / (trio.current_time() - begun_at)
        after, begun_at = start, trio.current_time()
        while found := await store.read(after, PAGE_EVENTS_MAX, bytes_max=PAGE_BYTES_MAX):
            after = after.at(found[-1].offset)
        assert after == head
        replayed = (head.offset - start.offset) / (trio.current_time() - begun_at)
        took_ms = []
        for number in range(sizes.appends):
            begun_at = trio.current_time()
            head = head.at((await store.append(head, [stored_event(number + 1)], "point"))[-1].offset)
            took_ms.append((trio.current_time() - begun_at) * 1000)
    measured.note(
        f"{name}: appends in batches of {APPEND_EVENTS:,} {appended:,.0f} events/s; an append of one event "
        f"{median(took_ms):.2f} ms; replay in the pages of a replay {replayed:,.0f} events/s"
    )


@asynccontextmanager
async def _memory() -> AsyncIterator[EventStore]:
    yield MemoryStore()


@asynccontextmanager
async def _sql(url: str) -> AsyncIterator[EventStore]:
    options = DatabaseOptions(url=url)
    await trio.to_thread.run_sync(migrate_log, url, options)

    def pool() -> Pool:
        if url.startswith("postgres"):
            return Pool(postgres_engine(url, connect_timeout_s=5))
        return Pool(sqlite_engine(sqlite_path(url)))

    store = sql_store(pool(), pool(), Names.of(url, options.schema))
    try:
        yield store
    finally:
        await store.aclose()
