"""Our tables in the application's database, and the parts that all feeds over them share.

- ``change_log`` has one row for each changed row of the application: keys only, plus the values that the event of a
  deletion needs. Triggers write it, and backfills for rows that have not changed; the recorder reads and trims it.
- ``change_state`` is a single row: the event log that consumes these changes (``consumer_epoch``, ``consumer_store``),
  the history of the change log (``resume_points.History``), and the backfills that have not ended (``backfill``).

``migrations/changes`` creates both.

Sealing
=======

A recorder reads committed changes, then appends their events to an event log. If that log is in another database, each
side can return to an older state without the other: after a crash with ``synchronous_commit = off``, or when a backup
is restored. Going on would then skip changes or repeat them. *Marks* make the difference visible:

1. Before an append, ``seal`` writes a new random mark into ``change_state`` and into the resume point that is stored
   with the events. Postgres and SQLite write commits to disk in order, and the mark is committed after everything that
   was read. A database that has the mark therefore has all of it; a database that lost some of it has no such mark.
2. An event log that went back has an older mark, which the database no longer accepts.
3. Between the seal and the append the log may hold either the new point or the previous one. Both marks are accepted
   until the append is known to have happened; then ``settle`` removes the older one. An append whose outcome is unknown
   may even happen after the next seal, so its mark is accepted until then as well.

One case remains undetected: the event log loses an append that the recorder has not yet settled on disk, because a
power failure stops both machines, or because the store stops before it answers.
"""
# ruff: noqa: D102 - the port documents each method

import secrets
from abc import abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
import structlog
from attrs import evolve, frozen

from airy_trio.capture.feed import Consumer, Kind, ResumePointLost
from airy_trio.capture.mapping import Key, Tables
from airy_trio.capture.objects import MARKS, InspectedFeed
from airy_trio.capture.queries import TEXT_CHARS_MAX, Query
from airy_trio.capture.resume_points import History, PostgresPoint, SqlitePoint, first, identified, is_foreign
from airy_trio.database import POSTGRES, Database, DedicatedConnection, Names, close_all
from airy_trio.errors import Unavailable

logger = structlog.get_logger(__name__)

P = TypeVar("P", PostgresPoint, SqlitePoint)

TABLE = "change_log"
STATE = "change_state"
# A mark has 16 characters, so this keeps the marks of the last 29 appends whose outcome is unknown.
MARKS_CHARS_MAX = 500
_STATE_ID = 1  # of the only row

_VISIBLE = sa.text("select pg_visible_in_snapshot(cast(:txid as xid8), cast(:snapshot as pg_snapshot))")


class ChangeLog:
    """The two tables under their names in one database."""

    def __init__(self, names: Names) -> None:
        metadata = sa.MetaData(schema=names.table_schema)
        columns: list[sa.Column[Any]] = [
            sa.Column("seq", sa.BigInteger, primary_key=True),
            sa.Column("kind", sa.Text),
            sa.Column("operation", sa.Text),
            *(sa.Column(name) for name in ("key_1", "key_2", "old_1", "old_2")),
            sa.Column("at"),
            sa.Column("txid" if names.dialect == POSTGRES else "token"),
        ]
        self.names = names
        self.rows = sa.Table(names.bare(TABLE), metadata, *columns)
        self.state = sa.Table(
            names.bare(STATE),
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            *(sa.Column(name, sa.Text) for name in ("origin", "consumer_epoch", "consumer_store")),
            *(sa.Column(name, sa.Text) for name in ("mark", "replaced_mark", "backfill")),
        )
        quoted = names.quoted(STATE).replace(":", "\\:")
        self.seal = sa.text(
            f"update {quoted} set mark = :mark, replaced_mark = case when mark = :replaced then :replaced "  # noqa: S608
            f"else :replaced || ' ' || substr(mark || ' ' || replaced_mark, 1, {MARKS_CHARS_MAX}) end"
        )
        """Stores the ``mark`` of a point that is about to be recorded, and that of the point that is ``replaced``.

        If the newest mark is another one than the latter, the append of its point is unsettled and may still happen, so
        it and the marks before it are retained, up to ``MARKS_CHARS_MAX``.
        """
        self.settle = sa.text(f"update {quoted} set replaced_mark = mark where mark = :mark")  # noqa: S608 - quoted
        """Removes the marks of the replaced points, unless another point has been sealed since that of ``mark``."""
        self._history = Query(sa.text(f"select source, origin, mark, replaced_mark from {quoted}"))  # noqa: S608 - quoted

    def count(self, connection: sa.Connection) -> int:
        """Return the number of changes in the log, which grows while no server records."""
        return connection.execute(sa.select(sa.func.count()).select_from(self.rows)).scalar_one()

    def origin(self, connection: sa.Connection) -> str | None:
        """Return the resume point at which an empty event log starts; None before the first migration stored it."""
        found: str | None = connection.execute(sa.select(self.state.c.origin)).scalar_one_or_none()
        return found

    def set_origin(self, connection: sa.Connection, origin: str) -> None:
        """Set the resume point at which an empty event log starts."""
        updated = connection.execute(sa.update(self.state).values(origin=origin))
        if not updated.rowcount:
            connection.execute(sa.insert(self.state).values(id=_STATE_ID, origin=origin))

    def history(self, connection: sa.Connection) -> History | None:
        """Return the history of these changes; None before the first migration stored it."""
        for source, origin, mark, replaced_mark in self._history.rows(connection, {}):
            return History(source=source, origin=origin, mark=mark, replaced_mark=replaced_mark)
        return None

    def consumer(self, connection: sa.Connection) -> Consumer | None:
        """Return the event log that consumes these changes."""
        columns = self.state.c.consumer_epoch, self.state.c.consumer_store
        row = connection.execute(sa.select(*columns)).one_or_none()
        return None if row is None or row.consumer_epoch is None else Consumer(row.consumer_epoch, row.consumer_store)

    def set_consumer(self, connection: sa.Connection, consumer: Consumer) -> None:
        """Name the event log that consumes these changes from now on."""
        connection.execute(sa.update(self.state).values(consumer_epoch=consumer.epoch, consumer_store=consumer.store))


@frozen
class LoggedChanges:
    """The parts of a ``LoggedFeed``: the connection that reads, the pool that writes, our tables and the application's.

    ``names`` are those of our tables. ``text_chars_max``: see ``Objects``. ``newer_schema`` returns whether a newer
    version created our tables, and raises ``FaultsError`` if this version cannot work with them. ``seals``: the event
    log and this database can return to an older state independently, so that resume points must be sealed.
    """

    reading: DedicatedConnection
    writing: Database
    names: Names
    tables: Tables
    text_chars_max: int = TEXT_CHARS_MAX
    newer_schema: Callable[[sa.Connection], bool] = lambda _connection: False
    seals: bool = False


class LoggedFeed(InspectedFeed, Generic[P]):
    """The part of ``ChangeFeed`` that does not depend on the dialect. Owns the connection and the pool."""

    consumed = True
    _point: type[P]

    def __init__(self, source: LoggedChanges) -> None:
        super().__init__(source.reading, source.names.dialect, source.tables, source.text_chars_max)
        self._writing = source.writing
        self._log = ChangeLog(source.names)
        self._seals = source.seals
        self._settled = ""

    async def origin(self) -> str:
        return await self._reading.run(self._origin)

    def _origin(self, connection: sa.Connection) -> str:
        history = self._log.history(connection)
        if history is None:
            return first(connection, self._log.names.quoted(TABLE))
        return identified(history.origin, history.source)

    async def is_foreign(self, point: str) -> bool:
        history = await self._reading.run(self._log.history)
        return history is not None and is_foreign(point, history.source)

    async def identified(self, point: str) -> str:
        history = await self._reading.run(self._log.history)
        return point if history is None else identified(point, history.source)

    async def seal(self, after: str, upto: str) -> str:
        if not self._seals:  # No checkpoint here: it would let other tasks run between a commit and its append.
            return upto
        mark = secrets.token_hex(8)
        await self._mark(self._log.seal, mark=mark, replaced=self._point.parse(after).mark)
        return str(evolve(self._point.parse(upto), mark=mark))

    async def settle(self, point: str) -> None:
        """See ``ChangeFeed.settle``. If the database is busy or unavailable, the next call settles instead."""
        if self._seals and point != self._settled:
            try:
                await self._mark(self._log.settle, mark=self._point.parse(point).mark)
            except Unavailable as error:
                logger.debug("resume point not settled; older ones stay accepted for now", reason=str(error))
            else:
                self._settled = point

    async def restart(self) -> str:

        def work(connection: sa.Connection) -> tuple[str, int]:
            found, count = self._discard(connection)
            history = self._log.history(connection)
            point = str(found if history is None else evolve(found, source=history.source))
            self._log.set_origin(connection, point)
            return point, count

        point, count = await self._writing.write(work)
        logger.warning("change log emptied; changes that were not recorded are not sent", rows=count)
        return point

    async def trim(self, upto: str, limit: int) -> int:
        point = self._point.parse(upto)

        def work(connection: sa.Connection) -> int:
            count = self._delete(connection, point, limit)
            if count:
                self._log.set_origin(connection, str(evolve(point, mark="")))  # an origin is for any event log
            return count

        return await self._writing.write(work)

    @abstractmethod
    async def _mark(self, statement: sa.TextClause, **marks: str) -> None:
        """Execute ``ChangeLog.seal`` or ``settle``, and return once the change is on disk."""

    @abstractmethod
    def _discard(self, connection: sa.Connection) -> tuple[P, int]:
        """Delete the changes that are visible now; return the point after them, and their number."""

    @abstractmethod
    def _delete(self, connection: sa.Connection, point: P, limit: int) -> int:
        """Delete at most ``limit`` changes that a point has read; return their number."""

    async def consumer(self) -> Consumer | None:
        return await self._reading.run(self._log.consumer)

    async def adopt(self, consumer: Consumer) -> None:
        await self._writing.write(lambda connection: self._log.set_consumer(connection, consumer))

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await close_all(self._reading.aclose, self._writing.aclose)


@frozen(kw_only=True)
class NewestChange:
    """The newest change of an object. ``at``: the trigger's clock. ``recorded``: the resume point includes it."""

    operation: str
    at: datetime
    recorded: bool


def newest_change(
    connection: sa.Connection, names: Names, kind: Kind, key: Key, resume_point: str | None
) -> NewestChange | None:
    """Return the newest change of one object that the change log still has, or None. For diagnosis by an operator.

    There is no index on keys, so this reads the whole change log, which retention keeps short.
    """
    rows = ChangeLog(names).rows
    matches = [
        sa.cast(column, sa.Text) == str(value)
        for column, value in zip((rows.c.key_1, rows.c.key_2), key, strict=True)
        if value is not None
    ]
    changes = sa.select(rows).where(rows.c.kind == kind, rows.c.operation.not_in(MARKS), *matches)
    row = connection.execute(changes.order_by(rows.c.seq.desc()).limit(1)).first()
    if row is None:
        return None
    at = row.at.astimezone(UTC) if isinstance(row.at, datetime) else datetime.fromtimestamp(row.at / 1000, UTC)
    recorded = resume_point is not None and _is_read(connection, names, row, resume_point)
    return NewestChange(operation=row.operation, at=at, recorded=recorded)


def _is_read(connection: sa.Connection, names: Names, row: sa.Row[Any], resume_point: str) -> bool:
    """Return whether a resume point includes a row of the change log."""
    try:
        if names.dialect != POSTGRES:
            return bool(row.seq <= SqlitePoint.parse(resume_point).seq)
        point = PostgresPoint.parse(resume_point)
    except ResumePointLost:
        return False
    if _is_visible(connection, row, point.snapshot):
        return True
    return bool(point.target) and row.seq <= point.seq and _is_visible(connection, row, point.target)


def _is_visible(connection: sa.Connection, row: sa.Row[Any], snapshot: str) -> bool:
    return bool(connection.execute(_VISIBLE, {"txid": str(row.txid), "snapshot": snapshot}).scalar_one())
