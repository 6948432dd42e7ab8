"""A server whose feed is deliberately wrong: it reads the changes whose ``seq`` is higher than the last one.

``seq`` is assigned when a change is written, not when it is committed, so a change that is written early and committed
late is skipped. A drill that detects no loss here cannot detect any.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from attrs import evolve

from airy_trio import cli
from airy_trio.app import build
from airy_trio.capture.change_log import TABLE
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.capture.resume_points import PostgresPoint

_NEXT = (
    "select kind, operation, key_1, key_2, old_1, old_2, seq, cast(0 as float8) as age_s "
    "from {} where seq > :seq order by seq limit :limit"
)


class SeqFeed(PostgresFeed):
    """``PostgresFeed`` that reads by ``seq`` alone."""

    async def _read_fast(self, *_: object) -> None:
        """Disable the fast path, so that ``_rows`` is always used."""

    def _rows(
        self, connection: sa.Connection, point: PostgresPoint, now: PostgresPoint, limit: int
    ) -> tuple[Sequence[tuple[Any, ...]], PostgresPoint]:
        statement = sa.text(_NEXT.format(self._log.names.quoted(TABLE)))
        rows = connection.execute(statement, {"seq": point.seq, "limit": limit}).all()
        return [tuple(row) for row in rows], evolve(now, seq=rows[-1].seq if rows else point.seq)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "PostgresFeed", SeqFeed)
        cli.main()
