"""The server's event log, accessed without the server: its head, and a fill with many events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from airy_trio.database import POSTGRES, Database, Names, postgres_engine, sqlite_engine, sqlite_path
from airy_trio.events.destinations import OfConversation
from airy_trio.log.event_log import READ_BYTES_MAX
from airy_trio.log.sql import PostgresStore, SqliteStore, sql_store
from airy_trio.log.store import NewEvent, Position
from airy_trio.settings import parse
from bench.payload import body

APPEND_EVENTS: Final = 5000
CONVERSATIONS: Final = 20_000


async def fill(database_url: str, upto: int) -> None:
    """Append up to this offset to the log of a server on this database, which must have run and be stopped."""
    async with _store(database_url) as store:
        reached, point = (await store.bounds()).head, await store.resume_point()
        assert point is not None
        while reached.offset < upto:
            first, last = reached.offset + 1, min(reached.offset + APPEND_EVENTS, upto)
            await store.append(reached, [stored_event(number) for number in range(first, last + 1)], point)
            reached = reached.at(last)


async def seek(database_url: str) -> tuple[float, int]:
    """Read all events of one conversation from the oldest position; return the seconds and their number."""
    async with _store(database_url) as store:
        after, begun_at = (await store.bounds()).floor, trio.current_time()
        found = await store.read(after, 1000, OfConversation("c1"), bytes_max=READ_BYTES_MAX)
        return trio.current_time() - begun_at, len(found)


async def head(database_url: str) -> Position:
    """Return the position of the newest event."""
    async with _store(database_url) as store:
        return (await store.bounds()).head


async def folded(database_url: str) -> int:
    """Return the offset up to which the current state has the events of the log."""
    async with _store(database_url) as store:
        state = (await store.bounds()).state
        return 0 if state is None else state.folded


@asynccontextmanager
async def _store(database_url: str) -> AsyncIterator[PostgresStore | SqliteStore]:
    settings = parse(f'[database]\nurl = "{database_url}"\n', {})
    url = settings.log.location(settings.database.url)
    store = sql_store(_pool(url), _pool(url), Names.of(url, settings.database.schema))
    try:
        yield store
    finally:
        await store.aclose()


def stored_event(number: int) -> NewEvent:
    """Return an event like a message in production, in one of ``CONVERSATIONS``."""
    return NewEvent(
        type="message.updated",
        object=f"message:m{number}",
        conversation_id=f"c{number % CONVERSATIONS}",
        channel_id="ch1",
        body=body(number).encode(),
    )


def _pool(url: str) -> Database:
    if url.startswith(POSTGRES):
        return Database(postgres_engine(url, connect_timeout_s=5))
    return Database(sqlite_engine(sqlite_path(url)))
