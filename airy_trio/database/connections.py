"""Units of work: in threads on a pool of connections or on one that stays open, and in pipelines without a thread.

Cancellation takes effect at once. A unit of work that is running goes on in its thread to its end, which is not
reported; it may commit. Closing works in a cancelled scope too and never hangs (``engines.close_in_time``).

Connections are never left behind. A unit of work that was abandoned may end after its pool or connection was closed,
when nothing waits for it any more. Therefore each unit remembers how many closings there had been when it began, and
if there was another one since, it closes its connection itself.

Errors of both drivers are raised in our own terms: whether trying again may help, and a message without parameters.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy as sa
import trio
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from airy_trio.database.engines import SQLITE, THREADS_MAX, OpenConnections, close_all, close_in_time, discard
from airy_trio.database.postgres import Parameter, Pipeline, Statement
from airy_trio.errors import AiryTrioError, Unavailable

T = TypeVar("T")

_SESSION_ENDED: Final = "57P"
"""The class of SQLSTATEs with which a server or a pooler ends a session."""
DRIVER_ERRORS: Final = (SQLAlchemyError, psycopg.Error, sqlite3.Error)
"""The errors that ``translated`` knows. A unit of work may also use the driver itself."""

# psycopg raises an InternalError for, among others, a transaction that was idle for too long (25P03), and one that
# cannot write because the server has become a standby (25006).
_POSTGRES_UNAVAILABLE: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
# A class of SQLSTATE: too large for the server. psycopg counts it as operational, but trying again does not help.
_POSTGRES_LIMIT_CLASS: Final = "54"
_SQLITE_UNAVAILABLE: Final = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA,
})  # fmt: skip
# Extended codes: the file is being moved, or another process sets up or recovers its shared memory.
_SQLITE_UNAVAILABLE_EXTENDED: Final = frozenset({
    sqlite3.SQLITE_READONLY_RECOVERY, sqlite3.SQLITE_READONLY_CANTLOCK, sqlite3.SQLITE_READONLY_ROLLBACK,
    sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_READONLY_CANTINIT,
})  # fmt: skip
_IDLE: Final = {"57P05": "idle_session_timeout", "25P03": "idle_in_transaction_session_timeout"}
"""SQLSTATEs with which Postgres closes a session that was not used for as long as this setting allows."""


class DatabaseError(AiryTrioError):
    """An error of the database, without parameters. ``sqlstate``: None on SQLite and if there is none."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(DatabaseError, Unavailable):
    """The database is away or busy, or has closed the connection."""


class DatabaseRefused(DatabaseError):
    """The database has answered that the statement is not possible."""


def translated(error: Exception, engine: sa.Engine | None = None) -> Exception:
    """Return an error of SQLAlchemy or of a driver as a ``DatabaseError``, without parameters.

    An error that is neither an answer of the database nor its absence is a bug of ours and is returned unchanged.
    ``engine``: of the connection that raised the error. If it is of SQLite, its file is added to the message, because
    SQLite itself does not name the file, not even if a disk is full.
    """
    match error:
        case sa.exc.TimeoutError():
            return DatabaseUnavailable("TimeoutError: all connections are in use")
        case DBAPIError():
            driver, disconnected = error.orig, error.connection_invalidated
        case _:
            driver, disconnected = error, False
    match driver:
        case psycopg.Error():
            too_large = (driver.sqlstate or "").startswith(_POSTGRES_LIMIT_CLASS)
            unavailable = disconnected or (isinstance(driver, _POSTGRES_UNAVAILABLE) and not too_large)
        case sqlite3.Error():
            code = getattr(driver, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            # The low octet of an extended code is the primary code.
            unavailable = code & 0xFF in _SQLITE_UNAVAILABLE or code in _SQLITE_UNAVAILABLE_EXTENDED
        case _:
            return error
    kind = DatabaseUnavailable if unavailable else DatabaseRefused
    message = _primary_message(driver)
    if engine is not None and engine.dialect.name == SQLITE:
        message = f"{message} ({engine.url.database})"
    return kind(message, getattr(driver, "sqlstate", None))


def is_refusal(error: Exception) -> bool:
    """Return whether ``translated`` makes an error a ``DatabaseRefused``."""
    return isinstance(translated(error), DatabaseRefused)


def _primary_message(error: BaseException) -> str:
    diagnostic = getattr(error, "diag", None)
    primary = getattr(diagnostic, "message_primary", None)
    sqlstate = getattr(error, "sqlstate", None)
    text = primary or " ".join(str(error).split()) or "no answer"
    if sqlstate in _IDLE:  # a recorder sets these time-outs itself; Postgres' own message would blame the database
        text = (
            f"this process was too busy to use its session within {_IDLE[sqlstate]}, so the database closed it; "
            "it needs more CPU time"
        )
    return f"{type(error).__name__}{f' {sqlstate}' if sqlstate else ''}: {text}"


class DedicatedConnection:
    """One connection that stays open, for state that belongs to a connection: a lock, a lease, SQLite's data version.

    ``generation`` grows whenever the connection is opened or closed; a lock that was acquired in an older one is lost.
    The next unit of work waits until an abandoned one has ended.

    Several may share an engine. They must be closed together, because closing may interrupt all its connections.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._limiter = trio.CapacityLimiter(1)
        self._connection: sa.Connection | None = None
        self._pipeline: Pipeline | None = None
        self._closings = 0
        self.generation = 0

    async def run(self, work: Callable[[sa.Connection], T], *, transaction: bool = True) -> T:
        """Run a unit of work in a transaction, opening the connection first if it is closed.

        Without ``transaction`` the unit is meant for a single cheap query on the driver's own connection. Raises
        ``DatabaseUnavailable`` or ``DatabaseRefused``, after which the connection is closed.
        """
        # Read before the wait for the limiter. Otherwise a unit that gets its turn after a closing would open a
        # connection that nothing closes.
        closings = self._closings

        def unit() -> T:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                    self.generation += 1
                with self._connection.begin() if transaction else nullcontext():
                    return work(self._connection)
            except DRIVER_ERRORS as error:
                self._drop()
                # Without the original error: its message may quote values, and a traceback would show it.
                raise translated(error, self._engine) from None
            finally:
                if self._closings != closings:
                    self._drop()

        # Trio returns the token of the limiter when the thread has ended, also if its task was cancelled earlier. So
        # two units never use the connection at the same time.
        return await trio.to_thread.run_sync(unit, abandon_on_cancel=True, limiter=self._limiter)

    async def run_pipeline(self, work: Callable[[Pipeline], Awaitable[T]], *, reopen: bool = False) -> T:
        """Run a unit of work on Postgres without a thread; it begins and ends its transaction itself.

        ``reopen``: open the connection first if it is closed, or was lost while it was idle; otherwise it must have
        been opened by ``run``. It is closed if the unit leaves it with an open transaction or an unread result, for
        example because it was cancelled; the server is then asked to end the statement. Raises the errors of ``run``.
        """
        # These checks need no limiter. With ``reopen``, one task at a time uses the connection, and the only unit in a
        # thread is the one that opens it; until that has ended, there is no pipeline.
        if reopen and self._pipeline is not None and self._pipeline.lost():
            self._drop()
        if reopen and self._connection is None:
            await self.run(lambda _connection: None, transaction=False)
        try:
            self._limiter.acquire_nowait()  # `acquire` alone would cost one pass of Trio's loop
        except trio.WouldBlock:
            await self._limiter.acquire()
        closings, pipeline = self._closings, None
        try:
            if self._connection is None:
                raise DatabaseUnavailable("the connection is closed")
            if self._pipeline is None:
                driver: Any = self._connection.connection.driver_connection
                self._pipeline = Pipeline(driver)
            pipeline = self._pipeline
            return await work(pipeline)
        except DRIVER_ERRORS as error:
            self._drop()
            raise translated(error) from None
        finally:
            # An open transaction would keep its locks and its snapshot, and the next unit would take an unread result
            # for its own. After a driver's error, the connection is closed already and ``_pipeline`` is None.
            if (
                pipeline is not None
                and self._pipeline is pipeline
                and (self._closings != closings or not pipeline.idle)
            ):
                # In this order, because the request to cancel is made from the open connection.
                pipeline.cancel()
                self._drop()
            self._limiter.release()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection. It may have been lost without notice."""
        return self._connection is not None

    async def aclose(self) -> None:
        """Close the connection, which releases the locks that belong to it, also in a cancelled scope. Idempotent."""
        self._closings += 1
        await close_in_time(self._close, OpenConnections.of(self._engine))

    async def _close(self) -> None:
        await trio.to_thread.run_sync(self._drop, abandon_on_cancel=True, limiter=self._limiter)

    def _drop(self) -> None:
        connection, self._connection, self._pipeline = self._connection, None, None
        if connection is not None:
            self.generation += 1
            discard(connection)


class PipelinePool:
    """Connections to Postgres for pipelines, each lent to one task at a time; the one that was used last is lent next.

    ``connections_max``: how many are open at most; a task waits while all are lent.
    """

    def __init__(self, engine: sa.Engine, connections_max: int) -> None:
        self._connections = [DedicatedConnection(engine) for _ in range(connections_max)]
        self._idle = list(self._connections)
        self._waiting = trio.lowlevel.ParkingLot()

    async def run(
        self, *statements: tuple[Statement, Sequence[Parameter]], repeatable: bool = False
    ) -> list[list[tuple[Any, ...]]]:
        """Run statements in one round trip and one transaction; return the rows of each. See ``run_pipeline``."""
        return await self.run_pipeline(lambda pipeline: pipeline.run(*statements), repeatable=repeatable)

    async def run_pipeline(self, work: Callable[[Pipeline], Awaitable[T]], *, repeatable: bool = False) -> T:
        """Run a unit of work that ends every transaction that it begins.

        ``repeatable``: run it once more, on a new connection, if one that was idle turns out to be lost. Raises the
        errors of ``Database.run``, after which it is not known whether the statements had an effect, as after a
        cancellation.
        """
        while not self._idle:
            await self._waiting.park()
        # The one that was used last. So the pool opens no more than tasks need at the same time, and lends the one that
        # the server is least likely to have closed as idle.
        connection = self._idle.pop()
        attempt = partial(connection.run_pipeline, work, reopen=True)
        was_idle = connection.is_open
        try:
            try:
                return await attempt()
            except DatabaseUnavailable as error:
                # Without a SQLSTATE, the error is not an answer of the server.
                is_lost = error.sqlstate is None or error.sqlstate.startswith(_SESSION_ENDED)
                if not (repeatable and was_idle and is_lost):
                    raise
            return await attempt()
        finally:
            # A closed one goes to the other end: opening it may take long, or go on in a thread after a cancellation.
            self._idle.insert(len(self._idle) if connection.is_open else 0, connection)
            self._waiting.unpark()

    async def aclose(self) -> None:
        """Close all connections, also in a cancelled scope. The pool can be used again."""
        await close_all(*(connection.aclose for connection in self._connections))


class Database:
    """A pool of connections for units of work that are independent of each other.

    ``threads_max``: units of work that run at once, abandoned ones included. Two may share an engine, whose pool has
    room for the threads of both; they must be closed together.

    Closing empties SQLAlchemy's pool and never replaces it: a connection that is returned to a replaced pool would stay
    open.
    """

    def __init__(self, engine: sa.Engine, *, threads_max: int = THREADS_MAX) -> None:
        self.engine = engine
        self._limiter = trio.CapacityLimiter(threads_max)
        self._closings = 0

    async def run(self, work: Callable[[sa.Connection], T], *, immediate: bool = False) -> T:
        """Run a unit of work in a transaction that commits if it returns. ``immediate``: see ``run_sync``.

        Raises ``DatabaseUnavailable`` or ``DatabaseRefused``; other exceptions of the unit are not changed.
        """
        closings = self._closings

        def unit() -> T:
            try:
                return self.run_sync(work, immediate=immediate)
            finally:
                # The unit's connection is back in the pool, and is closed together with all idle ones.
                if self._closings != closings:
                    self.engine.pool.dispose()

        return await trio.to_thread.run_sync(unit, abandon_on_cancel=True, limiter=self._limiter)

    def run_sync(self, work: Callable[[sa.Connection], T], *, immediate: bool = False) -> T:
        """Run a unit of work in the calling thread. ``immediate``: an SQLite transaction that writes from its start."""
        try:
            with (
                self.engine.connect() as connection,
                connection.execution_options(immediate=immediate).begin(),
            ):
                return work(connection)
        except DRIVER_ERRORS as error:
            raise translated(error, self.engine) from None

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit of work that writes. Raises the errors of ``run``."""
        return await self.run(work, immediate=True)

    async def aclose(self) -> None:
        """Close the pool's connections, also in a cancelled scope. The pool can be used again."""
        self._closings += 1
        await close_in_time(self._close, OpenConnections.of(self.engine))

    async def _close(self) -> None:
        """Close idle connections, then wait until no unit of work is running; each closes its own connection."""
        # With another limiter: units that wait for a lock may hold all tokens of this one, and idle connections are
        # closed without waiting for them. Below, each token needs its own borrower, because a limiter gives a borrower
        # only one.
        await trio.to_thread.run_sync(self.engine.pool.dispose, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        held: list[object] = []
        try:
            while len(held) < self._limiter.total_tokens:
                borrower = object()
                await self._limiter.acquire_on_behalf_of(borrower)
                held.append(borrower)
        finally:
            for borrower in held:
                self._limiter.release_on_behalf_of(borrower)
