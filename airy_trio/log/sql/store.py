"""The event store in SQL: a Postgres beside the application's tables, or an SQLite file of our own.

An append locks the single row of the state, compares, writes events and resume point, and commits: atomic, gapless,
fenced. The low mark stands in that row because ``min(offset)`` after a mass delete is slow. What was sent
never goes back: commits are synchronous on Postgres whatever the server's default, and
an SQLite file is written with ``synchronous = full``, in WAL mode so that readers never lock the writer out.

Units of work of the ``sql`` event store, with errors as its port has them: away, replaced, or refused.

What the ``sql`` event store deletes: old or surplus events, and durable subscriptions that are not used.

``first`` in the state decides which events there are: no read looks below it. So beginning an epoch only moves it, and
however many rows that leaves behind, they are deleted here, in the same small slices as others.

What is old is found in one transaction, which locks nothing, and deleted in another, which is short.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psycopg
import sqlalchemy as sa
import structlog
from attrs import frozen
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import Database, DatabaseError, DatabaseUnavailable, Names, close_all, translated
from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position, new_epoch
from airy_trio.log.reads import READS_MAX
from airy_trio.log.sql.postgres import LOCK_NOT_AVAILABLE, FastAppends, FastFollow, Fence, Notifications
from airy_trio.log.sql.sqlite import FileNotifications, SqlFile, make_durable
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
    is_all,
    stored_after,
)

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


@frozen(kw_only=True)
class Old:
    """What to delete.

    ``trimmed``: offsets of ``epoch`` that are old. ``rows``: offsets of the rows to delete, which may be of an epoch
    before. ``unused_before_ms``: delete the durable subscriptions that were last used before this time; None if there
    are none.
    """

    epoch: str
    trimmed: range
    rows: range
    unused_before_ms: int | None

    @property
    def is_any(self) -> bool:
        """Whether there is anything to delete."""
        return bool(self.rows) or self.unused_before_ms is not None


class Trims:
    """Finds and deletes old rows, in transactions of the caller."""

    def __init__(self, tables: LogTables) -> None:
        self._tables = tables
        self._used_since_ms = 0  # no durable subscription was last used before this time
        self._clean_epoch: str | None = None  # below the `first` of this one there are no rows

    def find(self, connection: sa.Connection, *, age_s: float, keep: int, limit: int, unused_s: float) -> Old:
        """Find events older than ``age_s`` or beyond the newest ``keep``, at most ``limit``, and unused durables."""
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
        """Delete it and return how many events of the epoch that were; 0 if they are gone or the epoch has ended.

        Then its rows are not wanted either: ``first`` has moved beyond them. The state is locked last, and so only for
        the commit.
        """
        if old.unused_before_ms is not None:
            durables = self._tables.acknowledged
            connection.execute(sa.delete(durables).where(durables.c.used_at_ms < old.unused_before_ms))
        if old.rows:
            offset = self._tables.events.c.offset
            wanted = offset.between(old.rows.start, old.rows.stop - 1)
            connection.execute(sa.delete(self._tables.events).where(wanted))
        return len(old.trimmed) if old.trimmed and self._move_first(connection, old) else 0

    def _move_first(self, connection: sa.Connection, old: Old) -> bool:
        state = self._tables.state
        behind = sa.and_(state.c.epoch == old.epoch, state.c.first < old.trimmed.stop)
        moved = connection.execute(sa.update(state).where(behind).values(first=old.trimmed.stop))
        return moved.rowcount > 0

    def _lowest(self, connection: sa.Connection, first: int) -> int:
        """The offset of the oldest row, at most ``first``. Slow after many deletes, so it is not asked each time."""
        lowest = connection.execute(sa.select(sa.func.min(self._tables.events.c.offset))).scalar()
        return first if lowest is None else min(first, lowest)

    def _unused_before(self, connection: sa.Connection, now_ms: int, unused_s: float) -> int | None:
        """The time before which durable subscriptions count as unused; None if there are none of them.

        The table has no index by time of use, which would make each acknowledgement dearer. It is scanned once for the
        oldest row. Uses only become younger, so another scan is due when that row would be old enough.
        """
        before_ms = now_ms - int(unused_s * 1000)
        if before_ms <= self._used_since_ms:
            return None
        oldest_ms = connection.execute(sa.select(sa.func.min(self._tables.acknowledged.c.used_at_ms))).scalar()
        self._used_since_ms = now_ms if oldest_ms is None else oldest_ms
        return before_ms if self._used_since_ms < before_ms else None


class SqlStore:
    """``EventStore`` over two pools of one database. A pooler may stand before the first, which only reads.

    Whatever needs a session of its own goes through ``appending``: appends, with the time-outs of a recorder's session,
    other writes, LISTEN, and prepared statements.
    """

    def __init__(self, reading: Database, appending: Database, names: Names) -> None:
        self._tables = LogTables.named(names)
        self._durables = DurableTable(self._tables)
        self._trims = Trims(self._tables)
        self._away = False
        self._bell = Notifications(appending.engine, names.schema) if self._tables.postgres else None
        self._fence = Fence(names) if self._tables.postgres else None
        self._short = FastAppends(appending.engine, names, self._bell.channel) if self._bell else None
        self._short_reads = FastFollow(appending.engine, names) if self._bell else None
        path = Path(reading.engine.url.database or "")
        self._file_bell = None if self._tables.postgres else FileNotifications(path)
        engine = reading.engine
        if self._tables.postgres:
            engine = engine.execution_options(isolation_level="REPEATABLE READ")  # a unit sees one snapshot
        self._units = Units(engine, appending, None if self._tables.postgres else SqlFile(path))
        self._appended: Position | None = None
        self._read_upto: Position | None = None
        if not self._tables.postgres:
            sa.event.listen(appending.engine, "connect", make_durable)

    async def bounds(self) -> Bounds:
        """See ``EventStore.bounds``."""
        try:
            bounds = await self._units.read(self._tables.bounds)
        except StoreUnavailable:
            self._away = True
            raise
        if self._away and self._bell:
            self._bell.outlived()
        self._away = False
        return bounds

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.append``. Few events go the short way on Postgres, if nobody stands in it."""
        if self._short and self._short.takes(events):
            now_ms = await self._units.short(self._short.append(expected, events, resume_point, replaces))
            if now_ms is not None:
                if self._fence:
                    self._fence.passed()
                return stored_after(expected, events, now_ms)

        def work(connection: sa.Connection) -> list[StoredEvent]:
            channel = self._bell.channel if self._bell and events else None
            now_ms = self._tables.move_head(connection, expected, len(events), (replaces, resume_point), channel)
            if now_ms is None:
                raise _stale(expected, self._tables.bounds(connection).head)
            new = stored_after(expected, events, now_ms)
            if new:
                self._tables.insert(connection, new)
            return new

        stored = await self._write(work)
        self._appended = expected.at(expected.offset + len(stored))
        return stored

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.read``. What few events come next goes the short way on Postgres."""
        if self._short_reads and destination is None and self._short_reads.takes(limit):
            few = await self._units.told(self._short_reads.read(after, bytes_max=bytes_max))
            if few is not None:
                return few

        def work(connection: sa.Connection) -> list[StoredEvent]:
            bounds = self._tables.bounds(connection)
            if after.epoch != bounds.epoch or after.offset < bounds.first - 1:
                message = f"what followed {after} is gone"
                raise PositionExpired(message)
            events = self._tables.events
            wanted = sa.select(events).where(events.c.offset > after.offset, self._tables.belongs_to(destination))
            return self._tables.select(connection, wanted.limit(limit), events.c.offset, bytes_max)

        found = await (self._units.read if destination is None else self._units.replay)(work)
        if self._short_reads and destination is None:
            self._short_reads.found(len(found))
        if destination is None and found and bytes_max is not None and is_all(found, limit, bytes_max):
            self._read_upto = after.at(found[-1].offset)
        return found

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

        return await self._units.replay(work)

    async def resume_point(self) -> str | None:
        """See ``EventStore.resume_point``."""
        return await self._units.read(self._tables.resume_point)

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        """See ``EventStore.begin_epoch``."""

        def work(connection: sa.Connection) -> Bounds:
            if not self._tables.begin_epoch(connection, expected, new_epoch(), resume_point):
                raise _stale(expected, self._tables.bounds(connection).head)
            if self._bell:
                self._bell.ring(connection)
            return self._tables.bounds(connection)

        return await self._write(work)

    async def wait(self, after: Position) -> None:
        """See ``EventStore.wait``. Looks when the bell rings, and now and then; a file's one writer seldom."""
        if self._file_bell and (after == self._read_upto or (await self.bounds()).head == after):
            await self._file_bell.wait(seldom=after == self._appended)  # it hears of all since it was last asked
        while self._bell:
            if self._bell.heard != str(after) and (await self.bounds()).head != after:
                return
            heard = await self._bell.wait()
            if heard and heard != str(after):
                return

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        """See ``EventStore.trim``. Old rows are found without a lock; only if there are any is there a transaction."""
        old = await self._units.read(
            lambda connection: self._trims.find(connection, age_s=age_s, keep=keep, limit=limit, unused_s=unused_s)
        )
        return await self._units.write(lambda connection: self._trims.delete(connection, old)) if old.is_any else 0

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        """See ``EventStore.acknowledged``."""
        return await self._units.read(lambda connection: self._durables.position(connection, owner, name))

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        """See ``EventStore.claim``."""

        def work(connection: sa.Connection) -> dict[tuple[str, str], Position | None]:
            self._tables.make_synchronous(connection)
            return self._durables.claim(connection, claims, self._tables.bounds(connection).now_ms)

        found = await self._units.write(work) if claims else {}
        return [found[claim.owner, claim.name] for claim in claims]

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        """See ``EventStore.acknowledge``."""

        def work(connection: sa.Connection) -> set[tuple[str, str]]:
            self._tables.make_synchronous(connection)
            return self._durables.acknowledge(connection, acknowledgements, self._tables.bounds(connection).now_ms)

        kept = await self._units.write(work) if acknowledgements else set()
        return [one.claim for one in acknowledgements if (one.claim.owner, one.claim.name) not in kept]

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a unit that moves the head: on Postgres behind the fence, and with a synchronous commit."""
        return await self._units.write(work) if self._fence is None else await self._units.fenced(self._fence, work)

    async def aclose(self) -> None:
        """See ``EventStore.aclose``."""
        parts = self._bell, self._short, self._short_reads, self._file_bell, self._units
        await close_all(*(part.aclose for part in parts if part is not None))


def _stale(expected: Position, head: Position) -> StaleAppend:
    if head == expected:
        return StaleAppend("the resume point is another one than the writer knows")
    return StaleAppend(f"the head is {head}, not {expected}")
