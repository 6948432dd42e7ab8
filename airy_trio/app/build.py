"""The parts of one server, chosen by its settings. ``server`` runs them. No other module of it names back ends."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Literal, TypeVar

import sqlalchemy as sa
import structlog
import trio
from attrs import asdict, frozen

from airy_trio import __version__, migrate
from airy_trio.admin.endpoints import ClientEndpoint, Sources, node_of
from airy_trio.admin.readiness import TRIGGERS_TIMEOUT_S, Readiness, Starting
from airy_trio.auth.authenticator import Authenticator
from airy_trio.capture import triggers
from airy_trio.capture.change_log import ChangeLog, LoggedChanges
from airy_trio.capture.feed import CANNOT_SEE, ChangeFeed, Lease
from airy_trio.capture.inspection import inspect
from airy_trio.capture.lease import SESSION_TIMEOUTS, FileLease, LogLease, OwnLease, PostgresLease
from airy_trio.capture.mapping import KINDS, Tables
from airy_trio.capture.polling import UpdatedAtFeed
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.capture.postgres_triggers import Partitions
from airy_trio.capture.sqlite import SqliteFeed
from airy_trio.database import (
    POSTGRES,
    READER_BUSY_TIMEOUT_S,
    SQLITE,
    Database,
    DatabaseOptions,
    DatabaseRefused,
    DedicatedConnection,
    Names,
    dialect_of,
    postgres_engine,
    sqlite_engine,
    sqlite_path,
)
from airy_trio.errors import MappingError, StartError, Unavailable, single_error
from airy_trio.events.models import MessageUpdated, MetadataUpdated
from airy_trio.log.current import TYPE_OF, StateOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import find_store
from airy_trio.log.recorder import Recorder, RecorderOptions, Retention
from airy_trio.log.sql import PostgresStore, SqliteStore, sql_store
from airy_trio.log.store import EventStore, StaleAppend, StoreUnavailable
from airy_trio.sessions.conversation import Services
from airy_trio.sessions.session import Sessions
from airy_trio.settings import Settings
from airy_trio.websocket.admission import Console
from airy_trio.websocket.tls import Encryption

logger = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_PAUSE_S: Final = 0.2
"""Between two attempts to reach a database or store at start."""
SHAPE_DIGITS: Final = 16
"""Hexadecimal digits of the digest of a mapping."""
LOG_TIMEOUTS: Final = {"idle_in_transaction_session_timeout": "1s", "idle_session_timeout": "0"}
"""Settings of the sessions of the event log. The one that listens sends nothing, however long it waits."""


@frozen(kw_only=True)
class BackEnds:
    """Feed and lease, opened. ``faults`` checks the database again."""

    feed: ChangeFeed
    lease: Lease
    faults: Callable[[], Awaitable[Sequence[str]]]


@contextlib.asynccontextmanager
async def open_back_ends(settings: Settings, starting: Starting, epoch: Callable[[], str]) -> AsyncIterator[BackEnds]:
    """Check the database, and open the feed and the lease that the settings choose, for the length of a block.

    ``epoch`` returns the epoch of the event log. It is called only when the lease is acquired, so the log may be opened
    later. At the end of the block the lease is released and all connections are closed, each with its own deadline,
    also in a cancelled scope.
    """
    options, reads_only = settings.database, settings.changes.reads_only
    names = Names.of(options.url, options.schema)
    checks = TableChecks(settings)
    # The last one opened is closed first: the lease is released while the connection that it may share with the feed is
    # open. Not an `async with`, because its end would not be shielded.
    closing = contextlib.AsyncExitStack()
    try:
        if names.dialect == SQLITE:
            migrate.require_file(sqlite_path(options.url))
        database = open_database(options.session_url, options, read_only=reads_only)
        closing.push_async_callback(database.aclose)
        tables = await wait_until_available(
            lambda: database.run(checks.require_tables), options, "database.url", starting
        )
        feed: UpdatedAtFeed | SqliteFeed | PostgresFeed
        if reads_only:
            feed, lease = _feed_by_updated_at(settings, names, tables, epoch)
        else:
            feed, lease = _feed(settings, database, names, tables)
        closing.push_async_callback(feed.aclose)
        closing.push_async_callback(lease.release)
        if reads_only:
            logger.warning("capture by updated_at", overlap_s=settings.changes.overlap_s, cannot_see=CANNOT_SEE)
        else:
            logger.info("change log", rows=await database.run(ChangeLog(names).count))
        yield BackEnds(feed=feed, lease=lease, faults=lambda: database.run(checks.faults))
    finally:
        with trio.CancelScope(shield=True):
            await closing.aclose()


class TableChecks:
    """Checks the mapped tables, and our tables and triggers in their database, at the start and later."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._partitions = Partitions(deletes=settings.logs_deletes)

    def require_tables(self, connection: sa.Connection) -> Tables:
        """Return the mapped tables. Raises ``StartError`` with all faults of mapping, migrations and triggers."""
        tables = self.inspect(connection)
        if self._settings.changes.reads_only:
            return tables
        schema, faults = self.installed(connection, tables)
        if faults:
            raise StartError(faults)
        if schema.newer is not None:
            logger.info("working with the schema of a newer version", database=schema.newer)
        self._partitions.check(connection, tables)
        return tables

    def faults(self, connection: sa.Connection) -> Sequence[str]:
        """Return what is wrong by now: the application or a migration may have changed something.

        Partitions that were attached or detached are logged.
        """
        if connection.dialect.name == POSTGRES:
            # The caller gives up after this time. Without the limit, each check would keep its connection for as long
            # as the application has a table locked.
            connection.exec_driver_sql(f"set local lock_timeout = {round(TRIGGERS_TIMEOUT_S * 1000)}")
        try:
            tables = self.inspect(connection)
        except MappingError as error:
            return error.faults
        if self._settings.changes.reads_only:
            return ()
        self._partitions.check(connection, tables)
        _, faults = self.installed(connection, tables)
        return faults

    def inspect(self, connection: sa.Connection) -> Tables:
        """Return the mapped tables. Raises ``MappingError``."""
        here, reads_only = self._settings.log_is_here, self._settings.changes.reads_only
        return inspect(connection, self._settings.tables, watermarks=reads_only, holds_log=here)

    def installed(self, connection: sa.Connection, tables: Tables) -> tuple[migrate.Schema, list[str]]:
        """Return the schema of our tables, and faults: of the schema, or else of the triggers on ``tables``."""
        options, deletes = self._settings.database, self._settings.logs_deletes
        names = Names.of(options.url, options.schema)
        find = partial(triggers.faults, connection, tables, names, deletes=deletes)
        schema = migrate.schema_of(connection, "changes", options)
        if schema.faults:
            return schema, [f"database: {fault}" for fault in schema.faults]
        faults = list(find(newer_schema=schema.newer is not None))
        if faults and schema.newer is None:
            # A newer version may have migrated between the reads of the schema and of the triggers.
            schema = migrate.schema_of(connection, "changes", options)
            if schema.newer is not None:
                faults = list(find(newer_schema=True))
        return schema, faults


def _feed(
    settings: Settings, database: Database, names: Names, tables: Tables
) -> tuple[SqliteFeed | PostgresFeed, Lease]:
    options, reading = settings.database, _reading_connection(settings)
    text_chars_max = settings.listener.message_bytes_max  # longer text does not fit into an event either
    # On Postgres, changes and events are in one commit if they are in one database.
    seals = _may_lose_events(settings) if names.dialect == SQLITE else not settings.log_is_here
    changes = LoggedChanges(reading, database, names, tables, text_chars_max, seals=seals)
    if names.dialect == POSTGRES:
        return PostgresFeed(changes), PostgresLease(reading, names)

    def newer_schema(connection: sa.Connection) -> bool:
        """Return whether a newer version made the schema. Raises ``StartError`` if this version cannot use it."""
        schema = migrate.schema_of(connection, "changes", options)
        if schema.faults:
            raise StartError(schema.faults)
        return schema.newer is not None

    return SqliteFeed(changes, newer_schema), FileLease(sqlite_path(options.url), names.schema)


def _may_lose_events(settings: Settings) -> bool:
    """Return whether an event log may lose its newest events while the server runs, or between two starts.

    Our SQLite file does not, because it is synchronous. A store in memory does not outlive the process.
    """
    if settings.log.store == "sql":
        return dialect_of(settings.log_url) != SQLITE
    return settings.log.store != "memory"


def _feed_by_updated_at(
    settings: Settings, names: Names, tables: Tables, epoch: Callable[[], str]
) -> tuple[UpdatedAtFeed, Lease]:
    """Make feed and lease without writing to the database. The lease belongs to the log, next to its file if any."""
    log, reading = settings.log, _reading_connection(settings)
    path = sqlite_path(settings.database.url) if names.dialect == SQLITE else None
    feed = UpdatedAtFeed(
        reading,
        names.dialect,
        tables,
        overlap_s=settings.changes.overlap_s,
        text_chars_max=settings.listener.message_bytes_max,
        from_the_beginning=frozenset(kind for kind in KINDS if TYPE_OF[kind] in log.keep_current),
    )
    if log.store == "memory":
        return feed, OwnLease()
    if log.store == "sql" and dialect_of(settings.log_url) == SQLITE:
        path = sqlite_path(settings.log_url)
    if path is None:
        return feed, LogLease(reading, epoch)
    # Only a log in SQL has tables for each schema; all other servers of this database share one log.
    lease = FileLease(path, names.schema) if log.store == "sql" else FileLease(path)
    return feed, lease


def _reading_connection(settings: Settings) -> DedicatedConnection:
    """Make the connection on which the recorder reads changes. A lease on Postgres uses it too."""
    options = settings.database
    if dialect_of(options.url) == SQLITE:
        mode: Literal["ro", "rw"] = "ro" if settings.changes.reads_only else "rw"
        path = sqlite_path(options.url)
        return DedicatedConnection(sqlite_engine(path, mode=mode, busy_timeout_s=READER_BUSY_TIMEOUT_S, lenient=True))
    engine = postgres_engine(
        options.session_url, connect_timeout_s=options.connect_timeout_s, settings=SESSION_TIMEOUTS
    )
    return DedicatedConnection(engine.execution_options(isolation_level="REPEATABLE READ"))


def open_database(
    url: str, options: DatabaseOptions, *, settings: dict[str, str] | None = None, read_only: bool = False
) -> Database:
    """Open a database with its own connections; the caller closes it.

    ``settings``: Postgres' run-time parameters for each connection. ``read_only``: open an SQLite file read-only.
    """
    if dialect_of(url) == POSTGRES:
        # A second URL means that the first one leads through a pooler.
        pooled = bool(options.direct_url) and url == options.url
        return Database(
            postgres_engine(url, connect_timeout_s=options.connect_timeout_s, settings=settings, pooled=pooled)
        )
    return Database(sqlite_engine(sqlite_path(url), mode="ro" if read_only else "rw"))


async def wait_until_available(
    attempt: Callable[[], Awaitable[T]], options: DatabaseOptions, setting: str, starting: Starting | None = None
) -> T:
    """Retry for ``connect_timeout_s``, then raise ``StartError``: the database may be starting too.

    A refusal is raised at once. ``starting`` reports what is waited for. A single attempt is not timed out, because it
    may wait for a lock.
    """
    starting = Starting() if starting is None else starting
    give_up_at = trio.current_time() + options.connect_timeout_s
    with starting.waiting_for(_place_of(setting)):
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                # An attempt may use both the database and the event store.
                store = isinstance(error, StoreUnavailable)
                starting.failed(str(error), _place_of("log.url" if store else setting))
                if trio.current_time() >= give_up_at:
                    unavailable = "log.url: the event store" if store else f"{setting}: the database"
                    raise StartError([f"{unavailable} cannot be used: {error}"]) from None
                await trio.sleep(RETRY_PAUSE_S)
            except DatabaseRefused as error:
                raise StartError([f"{setting}: the database cannot be used: {error}"]) from None


def _place_of(setting: str) -> str:
    return f"the {'event store' if setting == 'log.url' else 'database'} ({setting})"


@contextlib.asynccontextmanager
async def opened_store(
    settings: Settings, *, create: bool = True, starting: Starting | None = None
) -> AsyncIterator[EventStore]:
    """Open the event store of the settings for the length of a block. Some stores run tasks in it.

    ``create``: whether to create our SQLite file if it is missing. ``starting``: see ``wait_until_available``. Raises
    ``StartError``.
    """
    match settings.log.store:
        case "memory":
            yield MemoryStore()
        case "sql":
            async with _opened_sql_store(settings, create=create, starting=starting) as sql:
                yield sql
        case name:
            try:
                async with find_store(name)(settings.log.url) as found:
                    yield found
            except BaseExceptionGroup as group:
                raise single_error(group) from None


async def adopt_log(settings: Settings) -> None:
    """Begin a new epoch in the event store of the settings, without a resume point.

    The log then belongs to no database, until the next server starts on it. Raises ``StartError``,
    ``StoreUnavailable`` and ``SettingsError``.
    """
    if settings.log.store == "memory":
        raise StartError(['log.store: "memory" belongs to one process; there is nothing to take over'])
    async with opened_store(settings, create=False) as store:
        head = (await wait_until_available(store.bounds, settings.database, "log.url")).head
        try:
            await store.begin_epoch(head, None)
        except StaleAppend:
            raise StartError(["log: a server is recording into this event log; stop it first"]) from None


@contextlib.asynccontextmanager
async def _opened_sql_store(
    settings: Settings, *, create: bool, starting: Starting | None
) -> AsyncIterator[PostgresStore | SqliteStore]:
    options = settings.database
    url = settings.log_url
    if url != options.url and dialect_of(url) == SQLITE and not sqlite_path(url).exists():
        if not create:
            raise StartError([f"log.url: the event log {sqlite_path(url)} does not exist (the server creates it)"])
        try:  # our own file: it needs no permission of an administrator
            await trio.to_thread.run_sync(migrate.migrate_log, url, options)
        except StartError as error:
            raise StartError(f"log.url: {fault.removeprefix('log.url: ')}" for fault in error.faults) from None
        logger.warning("event log created", file=str(sqlite_path(url)))

    def check(connection: sa.Connection) -> None:
        schema = migrate.schema_of(connection, "log", options)
        faults = list(migrate.encoding_faults(connection, settings))
        faults += (f"log: {fault}" for fault in schema.faults)
        if faults:
            raise StartError(faults)
        if schema.newer is not None:
            logger.info("working with the schema of a newer version", log=schema.newer)

    reading = open_database(url, options)
    # Notifications, and settings of a session, do not work through a pooler.
    direct_url = options.session_url if url == options.url else url
    appending = open_database(direct_url, options, settings=LOG_TIMEOUTS)
    async with contextlib.aclosing(sql_store(reading, appending, Names.of(url, options.schema))) as store:
        await wait_until_available(lambda: reading.run(check), options, "log.url", starting)
        yield store


def _state_options(settings: Settings) -> StateOptions:
    """Return what is kept of the mapped tables. A table that is not mapped has no objects."""
    mapped = {TYPE_OF[kind]: table for kind, table in settings.tables.mapped.items()}
    kept = frozenset(settings.log.keep_current) & mapped.keys()
    shaping = kept
    if MetadataUpdated.type in kept:  # metadata has its conversation and channel from the messages
        shaping |= {MessageUpdated.type} & mapped.keys()
    shape = json.dumps({type_: asdict(mapped[type_]) for type_ in sorted(shaping)}, sort_keys=True, default=str)
    return StateOptions(
        types=frozenset(mapped), kept=kept, shape=hashlib.sha256(shape.encode()).hexdigest()[:SHAPE_DIGITS]
    )


@frozen(kw_only=True)
class Parts(Sources):
    """The long-lived objects of one server. ``serves``: whether it serves clients or only records."""

    encryption: Encryption | None
    serves: bool


def make_parts(  # noqa: PLR0913 - everything that was opened before
    settings: Settings,
    back_ends: BackEnds,
    store: EventStore,
    authenticator: Authenticator,
    encryption: Encryption | None,
    *,
    worker: int,
) -> Parts:
    """Make the parts of a worker, by its number. Nothing is opened or started here."""
    log = EventLog(store, settings.log)
    recorder_worker = settings.listener.recorder
    options = RecorderOptions(
        batch_rows_max=settings.changes.batch_rows_max,
        body_bytes_max=settings.listener.message_bytes_max,
        events=settings.events,
        store=settings.log_words,
        shareable=settings.log_is_shareable,
        standby=recorder_worker is not None and worker != recorder_worker,
        state=_state_options(settings),
    )
    recorder = Recorder(back_ends.feed, back_ends.lease, log, options)
    watched = "mapping" if settings.changes.reads_only else "triggers"
    readiness = Readiness(recorder, log, back_ends.faults, watched=watched, lag_max_s=settings.admin.lag_max_s)
    ports = settings.admin.ports(settings.listener.processes)
    return Parts(
        log=log,
        recorder=recorder,
        retention=Retention(store, back_ends.feed, recorder, settings.log),
        sessions=Sessions(
            Services(log, settings.listener, settings.replay, authenticator, server=f"airy-trio/{__version__}"),
            Console(settings.admin.host, ports),
        ),
        readiness=readiness,
        endpoint=ClientEndpoint(
            settings.admin.websocket_url,
            token=settings.auth.mode != "none" and not settings.auth.cookie,  # a browser sends a cookie by itself
        ),
        node=node_of(worker, ports, settings.admin.others),
        encryption=encryption,
        serves=worker != recorder_worker,
    )
