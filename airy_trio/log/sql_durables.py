"""The rows of durable subscriptions in the ``sql`` event store: who holds each, and up to where all is acknowledged.

One statement compares the holder and writes: nothing has to be locked before it. Rows are written in the order of
their keys, so that two nodes never wait for each other. Refuses to know when a transaction begins and ends.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, Holder
from airy_trio.log.tables import LogTables

ROWS_MAX: Final = 1000
"""In one statement: SQLite takes 32 766 parameters, PostgreSQL 65 535."""
_NO_EPOCH: Final = ""
"""Of a row that is held, of which nothing was acknowledged yet."""

Key = tuple[str, str]
"""Owner and name."""


class DurableTable:
    """Reads and writes ``acknowledged``."""

    def __init__(self, tables: LogTables) -> None:
        self._rows = tables.acknowledged
        self._insert: Any = postgres_insert if tables.postgres else sqlite_insert

    def position(self, connection: sa.Connection, owner: str, name: str) -> Position | None:
        """Up to where all is acknowledged; None where nothing is, or nobody has held it."""
        columns = self._rows.c
        wanted = sa.select(columns.epoch, columns.offset).where(columns.owner == owner, columns.name == name)
        found = connection.execute(wanted).one_or_none()
        return _position(*found) if found else None

    def hold(self, connection: sa.Connection, holders: Sequence[Holder], now_ms: int) -> dict[Key, Position | None]:
        """Make each the holder; give the position of each."""
        new = [{**_row(holder, now_ms), "epoch": _NO_EPOCH, "offset": 0} for holder in holders]
        columns = self._rows.c
        found: dict[Key, Position | None] = {}
        for rows in _chunks(new):
            statement = self._insert(self._rows).values(rows)
            changed = {"holder": statement.excluded.holder, "used_at_ms": statement.excluded.used_at_ms}
            written = statement.on_conflict_do_update(index_elements=("owner", "name"), set_=changed).returning(
                columns.owner, columns.name, columns.epoch, columns.offset
            )
            for owner, name, epoch, offset in connection.execute(written):
                found[owner, name] = _position(epoch, offset)
        return found

    def acknowledge(
        self, connection: sa.Connection, acknowledgements: Sequence[Acknowledgement], now_ms: int
    ) -> set[Key]:
        """Write the position of each that is still the holder, unless a later one of the same epoch stands there.

        Gives the keys of those that are.
        """
        new = [
            {**_row(one.holder, now_ms), "epoch": one.position.epoch, "offset": one.position.offset}
            for one in acknowledgements
        ]
        columns = self._rows.c
        kept: set[Key] = set()
        for rows in _chunks(new):
            statement = self._insert(self._rows).values(rows)
            given = statement.excluded
            later = sa.and_(columns.epoch == given.epoch, columns.offset > given.offset)
            changed = {
                "epoch": given.epoch,
                "offset": sa.case((later, columns.offset), else_=given.offset),
                "used_at_ms": given.used_at_ms,
            }
            written = statement.on_conflict_do_update(
                index_elements=("owner", "name"), set_=changed, where=columns.holder == given.holder
            ).returning(columns.owner, columns.name)
            kept.update((owner, name) for owner, name in connection.execute(written))
        return kept


def _row(holder: Holder, now_ms: int) -> dict[str, Any]:
    return {"owner": holder.owner, "name": holder.name, "holder": holder.token, "used_at_ms": now_ms}


def _chunks(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows.sort(key=lambda row: (row["owner"], row["name"]))
    for start in range(0, len(rows), ROWS_MAX):
        yield rows[start : start + ROWS_MAX]


def _position(epoch: str, offset: int) -> Position | None:
    """The position in a row; None where nothing was acknowledged yet."""
    return None if epoch == _NO_EPOCH else Position(epoch, offset)
