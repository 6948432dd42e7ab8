"""What the change log says of one object: when it changed last, and whether that lies before a resume point.

For a person who asks, not for a feed: it reads the whole change log, which retention keeps short.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes.changelog import ChangeLog
from airy_trio.changes.feed import ResumePointLost
from airy_trio.changes.points import PostgresPoint, SqlitePoint
from airy_trio.changes.tables import Key, Kind
from airy_trio.database import POSTGRES, Names

_VISIBLE = sa.text("select pg_visible_in_snapshot(cast(:txid as xid8), cast(:snapshot as pg_snapshot))")


@frozen(kw_only=True)
class Logged:
    """The newest change of an object. ``at``: the trigger's clock; ``recorded``: it lies before the resume point."""

    operation: str
    at: datetime
    recorded: bool


def newest_change(
    connection: sa.Connection, names: Names, kind: Kind, key: Key, resume_point: str | None
) -> Logged | None:
    """The newest change of the object with this key that the change log still has; None where it has none."""
    rows = ChangeLog(names).rows
    matches = [
        sa.cast(column, sa.Text) == str(value)
        for column, value in zip((rows.c.key_1, rows.c.key_2), key, strict=True)
        if value is not None
    ]
    wanted = sa.select(rows).where(rows.c.kind == kind, *matches).order_by(rows.c.seq.desc()).limit(1)
    row = connection.execute(wanted).first()
    if row is None:
        return None
    at = row.at.astimezone(UTC) if isinstance(row.at, datetime) else datetime.fromtimestamp(row.at / 1000, UTC)
    recorded = resume_point is not None and _is_before(connection, names, row, resume_point)
    return Logged(operation=row.operation, at=at, recorded=recorded)


def _is_before(connection: sa.Connection, names: Names, row: sa.Row[Any], resume_point: str) -> bool:
    try:
        if names.dialect != POSTGRES:
            return bool(row.seq <= SqlitePoint.parse(resume_point).seq)
        point = PostgresPoint.parse(resume_point)
    except ResumePointLost:
        return False
    if _is_visible(connection, row, point.snapshot):
        return True
    return bool(point.target) and row.seq <= point.seq and _is_visible(connection, row, point.target)


def _is_visible(connection: sa.Connection, row: sa.Row[Any], snapshot: str) -> bool:
    return bool(connection.execute(_VISIBLE, {"txid": str(row.txid), "snapshot": snapshot}).scalar_one())
