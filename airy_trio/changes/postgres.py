"""The change feed of Postgres: the difference of two snapshots of the change log.

A row belongs to a batch if, and only if, its transaction was invisible in the last snapshot and is visible in this
one. Each transaction becomes visible exactly once, so nothing is skipped and nothing comes twice, whatever the order
of commits, and an open transaction delays nobody. Rows are sorted by ``seq``, which is drawn under the row's lock
and therefore right for each object. ``seq > last`` lost 24 % under concurrency; the oldest-transaction horizon loses
the order of each row and stalls.

The invisible ones are found by index: those at or above the last snapshot's ``xmax``, and those that were in
progress in it. A large difference is read in pages up to a fixed *target* snapshot.
"""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
import trio
from attrs import evolve

from airy_trio.changes.changelog import TABLE
from airy_trio.changes.doorbell import Doorbell
from airy_trio.changes.driver import Question, Row
from airy_trio.changes.feed import Batch, ResumePointLost
from airy_trio.changes.inspection import read_current
from airy_trio.changes.logged import LoggedChanges, LoggedFeed
from airy_trio.changes.objects import COLUMNS, changes_of
from airy_trio.changes.points import Cluster, PostgresPoint
from airy_trio.changes.short_reads import CHANGES_MAX, ShortReads
from airy_trio.pipeline import Pipeline

POLL_FIRST_S = 0.005
POLL_MAX_S = 0.05
POLL_GROWTH = 1.5
QUIET_POLLS = 1  # without a change, before writers are asked to ring
HEARTBEAT_S = 0.4  # less than the idle time-out of a recorder's session, which must be used to be kept

_SEQ: Final = len(COLUMNS)
_AGE_S: Final = _SEQ + 1
_LATER = sa.text("set local synchronous_commit = off")
"""What is trimmed may come back after a crash, with the origin of then: the application need not share its disk."""
_ONE_SNAPSHOT = sa.text("set transaction isolation level repeatable read")


class PostgresFeed(LoggedFeed):
    """``ChangeFeed`` over one connection in REPEATABLE READ, and a pool for the little that it writes.

    The reading connection is the one that holds the lease, so that losing one is losing both.
    """

    def __init__(self, source: LoggedChanges) -> None:
        super().__init__(source)
        self._log_name = source.names.quoted(TABLE)
        self._cluster: tuple[int, Cluster] | None = None
        self._kept: int | None = None
        self.bell = Doorbell(source.reading, source.names)
        self._pause_s = POLL_FIRST_S
        self._quiet_polls = 0
        self._few = True  # what the last read found
        self._reached: tuple[str, PostgresPoint] | None = None
        columns = f"{', '.join(COLUMNS)}, seq, date_part('epoch', clock_timestamp() - at) as age_s"
        self._short = ShortReads(self._log_name, columns, self.bell)
        log = self._log_name.replace(":", "\\:")
        self._difference = _question(
            f"select {columns} from {log} where txid >= cast(:next_transaction as xid8) "  # noqa: S608 - names quoted
            f"union all select {columns} from {log} where txid = any(cast(:in_progress as xid8[])) "
            "order by seq limit :limit"
        )
        self._page = _question(
            f"select {columns} from {log} where seq > :seq "  # noqa: S608 - names quoted
            "and pg_visible_in_snapshot(txid, cast(:target as pg_snapshot)) "
            "and not pg_visible_in_snapshot(txid, cast(:snapshot as pg_snapshot)) order by seq limit :limit"
        )
        self._trim = sa.text(
            f"delete from {log} where seq in (select seq from {log} "  # noqa: S608 - names quoted
            "where txid < cast(:next_transaction as xid8) and txid <> all(cast(:in_progress as xid8[])) "
            "order by txid limit :limit)"
        )

    async def read(self, after: str, limit: int) -> Batch:
        """See ``ChangeFeed.read``."""
        return await read_current(lambda: self._read_once(after, limit), self._renew)

    async def _read_once(self, after: str, limit: int) -> Batch:
        point = self._parsed(after)
        cluster = self._known_cluster()
        batch = None
        if cluster is not None and self._few and limit > CHANGES_MAX and not point.target:
            batch = await self._reading.converse(lambda pipeline: self._read_few(pipeline, point, cluster))
        if batch is None:
            batch = await self._reading.run(lambda connection: self._read(connection, point, limit))
        self._few = batch.changes <= CHANGES_MAX
        if batch.changes:
            self._pause_s, self._quiet_polls = POLL_FIRST_S, 0
        return batch

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``.

        Soon after a change it returns each ``POLL_FIRST_S``; when it has been quiet, once somebody rings. While some
        transaction is open that began to write before, it goes on polling, more and more slowly.
        """
        if self.bell.armed:
            await self.bell.wait(HEARTBEAT_S)
        elif self._quiet_polls < QUIET_POLLS or not await self.bell.arm():
            self._quiet_polls += 1
            await trio.sleep(self._pause_s)
            if self._quiet_polls > QUIET_POLLS:
                self._pause_s = min(self._pause_s * POLL_GROWTH, POLL_MAX_S)

    async def origin(self) -> str:
        """See ``ChangeFeed.origin``."""
        return await self._reading.run(
            lambda connection: self._log.origin(connection) or str(PostgresPoint.now(connection, self._log_name))
        )

    async def restart(self) -> str:
        """See ``ChangeFeed.restart``."""

        def work(connection: sa.Connection) -> str:
            connection.execute(_ONE_SNAPSHOT)
            point = str(PostgresPoint.now(connection, self._log_name))
            connection.execute(sa.delete(self._log.rows))  # deletes what the snapshot of this transaction sees
            self._log.set_origin(connection, point)
            return point

        return await self._writing.run(work)

    async def trim(self, upto: str, limit: int) -> int:
        """See ``ChangeFeed.trim``. What an open transaction has written stays, and nothing else for its sake."""
        point = PostgresPoint.parse(upto)
        read = {"next_transaction": str(point.next_transaction), "in_progress": point.in_progress, "limit": limit}

        def work(connection: sa.Connection) -> int:
            connection.execute(_LATER)
            count = connection.execute(self._trim, read).rowcount
            if count:
                self._log.set_origin(connection, upto)
            return count

        return await self._writing.run(work)

    def _read(self, connection: sa.Connection, point: PostgresPoint, limit: int) -> Batch:
        now = self._now(connection)
        _require_same_history(point, now)
        self._require_kept(connection, point)
        rows, following = self._rows(connection, point, now, limit)
        if rows:
            self.bell.disarm(connection)
        return Batch(
            objects=self._objects.read(connection, changes_of(rows)),
            resume_point=str(following),
            changes=len(rows),
            more=bool(following.target) or bool(point.target),
            age_s=rows[0][_AGE_S] if rows else None,
        )

    async def _read_few(self, pipeline: Pipeline, point: PostgresPoint, cluster: Cluster) -> Batch | None:
        """``_read`` without a thread; None where ``ShortReads`` leaves it to that."""
        few = await self._short.read(pipeline, point, cluster, self._objects)
        if few is None:
            return None
        _require_same_history(point, few.now)
        self._reached = str(few.now), few.now
        return Batch(
            objects=few.objects,
            resume_point=self._reached[0],
            changes=len(few.rows),
            more=False,
            age_s=few.rows[0][_AGE_S] if few.rows else None,
        )

    def _parsed(self, text: str) -> PostgresPoint:
        """A point from its text; nearly always the one that was reached last."""
        if self._reached is not None and self._reached[0] == text:
            return self._reached[1]
        return PostgresPoint.parse(text)

    def _known_cluster(self) -> Cluster | None:
        """What the connection is to, where that and the origin have been looked at since it was opened."""
        if self._cluster is None or not self._cluster[0] == self._kept == self._reading.generation:
            return None
        return self._cluster[1]

    def _rows(
        self, connection: sa.Connection, point: PostgresPoint, now: PostgresPoint, limit: int
    ) -> tuple[Sequence[Row], PostgresPoint]:
        """The next rows and the point after them: a whole difference, or a page of it."""
        if point.target:
            arguments = {"seq": point.seq, "target": point.target, "snapshot": point.snapshot, "limit": limit}
            rows = self._page.rows(connection, arguments)
            whole, target = evolve(now, snapshot=point.target), point.target
        else:
            rows = self._difference.rows(
                connection,
                {
                    "next_transaction": str(point.next_transaction),
                    "in_progress": point.in_progress,
                    "limit": limit,
                },
            )
            whole, target = now, now.snapshot
        if len(rows) < limit:
            return rows, whole
        return rows, evolve(point, place=now.place, target=target, seq=rows[-1][_SEQ])

    def _require_kept(self, connection: sa.Connection, point: PostgresPoint) -> None:
        """Refuse a point before the origin, as of an older copy of a store: what followed it has been trimmed.

        Asked once for each connection: only a start, or an outage, brings a point that was not read here.
        """
        if self._kept == self._reading.generation:
            return
        origin = self._log.origin(connection)
        if origin is not None:
            oldest = PostgresPoint.parse(origin)
            if oldest.system == point.system and not point.has_read(oldest):
                message = "what followed the recorded resume point has been trimmed from the change log"
                raise ResumePointLost(message)
        self._kept = self._reading.generation

    def _now(self, connection: sa.Connection) -> PostgresPoint:
        """``PostgresPoint.now``; the cluster is asked once for each connection."""
        if self._cluster is None or self._cluster[0] != self._reading.generation:
            self._cluster = (self._reading.generation, Cluster.of(connection))
        return PostgresPoint.now(connection, self._log_name, self._cluster[1])


def _question(sql: str) -> Question:
    return Question(sa.text(sql))


def _require_same_history(point: PostgresPoint, now: PostgresPoint) -> None:
    if (point.system, point.timeline) != (now.system, now.timeline):
        message = "the database is another cluster, or a restored one, than the one that was recorded"
        raise ResumePointLost(message)
    if point.place and point.place != now.place:
        message = "the change log is another one than was recorded, as after a dump was restored"
        raise ResumePointLost(message)
    if point.next_transaction > now.next_transaction:
        message = "the database has gone back behind what was recorded"
        raise ResumePointLost(message)
