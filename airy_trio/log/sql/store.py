"""The event store in SQL: a Postgres beside the application's tables, or an SQLite file of our own.

An append locks the single row of the state, compares, writes events and resume point, and commits: atomic, gapless,
fenced. The low mark stands in that row because ``min(offset)`` after a mass delete is slow. What was sent
never goes back: commits are synchronous on Postgres whatever the server's default, and
an SQLite file is written with ``synchronous = full``, in WAL mode so that readers never lock the writer out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from airy_trio.database import Database, Names, close_all
from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position, new_epoch
from airy_trio.log.sql_bell import Bell
from airy_trio.log.sql_durables import DurableTable
from airy_trio.log.sql_fence import Fence
from airy_trio.log.sql_file import SqlFile, make_durable
from airy_trio.log.sql_file_bell import FileBell
from airy_trio.log.sql_short import ShortAppends
from airy_trio.log.sql_short_reads import ShortReads
from airy_trio.log.sql_trim import Trims
from airy_trio.log.sql_units import Units
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Holder,
    NewEvent,
    PositionExpired,
    StaleAppend,
    StoredEvent,
    StoreUnavailable,
    is_all,
    stored_after,
)
from airy_trio.log.tables import LogTables

T = TypeVar("T")


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
        self._bell = Bell(appending.engine, names.schema) if self._tables.postgres else None
        self._fence = Fence(names) if self._tables.postgres else None
        self._short = ShortAppends(appending.engine, names, self._bell.channel) if self._bell else None
        self._short_reads = ShortReads(appending.engine, names) if self._bell else None
        path = Path(reading.engine.url.database or "")
        self._file_bell = None if self._tables.postgres else FileBell(path)
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

    async def hold(self, holders: Sequence[Holder]) -> Sequence[Position | None]:
        """See ``EventStore.hold``."""

        def work(connection: sa.Connection) -> dict[tuple[str, str], Position | None]:
            self._tables.make_synchronous(connection)
            return self._durables.hold(connection, holders, self._tables.bounds(connection).now_ms)

        found = await self._units.write(work) if holders else {}
        return [found[holder.owner, holder.name] for holder in holders]

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Holder]:
        """See ``EventStore.acknowledge``."""

        def work(connection: sa.Connection) -> set[tuple[str, str]]:
            self._tables.make_synchronous(connection)
            return self._durables.acknowledge(connection, acknowledgements, self._tables.bounds(connection).now_ms)

        kept = await self._units.write(work) if acknowledgements else set()
        return [one.holder for one in acknowledgements if (one.holder.owner, one.holder.name) not in kept]

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
