"""The change feed of an SQLite file: its change log in order of ``seq``, which is the order of commits.

SQLite has one writer at a time, so a row with a higher number is never committed before one with a lower. A commit
by anybody shows in ``PRAGMA data_version``, which costs microseconds.
"""

import time
from typing import Final

import sqlalchemy as sa
import structlog
from attrs import evolve

from airy_trio.capture import triggers
from airy_trio.capture.change_log import TABLE, LoggedChanges, LoggedFeed
from airy_trio.capture.feed import Batch, ResumePointLost
from airy_trio.capture.inspection import inspect_again, read_current
from airy_trio.capture.mapping import Tables
from airy_trio.capture.objects import COLUMNS, changes_of
from airy_trio.capture.resume_points import SqlitePoint
from airy_trio.database import DatabaseRefused
from airy_trio.database.queries import Query
from airy_trio.database.sqlite import FileVersion, FileVersions
from airy_trio.errors import FaultsError

logger = structlog.get_logger(__name__)

_SEQ: Final = len(COLUMNS)
_TOKEN: Final = _SEQ + 1
_AT: Final = _SEQ + 2


class SqliteFeed(LoggedFeed):
    """``ChangeFeed`` over one connection that reads, and a pool for the little that it writes.

    The resume point holds the number of a row and its token, which is random: it proves that the row with this number
    is still the same one, in a file that may have been replaced by an older copy. A copy that was moved to the file's
    place is another file: then all connections are opened again.
    """

    def __init__(self, source: LoggedChanges) -> None:
        super().__init__(source)
        log = source.names.quoted(TABLE).replace(":", "\\:")
        self._page = Query(
            sa.text(
                f"select {', '.join(COLUMNS)}, seq, token, at from {log} "  # noqa: S608 - names quoted
                "where seq >= :seq order by seq limit :limit"
            )
        )
        self._seen: FileVersion | None = None
        self._woken = False
        self._file = FileVersions(source.reading)
        self._names = source.names
        self._newer_schema = source.newer_schema
        self._watched_schema: tuple[tuple[int, int], int] | None = None

    async def read(self, after: str, limit: int) -> Batch:
        """See ``ChangeFeed.read``."""
        return await read_current(lambda: self._read_once(after, limit), self._renew)

    async def _read_once(self, after: str, limit: int) -> Batch:
        if self._seen is None or not self._woken:
            self._seen = await self._version()
        self._woken = False
        if self._watched_schema != (self._seen.file, self._seen.schema):
            await self._watch()
            self._watched_schema = self._seen.file, self._seen.schema
        return await self._reading.run(lambda connection: self._read(connection, after, limit))

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``. Looks as soon as something was written, and now and then.

        A lock that lasts for longer than the connection's busy time-out is raised (``READER_BUSY_TIMEOUT_S``).
        """
        self._file.watch.begin()
        while True:
            await self._file.watch.pause()
            version = await self._version()
            if version != self._seen:
                self._seen, self._woken = version, True  # the next read sees at least this
                return

    async def origin(self) -> str:
        """See ``ChangeFeed.origin``."""
        return await self._reading.run(self._origin)

    async def restart(self) -> str:
        """See ``ChangeFeed.restart``."""
        point, count = await self._writing.write(self._restart)
        logger.warning("change log emptied; changes that were not recorded are not sent", rows=count)
        return point

    async def trim(self, upto: str, limit: int) -> int:
        """See ``ChangeFeed.trim``. The newest recorded row stays, for its token."""
        point = SqlitePoint.parse(upto)
        rows = self._log.rows
        old = sa.select(rows.c.seq).where(rows.c.seq < point.seq).order_by(rows.c.seq).limit(limit)
        if not await self._reading.run(lambda connection: connection.execute(old.limit(1)).first()):
            return 0  # nothing is written, not even a lock taken, where there is nothing to do

        def work(connection: sa.Connection) -> int:
            count = connection.execute(sa.delete(rows).where(rows.c.seq.in_(old))).rowcount
            self._log.set_origin(connection, str(evolve(point, mark="")))  # it is for any event log
            return count

        return await self._writing.write(work)

    async def _seal(self, after: str, upto: str, mark: str) -> str:
        replaced_mark = SqlitePoint.parse(after).mark
        await self._writing.write(lambda connection: self._log.seal(connection, mark, replaced_mark))
        return str(evolve(SqlitePoint.parse(upto), mark=mark))

    async def _settle(self, point: str) -> None:
        mark = SqlitePoint.parse(point).mark
        await self._writing.write(lambda connection: self._log.settle(connection, mark))

    async def _version(self) -> FileVersion:
        """What changes with every commit by others. Raises ``DatabaseUnavailable`` where the file is not there."""
        version = await self._file.ask()
        if self._seen is not None and version.file != self._seen.file:
            await self._reading.aclose()
            await self._writing.aclose()
            version = await self._file.ask()
        return version

    async def _watch(self) -> None:
        """Put back triggers that went away with their table, when a migration of the application makes it again.

        Changes written between the two are not known, and the log says so. The triggers of a newer version, which
        migrated the file under this server, stay.
        """
        try:
            faults = await self._reading.run(self._trigger_faults)
        except FaultsError as error:
            logger.error("the schema has changed; its triggers stay as they are", reason=str(error))  # noqa: TRY400 - told
            return
        if not faults:
            return
        try:
            self._use(await self._writing.write(self._put_back))
        except (DatabaseRefused, FaultsError) as error:
            logger.error("triggers are gone and cannot be put back", triggers=faults, reason=str(error))  # noqa: TRY400 - told
        else:
            logger.warning("triggers put back; what was written without them is not known", triggers=faults)

    def _trigger_faults(self, connection: sa.Connection) -> list[str]:
        newer = self._newer_schema(connection)
        return list(triggers.faults(connection, self._tables, self._names, deletes=True, newer_schema=newer))

    def _put_back(self, connection: sa.Connection) -> Tables:
        newer = self._newer_schema(connection)
        tables = inspect_again(connection, self._tables)
        triggers.install(connection, tables, self._names, deletes=True, newer_schema=newer)
        return tables

    def _read(self, connection: sa.Connection, after: str, limit: int) -> Batch:
        point = SqlitePoint.parse(after)
        history = self._log.history(connection)
        if history is not None:
            history.require(point)
            point = evolve(point, source=history.source)
        rows = self._page.rows(connection, {"seq": point.seq, "limit": limit + 1 if point.seq else limit})
        if point.seq:
            if not rows or (rows[0][_SEQ], rows[0][_TOKEN]) != (point.seq, point.token):
                message = f"the change log has no row {point.seq} with the token that was recorded"
                raise ResumePointLost(message)
            del rows[0]
        following = evolve(point, seq=rows[-1][_SEQ], token=rows[-1][_TOKEN]) if rows else point
        return Batch(
            objects=self._objects.read(connection, changes_of(rows)),
            resume_point=str(following),
            changes=len(rows),
            more=len(rows) == limit,
            age_s=time.time() - rows[0][_AT] / 1000 if rows else None,
        )

    def _origin(self, connection: sa.Connection) -> str:
        history = self._log.history(connection)
        if history is None:
            return str(SqlitePoint())
        return str(evolve(SqlitePoint.parse(history.origin), source=history.source))

    def _restart(self, connection: sa.Connection) -> tuple[str, int]:
        history, rows, count = self._log.history(connection), self._log.rows, 0
        newest = connection.execute(sa.select(rows.c.seq, rows.c.token).order_by(rows.c.seq.desc()).limit(1)).first()
        source = "" if history is None else history.source
        point = str(evolve(SqlitePoint(*newest) if newest else SqlitePoint(), source=source))
        if newest:
            count = connection.execute(sa.delete(rows).where(rows.c.seq < newest.seq)).rowcount
        self._log.set_origin(connection, point)
        return point, count
