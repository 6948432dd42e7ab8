"""One connection for what belongs to a connection."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
import trio

from airy_trio.database.answers import ANSWERS, DatabaseUnavailable, translated
from airy_trio.database.connecting import OpenConnections, close_in_time, cut
from airy_trio.pipeline import Pipeline

T = TypeVar("T")


class Session:
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
