"""A feed over an application's database, and a reader that reads all of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from airy_trio.capture.change_log import LoggedChanges
from airy_trio.capture.feed import Batch, ChangedObject, ChangeFeed
from airy_trio.capture.inspection import inspect
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.capture.sqlite import SqliteFeed
from airy_trio.database import SQLITE
from airy_trio.settings import Settings
from tests.application import Application

AnyFeed = SqliteFeed | PostgresFeed


def source_of(application: Application, settings: Settings) -> LoggedChanges:
    """The changes of an application whose tables exist, over new connections."""
    with application.engine.begin() as connection:
        tables = inspect(connection, settings.tables)
    return LoggedChanges(application.reading(), application.writing(), application.names, tables)


@asynccontextmanager
async def feed_of(application: Application, settings: Settings) -> AsyncIterator[AnyFeed]:
    kind = SqliteFeed if application.dialect == SQLITE else PostgresFeed
    feed = kind(source_of(application, settings))
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
