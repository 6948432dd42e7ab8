"""The server put together: back ends chosen, started in order, and the whole nursery tree in one function.

::

    serve()
      connections                  outer: sessions and their send tasks, with a deadline at shutdown
      intake                       inner: recorder, tail of the store, retention, fan-out, wheel, accept loop;
                                   admin port; cancelled first at shutdown, and whatever breaks in it ends the
                                   server loudly

The only module that names a back end.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
import trio
from attrs import field, frozen

from airy_trio import __version__, migrate
from airy_trio.admin import server as admin
from airy_trio.admin.endpoints import application
from airy_trio.admin.metrics import Sources, registry
from airy_trio.admin.readiness import Readiness
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
    shown,
    sqlite_engine,
    sqlite_path,
)
from airy_trio.errors import AiryTrioError, MappingError, StartError, Unavailable
from airy_trio.log.eventlog import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.plugged import find_store
from airy_trio.log.recorder import Recorder, RecorderOptions
from airy_trio.log.retention import Retention
from airy_trio.log.sql import SqlStore
from airy_trio.log.store import EventStore
from airy_trio.settings import Settings
from airy_trio.websocket.auth import Authenticator
from airy_trio.websocket.farewells import INTERNAL
from airy_trio.websocket.listener import accept, open_listening_socket
from airy_trio.websocket.session import Sessions

logger = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_PAUSE_S: Final = 0.2
CLOSE_TIMEOUT_S: Final = 5.0
OWN_STORES: Final = {"redis": "airy_trio.log.redis_streams:open_store"}
"""Stores that need an extra, and where they are: only who names one must have it installed."""
APPEND_TIMEOUT: Final = {"idle_in_transaction_session_timeout": "1s"}


@frozen(kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The WebSocket URL for a client on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}{self.path}"


@frozen(kw_only=True)
class BackEnds:
    """What the settings have chosen beside the application's tables, opened."""

    feed: ChangeFeed
    lease: Lease
    trigger_faults: Callable[[], Awaitable[Sequence[str]]]
    closing: contextlib.AsyncExitStack = field(factory=contextlib.AsyncExitStack)


@frozen
class OpenedStore:
    """The event store, and where it is in words without a password."""

    store: EventStore
    words: str


async def run(settings: Settings, companion: Callable[[Address], Awaitable[None]] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then end in order; a second signal, or one during the start, ends at once.

    ``companion`` runs beside the server once that listens; the server ends with it. Raises ``AiryTrioError`` where the
    server cannot start or cannot go on.
    """
    stopping, company = trio.Event(), trio.CancelScope()
    listening = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with trio.open_nursery() as signalled:

                async def stop_when_told() -> None:
                    async for number in signals:
                        logger.info("stopping", signal=signal.Signals(number).name)
                        if stopping.is_set() or not listening:
                            signalled.cancel_scope.cancel()
                        stopping.set()
                        company.cancel()

                signalled.start_soon(stop_when_told)
                async with trio.open_nursery() as serving:
                    address = await serving.start(partial(serve, settings, stopping=stopping))
                    listening = True
                    if companion is not None:
                        with company:
                            await companion(address)
                        stopping.set()
                signalled.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _plain(group) from None


async def serve(  # noqa: ASYNC128 - _serve says that it has started
    settings: Settings,
    *,
    stopping: trio.Event | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the server: ``await nursery.start(serve, settings)`` gives its ``Address`` once it listens.

    Setting ``stopping`` ends it in order: clients are told and get ``drain_s``. Cancelling ends it at once.

    Resource handling: everything that it opened is closed on return. Raises ``AiryTrioError`` where it cannot start or
    cannot go on.
    """
    if settings.database.migrate:
        await trio.to_thread.run_sync(migrate.migrate, settings)
    back_ends = await _open(settings)
    try:
        async with _opened_store(settings) as opened:
            parts = _parts(settings, back_ends, opened)
            await _serve(settings, parts, trio.Event() if stopping is None else stopping, task_status)
    except BaseExceptionGroup as group:
        raise _plain(group) from None
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await back_ends.closing.aclose()


@frozen(kw_only=True)
class _Parts:
    """The long-lived objects of one server."""

    log: EventLog
    recorder: Recorder
    retention: Retention
    sessions: Sessions
    readiness: Readiness


def _parts(settings: Settings, back_ends: BackEnds, opened: OpenedStore) -> _Parts:
    log = EventLog(opened.store, settings.log)
    options = RecorderOptions(
        batch_rows_max=settings.changes.batch_rows_max,
        body_bytes_max=settings.listener.message_bytes_max,
        events=settings.events,
        store=opened.words,
    )
    recorder = Recorder(back_ends.feed, back_ends.lease, log, options)
    authenticator = Authenticator(settings.auth)
    return _Parts(
        log=log,
        recorder=recorder,
        retention=Retention(opened.store, back_ends.feed, recorder, settings.log),
        sessions=Sessions(log, settings.listener, settings.replay, authenticator, server=f"airy-trio/{__version__}"),
        readiness=Readiness(recorder, log, back_ends.trigger_faults, lag_max_s=settings.admin.lag_max_s),
    )


async def _serve(settings: Settings, parts: _Parts, stopping: trio.Event, status: trio.TaskStatus[Address]) -> None:
    log, recorder, sessions, readiness = parts.log, parts.recorder, parts.sessions, parts.readiness
    figures = registry(
        Sources(
            sessions=sessions,
            log=log,
            recorder=recorder,
            retention=parts.retention,
            conditions=readiness.conditions,
        )
    )
    await _patiently(log.open, settings.database, "log.url")
    with contextlib.ExitStack() as sockets:
        broken: ExceptionGroup[Exception] | None = None
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as intake:
                    await intake.start(recorder.run)
                    intake.start_soon(log.follow)
                    intake.start_soon(parts.retention.run)
                    intake.start_soon(sessions.fan_out)
                    intake.start_soon(sessions.wheel.turn)
                    intake.start_soon(readiness.run)
                    pages = application(readiness.conditions, figures)
                    intake.start_soon(admin.serve, await admin.open_listeners(settings.admin), pages)
                    listening = sockets.enter_context(await open_listening_socket(settings.listener))
                    intake.start_soon(accept, listening, sessions, connections)
                    host, port = listening.getsockname()[:2]
                    address = Address(host=host, port=port, path=settings.listener.path)
                    logger.info("listening", host=host, port=port, path=address.path, version=__version__)
                    status.started(address)
                    await stopping.wait()
                    intake.cancel_scope.cancel()
            except ExceptionGroup as group:
                broken = group
            if broken is not None:  # a server that reads no changes must not look like a quiet one
                await sessions.dismiss_all(0, INTERNAL)
                raise broken
            await sessions.dismiss_all(settings.listener.drain_s)
            connections.cancel_scope.cancel()
    logger.info("stopped", **recorder.statistics())


async def _open(settings: Settings) -> BackEnds:
    """Choose and open feed, lease and store, having checked that everything they need is there."""
    options = settings.database
    dialect = sa.make_url(options.url).get_backend_name()
    names = Names(dialect, options.schema)
    closing = contextlib.AsyncExitStack()
    try:
        if dialect == SQLITE:
            migrate.require_file(sqlite_path(options.url))
        database = _database(options.direct_url or options.url, options)
        closing.push_async_callback(database.aclose)
        tables = await _patiently(
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
    if names.dialect == SQLITE:
        path = sqlite_path(options.url)
        reading = Session(sqlite_engine(path, lenient=True))
        real = path.resolve()  # whoever comes by a symbolic link must meet the same lock
        lock = real.with_name(f"{real.name}.airy-trio.lock")
        return SqliteFeed(reading, database, names, tables), FileLease(lock)
    engine = postgres_engine(
        options.direct_url or options.url,
        connect_timeout_s=options.connect_timeout_s,
        settings=SESSION_TIMEOUTS,
    )
    reading = Session(engine.execution_options(isolation_level="REPEATABLE READ"))
    return PostgresFeed(reading, database, names, tables), PostgresLease(reading, names)


@contextlib.asynccontextmanager
async def _opened_store(settings: Settings) -> AsyncIterator[OpenedStore]:
    """The event store that the settings name, for the length of a block: some have tasks of their own."""
    match settings.log.store:
        case "memory":
            yield OpenedStore(MemoryStore(), f"the memory of process {os.getpid()}")
        case "sql":
            opened = await _sql_store(settings)
            try:
                yield opened
            finally:
                with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await opened.store.aclose()
        case name:
            url = settings.log.url
            words = shown(url) if url else name
            async with find_store(name, OWN_STORES)(url) as found:
                yield OpenedStore(found, words)


async def _sql_store(settings: Settings) -> OpenedStore:
    options = settings.database
    url = settings.log.location(options.url)
    if url != options.url and sa.make_url(url).get_backend_name() == SQLITE and not sqlite_path(url).exists():
        await trio.to_thread.run_sync(migrate.migrate_log, url, options)  # a file of our own: nobody's leave is needed
        logger.warning("event log created", file=str(sqlite_path(url)))
    reading = _database(url, options)
    names = Names.of(url, options.schema)

    def check(connection: sa.Connection) -> None:
        faults = list(migrate.pending(connection, "log", options))
        if faults:
            raise StartError([f"log: {fault}" for fault in faults])

    await _patiently(lambda: reading.run(check), options, "log.url")
    appending = _database(url, options, settings=APPEND_TIMEOUT)
    return OpenedStore(SqlStore(reading, appending, names), shown(url))


def _database(url: str, options: DatabaseOptions, *, settings: dict[str, str] | None = None) -> Database:
    if sa.make_url(url).get_backend_name() == POSTGRES:
        pooled = bool(options.direct_url) and url == options.url
        return Database(
            postgres_engine(url, connect_timeout_s=options.connect_timeout_s, settings=settings, pooled=pooled)
        )
    return Database(sqlite_engine(sqlite_path(url)))


async def _patiently(what: Callable[[], Awaitable[T]], options: DatabaseOptions, setting: str) -> T:
    """Try for ``connect_timeout_s``, then raise ``StartError``: a database may start at the same time as we do."""
    give_up_at = trio.current_time() + options.connect_timeout_s
    while True:
        try:
            return await what()
        except Unavailable as error:
            if trio.current_time() >= give_up_at:
                raise StartError([f"{setting}: the database cannot be used: {error}"]) from None
            await trio.sleep(RETRY_PAUSE_S)


def _plain(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error that a person is told, where the group holds only errors of ours; else the group."""
    ours, others = group.split(AiryTrioError)
    if ours is None or others is not None:
        return group
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
