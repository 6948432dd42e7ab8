"""What the ``sql`` event store forgets: events that are old or too many, and durable subscriptions that nobody uses.

What is old is found in one transaction, which locks nothing, and deleted in another, which is short. Refuses to know
when they begin and end.
"""

import sqlalchemy as sa
from attrs import frozen

from airy_trio.log.position import Position
from airy_trio.log.tables import LogTables


@frozen(kw_only=True)
class Old:
    """What may go: events up to a position (offset 0: none), and whether a name was last used before a time."""

    upto: Position
    before_ms: int
    unused: bool

    @property
    def is_any(self) -> bool:
        """Whether there is anything to delete."""
        return self.upto.offset > 0 or self.unused


def find_old(connection: sa.Connection, tables: LogTables, *, age_s: float, keep: int, limit: int) -> Old:
    """What is older than ``age_s`` or beyond the newest ``keep``, at most ``limit`` events of it."""
    bounds = tables.bounds(connection)
    before_ms = bounds.now_ms - int(age_s * 1000)
    upto = max(tables.last_before(connection, bounds, before_ms), bounds.last - keep)
    upto = min(upto, bounds.first - 1 + limit)
    oldest = connection.execute(sa.select(sa.func.min(tables.acknowledged.c.used_at_ms))).scalar()
    return Old(
        upto=bounds.head.at(upto if upto >= bounds.first else 0),
        before_ms=before_ms,
        unused=oldest is not None and oldest < before_ms,
    )


def delete(connection: sa.Connection, tables: LogTables, old: Old) -> int:
    """Delete it, and give how many events that were; none where they are gone or an epoch has begun since."""
    if old.unused:
        rows = tables.acknowledged
        connection.execute(sa.delete(rows).where(rows.c.used_at_ms < old.before_ms))
    state = tables.locked_state(connection)
    if state.epoch != old.upto.epoch or old.upto.offset < state.first:
        return 0
    connection.execute(sa.delete(tables.events).where(tables.events.c.offset <= old.upto.offset))
    connection.execute(sa.update(tables.state).values(first=old.upto.offset + 1))
    return old.upto.offset + 1 - int(state.first)
