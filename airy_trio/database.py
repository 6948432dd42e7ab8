"""Databases as the layers above use them: one thread hop per unit of SQL work, and errors told in plain words.

A unit of work is a plain synchronous function that takes a connection inside a transaction and returns plain values.
This module knows the two dialects, and refuses to know which tables there are.

Errors::

    DatabaseError             what the database answered: class, SQLSTATE and primary message, never parameters
    ├── DatabaseUnavailable   away, busy or cut off: waiting heals it
    └── DatabaseRefused       a missing table, a missing right: waiting does not heal it
"""

import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final, Self, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
import trio
from attrs import field, frozen
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.options import matching, more_than

T = TypeVar("T")

POSTGRES: Final = "postgresql"
SQLITE: Final = "sqlite"

THREADS_MAX = 8  # units of work of one pool under way at once; a unit has a connection of its own
SQLITE_BUSY_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
LOCK_CLASS = 0x41697279  # "Airy": the first half of every advisory lock that is ours
_GONE = ("no such table", "no such column", "has no column", "readonly database", "not a database")


@frozen(kw_only=True)
class DatabaseOptions:
    """The application's database (settings, ``[database]`` without its tables)."""

    url: str
    direct_url: str = ""
    schema: str = field(
        default="airy_trio",
        validator=matching(r"[a-z_][a-z0-9_]{0,40}", "a plain name: a-z, 0-9 and _, at most 41 characters"),
    )
    migrate: bool = False
    connect_timeout_s: float = field(default=5, validator=more_than(0))


class DatabaseError(AiryTrioError):
    """What the database answered, told without parameters; ``sqlstate`` where there is one."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(DatabaseError, Unavailable):
    """The database is away, busy, or has cut the connection."""


class DatabaseRefused(DatabaseError):
    """The database answers, and what was asked is not possible as things are."""


@frozen
class Names:
    """How our own tables are called: in our schema on Postgres, with a prefix on SQLite."""

    dialect: str
    schema: str

    @classmethod
    def of(cls, url: str, schema: str) -> Self:
        """The names in the database at a URL."""
        return cls(sa.make_url(url).get_backend_name(), schema)

    @property
    def table_schema(self) -> str | None:
        """The schema for SQLAlchemy's ``Table``: None on SQLite."""
        return self.schema if self.dialect == POSTGRES else None

    def bare(self, name: str) -> str:
        """The table's name without its schema."""
        return name if self.dialect == POSTGRES else f"{self.schema}_{name}"

    def quoted(self, name: str) -> str:
        """The name as it stands in SQL text."""
        if self.dialect == POSTGRES:
            return f"{quote_identifier(self.schema)}.{quote_identifier(name)}"
        return quote_identifier(self.bare(name))


def quote_identifier(name: str) -> str:
    """Quote a name for SQL text; both dialects double the quote."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Quote a text constant for SQL text, as both dialects read it."""
    return "'" + text.replace("'", "''") + "'"


def sqlite_path(url: str) -> Path:
    """The file of an SQLite URL; a relative path is relative to the working directory."""
    return Path(sa.make_url(url).database or "").absolute()


def postgres_engine(
    url: str, *, connect_timeout_s: float, settings: dict[str, str] | None = None, pooled: bool = False
) -> sa.Engine:
    """Make an engine for Postgres. ``settings`` are SET on every new connection (a pooler refuses start-up options).

    ``pooled``: a pooler may stand between, so nothing may be prepared on the server.
    """
    arguments: dict[str, object] = {
        "connect_timeout": max(2, round(connect_timeout_s)),  # libpq takes whole seconds, from 2
        "application_name": "airy-trio",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    if pooled:
        arguments["prepare_threshold"] = None
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        connect_args=arguments,
        hide_parameters=True,
        pool_size=THREADS_MAX,
        pool_pre_ping=True,
        pool_reset_on_return="rollback",
    )
    if settings:

        @event.listens_for(engine, "connect")
        def apply_settings(connection: sqlite3.Connection, _record: object) -> None:
            cursor = connection.cursor()
            for name, value in settings.items():
                cursor.execute("select set_config(%s, %s, false)", (name, value))
            connection.commit()
            cursor.close()

    return engine


def sqlite_engine(
    path: Path, *, create: bool = False, busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S, lenient: bool = False
) -> sa.Engine:
    """Make an engine for an SQLite file, which is only created where ``create`` says so.

    Transactions are begun by us (``BEGIN``, or ``BEGIN IMMEDIATE`` under the execution option ``immediate``), so that
    DDL is part of them: the driver's own mode leaves half a migration behind (findings on the data layer, 8).
    ``lenient``: text that is not UTF-8 comes as bytes instead of failing the whole result.
    """
    uri = f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        if lenient:
            connection.text_factory = _text_or_bytes
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, hide_parameters=True, poolclass=sa.pool.QueuePool)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


class Database:
    """A pool of connections, worked with from threads. One unit of work: one hop, one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._limiter = trio.CapacityLimiter(THREADS_MAX)

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit of work in a transaction that commits if it returns.

        Raises ``DatabaseUnavailable`` or ``DatabaseRefused``; what the unit itself raises goes through.
        """
        return await trio.to_thread.run_sync(self.run_sync, work, limiter=self._limiter)

    def run_sync(self, work: Callable[[sa.Connection], T], *, immediate: bool = False) -> T:
        """Run a unit of work in the calling thread. ``immediate``: an SQLite transaction that writes from its start."""
        try:
            with self.engine.connect() as connection:
                if immediate:
                    connection = connection.execution_options(immediate=True)  # noqa: PLW2901 - the same connection
                with connection.begin():
                    return work(connection)
        except SQLAlchemyError as error:
            raise translated(error) from None

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit of work that writes. Raises what ``run`` does."""
        return await trio.to_thread.run_sync(
            lambda: self.run_sync(work, immediate=True), limiter=self._limiter
        )

    async def aclose(self) -> None:
        """Close the pool's connections."""
        await trio.to_thread.run_sync(self.engine.dispose)


class Session:
    """One connection that stays open, for what belongs to a connection: a lock, a lease, SQLite's data version.

    ``generation`` grows with each new connection: whoever took something in an older one has lost it.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._limiter = trio.CapacityLimiter(1)
        self._connection: sa.Connection | None = None
        self.generation = 0

    async def run(self, work: Callable[[sa.Connection], T], *, transaction: bool = True) -> T:
        """Run a unit of work in a transaction of this connection, opening it first if need be.

        Without ``transaction`` the unit is meant for a single cheap question to the driver's own connection. Raises
        ``DatabaseUnavailable`` or ``DatabaseRefused``, after which the connection is closed.
        """
        return await trio.to_thread.run_sync(self._run, work, transaction, limiter=self._limiter)

    async def aclose(self) -> None:
        """Close the connection, which lets go of what belongs to it. Idempotent."""
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await trio.to_thread.run_sync(self._drop, limiter=self._limiter)

    def _run(self, work: Callable[[sa.Connection], T], transaction: bool) -> T:  # noqa: FBT001 - passed on by position
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                self.generation += 1
            with self._connection.begin() if transaction else nullcontext():
                return work(self._connection)
        except SQLAlchemyError as error:
            self._drop()
            raise translated(error) from None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


def translated(error: SQLAlchemyError) -> DatabaseError:
    """Tell an error of SQLAlchemy in our own terms, without parameters."""
    if isinstance(error, ArgumentError):
        return DatabaseRefused("the database URL cannot be read")
    if not isinstance(error, DBAPIError) or error.orig is None:
        return DatabaseUnavailable(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    sqlstate = getattr(error.orig, "sqlstate", None)
    message = _primary_message(error.orig)
    heals = error.connection_invalidated or isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.InternalError
    )
    if heals and not any(words in message for words in _GONE):
        return DatabaseUnavailable(message, sqlstate)
    return DatabaseRefused(message, sqlstate)


def _primary_message(error: BaseException) -> str:
    diagnostic = getattr(error, "diag", None)
    primary = getattr(diagnostic, "message_primary", None)
    sqlstate = getattr(error, "sqlstate", None)
    text = primary or " ".join(str(error).split()) or "no answer"
    return f"{type(error).__name__}{f' {sqlstate}' if sqlstate else ''}: {text}"


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
