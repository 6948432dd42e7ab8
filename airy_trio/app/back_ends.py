"""What captures changes, chosen by the settings and opened: feed and lease, after a look at all that they need."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
import structlog
import trio
from attrs import field, frozen

from airy_trio import migrate
from airy_trio.changes import triggers
from airy_trio.changes.changelog import ChangeLog
from airy_trio.changes.feed import ChangeFeed, Lease
from airy_trio.changes.inspection import inspect
from airy_trio.changes.lease import SESSION_TIMEOUTS, FileLease, PostgresLease
from airy_trio.changes.postgres import PostgresFeed
from airy_trio.changes.sqlite import SqliteFeed
from airy_trio.changes.tables import Tables
from airy_trio.database import (
    POSTGRES,
    SQLITE,
    Database,
    DatabaseOptions,
    Names,
    Session,
    postgres_engine,
    sqlite_engine,
    sqlite_path,
)
from airy_trio.errors import MappingError, StartError, Unavailable
from airy_trio.settings import Settings

logger = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_PAUSE_S: Final = 0.2
CLOSE_TIMEOUT_S: Final = 5.0


@frozen(kw_only=True)
class BackEnds:
    """What the settings have chosen beside the application's tables, opened."""

    feed: ChangeFeed
    lease: Lease
    trigger_faults: Callable[[], Awaitable[Sequence[str]]]
    closing: contextlib.AsyncExitStack = field(factory=contextlib.AsyncExitStack)


async def open_back_ends(settings: Settings) -> BackEnds:
    """Choose and open feed and lease, having checked that everything they need is there."""
    options = settings.database
    dialect = sa.make_url(options.url).get_backend_name()
    names = Names(dialect, options.schema)
    closing = contextlib.AsyncExitStack()
    try:
        if dialect == SQLITE:
            migrate.require_file(sqlite_path(options.url))
        database = open_database(options.direct_url or options.url, options)
        closing.push_async_callback(database.aclose)
        tables = await patiently(
            lambda: database.run(lambda connection: _checked(connection, settings, names)), options, "database.url"
        )
        logger.info("change log", rows=await database.run(ChangeLog(names).count))
        feed, lease = _feed(settings, database, names, tables)
        closing.push_async_callback(feed.aclose)
        closing.push_async_callback(lease.release)
    except BaseException:
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await closing.aclose()
        raise
    return BackEnds(
        feed=feed,
        lease=lease,
        trigger_faults=lambda: database.run(lambda connection: _trigger_faults(connection, settings, names)),
        closing=closing,
    )


def _checked(connection: sa.Connection, settings: Settings, names: Names) -> Tables:
    """The mapped tables, where mapping, migrations and triggers are right. Raises ``StartError`` with all faults."""
    tables = inspect(connection, settings.tables)
    faults = [f"database: {fault}" for fault in migrate.pending(connection, "changes", settings.database)]
    if not faults:  # migrations come with their triggers: what stands there from before is no fault of its own
        faults += triggers.faults(connection, tables, names, deletes=settings.events.deletes)
    if faults:
        raise StartError(faults)
    return tables


def _trigger_faults(connection: sa.Connection, settings: Settings, names: Names) -> Sequence[str]:
    """What is wrong with the mapped tables and their triggers by now: the application may have made them anew."""
    try:
        tables = inspect(connection, settings.tables)
    except MappingError as error:
        return error.faults
    return list(triggers.faults(connection, tables, names, deletes=settings.events.deletes))


def _feed(
    settings: Settings, database: Database, names: Names, tables: Tables
) -> tuple[SqliteFeed | PostgresFeed, Lease]:
    options = settings.database
    text_chars_max = settings.listener.message_bytes_max  # what is longer does not go into an event either
    if names.dialect == SQLITE:
        path = sqlite_path(options.url)
        reading = Session(sqlite_engine(path, lenient=True))
        real = path.resolve()  # whoever comes by a symbolic link must meet the same lock
        lock = real.with_name(f"{real.name}.airy-trio.lock")
        return SqliteFeed(reading, database, names, tables, text_chars_max), FileLease(lock)
    engine = postgres_engine(
        options.direct_url or options.url,
        connect_timeout_s=options.connect_timeout_s,
        settings=SESSION_TIMEOUTS,
    )
    reading = Session(engine.execution_options(isolation_level="REPEATABLE READ"))
    return PostgresFeed(reading, database, names, tables, text_chars_max), PostgresLease(reading, names)


def open_database(url: str, options: DatabaseOptions, *, settings: dict[str, str] | None = None) -> Database:
    """A database with connections of its own; ``settings`` are Postgres' for each of them. The caller closes it."""
    if sa.make_url(url).get_backend_name() == POSTGRES:
        pooled = bool(options.direct_url) and url == options.url
        return Database(
            postgres_engine(url, connect_timeout_s=options.connect_timeout_s, settings=settings, pooled=pooled)
        )
    return Database(sqlite_engine(sqlite_path(url)))


async def patiently(what: Callable[[], Awaitable[T]], options: DatabaseOptions, setting: str) -> T:
    """Try for ``connect_timeout_s``, then raise ``StartError``: a database may start at the same time as we do."""
    give_up_at = trio.current_time() + options.connect_timeout_s
    while True:
        try:
            return await what()
        except Unavailable as error:
            if trio.current_time() >= give_up_at:
                raise StartError([f"{setting}: the database cannot be used: {error}"]) from None
            await trio.sleep(RETRY_PAUSE_S)
