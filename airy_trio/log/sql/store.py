"""The event store in SQL, as far as Postgres and SQLite have it in common.

An append locks the single row of the state, compares it with what the writer expects, writes events and resume point,
and commits: atomic, without gaps, fenced. An event that was sent to a client must not be lost. So commits are
synchronous on Postgres whatever the server's default, and an SQLite file is written with ``synchronous = full``.

``first`` in the state decides which events exist: no read looks below it. So beginning an epoch only moves ``first``.
The rows that this leaves behind, however many, are deleted by ``trim`` in the same small slices as expired events.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa
from attrs import frozen

from airy_trio.database import Database, DatabaseError, DatabaseUnavailable, close_all
from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position, new_epoch
from airy_trio.log.reads import READS_MAX
from airy_trio.log.sql.tables import DurableTable, LogTables
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    NewEvent,
    PositionExpired,
    StaleAppend,
    StoredEvent,
    StoreUnavailable,
    stored_after,
)

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class SqlStore:
    """``EventStore`` over pools of one database, without ``wait``, which each dialect has in its own way.

    ``reading``: for reads; a pooler may be in between. ``appending``: for everything that needs a session of its own:
    appends, with the time-outs of a recorder's session, other writes, LISTEN, and prepared statements.

    Reads for clients have threads and connections of their own, as many as there may be such reads at once
    (``READS_MAX``). A scan goes on in its thread after its client has left, and the reads that follow the log must not
    wait for it.
    """

    def __init__(self, tables: LogTables, reading: sa.Engine, appending: Database) -> None:
        self._tables = tables
        self._durables = DurableTable(tables)
        self._trims = Trims(tables)
        self._reading = Database(reading)
        self._replaying = Database(reading, threads_max=READS_MAX)
        self._appending = appending

    async def bounds(self) -> Bounds:
        """See ``EventStore.bounds``."""
        return await self._run(self._reading.run, self._tables.bounds)

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.append``."""

        def work(connection: sa.Connection) -> list[StoredEvent]:
            now_ms = self._tables.move_head(connection, expected, len(events), resume_point, replaces)
            if now_ms is None:
                raise self._stale(connection, expected)
            new = stored_after(expected, events, now_ms)
            if new:
                self._tables.insert(connection, new)
            return new

        return await self._move_head(work)

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.read``."""

        def work(connection: sa.Connection) -> list[StoredEvent]:
            bounds = self._tables.bounds(connection)
            if after.epoch != bounds.epoch or after.offset < bounds.first - 1:
                message = f"the events after {after} are gone"
                raise PositionExpired(message)
            events = self._tables.events
            wanted = sa.select(events).where(events.c.offset > after.offset, self._tables.belongs_to(destination))
            return self._tables.select(connection, wanted.limit(limit), events.c.offset, bytes_max)

        return await self._run((self._reading if destination is None else self._replaying).run, work)

    async def recent(
        self,
        until: Position,
        age_s: float,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.recent``."""

        def work(connection: sa.Connection) -> list[StoredEvent]:
            bounds = self._tables.bounds(connection)
            if until.epoch != bounds.epoch:
                message = f"{until} is not of epoch {bounds.epoch}"
                raise PositionExpired(message)
            before = self._tables.last_before(connection, bounds, bounds.now_ms - int(age_s * 1000))
            newest = self._tables.newest_of_each(before, until.offset, limit, destination)
            return self._tables.select(connection, newest, self._tables.events.c.offset.desc(), bytes_max)[::-1]

        return await self._run(self._replaying.run, work)

    async def resume_point(self) -> str | None:
        """See ``EventStore.resume_point``."""
        return await self._run(self._reading.run, self._tables.resume_point)

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        """See ``EventStore.begin_epoch``."""

        def work(connection: sa.Connection) -> Bounds:
            if not self._tables.begin_epoch(connection, expected, new_epoch(), resume_point):
                raise self._stale(connection, expected)
            return self._tables.bounds(connection)

        return await self._move_head(work)

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        """See ``EventStore.trim``.

        One transaction finds the old rows and locks nothing. If there are any, a second and short one deletes them.
        """
        old = await self._run(
            self._reading.run,
            lambda connection: self._trims.find(connection, age_s=age_s, keep=keep, limit=limit, unused_s=unused_s),
        )
        if not old.rows and old.unused_before_ms is None:
            return 0
        return await self._run(self._appending.write, lambda connection: self._trims.delete(connection, old))

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        """See ``EventStore.acknowledged``."""
        return await self._run(self._reading.run, lambda connection: self._durables.position(connection, owner, name))

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        """See ``EventStore.claim``."""

        def work(connection: sa.Connection) -> dict[tuple[str, str], Position | None]:
            self._tables.make_synchronous(connection)
            return self._durables.claim(connection, claims, self._tables.bounds(connection).now_ms)

        found = await self._run(self._appending.write, work) if claims else {}
        return [found[claim.owner, claim.name] for claim in claims]

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        """See ``EventStore.acknowledge``."""

        def work(connection: sa.Connection) -> set[tuple[str, str]]:
            self._tables.make_synchronous(connection)
            return self._durables.acknowledge(connection, acknowledgements, self._tables.bounds(connection).now_ms)

        kept = await self._run(self._appending.write, work) if acknowledgements else set()
        return [one.claim for one in acknowledgements if (one.claim.owner, one.claim.name) not in kept]

    async def aclose(self) -> None:
        """Close files and connections. Idempotent."""
        await close_all(self._reading.aclose, self._replaying.aclose, self._appending.aclose)

    async def _move_head(self, work: Work[T]) -> T:
        """Run a unit of work that moves the head."""
        return await self._run(self._appending.write, work)

    async def _run(self, run: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
        """Run a unit of work in a pool. Raises ``StoreUnavailable``, ``StoreReplaced`` and ``DatabaseError``."""
        return await self._translated(run(self._checked(work)))

    def _checked(self, work: Work[T]) -> Work[T]:
        """Return a unit of work that fails with ``StoreReplaced`` if the database is not the one that was opened."""
        return work

    def _check(self) -> None:
        """Raise ``StoreReplaced`` if the database is not the one that was opened."""

    async def _translated(self, answer: Awaitable[T]) -> T:
        """Await something that raises ``DatabaseError``, and raise ``StoreUnavailable`` if waiting helps."""
        try:
            return await answer
        except DatabaseError as error:
            self._check()
            if isinstance(error, DatabaseUnavailable):
                raise StoreUnavailable(str(error)) from None
            raise

    def _stale(self, connection: sa.Connection, expected: Position) -> StaleAppend:
        head = self._tables.bounds(connection).head
        if head == expected:
            return StaleAppend("the resume point is not the one that the writer expects")
        return StaleAppend(f"the head is {head}, not {expected}")


@frozen(kw_only=True)
class Old:
    """What to delete.

    ``trimmed``: the offsets of ``epoch`` that expire. ``rows``: the offsets of the rows to delete, which may be of an
    earlier epoch. ``unused_before_ms``: delete the durable subscriptions that were last used before this time; None if
    there are none.
    """

    epoch: str
    trimmed: range
    rows: range
    unused_before_ms: int | None


class Trims:
    """Finds and deletes old rows, in transactions of the caller."""

    def __init__(self, tables: LogTables) -> None:
        self._tables = tables
        self._used_since_ms = 0  # no durable subscription was last used before this time
        self._clean_epoch: str | None = None  # there are no rows below the ``first`` of this epoch

    def find(self, connection: sa.Connection, *, age_s: float, keep: int, limit: int, unused_s: float) -> Old:
        """Find at most ``limit`` events older than ``age_s`` or beyond the newest ``keep``, and unused durables."""
        bounds = self._tables.bounds(connection)
        before_ms = bounds.now_ms - int(age_s * 1000)
        upto = max(self._tables.last_before(connection, bounds, before_ms), bounds.last - keep)
        first = max(bounds.first, min(upto + 1, bounds.first + limit))
        lowest = bounds.first if self._clean_epoch == bounds.epoch else self._lowest(connection, bounds.first)
        if lowest == bounds.first:
            self._clean_epoch = bounds.epoch
        return Old(
            epoch=bounds.epoch,
            trimmed=range(bounds.first, first),
            rows=range(lowest, min(first, lowest + limit)),
            unused_before_ms=self._unused_before(connection, bounds.now_ms, unused_s),
        )

    def delete(self, connection: sa.Connection, old: Old) -> int:
        """Delete them and return how many events of the epoch expired; 0 if it has ended or they had expired before.

        In both cases ``first`` is beyond the rows, so nothing reads them. The state is updated last, so that its row is
        locked for the commit only.
        """
        if old.unused_before_ms is not None:
            durables = self._tables.acknowledged
            connection.execute(sa.delete(durables).where(durables.c.used_at_ms < old.unused_before_ms))
        if old.rows:
            offset = self._tables.events.c.offset
            wanted = offset.between(old.rows.start, old.rows.stop - 1)
            connection.execute(sa.delete(self._tables.events).where(wanted))
        if not old.trimmed:
            return 0
        state = self._tables.state
        behind = sa.and_(state.c.epoch == old.epoch, state.c.first < old.trimmed.stop)
        moved = connection.execute(sa.update(state).where(behind).values(first=old.trimmed.stop))
        return len(old.trimmed) if moved.rowcount > 0 else 0

    def _lowest(self, connection: sa.Connection, first: int) -> int:
        """Return the offset of the oldest row, at most ``first``. Slow after many deletes, so it is cached."""
        lowest = connection.execute(sa.select(sa.func.min(self._tables.events.c.offset))).scalar()
        return first if lowest is None else min(first, lowest)

    def _unused_before(self, connection: sa.Connection, now_ms: int, unused_s: float) -> int | None:
        """Return the time before which durable subscriptions count as unused; None if there are none of them.

        The table has no index by time of use, because that would make each acknowledgement more expensive. Instead it
        is scanned once for the oldest row. Times of use only grow, so another scan is due when that row would be old
        enough.
        """
        before_ms = now_ms - int(unused_s * 1000)
        if before_ms <= self._used_since_ms:
            return None
        oldest_ms = connection.execute(sa.select(sa.func.min(self._tables.acknowledged.c.used_at_ms))).scalar()
        self._used_since_ms = now_ms if oldest_ms is None else oldest_ms
        return before_ms if self._used_since_ms < before_ms else None
