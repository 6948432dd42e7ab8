"""A server whose feed is deliberately wrong: it reads the changes whose ``seq`` is higher than the last one.

``seq`` is assigned when a change is written, not when it is committed, so a change that is written early and committed
late is skipped. A drill that detects no loss here cannot detect any.
"""

from collections.abc import Sequence

import pytest
from attrs import evolve

from airy_trio import cli
from airy_trio.app import build
from airy_trio.capture.change_log import TABLE, PostgresPoint
from airy_trio.capture.objects import COLUMNS
from airy_trio.capture.postgres import Asked, PostgresFeed
from airy_trio.capture.queries import Row
from airy_trio.database.postgres import Statement


class SeqFeed(PostgresFeed):
    """``PostgresFeed`` that reads by ``seq`` alone."""

    def _changes(self, point: PostgresPoint, limit: int) -> Asked:
        sql = (
            f"select {', '.join(COLUMNS)}, seq, cast(0 as float8), false from {self._log.names.quoted(TABLE)} "
            "where seq > $1 order by seq limit $2"
        )
        return Statement(sql), [str(point.seq).encode(), str(limit).encode()]

    def _following(
        self,
        point: PostgresPoint,
        now: PostgresPoint,
        rows: Sequence[Row],
        *,
        is_last: bool,  # noqa: ARG002 - there are no pages
    ) -> PostgresPoint:
        return evolve(now, seq=rows[-1][len(COLUMNS)] if rows else point.seq)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "PostgresFeed", SeqFeed)
        cli.main()
