"""What comes next in a Postgres event log, read in one round trip and without a thread, where that is few events.

It is what lies between the append of another node and the clients of this one. One statement sees one snapshot, so
whether the position is still known and what follows it belong together. What it cannot tell it leaves to the long way.
"""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from airy_trio.database import DatabaseUnavailable, Names, Session, quote_identifier
from airy_trio.log.position import Position
from airy_trio.log.store import StoredEvent
from airy_trio.log.tables import COLUMNS, EVENTS, STATE, stored
from airy_trio.pipeline import Pipeline, Statement

EVENTS_MAX: Final = 8


class ShortReads:
    """Reads through one connection of an engine, opened by the first and kept."""

    def __init__(self, engine: sa.Engine, names: Names) -> None:
        self._session = Session(engine)
        columns = ", ".join(map(quote_identifier, COLUMNS))
        self._statement = Statement(
            "airy_next",
            f"select state.epoch, state.first, event.* from {names.quoted(STATE)} state left join "  # noqa: S608 - names quoted
            f'(select {columns} from {names.quoted(EVENTS)} where "offset" > $1::int8 order by "offset" '
            f'limit {EVENTS_MAX + 1}) event on true order by event."offset"',
        )
        self._busy = False
        self._few = True

    def takes(self, limit: int) -> bool:
        """Whether so many events may be asked for here now: by one task, and where there were few the last time."""
        return self._few and not self._busy and limit > EVENTS_MAX

    def found(self, count: int) -> None:
        """Take note of how many there were the long way."""
        self._few = count <= EVENTS_MAX

    async def read(self, after: Position, *, bytes_max: int | None) -> Sequence[StoredEvent] | None:
        """All events after a position; None where they are more than few, and where the long way is to tell why not.

        That is where the position is not known any more, and where the connection is lost, which after a while of
        idleness need not mean that the database is away. Raises ``DatabaseRefused``.
        """
        self._busy = True
        try:
            if not self._session.is_open:
                await self._session.run(lambda _connection: None)
            rows = await self._session.converse(lambda pipeline: self._ask(pipeline, after))
        except DatabaseUnavailable:
            return None
        finally:
            self._busy = False
        epoch, first = rows[0][:2]
        if epoch != after.epoch or after.offset < first - 1:
            return None
        events = list(stored(row[2:] for row in rows if row[2] is not None))
        self._few = len(events) <= EVENTS_MAX
        is_all = self._few and (bytes_max is None or _size(events) < bytes_max)
        return events if is_all else None

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._session.aclose()

    async def _ask(self, pipeline: Pipeline, after: Position) -> list[tuple[Any, ...]]:
        [rows] = await pipeline.run((self._statement, [b"%d" % after.offset]))
        return rows


def _size(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body) for event in events)
