"""New and empty places for each of our event stores. A test can open a place several times."""

import itertools
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from pathlib import Path

import trio

from airy_trio.database import SQLITE, Database, DatabaseOptions, Names, postgres_engine, sqlite_engine, sqlite_path
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.memory import MemoryStore
from airy_trio.log.sql import sql_store
from airy_trio.log.store import EventStore, NewEvent
from airy_trio.migrate import migrate_log
from airy_trio.testing.event_store import MakePlace, OpenStore

_schemas = itertools.count(1)
_files: dict[str, bytes] = {}
"""The content of a migrated file by the schema of its options."""


def event(number: int, **changed: str | None) -> NewEvent:
    """Return an event about an object of its own; ``changed`` replaces fields other than the body."""
    facts = {"type": "message.updated", "object": f"message:{number}", "conversation_id": "c1", "channel_id": "ch1"}
    return NewEvent(body=b"%d" % number, **{**facts, **changed})  # type: ignore[arg-type]


@asynccontextmanager
async def opened(store: EventStore) -> AsyncIterator[EventStore]:
    yield store


@asynccontextmanager
async def memory_place() -> AsyncIterator[OpenStore]:
    store = MemoryStore()
    yield lambda: opened(store)


def migrate_new_file(options: DatabaseOptions) -> None:
    """Make a migrated file: a copy of the first file with this schema, with a new epoch. That is 20 ms faster."""
    path, names = sqlite_path(options.url), Names(SQLITE, options.schema)
    if options.schema not in _files:
        migrate_log(options.url, options)
        _files[options.schema] = path.read_bytes()
        return
    path.touch(mode=0o600)
    path.write_bytes(_files[options.schema])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"update {names.quoted('log_state')} set epoch = lower(hex(randomblob(3)))")


@asynccontextmanager
async def sqlite_place() -> AsyncIterator[OpenStore]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'events.db'}"
        await trio.to_thread.run_sync(migrate_new_file, DatabaseOptions(url=url))
        yield lambda: open_sql(DatabaseOptions(url=url))


def postgres_places(url: str, pooled: str = "") -> MakePlace:
    """Return a maker of places, each a schema in one database. ``pooled``: its URL through a pooler, if any."""

    @asynccontextmanager
    async def make_place() -> AsyncIterator[OpenStore]:
        options = DatabaseOptions(url=url, schema=f"place_{next(_schemas)}")
        await trio.to_thread.run_sync(migrate_log, url, options)
        yield lambda: open_sql(options, pooled)

    return make_place


@asynccontextmanager
async def open_sql(options: DatabaseOptions, pooled: str = "") -> AsyncIterator[EventStore]:
    names = Names.of(options.url, options.schema)

    def database(url: str) -> Database:
        if names.dialect == SQLITE:
            return Database(sqlite_engine(sqlite_path(url)))
        return Database(postgres_engine(url, connect_timeout_s=options.connect_timeout_s, pooled=url == pooled))

    store = sql_store(database(pooled or options.url), database(options.url), names)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


async def fold(
    store: EventStore, generation: str = "first0", types: Collection[str] = STATE_TYPES, limit: int = 250
) -> None:
    """Add all events of some types to the current state."""
    while await store.fold(generation, types, limit):
        pass


@asynccontextmanager
async def open_postgres(url: str) -> AsyncIterator[EventStore]:
    """Yield a store in an empty database."""
    options = DatabaseOptions(url=url)
    await trio.to_thread.run_sync(migrate_log, url, options)
    async with open_sql(options) as opened:
        yield opened


def redis_places(url: str) -> MakePlace:
    """Return a maker of places, each a set of keys in one Redis."""
    from airy_trio.log.redis.store import open_store  # noqa: PLC0415 - slow to import, and needed only here

    @asynccontextmanager
    async def make_place() -> AsyncIterator[OpenStore]:
        name = f"place_{next(_schemas)}"
        yield lambda: open_store(url, name=name)

    return make_place
