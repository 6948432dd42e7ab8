"""The tables of the ``sql`` event store as both dialects know them, and how rows go in and come out.

``event_log`` holds the events by offset; ``log_state`` is a single row with the epoch, the bounds and the resume
point; ``acknowledged`` holds the durable subscriptions (``sql_durables``). Made by ``migrations/log``. Refuses to know
when a transaction begins and ends.
"""

import time
from collections.abc import Sequence
from typing import Any, Self, assert_never

import sqlalchemy as sa
from attrs import frozen

from airy_trio.database import POSTGRES, Names, quote_identifier
from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType
from airy_trio.log.store import Bounds, StoredEvent

EVENTS = "event_log"
STATE = "log_state"
ACKNOWLEDGED = "acknowledged"
_COLUMNS = ("offset", "appended_at_ms", "type", "object", "conversation_id", "channel_id", "body", "truncated")
_COPIED_AS = ("int8", "int8", "text", "text", "text", "text", "bytea", "bool")
_NOW_MS = "cast(extract(epoch from clock_timestamp()) * 1000 as bigint)"


@frozen(kw_only=True)
class LogTables:
    """The three tables under their names in one database."""

    postgres: bool
    events: sa.Table
    state: sa.Table
    acknowledged: sa.Table
    copy: str

    @classmethod
    def named(cls, names: Names) -> Self:
        """The tables as they are called in a database."""
        metadata = sa.MetaData(schema=names.table_schema)
        types: dict[str, Any] = {
            "offset": sa.BigInteger,
            "appended_at_ms": sa.BigInteger,
            "body": sa.LargeBinary,
            "truncated": sa.Boolean,
        }
        columns = ", ".join(quote_identifier(name) for name in _COLUMNS)
        return cls(
            postgres=names.dialect == POSTGRES,
            events=sa.Table(
                names.bare(EVENTS), metadata, *(sa.Column(name, types.get(name, sa.Text)) for name in _COLUMNS)
            ),
            state=sa.Table(
                names.bare(STATE),
                metadata,
                *(sa.Column(name, sa.Text) for name in ("epoch", "resume_point")),
                *(sa.Column(name, sa.BigInteger) for name in ("first", "last", "appended_at_ms")),
            ),
            acknowledged=sa.Table(
                names.bare(ACKNOWLEDGED),
                metadata,
                *(sa.Column(name, sa.Text) for name in ("owner", "name", "holder", "epoch")),
                *(sa.Column(name, sa.BigInteger) for name in ("offset", "used_at_ms")),
            ),
            copy=f"copy {names.quoted(EVENTS)} ({columns}) from stdin (format binary)",
        )

    def bounds(self, connection: sa.Connection) -> Bounds:
        """What is retained, with the store's clock: the database's on Postgres, this machine's on SQLite."""
        clock: list[sa.Label[int]] = [sa.literal_column(_NOW_MS, sa.BigInteger).label("now_ms")]
        row = connection.execute(sa.select(self.state, *clock if self.postgres else ())).one()
        now_ms = row.now_ms if self.postgres else int(time.time() * 1000)
        return Bounds(epoch=row.epoch, first=row.first, last=row.last, now_ms=now_ms)

    def insert(self, connection: sa.Connection, events: Sequence[StoredEvent]) -> None:
        """Write events with the offsets that they have."""
        if not events:
            return
        rows = ([getattr(event, name) for name in _COLUMNS] for event in events)
        if not self.postgres:
            connection.execute(sa.insert(self.events), [dict(zip(_COLUMNS, row, strict=True)) for row in rows])
            return
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(self.copy) as copy:  # a fifth of the cost of inserts
            copy.set_types(_COPIED_AS)
            for row in rows:
                copy.write_row(row)

    def last_before(self, connection: sa.Connection, bounds: Bounds, before_ms: int) -> int:
        """The newest offset appended before a time, by bisection: the times never fall as offsets grow."""
        low, high = bounds.first - 1, bounds.last
        while low < high:
            middle = (low + high + 1) // 2
            appended_at = sa.select(self.events.c.appended_at_ms).where(self.events.c.offset == middle)
            if connection.execute(appended_at).scalar_one() < before_ms:
                low = middle
            else:
                high = middle - 1
        return low

    def belongs_to(self, destination: Destination | None) -> sa.ColumnElement[bool]:
        """The condition for events of a destination; None is every event."""
        columns = self.events.c
        match destination:
            case None | Everything():
                return sa.true()
            case OfType(type=type_):
                return columns.type == type_
            case OfChannel(id=id_):
                return columns.channel_id == id_
            case OfConversation(id=id_):
                return columns.conversation_id == id_
            case _:
                assert_never(destination)


def stored(rows: sa.CursorResult[Any]) -> list[StoredEvent]:
    """The events in rows of ``event_log``."""
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
