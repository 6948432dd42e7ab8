"""Units of work of the ``sql`` event store, with errors as its port has them: away, replaced, or refused."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import Database, DatabaseError, DatabaseUnavailable, close_all, translated
from airy_trio.log.reads import READS_MAX
from airy_trio.log.sql_fence import LOCK_NOT_AVAILABLE, Fence
from airy_trio.log.sql_file import SqlFile
from airy_trio.log.store import StoreUnavailable

logger = structlog.get_logger(__name__)

T = TypeVar("T")


class Units:
    """Runs them in pools, which it owns. ``file``: what the database is in, if it is a file of our own.

    Reads for clients have threads and connections of their own, as many as there may be such reads at once: a scan goes
    on in its thread after its client has left, and the reads that follow the log must not wait for it.

    All raise ``StoreUnavailable``, ``StoreReplaced`` where the file is another one, and ``DatabaseError``.
    """

    def __init__(self, engine: sa.Engine, appending: Database, file: SqlFile | None = None) -> None:
        self._reading = Database(engine)
        self._replaying = Database(engine, threads_max=READS_MAX)
        self._appending = appending
        self._file = file

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit that reads."""
        return await self._in(self._reading.run, work)

    async def replay(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit that reads for a client, and may scan the log."""
        return await self._in(self._replaying.run, work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit that writes."""
        return await self._in(self._appending.write, work)

    async def fenced(self, fence: Fence, work: Callable[[sa.Connection], T]) -> T:
        """Write behind the fence. If another session stays there for too long, end it; the caller has to retry then."""

        def enter(connection: sa.Connection) -> T:
            fence.enter(connection)
            return work(connection)

        try:
            done = await self._appending.write(enter)
        except DatabaseUnavailable as error:
            shut_out, reason = error.sqlstate == LOCK_NOT_AVAILABLE, str(error)
        else:
            fence.passed()
            return done
        if shut_out:
            count = await self.write(fence.cut_off)
            logger.warning("an append that hung was cut off", sessions=count)
        raise StoreUnavailable(reason)

    async def short(self, done: Awaitable[T]) -> T:
        """What was done beside the pools, by the driver itself."""
        try:
            return await done
        except (SQLAlchemyError, psycopg.Error) as error:
            told = translated(error)
            if isinstance(told, DatabaseUnavailable):
                raise StoreUnavailable(str(told)) from None
            raise told from None

    async def told(self, done: Awaitable[T]) -> T:
        """What was done by whoever raises ``DatabaseError``. That the file is another one is told before all."""
        try:
            return await done
        except DatabaseError as error:
            if self._file:
                self._file.look()
            if isinstance(error, DatabaseUnavailable):
                raise StoreUnavailable(str(error)) from None
            raise

    async def aclose(self) -> None:
        """Close the pools. Idempotent."""
        await close_all(self._reading.aclose, self._replaying.aclose, self._appending.aclose)

    async def _in(
        self, run: Callable[[Callable[[sa.Connection], T]], Awaitable[T]], work: Callable[[sa.Connection], T]
    ) -> T:
        return await self.told(run(self._file.watched(work) if self._file else work))
