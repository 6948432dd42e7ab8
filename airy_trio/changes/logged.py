"""What the feeds that read our change log have in common: two ways to the database, and which log consumes the changes.

Sealing: a recorder reads a commit, then appends its events to an event log. If that log is elsewhere, either of the two
can go back to an older state without the other: after a crash with ``synchronous_commit = off``, or when a copy is put
back. So before an append a new *mark* is written into the application's database (``seal``) and into the resume point
that is stored with the events. The mark is committed after everything that was read, and Postgres and SQLite write
commits to the disk in order: a database without the mark may lack what was read, and one with it does not. A log that
went back has an older mark. Between the seal and the append the log may hold the new point or the one before, so both
marks are accepted until the append is known to have happened (``settle``). An append of unknown outcome may happen
after the next seal: its mark is accepted as long. One case remains: the event log loses an append which the recorder
has not settled on disk yet, because a power failure stops both machines, or the store stops before it answers.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable

import sqlalchemy as sa
import structlog
from attrs import frozen

from airy_trio.changes.changelog import ChangeLog
from airy_trio.changes.feed import Consumer
from airy_trio.changes.inspection import inspect_again
from airy_trio.changes.objects import Objects
from airy_trio.changes.points import identified, is_foreign
from airy_trio.changes.queries import TEXT_CHARS_MAX
from airy_trio.changes.tables import Tables
from airy_trio.database import Database, Names, Session, close_all
from airy_trio.errors import Unavailable

logger = structlog.get_logger(__name__)


@frozen
class LoggedChanges:
    """Where a feed finds the changes that our triggers have noted, and the rows: one connection that reads, and a pool.

    ``names``: of our own tables; ``tables``: the mapping of the application's. ``text_chars_max``: see ``Objects``.
    ``newer_schema``: whether a newer version made our tables; raises ``FaultsError`` if this one cannot work with them.
    ``seals``: whether the event log can go back without this database, or this database without the event log.
    """

    reading: Session
    writing: Database
    names: Names
    tables: Tables
    text_chars_max: int = TEXT_CHARS_MAX
    newer_schema: Callable[[sa.Connection], bool] = lambda _connection: False
    seals: bool = False


class LoggedFeed(ABC):
    """One connection that reads, and a pool for the little that is written. Owns both."""

    consumed = True

    def __init__(self, source: LoggedChanges) -> None:
        self._reading = source.reading
        self._writing = source.writing
        self._log = ChangeLog(source.names)
        self._text_chars_max = source.text_chars_max
        self._use(source.tables)
        self._seals = source.seals
        self._settled = ""

    async def is_foreign(self, point: str) -> bool:
        """See ``ChangeFeed.is_foreign``."""
        history = await self._reading.run(self._log.history)
        return history is not None and is_foreign(point, history.source)

    async def identified(self, point: str) -> str:
        """See ``ChangeFeed.identified``."""
        history = await self._reading.run(self._log.history)
        return point if history is None else identified(point, history.source)

    async def seal(self, after: str, upto: str) -> str:
        """See ``ChangeFeed.seal``."""
        if not self._seals:  # without a checkpoint: other tasks would run between a commit and its append
            return upto
        return await self._seal(after, upto, secrets.token_hex(8))

    async def settle(self, point: str) -> None:
        """See ``ChangeFeed.settle``. Where the database is busy or away it is left for the next time."""
        if self._seals and point != self._settled:
            try:
                await self._settle(point)
            except Unavailable as error:
                logger.debug("older resume points are accepted longer", reason=str(error))
            else:
                self._settled = point

    @abstractmethod
    async def _seal(self, after: str, upto: str, mark: str) -> str:
        """Write a new mark, and that of ``after``; give ``upto`` with the new one."""

    @abstractmethod
    async def _settle(self, point: str) -> None:
        """Forget the mark that was replaced, if the newest one is that of ``point``."""

    async def consumer(self) -> Consumer | None:
        """See ``ChangeFeed.consumer``."""
        return await self._reading.run(self._log.consumer)

    async def adopt(self, consumer: Consumer) -> None:
        """See ``ChangeFeed.adopt``."""
        await self._writing.write(lambda connection: self._log.set_consumer(connection, consumer))

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await close_all(self._reading.aclose, self._writing.aclose)

    async def _renew(self) -> bool:
        """Inspect the tables again; return whether they have changed. Raises ``MappingError``."""
        before = self._tables
        self._use(await self._reading.run(lambda connection: inspect_again(connection, before)))
        return self._tables != before

    def _use(self, tables: Tables) -> None:
        self._tables = tables
        self._objects = Objects(self._log.names.dialect, tables, self._text_chars_max)
