"""The event store in SQL: a Postgres beside the application's tables, or an SQLite file of our own.

``event_log`` holds the events by offset; ``log_state`` is a single row with the epoch, the bounds and the resume
point. An append locks that row, compares, writes events and resume point, and commits: atomic, gapless, fenced. The
tables are made by ``migrations/log``. The low mark stands in the row because ``min(offset)`` after a mass delete is
slow (findings on the data layer, 11).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio.database import POSTGRES, Database, DatabaseUnavailable, Names, quote_identifier
from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType
from airy_trio.log.position import Position, new_epoch
from airy_trio.log.store import Bounds, NewEvent, PositionExpired, StaleAppend, StoredEvent, StoreUnavailable

T = TypeVar("T")

EVENTS = "event_log"
STATE = "log_state"
POLL_S = 0.05
_ONE_SNAPSHOT = sa.text("set transaction isolation level repeatable read")
_DURABLE = sa.text("set local synchronous_commit = on")
_CLOCK = sa.text("select cast(extract(epoch from clock_timestamp()) * 1000 as bigint)")
_COLUMNS = ("offset", "appended_at_ms", "type", "object", "conversation_id", "channel_id", "body", "truncated")


@frozen
class _Tables:
    events: sa.Table
    state: sa.Table

    @classmethod
    def named(cls, names: Names) -> "_Tables":
        metadata = sa.MetaData(schema=names.table_schema)
        types: dict[str, Any] = {"offset": sa.BigInteger, "body": sa.LargeBinary, "truncated": sa.Boolean}
        events = sa.Table(
            names.bare(EVENTS), metadata, *(sa.Column(name, types.get(name, sa.Text)) for name in _COLUMNS)
        )
        events.c.appended_at_ms.type = sa.BigInteger()
        state = sa.Table(
            names.bare(STATE),
            metadata,
            sa.Column("epoch", sa.Text),
            sa.Column("first", sa.BigInteger),
            sa.Column("last", sa.BigInteger),
            sa.Column("appended_at_ms", sa.BigInteger),
            sa.Column("resume_point", sa.Text),
        )
        return cls(events, state)


class SqlStore:
    """``EventStore`` over two pools of one database: appends are recorder's sessions, with its time-outs."""

    def __init__(self, reading: Database, appending: Database, names: Names) -> None:
        self._reading = reading
        self._appending = appending
        self._postgres = names.dialect == POSTGRES
        self._tables = _Tables.named(names)
        columns = ", ".join(quote_identifier(name) for name in _COLUMNS)
        self._copy = f"copy {names.quoted(EVENTS)} ({columns}) from stdin (format binary)"

    async def bounds(self) -> Bounds:
        """See ``EventStore.bounds``."""
        return await self._read(self._bounds)

    async def append(self, expected: Position, events: Sequence[NewEvent], resume_point: str) -> Sequence[StoredEvent]:
        """See ``EventStore.append``."""
        return await self._write(lambda connection: self._append(connection, expected, events, resume_point))

    async def read(self, after: Position, limit: int, destination: Destination | None = None) -> Sequence[StoredEvent]:
        """See ``EventStore.read``."""

        def work(connection: sa.Connection) -> list[StoredEvent]:
            bounds = self._bounds(connection)
            if after.epoch != bounds.epoch or after.offset < bounds.first - 1:
                message = f"what followed {after} is gone"
                raise PositionExpired(message)
            events = self._tables.events
            wanted = sa.select(events).where(events.c.offset > after.offset, self._condition(destination))
            return _stored(connection.execute(wanted.order_by(events.c.offset).limit(limit)))

        return await self._read(work)

    async def recent(
        self, until: Position, age_s: float, limit: int, destination: Destination | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.recent``."""

        def work(connection: sa.Connection) -> list[StoredEvent]:
            bounds = self._bounds(connection)
            if until.epoch != bounds.epoch:
                message = f"{until} is not of epoch {bounds.epoch}"
                raise PositionExpired(message)
            events = self._tables.events
            before = self._last_before(connection, bounds, bounds.now_ms - int(age_s * 1000))
            newest = (
                sa.select(sa.func.max(events.c.offset).label("newest"))
                .where(events.c.offset > before, events.c.offset <= until.offset, self._condition(destination))
                .group_by(events.c.object)
                .order_by(sa.desc("newest"))
                .limit(limit)
                .subquery()
            )
            joined = sa.select(events).join(newest, events.c.offset == newest.c.newest)
            return _stored(connection.execute(joined.order_by(events.c.offset)))

        return await self._read(work)

    async def resume_point(self) -> str | None:
        """See ``EventStore.resume_point``."""
        return await self._read(lambda connection: connection.execute(sa.select(self._tables.state)).one().resume_point)

    async def begin_epoch(self, resume_point: str) -> Bounds:
        """See ``EventStore.begin_epoch``."""

        def work(connection: sa.Connection) -> Bounds:
            self._locked_state(connection)
            connection.execute(sa.delete(self._tables.events))
            connection.execute(
                sa.update(self._tables.state).values(
                    epoch=new_epoch(), first=1, last=0, appended_at_ms=0, resume_point=resume_point
                )
            )
            return self._bounds(connection)

        return await self._write(work)

    async def wait(self, after: Position) -> None:
        """See ``EventStore.wait``. Looks each ``POLL_S`` seconds."""
        while True:
            await trio.sleep(POLL_S)
            if (await self.bounds()).head != after:
                return

    async def trim(self, *, age_s: float, keep: int, limit: int) -> int:
        """See ``EventStore.trim``."""
        bounds = await self.bounds()
        if bounds.last < bounds.first:
            return 0

        def old(connection: sa.Connection) -> int:
            by_age = self._last_before(connection, bounds, bounds.now_ms - int(age_s * 1000))
            return min(max(by_age, bounds.last - keep), bounds.first - 1 + limit)

        upto = await self._read(old)
        if upto < bounds.first:
            return 0

        def work(connection: sa.Connection) -> int:
            first = self._locked_state(connection).first
            connection.execute(sa.delete(self._tables.events).where(self._tables.events.c.offset <= upto))
            connection.execute(sa.update(self._tables.state).values(first=max(first, upto + 1)))
            return max(0, upto + 1 - int(first))

        return await self._write(work)

    async def aclose(self) -> None:
        """See ``EventStore.aclose``."""
        await self._reading.aclose()
        await self._appending.aclose()

    def _append(
        self, connection: sa.Connection, expected: Position, events: Sequence[NewEvent], resume_point: str
    ) -> list[StoredEvent]:
        state = self._locked_state(connection)
        head = Position(state.epoch, state.last)
        if expected != head:
            message = f"the head is {head}, not {expected}"
            raise StaleAppend(message)
        now_ms = max(self._now_ms(connection), state.appended_at_ms)
        stored = [
            StoredEvent(
                offset=offset,
                appended_at_ms=now_ms,
                type=event.type,
                object=event.object,
                conversation_id=event.conversation_id,
                channel_id=event.channel_id,
                body=event.body,
                truncated=event.truncated,
            )
            for offset, event in enumerate(events, start=expected.offset + 1)
        ]
        self._insert(connection, stored)
        connection.execute(
            sa.update(self._tables.state).values(
                last=expected.offset + len(stored), appended_at_ms=now_ms, resume_point=resume_point
            )
        )
        return stored

    def _insert(self, connection: sa.Connection, events: Sequence[StoredEvent]) -> None:
        rows = ([getattr(event, name) for name in _COLUMNS] for event in events)
        if not events:
            return
        if not self._postgres:
            connection.execute(sa.insert(self._tables.events), [dict(zip(_COLUMNS, row, strict=True)) for row in rows])
            return
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(self._copy) as copy:  # a fifth of the cost of inserts
            copy.set_types(("int8", "int8", "text", "text", "text", "text", "bytea", "bool"))
            for row in rows:
                copy.write_row(row)

    def _bounds(self, connection: sa.Connection) -> Bounds:
        state = connection.execute(sa.select(self._tables.state)).one()
        return Bounds(epoch=state.epoch, first=state.first, last=state.last, now_ms=self._now_ms(connection))

    def _locked_state(self, connection: sa.Connection) -> Any:  # noqa: ANN401 - a row's columns are not typed
        """The state's row, which nobody else changes before this transaction ends."""
        if self._postgres:
            connection.execute(_DURABLE)
        return connection.execute(sa.select(self._tables.state).with_for_update()).one()

    def _last_before(self, connection: sa.Connection, bounds: Bounds, before_ms: int) -> int:
        """The newest offset appended before a time, by bisection: the times never fall as offsets grow."""
        events = self._tables.events
        low, high = bounds.first - 1, bounds.last
        while low < high:
            middle = (low + high + 1) // 2
            at = connection.execute(
                sa.select(events.c.appended_at_ms).where(events.c.offset == middle)
            ).scalar_one_or_none()
            if at is None or at < before_ms:  # None: trimmed meanwhile, so older
                low = middle
            else:
                high = middle - 1
        return low

    def _condition(self, destination: Destination | None) -> sa.ColumnElement[bool]:
        columns = self._tables.events.c
        match destination:
            case None | Everything():
                return sa.true()
            case OfType(type=type_):
                return columns.type == type_
            case OfChannel(id=id_):
                return columns.channel_id == id_
            case OfConversation(id=id_):
                return columns.conversation_id == id_

    def _now_ms(self, connection: sa.Connection) -> int:
        if self._postgres:
            now_ms: int = connection.execute(_CLOCK).scalar_one()
            return now_ms
        return int(time.time() * 1000)

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        def in_one_snapshot(connection: sa.Connection) -> T:
            if self._postgres:
                connection.execute(_ONE_SNAPSHOT)
            return work(connection)

        try:
            return await self._reading.run(in_one_snapshot)
        except DatabaseUnavailable as error:
            raise StoreUnavailable(str(error)) from None

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._appending.write(work)
        except DatabaseUnavailable as error:
            raise StoreUnavailable(str(error)) from None


def _stored(rows: sa.CursorResult[Any]) -> list[StoredEvent]:
    return [
        StoredEvent(
            offset=row.offset,
            appended_at_ms=row.appended_at_ms,
            type=row.type,
            object=row.object,
            conversation_id=row.conversation_id,
            channel_id=row.channel_id,
            body=bytes(row.body),
            truncated=bool(row.truncated),
        )
        for row in rows
    ]
