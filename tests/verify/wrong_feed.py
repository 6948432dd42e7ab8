"""``airy-trio`` with an SQLite feed that is deliberately wrong: it drops one in ten changes."""

import pytest
import sqlalchemy as sa
from attrs import evolve

from airy_trio import cli
from airy_trio.app import build
from airy_trio.capture.feed import Batch
from airy_trio.capture.sqlite import SqliteFeed

EACH = 10


class ForgetfulFeed(SqliteFeed):
    def _read(self, connection: sa.Connection, after: str, limit: int) -> Batch:
        batch = super()._read(connection, after, limit)
        kept = tuple(found for found in batch.objects if hash(found) % EACH)
        return evolve(batch, objects=kept)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SqliteFeed", ForgetfulFeed)
        cli.main()
