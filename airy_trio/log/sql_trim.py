"""What the ``sql`` event store deletes: old or surplus events, and durable subscriptions that are not used.

What is old is found in one transaction, which locks nothing, and deleted in another, which is short.
"""

import sqlalchemy as sa
from attrs import frozen

from airy_trio.log.position import Position
from airy_trio.log.tables import LogTables


@frozen(kw_only=True)
class Old:
    """What to delete.

    ``upto``: the events up to this position (offset 0: none). ``unused_before_ms``: the durable subscriptions that
    were last used before this time; None if there are none.
    """

    upto: Position
    unused_before_ms: int | None

    @property
    def is_any(self) -> bool:
        """Whether there is anything to delete."""
        return self.upto.offset > 0 or self.unused_before_ms is not None


class Trims:
    """Finds and deletes old rows, in transactions of the caller."""

    def __init__(self, tables: LogTables) -> None:
        self._tables = tables
        self._used_since_ms = 0  # no durable subscription was last used before this time

    def find(self, connection: sa.Connection, *, age_s: float, keep: int, limit: int, unused_s: float) -> Old:
        """Find events older than ``age_s`` or beyond the newest ``keep``, at most ``limit``, and unused durables."""
        bounds = self._tables.bounds(connection)
        upto = max(self._tables.last_before(connection, bounds, bounds.now_ms - int(age_s * 1000)), bounds.last - keep)
        upto = min(upto, bounds.first - 1 + limit)
        return Old(
            upto=bounds.head.at(upto if upto >= bounds.first else 0),
            unused_before_ms=self._unused_before(connection, bounds.now_ms, unused_s),
        )

    def delete(self, connection: sa.Connection, old: Old) -> int:
        """Delete it and return how many events that were; 0 if they are gone or an epoch has begun since."""
        if old.unused_before_ms is not None:
            rows = self._tables.acknowledged
            connection.execute(sa.delete(rows).where(rows.c.used_at_ms < old.unused_before_ms))
        state = self._tables.locked_state(connection)
        if state.epoch != old.upto.epoch or old.upto.offset < state.first:
            return 0
        events = self._tables.events
        connection.execute(sa.delete(events).where(events.c.offset <= old.upto.offset))
        connection.execute(sa.update(self._tables.state).values(first=old.upto.offset + 1))
        return old.upto.offset + 1 - int(state.first)

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
