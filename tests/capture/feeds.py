"""A feed over an application's database, and a reader that reads all of it."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import pytest

from airy_trio.capture.change_log import LoggedChanges
from airy_trio.capture.feed import Batch, ChangedObject, ChangeFeed
from airy_trio.capture.inspection import inspect
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.capture.queries import TEXT_CHARS_MAX, Row
from airy_trio.capture.sqlite import SqliteFeed
from airy_trio.database import SQLITE
from airy_trio.database.postgres import Pipeline, Statement
from airy_trio.settings import Settings
from tests.application import Application

AnyFeed = SqliteFeed | PostgresFeed
NO_LOG = '\n[log]\nstore = "memory"\n'
"""For a feed without its event log, which takes a third of a migration."""


def source_of(application: Application, settings: Settings, text_chars_max: int = TEXT_CHARS_MAX) -> LoggedChanges:
    """Return the source of changes of an application with existing tables, over new connections."""
    with application.engine.begin() as connection:
        tables = inspect(connection, settings.tables)
    return LoggedChanges(application.reading(), application.writing(), application.names, tables, text_chars_max)


@asynccontextmanager
async def feed_of(
    application: Application, settings: Settings, text_chars_max: int = TEXT_CHARS_MAX
) -> AsyncIterator[AnyFeed]:
    kind = SqliteFeed if application.dialect == SQLITE else PostgresFeed
    feed = kind(source_of(application, settings, text_chars_max))
    try:
        yield feed
    finally:
        await feed.aclose()


async def read_all(feed: ChangeFeed, after: str, limit: int = 1000) -> tuple[list[ChangedObject], str, list[Batch]]:
    """Read until there is no more; return the objects in order, the point reached, and the batches."""
    batches = [await feed.read(after, limit)]
    while batches[-1].more:
        batches.append(await feed.read(batches[-1].resume_point, limit))
    return [found for batch in batches for found in batch.objects], batches[-1].resume_point, batches


def before_objects(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Run some work once, after the next read of Postgres has its snapshot and before it reads the objects."""
    left, run = [work], Pipeline.run

    async def run_later(pipeline: Pipeline, *queries: tuple[Statement, Sequence[bytes | None]]) -> list[list[Row]]:
        if left and any(statement.sql.startswith("savepoint") for statement, _ in queries):
            left.pop()()
        return await run(pipeline, *queries)

    monkeypatch.setattr(Pipeline, "run", run_later)


@contextmanager
def queued_for(application: Application, table: str) -> Iterator[None]:
    """Let eight sessions lock a table of Postgres again and again: each waits for the lock for most of a second."""
    has_ended = threading.Event()

    def lock() -> None:
        while not has_ended.is_set():
            with application.engine.begin() as connection:
                connection.exec_driver_sql(f"lock table {table}")
                connection.exec_driver_sql("select pg_sleep(0.1)")

    with ThreadPoolExecutor() as threads:
        for _ in range(8):
            threads.submit(lock)
        try:
            yield
        finally:
            has_ended.set()
