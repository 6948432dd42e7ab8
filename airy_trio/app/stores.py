"""The event store that the settings name, opened: one of ours, or whatever its author has registered."""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final

import sqlalchemy as sa
import structlog
import trio
from attrs import frozen

from airy_trio import migrate
from airy_trio.admin.readiness import Starting
from airy_trio.app.back_ends import open_database, patiently
from airy_trio.database import SQLITE, Names, shown, sqlite_path
from airy_trio.errors import StartError, told_error
from airy_trio.log.memory import MemoryStore
from airy_trio.log.plugged import find_store
from airy_trio.log.sql import SqlStore
from airy_trio.log.store import EventStore, StaleAppend
from airy_trio.settings import Settings

logger = structlog.get_logger(__name__)

OWN_STORES: Final = {"redis": "airy_trio.log.redis_streams:open_store"}
"""Stores that need an extra, and where they are: only who names one must have it installed."""
APPEND_TIMEOUT: Final = {"idle_in_transaction_session_timeout": "1s"}


@frozen
class OpenedStore:
    """The event store, and where it is in words without a password."""

    store: EventStore
    words: str


@contextlib.asynccontextmanager
async def opened_store(
    settings: Settings, *, create: bool = True, starting: Starting | None = None
) -> AsyncIterator[OpenedStore]:
    """The event store that the settings name, for the length of a block: some have tasks of their own.

    ``create``: whether an SQLite file of our own is made where there is none. ``starting``: see ``patiently``.
    Raises ``StartError``.
    """
    match settings.log.store:
        case "memory":
            yield OpenedStore(MemoryStore(), f"the memory of process {os.getpid()}")
        case "sql":
            opened = await _sql_store(settings, create=create, starting=starting)
            try:
                yield opened
            finally:
                await opened.store.aclose()
        case name:
            url = settings.log.url
            # Where the URL of another package's store holds a secret is not known, so none of it is shown.
            words = shown(url) if name in OWN_STORES else name
            async with find_store(name, OWN_STORES)(url) as found:
                yield OpenedStore(found, words)


def is_shareable(settings: Settings) -> bool:
    """Whether the settings of another database could name the same event log by mistake.

    Not the default place, which is next to the application's tables, and not the memory of a process.
    """
    match settings.log.store:
        case "memory":
            return False
        case "sql":
            return bool(settings.log.url) and not migrate.log_is_here(settings)
        case _:
            return True


async def adopt_log(settings: Settings) -> str:
    """Begin a new epoch in the event store that the settings name, without a resume point; give the store in words.

    Then the log belongs to no database, and becomes that of the next server which starts on it. Raises ``StartError``,
    ``StoreUnavailable`` and ``SettingsError``.
    """
    if settings.log.store == "memory":
        raise StartError(['log.store: "memory" belongs to one process; there is nothing to take over'])
    try:
        async with opened_store(settings, create=False) as opened:
            head = (await opened.store.bounds()).head
            try:
                await opened.store.begin_epoch(head, None)
            except StaleAppend:
                raise StartError(["log: a server is recording into this event log; stop it first"]) from None
            return opened.words
    except BaseExceptionGroup as group:
        raise told_error(group) from None


async def _sql_store(settings: Settings, *, create: bool, starting: Starting | None) -> OpenedStore:
    options = settings.database
    url = settings.log.location(options.url)
    if url != options.url and sa.make_url(url).get_backend_name() == SQLITE and not sqlite_path(url).exists():
        if not create:
            raise StartError([f"log.url: the event log {sqlite_path(url)} does not exist (the server makes it)"])
        try:  # a file of our own: nobody's leave is needed
            await trio.to_thread.run_sync(migrate.migrate_log, url, options)
        except StartError as error:
            raise StartError(f"log.url: {fault.removeprefix('log.url: ')}" for fault in error.faults) from None
        logger.warning("event log created", file=str(sqlite_path(url)))
    reading = open_database(url, options)
    names = Names.of(url, options.schema)

    def check(connection: sa.Connection) -> None:
        faults = list(migrate.encoding_faults(connection, settings))
        faults += [f"log: {fault}" for fault in migrate.pending(connection, "log", options)]
        if faults:
            raise StartError(faults)
        newer = migrate.ahead(connection, "log", options)
        if newer is not None:
            logger.info("working with the schema of a newer version", log=newer)

    try:
        await patiently(lambda: reading.run(check), options, "log.url", starting)
    except BaseException:
        await reading.aclose()
        raise
    direct_url = options.direct_url if url == options.url and options.direct_url else url
    appending = open_database(direct_url, options, settings=APPEND_TIMEOUT)
    return OpenedStore(SqlStore(reading, appending, names), shown(url))
