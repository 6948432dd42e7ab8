"""Engines for the two dialects: how a connection is opened, and what is set on it before anybody uses it.

Connections that outlive a unit of work: opened in a thread, closed without going back to their pool, interrupted.

Closing has a budget for each thing that is closed, and takes place in a cancelled scope too. A unit of work that is
under way gets ``GRACE_S`` to end. After that its connection is interrupted from outside, because a server that does not
answer, or a lock, would keep our thread. The thread then gets an error, and closes the connection itself.
"""

import os
import socket
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote
from weakref import WeakSet

import psycopg
import sqlalchemy as sa
import trio
from psycopg.abc import Buffer
from psycopg.types.string import TextLoader
from sqlalchemy import event

from airy_trio.database.names import SQLITE
from airy_trio.database.postgres import ANSWER_TIMEOUT_POOLED_S, MonitoredConnection

GRACE_S: Final = 1.0
"""For units of work that are under way when their connection is closed, and again after they were interrupted."""

Driver = psycopg.Connection[object] | sqlite3.Connection


class OpenConnections:
    """The driver's connections of one engine, from before the first statement on, so that a thread can be freed."""

    def __init__(self) -> None:
        self._drivers: WeakSet[Driver] = WeakSet()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, engine: sa.Engine) -> "OpenConnections":
        """Return the connections of an engine that ``postgres_engine`` or ``sqlite_engine`` made."""
        found: OpenConnections = engine.get_execution_options()["open_connections"]
        return found

    def add(self, driver: Driver) -> None:
        """Note a connection that was just opened."""
        with self._lock:
            self._drivers.add(driver)

    def interrupt(self) -> None:
        """Make the statement that is under way fail in each of them. A connection to Postgres is lost then.

        SQLite ends a wait for a lock by its own time-out only.
        """
        with self._lock:
            drivers = list(self._drivers)
        for driver in drivers:
            with suppress(sqlite3.ProgrammingError, psycopg.Error, OSError):  # closed meanwhile
                if isinstance(driver, sqlite3.Connection):
                    driver.interrupt()
                else:
                    with socket.socket(fileno=os.dup(driver.fileno())) as same:
                        same.shutdown(socket.SHUT_RDWR)


async def close_in_time(close: Callable[[], Awaitable[object]], open_connections: OpenConnections) -> None:
    """Close, also in a cancelled scope; interrupt the connections if that takes long. Returns in any case.

    ``close`` must be cancellable, and may run twice.
    """
    with trio.CancelScope(shield=True):
        with trio.move_on_after(GRACE_S) as patience:
            await close()
        if patience.cancelled_caught:
            open_connections.interrupt()
            with trio.move_on_after(GRACE_S):
                await close()


async def close_all(*closings: Callable[[], Awaitable[object]]) -> None:
    """Close several things at the same time. Each of them has its own budget, and closes in a cancelled scope too."""
    async with trio.open_nursery() as nursery:
        for close in closings:
            nursery.start_soon(close)


async def connected(engine: sa.Engine, prepare: Callable[[sa.Connection], object] | None = None) -> sa.Connection:
    """Open a connection in a thread. Cancellation takes effect at once: what opens later is closed again.

    ``prepare``: runs with the connection first, in the thread; if it fails the connection is closed.
    """
    opened: list[sa.Connection] = []
    given_up = False
    either = threading.Lock()  # the thread or the cancellation, whichever comes second, closes it

    def unit() -> None:
        connection = engine.connect()
        try:
            if prepare is not None:
                prepare(connection)
        except BaseException:
            cut(connection)
            raise
        with either:
            opened.append(connection)
            unwanted = given_up
        if unwanted:
            cut(connection)

    try:
        await trio.to_thread.run_sync(unit, abandon_on_cancel=True)
    except trio.Cancelled:
        with either:
            given_up = True
            unwanted = list(opened)
        for connection in unwanted:
            cut(connection)
        raise
    return opened[0]


def cut(connection: sa.Connection) -> None:
    """Close a connection itself: in its pool it might be in the middle of something, or have what belongs to it."""
    connection.invalidate()
    connection.close()


APPLICATION_NAME: Final = "airy-trio"
THREADS_MAX: Final = 8  # units of work of one pool under way at once; a unit has a connection of its own
SQLITE_BUSY_TIMEOUT_S: Final = 5.0
READER_BUSY_TIMEOUT_S: Final = 1.0
"""Of the connection that reads changes: SQLite waits this long for a writer; a longer lock interrupts recording."""
ROW_SECURITY_OFF: Final = {"row_security": "off"}
"""Makes Postgres refuse a query from which a policy would hide rows: a hidden row would count as a deleted one."""
_PLAIN_SESSION = {
    "timezone": "UTC", "datestyle": "ISO, MDY", "intervalstyle": "iso_8601", "bytea_output": "hex", **ROW_SECURITY_OFF,
}  # fmt: skip


def postgres_engine(
    url: str, *, connect_timeout_s: float, settings: dict[str, str] | None = None, pooled: bool = False
) -> sa.Engine:
    """Make an engine for Postgres.

    ``settings`` hold on each connection, together with those that make values read alike on any server. Text is UTF-8
    whatever encoding the database has; of a database without one (``SQL_ASCII``) text that is not UTF-8 comes as bytes.

    ``pooled``: a pooler may lend the server's session to other programs between our transactions. So nothing is set
    or prepared for the session: ``settings`` are local to each transaction, and they are all that is set.
    """
    arguments: dict[str, object] = {
        "connect_timeout": max(2, round(connect_timeout_s)),  # libpq takes whole seconds, from 2
        "application_name": APPLICATION_NAME,
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
        execution_options={"open_connections": (opened := OpenConnections())},
    )
    event.listen(engine, "connect", lambda driver, _record: opened.add(driver), insert=True)  # before any statement

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, given: list[Any], options: dict[str, Any]) -> MonitoredConnection:
        made = MonitoredConnection.opened(*given, **options)
        if pooled:
            made.answer_timeout_s = ANSWER_TIMEOUT_POOLED_S
        return made

    if pooled:

        @event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            driver: Any = connection.connection.driver_connection
            _configure(driver, settings or {}, local=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: MonitoredConnection, _record: object) -> None:
        if _has_no_encoding(connection):
            for name in ("text", "varchar", "bpchar", "name", '"char"'):
                connection.adapters.register_loader(name, _TextOrBytesLoader)
        if not pooled:
            _configure(connection, _PLAIN_SESSION | (settings or {}), local=False)
            connection.look_for_pooler()  # in session mode, which needs no direct_url
            connection.commit()

    return engine


def _configure(connection: psycopg.Connection, settings: dict[str, str], *, local: bool) -> None:
    """Set what is wanted, for the session or only for the transaction that has begun (``local``)."""
    if _has_no_encoding(connection):
        settings = settings | {"client_encoding": "sql_ascii"}  # else the server refuses what is not UTF-8
    if settings:
        calls = ", ".join("set_config(%s, %s, %s)" for _ in settings)
        connection.execute(f"select {calls}", [argument for item in settings.items() for argument in (*item, local)])


def _has_no_encoding(connection: psycopg.Connection) -> bool:
    return connection.info.parameter_status("server_encoding") == "SQL_ASCII"


def sqlite_engine(
    path: Path,
    *,
    mode: Literal["ro", "rw", "rwc"] = "rw",
    busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S,
    lenient: bool = False,
) -> sa.Engine:
    """Make an engine for an SQLite file. ``mode``: SQLite's; only ``rwc`` creates it, ``ro`` writes nothing.

    Transactions are begun by us (``BEGIN``, or ``BEGIN IMMEDIATE`` under the execution option ``immediate``), so that
    DDL is part of them: the driver's own mode leaves half a migration behind.
    ``lenient``: text that is not UTF-8 comes as bytes instead of failing the whole result.
    """
    uri = f"file:{quote(str(path))}?mode={mode}"
    opened = OpenConnections()

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        opened.add(connection)
        try:
            connection.execute("PRAGMA synchronous = FULL")  # the default of most builds, and what durability rests on
        except sqlite3.Error:  # the file is locked, or is no database
            connection.close()
            raise
        if lenient:
            connection.text_factory = _text_or_bytes
        return connection

    engine = sa.create_engine(
        sa.URL.create(SQLITE, database=str(path)),
        creator=connect,
        hide_parameters=True,
        poolclass=sa.pool.QueuePool,
        pool_size=THREADS_MAX,
        execution_options={"open_connections": opened},
    )

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly, as ``OpenConnections`` does."""


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class _TextOrBytesLoader(TextLoader):
    def load(self, data: Buffer) -> str | bytes:
        return _text_or_bytes(bytes(data))
