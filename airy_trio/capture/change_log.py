"""Our tables in the application's database, and the parts that all feeds over them share.

- ``change_log`` has one row for each changed row of the application: keys only, plus the values that the event of a
  deletion needs. Triggers write it, and backfills for rows that have not changed; the recorder reads and trims it.
- ``change_state`` is a single row: the event log that consumes these changes (``consumer_epoch``, ``consumer_store``),
  the history of the change log (``History``), and the backfills that have not ended (``backfill``).

``migrations/changes`` creates both.

Resume points
=============

A resume point says how far a feed has read, and in which history of the database. It is a JSON object with

- the position: on SQLite the number of a row of the change log, on Postgres a snapshot (see ``PostgresPoint``);
- proof that the position means something in this database. Transaction numbers and row numbers are valid in one
  history only. After a dump is restored, a file is replaced by a copy, or a standby is promoted, an old position can
  look valid and lie in the future, and changes would be skipped silently;
- ``source``, the random identity of the change log, and a ``mark`` (see below). The database keeps the marks of the
  points that the event log may hold (``History``), so that a database or an event log that was restored to an older
  state is detected.

A key that is missing, as in points of older versions, matches any value.

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

import json
import secrets
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Self, TypeVar

import sqlalchemy as sa
import structlog
from attrs import asdict, evolve, field, fields_dict, frozen
from attrs.validators import matches_re

from airy_trio.capture.feed import POINT_FORMAT, Consumer, ResumePointLost, ResumePointTooNew
from airy_trio.capture.mapping import Tables
from airy_trio.capture.objects import InspectedFeed
from airy_trio.capture.queries import Query
from airy_trio.database import POSTGRES, Database, DedicatedConnection, Names, close_all, escape_colons
from airy_trio.errors import Unavailable

logger = structlog.get_logger(__name__)

TABLE = "change_log"
STATE = "change_state"
# A mark has 16 characters, so this keeps the marks of the last 29 appends whose outcome is unknown.
MARKS_CHARS_MAX = 500
_STATE_ID = 1  # of the only row

MOMENT: Final = (
    "cast(pg_current_snapshot() as text) as snapshot, (select oid from pg_database where datname = current_database()) "
    "|| '.' || coalesce(cast(cast(to_regclass(:log) as oid) as text), '') as place"
)
"""Columns: the snapshot and the place of a ``PostgresPoint``. ``:log`` is the quoted name of the change log."""
# The first eight digits of a WAL file's name are the present timeline. ``pg_control_checkpoint()`` would return the
# timeline of the last checkpoint, which may be older than a promotion.
_NOW = sa.text(
    "select cast(system_identifier as text) as system, "  # noqa: S608 - no text of others
    f"substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline, {MOMENT} from pg_control_system()"
)


@frozen
class _Point:
    """A point as text: the JSON object of its attributes, and its format."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the output of ``str`` in this version or an older one.

        Raises ``ResumePointLost`` if another kind of database wrote it, and ``ResumePointTooNew``.
        """
        found: Any = parsed_point(text)
        try:
            types: Any = {name: known.type for name, known in fields_dict(cls).items() if name in found}
            if all(isinstance(found[name], type_) for name, type_ in types.items()):
                return cls(**{name: found[name] for name in types})
        except (TypeError, ValueError):
            pass
        raise ResumePointLost("the recorded resume point was written for another kind of database")

    def __str__(self) -> str:
        return json.dumps({"format": POINT_FORMAT, **asdict(self)}, separators=(",", ":"))


@frozen
class SqlitePoint(_Point):
    """Everything up to row ``seq`` of the change log has been read. ``token`` is the random token of that row.

    A file that was replaced by an older copy has no row of that number, or one with another token.
    """

    seq: int
    token: str
    source: str = ""
    mark: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """See ``_Point.parse``. A list ``[seq, token]`` is of an older version."""
        match parsed_point(text):
            case [int(seq), str(token)]:
                return cls(seq, token)
            case _:
                return super().parse(text)

    def is_before(self, origin: str) -> bool:
        """Return whether there are changes between this point and the origin of the change log."""
        return self.seq < self.parse(origin).seq


SQLITE_FIRST: Final = SqlitePoint(0, "")
"""The point before the first row."""


@frozen(kw_only=True)
class PostgresPoint(_Point):
    """Every change that ``snapshot`` sees has been read.

    A snapshot (``xmin:xmax:xip,…``) rather than a number is the position, because transactions do not commit in the
    order of any number that they draw (see ``postgres``).

    A large difference is read in pages, in the order of transaction and time. Until the last page has been read,
    ``target`` is the snapshot that the pages lead to, and the changes between ``snapshot`` and ``target`` have been
    read up to ``txid`` and ``at`` (seconds since 1970). Otherwise ``target`` is "". Points of older versions have
    neither ``txid`` nor ``at``, so their pages are read again from the first.

    ``system`` and ``timeline`` name the history of the cluster in which the transaction numbers are valid. ``place``
    holds the oids of the database and of the change log, which are different after a dump is restored. Before the first
    batch ``place`` is "", which matches any value, as it does for ``source`` and ``mark``.
    """

    system: str
    timeline: str
    snapshot: str = field(validator=matches_re("[0-9]+:[0-9]+:([0-9]+(,[0-9]+)*)?"))
    place: str = ""
    target: str = ""
    txid: str = "0"
    at: float = 0.0
    source: str = ""
    mark: str = ""

    @classmethod
    def now(cls, connection: sa.Connection, log: str) -> Self:
        """Return the point after everything visible to the connection. ``log``: the quoted name of the change log.

        The role needs the right to execute ``pg_control_system``.
        """
        return cls(**connection.execute(_NOW, {"log": log}).mappings().one())

    @property
    def next_transaction(self) -> int:
        """Transactions from this number on were not visible (the snapshot's ``xmax``)."""
        return int(self.snapshot.split(":")[1])

    @property
    def in_progress(self) -> list[str]:
        """The transactions below ``next_transaction`` that were open (the snapshot's ``xip``)."""
        return [txid for txid in self.snapshot.split(":")[2].split(",") if txid]

    def has_read(self, other: Self) -> bool:
        """Return whether this snapshot sees everything that the other point's snapshot sees, in the same history."""
        # A transaction may be open in this snapshot although its number is below the other one's ``xmax``. Then it must
        # be open in the other snapshot too; otherwise that one may see its rows.
        unread = {txid for txid in self.in_progress if int(txid) < other.next_transaction}
        return self.next_transaction >= other.next_transaction and unread <= set(other.in_progress)

    def is_before(self, origin: str) -> bool:
        """Return whether there are changes between this point and the origin of the change log.

        False for an origin of another cluster, whose transaction numbers cannot be compared. ``require_history_of``
        checks whether the point is of the present one.
        """
        first = self.parse(origin)
        return first.system == self.system and not self.has_read(first)

    def require_history_of(self, now: Self) -> None:
        """Raise ``ResumePointLost`` unless this point lies in the past of ``now``."""
        if (self.system, self.timeline) != (now.system, now.timeline):
            raise ResumePointLost("the database is in another cluster than was recorded, or in a restored one")
        if self.place and self.place != now.place:
            raise ResumePointLost("the change log is not the one that was recorded; a dump may have been restored")
        if self.next_transaction > now.next_transaction:
            raise ResumePointLost("the database is in an older state than was recorded")


@frozen(kw_only=True)
class History:
    """The history of the change log as stored in ``change_state``.

    ``source`` is the random identity of the change log. ``origin`` is the resume point for an empty event log; every
    change after it is still in the change log. ``mark`` is that of the newest sealed point. ``replaced_mark`` has the
    marks of the points that the event log may hold instead, separated by spaces; it equals ``mark`` once the newest
    point is known to be recorded.
    """

    source: str
    origin: str
    mark: str
    replaced_mark: str

    def require(self, point: PostgresPoint | SqlitePoint) -> None:
        """Raise ``ResumePointLost`` if a recorded point does not belong to this history.

        A point before the origin comes from an older copy of an event log: changes after it have been trimmed.
        """
        if point.source and point.source != self.source:
            raise ResumePointLost("the change log belongs to another database than was recorded")
        if point.is_before(self.origin):
            raise ResumePointLost("changes after the recorded resume point have been trimmed from the change log")
        if point.mark and point.mark not in (self.mark, *self.replaced_mark.split()):
            raise ResumePointLost("the database or the event log has been restored to an older state")


def first_point(connection: sa.Connection, log: str) -> str:
    """Return the resume point of a change log that was created just now. ``log``: its quoted name.

    It has no ``place``: if an operator runs the previewed SQL of a migration by hand, the change log gets another oid
    than in the preview.
    """
    if connection.dialect.name != POSTGRES:
        return str(SQLITE_FIRST)
    return str(evolve(PostgresPoint.now(connection, log), place=""))


def identified_point(text: str, source: str) -> str | None:
    """Return a point of the change log ``source``; None if it belongs to another one, or to another capture mode.

    A point of an older version names no change log and gets ``source``. Text that is not a point is returned unchanged.
    Raises ``ResumePointTooNew``.
    """
    match parsed_point(text):
        case {"identity": _}:  # Capture by ``updated_at``; these points had no source in older versions.
            return None
        case {"source": str(found)} if found:
            return text if found == source else None
    for kind in (PostgresPoint, SqlitePoint):
        with suppress(ResumePointLost):
            return str(evolve(kind.parse(text), source=source))
    return text


def parsed_point(text: str) -> object:
    """Return the JSON value of a point of any kind; None for text that is not JSON. Raises ``ResumePointTooNew``."""
    try:
        found: object = json.loads(text)
    except ValueError:
        return None
    match found:
        case {"format": int(format_)} if format_ > POINT_FORMAT:
            raise ResumePointTooNew(format_)
        case _:
            return found


P = TypeVar("P", PostgresPoint, SqlitePoint)


class ChangeLog:
    """The two tables under their names in one database."""

    def __init__(self, names: Names) -> None:
        metadata = sa.MetaData(schema=names.table_schema)
        place: list[sa.Column[Any]] = [sa.Column("txid")]
        if names.dialect != POSTGRES:
            place = [sa.Column("seq", sa.BigInteger), sa.Column("token")]
        columns: list[sa.Column[Any]] = [
            sa.Column("kind", sa.Text),
            sa.Column("operation", sa.Text),
            *(sa.Column(name) for name in ("key_1", "key_2", "old_1", "old_2")),
            sa.Column("at"),
        ]
        self.names = names
        self.rows = sa.Table(names.bare(TABLE), metadata, *place, *columns)
        in_order = ("txid", "at") if names.dialect == POSTGRES else ("seq",)
        self.order: Sequence[sa.Column[Any]] = [self.rows.c[name] for name in in_order]
        """The columns in whose order the changes are read. On Postgres two rows may have the same values."""
        self.state = sa.Table(
            names.bare(STATE),
            metadata,
            sa.Column("id", sa.Integer),
            *(sa.Column(name, sa.Text) for name in ("origin", "consumer_epoch", "consumer_store")),
            *(sa.Column(name, sa.Text) for name in ("mark", "replaced_mark", "backfill")),
        )
        quoted = escape_colons(names.quoted(STATE))
        # The newest marks come first, so the limit drops the oldest ones. A mark that is cut off equals no mark of a
        # point.
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

    ``names`` are those of our tables. ``text_chars_max``: see ``Objects``. ``seals``: the event log and this database
    can return to an older state independently, so that resume points must be sealed.
    """

    reading: DedicatedConnection
    writing: Database
    names: Names
    tables: Tables
    text_chars_max: int
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
            return first_point(connection, self._log.names.quoted(TABLE))
        return str(evolve(self._point.parse(history.origin), source=history.source))

    async def identified(self, point: str) -> str | None:
        history = await self._reading.run(self._log.history)
        return point if history is None else identified_point(point, history.source)

    async def seal(self, after: str, upto: str) -> str:
        if not self._seals:  # No checkpoint here: it would let other tasks run between a commit and its append.
            return upto
        # A random mark, not a number that grows: a restored database would assign the same number a second time.
        mark = secrets.token_hex(8)
        await self._mark(self._log.seal, mark=mark, replaced=self._point.parse(after).mark)
        return str(evolve(self._point.parse(upto), mark=mark))

    async def settle(self, point: str) -> None:
        """See ``ChangeFeed.settle``. If the database is busy or unavailable, the next call settles instead."""
        # The recorder settles whenever it has nothing to read, and a point needs a commit only once.
        if self._seals and point != self._settled:
            try:
                await self._mark(self._log.settle, mark=self._point.parse(point).mark)
            except Unavailable as error:
                logger.debug("resume point not settled; older ones stay accepted for now", reason=str(error))
            else:
                self._settled = point

    async def restart(self) -> str:
        # Deletion and new origin are one transaction. If the server ends before the event log has begun its new epoch,
        # the log still has its old point. That point is of another history or before the new origin, so the next read
        # raises ``ResumePointLost`` again, instead of continuing after a gap. The lease is held by another session than
        # this transaction's, but the caller has just appended, which proves that no other recorder has taken over.
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
            # The origin moves in the transaction of the deletion. Otherwise an event log that was restored from an
            # older copy could find its point accepted although changes after it are deleted. If ``limit`` was too small
            # for all old changes, the origin is ahead of the deletion. The database then only rejects points from which
            # it could still continue.
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
