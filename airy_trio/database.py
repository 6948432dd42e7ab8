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
from typing import Final, Literal, Self, TypeVar
from urllib.parse import quote

import psycopg
import sqlalchemy as sa
import trio
from attrs import field, frozen
from psycopg.abc import Buffer
from psycopg.types.string import TextLoader
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.options import matching, more_than

T = TypeVar("T")

POSTGRES: Final = "postgresql"
SQLITE: Final = "sqlite"

THREADS_MAX = 8  # units of work of one pool under way at once; a unit has a connection of its own
SQLITE_BUSY_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
LOCK_CLASS = 0x41697279  # "Airy": the first half of every advisory lock that is ours
_ANSWERS = (SQLAlchemyError, psycopg.Error, sqlite3.Error)  # a unit may also speak to the driver itself
_POSTGRES_HEALS = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
_SQLITE_HEALS = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA,
})  # fmt: skip
_SQLITE_HEALS_TOO = frozenset({  # the file is moved, or its shared memory is being set up or recovered by another
    sqlite3.SQLITE_READONLY_RECOVERY, sqlite3.SQLITE_READONLY_CANTLOCK, sqlite3.SQLITE_READONLY_ROLLBACK,
    sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_READONLY_CANTINIT,
})  # fmt: skip
_PLAIN_SESSION = {"timezone": "UTC", "datestyle": "ISO, MDY", "intervalstyle": "iso_8601", "bytea_output": "hex"}


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

    def trigger(self, kind: str, event: str) -> str:
        """The name of a trigger of ours on a table of the application's."""
        return f"{self.schema}_{kind}_{event}"

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


def shown(url: str) -> str:
    """A database URL for a person: without password, and without options, where libpq takes a password too."""
    return sa.make_url(url).set(query={}).render_as_string(hide_password=True)


def sqlite_path(url: str) -> Path:
    """The file of an SQLite URL; a relative path is relative to the working directory."""
    return Path(sa.make_url(url).database or "").absolute()


def postgres_engine(
    url: str, *, connect_timeout_s: float, settings: dict[str, str] | None = None, pooled: bool = False
) -> sa.Engine:
    """Make an engine for Postgres. ``settings`` are SET on every new connection (a pooler refuses start-up options).

    ``pooled``: a pooler may stand between, so nothing may be prepared on the server. Text is UTF-8 whatever encoding
    the database has; of a database without one (``SQL_ASCII``) text that is not UTF-8 comes as bytes.
    """
    arguments: dict[str, object] = {
        "connect_timeout": max(2, round(connect_timeout_s)),  # libpq takes whole seconds, from 2
        "application_name": "airy-trio",
        "client_encoding": "utf8",
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
    wanted = _PLAIN_SESSION | (settings or {})

    @event.listens_for(engine, "connect")
    def prepare(connection: psycopg.Connection, _record: object) -> None:
        calls = ", ".join("set_config(%s, %s, false)" for _ in wanted)
        connection.execute(f"select {calls}", [text for item in wanted.items() for text in item])
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            connection.execute("set client_encoding = sql_ascii")  # else the server refuses what is not UTF-8
            for name in ("text", "varchar", "bpchar", "name", '"char"'):
                connection.adapters.register_loader(name, _TextOrBytesLoader)
        connection.commit()

    return engine


def sqlite_engine(
    path: Path,
    *,
    mode: Literal["ro", "rw", "rwc"] = "rw",
    busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S,
    lenient: bool = False,
) -> sa.Engine:
    """Make an engine for an SQLite file. ``mode``: SQLite's; only ``rwc`` creates it, ``ro`` writes nothing.

    Transactions are begun by us (``BEGIN``, or ``BEGIN IMMEDIATE`` under the execution option ``immediate``), so that
    DDL is part of them: the driver's own mode leaves half a migration behind (findings on the data layer, 8).
    ``lenient``: text that is not UTF-8 comes as bytes instead of failing the whole result.
    """
    uri = f"file:{quote(str(path))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = FULL")  # the default of most builds, and what durability rests on
        if lenient:
            connection.text_factory = _text_or_bytes
        return connection

    engine = sa.create_engine(
        sa.URL.create(SQLITE, database=str(path)),
        creator=connect,
        hide_parameters=True,
        poolclass=sa.pool.QueuePool,
        pool_size=THREADS_MAX,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


class Database:
    """A pool of connections, worked with from threads. One unit of work: one hop, one transaction.

    Cancellation is heard at once. A unit that is under way then goes on in its thread to its end, which nobody hears
    of: it may commit.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._closings = 0

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit of work in a transaction that commits if it returns.

        Raises ``DatabaseUnavailable`` or ``DatabaseRefused``; what the unit itself raises goes through.
        """
        return await self._run_in_thread(work, immediate=False)

    def run_sync(self, work: Callable[[sa.Connection], T], *, immediate: bool = False) -> T:
        """Run a unit of work in the calling thread. ``immediate``: an SQLite transaction that writes from its start."""
        try:
            with self.engine.connect() as connection:
                if immediate:
                    connection = connection.execution_options(immediate=True)  # noqa: PLW2901 - the same connection
                with connection.begin():
                    return work(connection)
        except _ANSWERS as error:
            raise translated(error) from None

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit of work that writes. Raises what ``run`` does."""
        return await self._run_in_thread(work, immediate=True)

    async def aclose(self) -> None:
        """Close the pool's connections; those in use close when they are given back. It can be used again."""
        self._closings += 1
        await trio.to_thread.run_sync(self.engine.dispose, abandon_on_cancel=True)

    async def _run_in_thread(self, work: Callable[[sa.Connection], T], *, immediate: bool) -> T:
        closings, pool = self._closings, self.engine.pool

        def unit() -> T:
            try:
                return self.run_sync(work, immediate=immediate)
            finally:
                if self._closings != closings:  # meanwhile: nobody else closes what was given back just now
                    pool.dispose()
                    self.engine.dispose()

        return await trio.to_thread.run_sync(unit, abandon_on_cancel=True, limiter=self._limiter)


class Session:
    """One connection that stays open, for what belongs to a connection: a lock, a lease, SQLite's data version.

    ``generation`` grows whenever the connection is opened or closed: whoever took something in an older one has lost
    it. Cancellation is heard as by ``Database``; the next unit waits for one that is still under way.
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
        return await trio.to_thread.run_sync(
            self._run, work, transaction, abandon_on_cancel=True, limiter=self._limiter
        )

    async def aclose(self) -> None:
        """Close the connection, which lets go of what belongs to it. Idempotent.

        A unit that is still under way is waited for, at most ``CLOSE_TIMEOUT_S``.
        """
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await trio.to_thread.run_sync(self._drop, abandon_on_cancel=True, limiter=self._limiter)

    def _run(self, work: Callable[[sa.Connection], T], transaction: bool) -> T:  # noqa: FBT001 - passed on by position
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                self.generation += 1
            with self._connection.begin() if transaction else nullcontext():
                return work(self._connection)
        except _ANSWERS as error:
            self._drop()
            raise translated(error) from None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self.generation += 1
            connection.invalidate()
            connection.close()


def translated(error: Exception) -> Exception:
    """Tell an error of SQLAlchemy or of a driver in our own terms, without parameters.

    What is neither an answer of the database nor its absence is a mistake of ours, and is given back as it is.
    """
    match error:
        case sa.exc.TimeoutError():
            return DatabaseUnavailable("TimeoutError: all connections are in use")
        case DBAPIError():
            driver, cut_off = error.orig, error.connection_invalidated
        case _:
            driver, cut_off = error, False
    match driver:
        case psycopg.Error():
            heals = cut_off or isinstance(driver, _POSTGRES_HEALS)
        case sqlite3.Error():
            code = getattr(driver, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            heals = code & 0xFF in _SQLITE_HEALS or code in _SQLITE_HEALS_TOO
        case _:
            return error
    kind = DatabaseUnavailable if heals else DatabaseRefused
    return kind(_primary_message(driver), getattr(driver, "sqlstate", None))


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


class _TextOrBytesLoader(TextLoader):
    def load(self, data: Buffer) -> str | bytes:
        return _text_or_bytes(bytes(data))
