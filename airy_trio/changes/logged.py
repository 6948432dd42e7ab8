"""What the feeds that read our change log have in common: two ways to the database, and who consumes the changes."""

from collections.abc import Callable

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes.changelog import ChangeLog
from airy_trio.changes.feed import Consumer
from airy_trio.changes.inspection import inspected_again
from airy_trio.changes.objects import Objects
from airy_trio.changes.queries import TEXT_CHARS_MAX
from airy_trio.changes.tables import Tables
from airy_trio.database import Database, Names, Session, close_all


@frozen
class LoggedChanges:
    """Where a feed finds the changes that our triggers have noted, and the rows: one connection that reads, and a pool.

    ``names``: of our own tables; ``tables``: the mapping of the application's. ``text_chars_max``: see ``Objects``.
    ``newer_schema``: whether a newer version made our tables; raises ``FaultsError`` if this one cannot work with them.
    """

    reading: Session
    writing: Database
    names: Names
    tables: Tables
    text_chars_max: int = TEXT_CHARS_MAX
    newer_schema: Callable[[sa.Connection], bool] = lambda _connection: False


class LoggedFeed:
    """One connection that reads, and a pool for the little that is written. Owns both."""

    consumed = True

    def __init__(self, source: LoggedChanges) -> None:
        self._reading = source.reading
        self._writing = source.writing
        self._log = ChangeLog(source.names)
        self._text_chars_max = source.text_chars_max
        self._use(source.tables)

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
        """Inspect the tables again; return whether they have changed."""
        before = self._tables
        self._use(await inspected_again(self._reading, before))
        return self._tables != before

    def _use(self, tables: Tables) -> None:
        self._tables = tables
        self._objects = Objects(self._log.names.dialect, tables, self._text_chars_max)
