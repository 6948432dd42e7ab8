"""Our tables in the application's database: the change log, and what we remember beside it.

``change_log``: one row for each changed row, keys only. ``change_state``: a single row with the log that consumes these
changes (``consumer_epoch``, ``consumer_store``) and their history (``points.History``). The tables are made by
``migrations/changes``.

What the feeds that read our change log have in common: two ways to the database, and which log consumes the changes.

Sealing: a recorder reads a commit, then appends its events to an event log. If that log is elsewhere, either of the two
can go back to an older state without the other: after a crash with ``synchronous_commit = off``, or when a copy is put
back. So before an append a new *mark* is written into the application's database (``seal``) and into the resume point
that is stored with the events. The mark is committed after everything that was read, and Postgres and SQLite write
commits to the disk in order: a database without the mark may lack what was read, and one with it does not. A log that
went back has an older mark. Between the seal and the append the log may hold the new point or the one before, so both
marks are accepted until the append is known to have happened (``settle``). An append of unknown outcome may happen
after the next seal: its mark is accepted as long. One case remains: the event log loses an append which the recorder
has not settled on disk yet, because a power failure stops both machines, or the store stops before it answers.

What the change log says of one object: when it changed last, and whether that lies before a resume point.

For a person who asks, not for a feed: it reads the whole change log, which retention keeps short.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog
from attrs import frozen

from airy_trio.capture.feed import Consumer, ResumePointLost
from airy_trio.capture.inspection import inspect_again
from airy_trio.capture.mapping import Key, Kind, Tables
from airy_trio.capture.objects import Objects
from airy_trio.capture.queries import TEXT_CHARS_MAX
from airy_trio.capture.resume_points import History, PostgresPoint, SqlitePoint, identified, is_foreign
from airy_trio.database import POSTGRES, Database, DedicatedConnection, Names, close_all
from airy_trio.database.queries import Query
from airy_trio.errors import Unavailable

TABLE = "change_log"
STATE = "change_state"
MARKS_CHARS_MAX = 500  # of those that were sealed and perhaps never appended: 29 of them
_ONLY = 1  # the id of the state's single row


@frozen(init=False)
class ChangeLog:
    """The change log under its names in one database."""

    names: Names
    rows: sa.Table
    state: sa.Table
    _history: Query

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
        state = sa.Table(
            names.bare(STATE),
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            *(sa.Column(name, sa.Text) for name in ("origin", "consumer_epoch", "consumer_store")),
            *(sa.Column(name, sa.Text) for name in ("mark", "replaced_mark")),
        )
        quoted = names.quoted(STATE).replace(":", "\\:")
        history = Query(sa.text(f"select source, origin, mark, replaced_mark from {quoted}"))  # noqa: S608 - quoted
        rows = sa.Table(names.bare(TABLE), metadata, *columns)
        self.__attrs_init__(names=names, rows=rows, state=state, history=history)

    def count(self, connection: sa.Connection) -> int:
        """How many changes wait: a stopped server leaves the log growing."""
        return connection.execute(sa.select(sa.func.count()).select_from(self.rows)).scalar_one()

    def origin(self, connection: sa.Connection) -> str | None:
        """Where an empty event log starts; None before the first migration has written it."""
        found: str | None = connection.execute(sa.select(self.state.c.origin)).scalar_one_or_none()
        return found

    def set_origin(self, connection: sa.Connection, origin: str) -> None:
        """Move the point from which an empty event log starts."""
        updated = connection.execute(sa.update(self.state).values(origin=origin))
        if not updated.rowcount:
            connection.execute(sa.insert(self.state).values(id=_ONLY, origin=origin))

    def history(self, connection: sa.Connection) -> History | None:
        """What is kept of the history of these changes; None before the first migration has written it."""
        for source, origin, mark, replaced_mark in self._history.rows(connection, {}):
            return History(source=source, origin=origin, mark=mark, replaced_mark=replaced_mark)
        return None

    def seal(self, connection: sa.Connection, mark: str, replaced_mark: str) -> None:
        """Keep the mark of a point that is about to be recorded, and of the one that it replaces.

        If another one was sealed since that one, its append may still happen: it is kept as well.
        """
        before = self.state.c.mark
        unsettled = sa.func.substr(before + " " + self.state.c.replaced_mark, 1, MARKS_CHARS_MAX)
        kept = sa.case((before == replaced_mark, replaced_mark), else_=sa.literal(replaced_mark) + " " + unsettled)
        connection.execute(sa.update(self.state).values(mark=mark, replaced_mark=kept))

    def settle(self, connection: sa.Connection, mark: str) -> None:
        """Forget the marks of the replaced points, unless another point was sealed meanwhile."""
        connection.execute(sa.update(self.state).where(self.state.c.mark == mark).values(replaced_mark=mark))

    def consumer(self, connection: sa.Connection) -> Consumer | None:
        """The event log that consumes these changes."""
        columns = self.state.c.consumer_epoch, self.state.c.consumer_store
        row = connection.execute(sa.select(*columns)).one_or_none()
        return None if row is None or row.consumer_epoch is None else Consumer(row.consumer_epoch, row.consumer_store)

    def set_consumer(self, connection: sa.Connection, consumer: Consumer) -> None:
        """Name the event log that consumes these changes from now on."""
        connection.execute(sa.update(self.state).values(consumer_epoch=consumer.epoch, consumer_store=consumer.store))


logger = structlog.get_logger(__name__)


@frozen
class LoggedChanges:
    """Where a feed finds the changes that our triggers have noted, and the rows: one connection that reads, and a pool.

    ``names``: of our own tables; ``tables``: the mapping of the application's. ``text_chars_max``: see ``Objects``.
    ``newer_schema``: whether a newer version made our tables; raises ``FaultsError`` if this one cannot work with them.
    ``seals``: whether the event log can go back without this database, or this database without the event log.
    """

    reading: DedicatedConnection
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


_VISIBLE = sa.text("select pg_visible_in_snapshot(cast(:txid as xid8), cast(:snapshot as pg_snapshot))")


@frozen(kw_only=True)
class Logged:
    """The newest change of an object. ``at``: the trigger's clock; ``recorded``: it lies before the resume point."""

    operation: str
    at: datetime
    recorded: bool


def newest_change(
    connection: sa.Connection, names: Names, kind: Kind, key: Key, resume_point: str | None
) -> Logged | None:
    """The newest change of the object with this key that the change log still has; None where it has none."""
    rows = ChangeLog(names).rows
    matches = [
        sa.cast(column, sa.Text) == str(value)
        for column, value in zip((rows.c.key_1, rows.c.key_2), key, strict=True)
        if value is not None
    ]
    wanted = sa.select(rows).where(rows.c.kind == kind, *matches).order_by(rows.c.seq.desc()).limit(1)
    row = connection.execute(wanted).first()
    if row is None:
        return None
    at = row.at.astimezone(UTC) if isinstance(row.at, datetime) else datetime.fromtimestamp(row.at / 1000, UTC)
    recorded = resume_point is not None and _is_before(connection, names, row, resume_point)
    return Logged(operation=row.operation, at=at, recorded=recorded)


def _is_before(connection: sa.Connection, names: Names, row: sa.Row[Any], resume_point: str) -> bool:
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
