"""A pool of connections for units of work that need nothing of the one before.

One connection for what belongs to a connection.
"""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
import trio

from airy_trio.database.engines import THREADS_MAX, OpenConnections, close_in_time, cut
from airy_trio.database.errors import ANSWERS, DatabaseUnavailable, translated
from airy_trio.database.postgres import Pipeline

T = TypeVar("T")


class DedicatedConnection:
    """One connection that stays open, for what belongs to a connection: a lock, a lease, SQLite's data version.

    ``generation`` grows whenever the connection is opened or closed: whoever took something in an older one has lost
    it. Cancellation takes effect as in ``Database``; the next unit waits for one that is still under way.

    An engine may be shared by several, which are then closed together: closing interrupts all of its connections.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._limiter = trio.CapacityLimiter(1)
        self._connection: sa.Connection | None = None
        self._pipeline: Pipeline | None = None
        self._closings = 0
        self.generation = 0

    async def run(self, work: Callable[[sa.Connection], T], *, transaction: bool = True) -> T:
        """Run a unit of work in a transaction of this connection, opening it first if need be.

        Without ``transaction`` the unit is meant for a single cheap question to the driver's own connection. Raises
        ``DatabaseUnavailable`` or ``DatabaseRefused``, after which the connection is closed.
        """
        closings = self._closings

        def unit() -> T:
            try:
                return self._run(work, transaction=transaction)
            finally:
                if self._closings != closings:  # meanwhile: who closed may have waited no longer
                    self._drop()

        return await trio.to_thread.run_sync(unit, abandon_on_cancel=True, limiter=self._limiter)

    async def converse(self, work: Callable[[Pipeline], Awaitable[T]]) -> T:
        """Run a unit of work without a thread, on Postgres: it begins and ends its transaction itself.

        The connection, which must have been opened by ``run``, is closed where the unit leaves it in the middle of
        something, for which a cancellation is enough. Raises what ``run`` does.
        """
        async with self._limiter:
            closings = self._closings
            if self._connection is None:
                message = "the connection is closed"
                raise DatabaseUnavailable(message)
            if self._pipeline is None:
                driver: Any = self._connection.connection.driver_connection
                self._pipeline = Pipeline(driver)
            pipeline = self._pipeline
            try:
                return await work(pipeline)
            except ANSWERS as error:
                self._drop()
                raise translated(error) from None
            finally:
                if self._pipeline is pipeline and (self._closings != closings or not pipeline.idle):
                    self._drop()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, which may be lost all the same."""
        return self._connection is not None

    async def aclose(self) -> None:
        """Close the connection, which releases what belongs to it, also in a cancelled scope (``close_in_time``).

        Idempotent. A unit that is still under way after that closes the connection at its end.
        """
        self._closings += 1
        await close_in_time(self._close, OpenConnections.of(self._engine))

    async def _close(self) -> None:
        await trio.to_thread.run_sync(self._drop, abandon_on_cancel=True, limiter=self._limiter)

    def _run(self, work: Callable[[sa.Connection], T], *, transaction: bool) -> T:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                self.generation += 1
            with self._connection.begin() if transaction else nullcontext():
                return work(self._connection)
        except ANSWERS as error:
            self._drop()
            raise translated(error) from None

    def _drop(self) -> None:
        connection, self._connection, self._pipeline = self._connection, None, None
        if connection is not None:
            self.generation += 1
            cut(connection)


class Database:
    """A pool of connections, worked with from threads. One unit of work: one hop, one transaction.

    Cancellation takes effect at once. A unit that is under way then goes on in its thread to its end, which is not
    reported: it may commit.

    ``threads_max``: units under way at once, abandoned ones included. Two may share an engine, whose pool has room for
    the threads of both; they are then closed together.

    SQLAlchemy's pool is emptied by a closing and never replaced: a connection given back to a pool that is not the
    engine's any more would stay open.
    """

    def __init__(self, engine: sa.Engine, *, threads_max: int = THREADS_MAX) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._limiter = trio.CapacityLimiter(threads_max)
        self._closings = 0

    def statistics(self) -> dict[str, int]:
        """How many threads are ``busy`` with a unit of work."""
        return {"busy": int(self._limiter.borrowed_tokens)}

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
        except ANSWERS as error:
            raise translated(error) from None

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit of work that writes. Raises what ``run`` does."""
        return await self._run_in_thread(work, immediate=True)

    async def aclose(self) -> None:
        """Close the pool's connections, also in a cancelled scope (``close_in_time``). It can be used again.

        A unit that is still under way after that closes its connection at its end.
        """
        self._closings += 1
        await close_in_time(self._close, OpenConnections.of(self.engine))

    async def _run_in_thread(self, work: Callable[[sa.Connection], T], *, immediate: bool) -> T:
        closings = self._closings

        def unit() -> T:
            try:
                return self.run_sync(work, immediate=immediate)
            finally:
                if self._closings != closings:  # meanwhile: the closing may have been over when this was given back
                    self.engine.pool.dispose()

        return await trio.to_thread.run_sync(unit, abandon_on_cancel=True, limiter=self._limiter)

    async def _close(self) -> None:
        """Close idle connections, then wait until no unit is under way: each closes what it gives back."""
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
