"""What the ``sql`` event store deletes: old or surplus events, and durable subscriptions that are not used.

``first`` in the state decides which events there are: no read looks below it. So beginning an epoch only moves it, and
however many rows that leaves behind, they are deleted here, in the same small slices as others.

What is old is found in one transaction, which locks nothing, and deleted in another, which is short.
"""

import sqlalchemy as sa
from attrs import frozen

from airy_trio.log.tables import LogTables


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
