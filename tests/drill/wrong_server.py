"""A server whose feed is deliberately wrong: it reads the changes that are later than the last one.

A change has the time when it was written, not when it was committed, so a change that is written early and committed
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


class TimeFeed(PostgresFeed):
    """``PostgresFeed`` that reads by time alone."""

    def _changes(self, point: PostgresPoint, limit: int) -> Asked:
        sql = (
            f"select {', '.join(COLUMNS)}, txid, date_part('epoch', at) from {self._log.names.quoted(TABLE)} "
            "where at > to_timestamp($1) order by at limit $2"
        )
        return Statement(sql), [str(point.at).encode(), str(limit).encode()]

    def _following(
        self,
        point: PostgresPoint,
        now: PostgresPoint,
        rows: Sequence[Row],
        *,
        is_last: bool,  # noqa: ARG002 - there are no pages
    ) -> PostgresPoint:
        return evolve(now, at=rows[-1][len(COLUMNS) + 1] if rows else point.at)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "PostgresFeed", TimeFeed)
        cli.main()
