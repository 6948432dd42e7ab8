"""A pool of connections for units of work that need nothing of the one before."""

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
import trio

from airy_trio.database.answers import ANSWERS, translated
from airy_trio.database.connecting import OpenConnections, close_in_time
from airy_trio.database.engines import THREADS_MAX

T = TypeVar("T")


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
