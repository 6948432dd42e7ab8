"""The change feed of an SQLite file: its change log in the order of ``seq``, which is the order of commits.

SQLite has one writer at a time, so a row with a higher number is never committed before a row with a lower one, and
``seq > last`` is enough. ``PRAGMA data_version`` costs microseconds and shows every commit by another connection; that
is the wake-up.

Three things can happen to a file that cannot happen to a Postgres database. It can be overwritten by an older copy:
each row of the change log has a random *token*, and the resume point holds the token of its row, which proves that the
row with this number is still the same one. Another file can be moved to its place: then the inode differs, and all
connections are opened again. And a migration of the application can create a table again, which silently drops the
table's triggers: when ``PRAGMA schema_version`` changes, missing triggers are installed again.
"""

import time
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
import structlog
from attrs import evolve

from airy_trio.capture import triggers
from airy_trio.capture.change_log import SQLITE_FIRST, TABLE, LoggedChanges, LoggedFeed, SqlitePoint
from airy_trio.capture.feed import Batch, ResumePointLost
from airy_trio.capture.inspection import inspect_again
from airy_trio.capture.mapping import Tables
from airy_trio.capture.objects import COLUMNS, backfills_of, changes_of
from airy_trio.capture.queries import Query
from airy_trio.database import DatabaseRefused, escape_colons
from airy_trio.database.sqlite import FileVersion, FileVersions
from airy_trio.errors import FaultsError

logger = structlog.get_logger(__name__)

_SEQ: Final = len(COLUMNS)
_TOKEN: Final = _SEQ + 1
_AT: Final = _SEQ + 2


class SqliteFeed(LoggedFeed[SqlitePoint]):
    """``ChangeFeed`` over one connection that reads, and a pool for the few writes.

    ``newer_schema`` returns whether a newer version created our tables, and raises ``FaultsError`` if this version
    cannot work with them.
    """

    _point = SqlitePoint

    def __init__(
        self, source: LoggedChanges, newer_schema: Callable[[sa.Connection], bool] = lambda _connection: False
    ) -> None:
        super().__init__(source)
        log = escape_colons(source.names.quoted(TABLE))
        self._page = Query(
            sa.text(
                f"select {', '.join(COLUMNS)}, seq, token, at from {log} "  # noqa: S608 - names quoted
                "where seq >= :seq order by seq limit :limit"
            )
        )
        self._version: FileVersion | None = None  # the newest one that was queried
        self._woken = False  # ``wait`` has just queried it
        self._file = FileVersions(source.reading, self.aclose)
        self._newer_schema = newer_schema
        self._checked_schema: tuple[tuple[int, int], int] | None = None  # file and schema version

    async def _read_once(self, after: str, limit: int) -> Batch:
        # The version is read before the page. A commit between the two then ends the next ``wait`` at once. In the
        # other order it would not be noticed.
        if self._version is None or not self._woken:
            self._version = await self._file.ask()
        self._woken = False
        if self._checked_schema != (self._version.file, self._version.schema):
            await self._restore_triggers()
            # Set after a failure too, so that the failure is logged once for each version of the schema and not at each
            # read. Installed triggers change the version, so the next read checks them once more.
            self._checked_schema = self._version.file, self._version.schema
        return await self._reading.run(lambda connection: self._read(connection, after, limit))

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``. Queries the file's version when the file was written, and from time to time.

        Raises ``DatabaseUnavailable`` if the file is locked for longer than ``READER_BUSY_TIMEOUT_S``.
        """
        # The feed's own writes (trims and marks) end the wait too, because they are made over other connections. The
        # read that follows finds nothing.
        self._version = await self._file.wait(after_s=0.0)
        self._woken = True  # the next read sees at least this version

    def _old(self, point: SqlitePoint, limit: int) -> sa.Select[tuple[int]]:
        rows = self._log.rows
        return sa.select(rows.c.seq).where(rows.c.seq < point.seq).order_by(rows.c.seq).limit(limit)

    def _delete(self, connection: sa.Connection, point: SqlitePoint, limit: int) -> int:
        rows = self._log.rows
        return connection.execute(sa.delete(rows).where(rows.c.seq.in_(self._old(point, limit)))).rowcount

    def _discard(self, connection: sa.Connection) -> tuple[SqlitePoint, int]:
        rows = self._log.rows
        newest = connection.execute(sa.select(rows.c.seq, rows.c.token).order_by(rows.c.seq.desc()).limit(1)).first()
        if newest is None:
            return SQLITE_FIRST, 0
        return SqlitePoint(*newest), connection.execute(sa.delete(rows).where(rows.c.seq < newest.seq)).rowcount

    async def _mark(self, statement: sa.TextClause, **marks: str) -> None:
        await self._writing.write(lambda connection: connection.execute(statement, marks))

    async def _restore_triggers(self) -> None:
        """Install triggers again that were dropped with their table.

        Rows that were written between the two are not captured, and a warning is logged. If a newer version has
        migrated the file meanwhile, its triggers are left as they are.
        """
        try:
            faults = await self._reading.run(self._trigger_faults)
        except FaultsError as error:
            logger.error("the schema has changed; its triggers are left as they are", reason=str(error))  # noqa: TRY400 - the reason is enough
            return
        if not faults:
            return
        try:
            self.use(await self._writing.write(self._install_triggers))
        except (DatabaseRefused, FaultsError) as error:
            logger.error("triggers are missing and cannot be restored", triggers=faults, reason=str(error))  # noqa: TRY400 - the same
        else:
            logger.warning("triggers restored; rows written without them were not captured", triggers=faults)

    def _trigger_faults(self, connection: sa.Connection) -> list[str]:
        newer = self._newer_schema(connection)
        return list(triggers.faults(connection, self._tables, self._log.names, deletes=True, newer_schema=newer))

    def _install_triggers(self, connection: sa.Connection) -> Tables:
        # One transaction that writes, so that no other connection can alter a table between its inspection and its
        # triggers.
        newer = self._newer_schema(connection)
        tables = inspect_again(connection, self._tables)
        triggers.install(connection, tables, self._log.names, deletes=True, newer_schema=newer)
        return tables

    def _read(self, connection: sa.Connection, after: str, limit: int) -> Batch:
        point = SqlitePoint.parse(after)
        # At each read, not once for a connection, because a file can be overwritten while it is open.
        history = self._log.history(connection)
        if history is not None:
            history.require(point)
            point = evolve(point, source=history.source)
        # The page begins with the recorded row and its token. So one snapshot has both the changes after that row and
        # the proof that the file is not an older copy.
        rows = self._page.rows(connection, {"seq": point.seq, "limit": limit + 1 if point.seq else limit})
        if point.seq:
            if not rows or (rows[0][_SEQ], rows[0][_TOKEN]) != (point.seq, point.token):
                raise ResumePointLost(f"the change log has no row {point.seq} with the token that was recorded")
            del rows[0]
        following = evolve(point, seq=rows[-1][_SEQ], token=rows[-1][_TOKEN]) if rows else point
        return Batch(
            objects=self._objects.read(connection, changes_of(rows)),
            resume_point=str(following),
            changes=len(rows),
            more=len(rows) == limit,
            age_s=time.time() - rows[0][_AT] / 1000 if rows else None,
            backfills=backfills_of(rows),
        )
