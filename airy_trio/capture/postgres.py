"""The change feed of Postgres: the difference of two snapshots of the change log.

A row belongs to a batch if, and only if, its transaction was invisible in the last snapshot and is visible in this
one. Each transaction becomes visible exactly once, so nothing is skipped and nothing comes twice, whatever the order
of commits, and an open transaction delays nobody. Rows are sorted by ``seq``, which is drawn under the row's lock
and therefore right for each object. ``seq > last`` lost 24 % under concurrency; the oldest-transaction horizon loses
the order of each row and stalls.

The invisible ones are found by index: those at or above the last snapshot's ``xmax``, and those that were in
progress in it. A large difference is read in pages up to a fixed *target* snapshot.

Few changes of Postgres, read in two round trips and without a thread: what there is after most commits.

The first one begins a transaction of one snapshot and reads the difference; the second reads what it is about, lets
writers stop notifying where that is wanted, and ends the transaction. Independent of what a difference is and of what
its rows mean.
"""

from collections.abc import Sequence
from typing import Final

import psycopg
import sqlalchemy as sa
import structlog
import trio
from attrs import evolve, frozen
from sqlalchemy.dialects import postgresql

from airy_trio.capture.change_log import MARKS_CHARS_MAX, STATE, TABLE, LoggedChanges, LoggedFeed
from airy_trio.capture.feed import Batch, ChangedObject, ResumePointLost
from airy_trio.capture.inspection import read_current
from airy_trio.capture.objects import COLUMNS, Objects, changes_of
from airy_trio.capture.resume_points import Cluster, PostgresPoint
from airy_trio.capture.wakeup import Wakeup
from airy_trio.database import is_refusal
from airy_trio.database.postgres import Parameter, Pipeline, Statement
from airy_trio.database.queries import BoundQuery, Query, Row, Rows

CHANGES_MAX: Final = 64
_NUMBERED: Final = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
_BEGIN: Final = Statement("airy_begin", "begin isolation level repeatable read read only")
_COMMIT: Final = Statement("airy_commit", "commit")
_ROLLBACK: Final = Statement("airy_rollback", "rollback")
_MOMENT_COLUMNS: Final = 2


@frozen
class Few:
    """The rows of the change log after a point, at most ``CHANGES_MAX``, what they are about, and the point then."""

    rows: Sequence[Row]
    objects: tuple[ChangedObject, ...]
    now: PostgresPoint


class FastReads:
    """Reads for one feed. ``log``: the change log's quoted name; ``columns``: what is read of it, with ``seq``."""

    def __init__(self, log: str, columns: str, bell: Wakeup) -> None:
        self._bell = bell
        self._statements: dict[Query, tuple[Statement, Sequence[str]]] = {}
        name = log.replace("'", "''")
        self._difference = Statement(
            "airy_difference",
            "select cast(pg_current_snapshot() as text), coalesce(cast(cast(to_regclass("  # noqa: S608 - names quoted
            f"'{name}') as oid) as text), ''), found.* from (select) moment left join ({_changes(log, columns)}) found "
            "on true order by seq",
        )

    async def read(self, pipeline: Pipeline, after: PostgresPoint, cluster: Cluster, objects: Objects) -> Few | None:
        """Read what follows a point that has no target; None where those are more than few.

        None also where the database refuses to read one of the objects: the caller then reads them carefully. ``now``
        must be compared by the caller, which tells whether the point is of this history. Raises ``psycopg.Error``, and
        what ``Objects.read`` raises.
        """
        texts = str(after.next_transaction), f"{{{','.join(after.in_progress)}}}", str(CHANGES_MAX + 1)
        asked = [text.encode() for text in texts]
        rung, self._bell.rung = self._bell.rung, False
        if rung:
            pipeline.discard_notifications()  # this read answers them, and no later one
        _, found = await pipeline.run((_BEGIN, ()), (self._difference, asked))
        rows, now = _told(found, cluster, after)
        if len(rows) > CHANGES_MAX:
            await pipeline.run((_ROLLBACK, ()))
            return None
        if not rows:
            await pipeline.run((_COMMIT, ()))
            return Few(rows, (), now)
        reading = objects.reading(changes_of(rows))
        # If notifications are rare, stay subscribed: a NOTIFY is cheap for the writer, re-arming costs a round trip.
        letting_go = self._bell.letting_go() if self._bell.hurried or not rung else ()
        try:
            answers = await pipeline.run(*map(self._put, reading.asked), *letting_go, (_COMMIT, ()))
        except psycopg.Error as error:
            if not is_refusal(error):
                raise
            await pipeline.run((_ROLLBACK, ()), *letting_go)
            return None
        return Few(rows, reading.objects([Rows(found) for found in answers[: len(reading.asked)]]), now)

    def _put(self, asked: BoundQuery) -> tuple[Statement, Sequence[Parameter]]:
        """A question as a statement with numbered parameters, which is made once."""
        known = self._statements.get(asked.query)
        if known is None:
            compiled = asked.query.statement.compile(dialect=_NUMBERED)
            statement = Statement(f"airy_read_{len(self._statements)}", str(compiled))
            known = self._statements[asked.query] = statement, compiled.positiontup or ()
        statement, names = known
        arguments = asked.arguments
        return statement, [str(arguments[name]).encode() for name in names]


def _changes(log: str, columns: str) -> str:
    """The difference, as a select with the parameters of ``FastReads.read``."""
    return (
        f"select {columns} from {log} where txid >= $1::xid8 "  # noqa: S608 - names quoted
        f"union all select {columns} from {log} where txid = any($2::xid8[]) order by seq limit $3::int8"
    )


def _told(found: Sequence[Row], cluster: Cluster, after: PostgresPoint) -> tuple[Sequence[Row], PostgresPoint]:
    """The rows of the change log in an answer to the difference, and the point that follows them."""
    snapshot, oid = found[0][:_MOMENT_COLUMNS]
    rows = [row[_MOMENT_COLUMNS:] for row in found if row[_MOMENT_COLUMNS] is not None]
    return rows, PostgresPoint.at(cluster, snapshot, oid, source=after.source, mark=after.mark)


logger = structlog.get_logger(__name__)

POLL_FIRST_S = 0.005
POLL_MAX_S = 0.05
POLL_GROWTH = 1.5
QUIET_POLLS = 1  # without a change, before writers are asked to ring
HEARTBEAT_S = 0.4  # less than the idle time-out of a recorder's session, which must be used to be kept

_SEQ: Final = len(COLUMNS)
_AGE_S: Final = _SEQ + 1
_IMPOSSIBLE: Final = _SEQ + 2
_LATER = sa.text("set local synchronous_commit = off")
"""What is trimmed may come back after a crash, with the origin of then: the application need not share its disk."""
_ONE_SNAPSHOT = sa.text("set transaction isolation level repeatable read")
_BEGIN_WRITING: Final = Statement("airy_begin_writing", "begin isolation level read committed read write")
_ON_DISK: Final = Statement("airy_on_disk", "set local synchronous_commit = local")
"""Whatever the default: a standby that is away delays nothing, and one that takes over has a timeline of its own."""


class PostgresFeed(LoggedFeed):
    """``ChangeFeed`` over one connection in REPEATABLE READ, and a pool for the little that it writes.

    The reading connection is the one that holds the lease, so that losing one is losing both.
    """

    def __init__(self, source: LoggedChanges) -> None:
        super().__init__(source)
        self._log_name = source.names.quoted(TABLE)
        self._cluster: tuple[int, Cluster] | None = None
        self._kept: int | None = None
        self._source = ""
        self.bell = Wakeup(source.reading, source.names)
        self._pause_s = POLL_FIRST_S
        self._quiet_polls = 0
        self._few = True  # what the last read found
        self._reached: tuple[str, PostgresPoint] | None = None
        columns = f"{', '.join(COLUMNS)}, seq, date_part('epoch', clock_timestamp() - at) as age_s"
        changes = f"{columns}, txid >= (select pg_snapshot_xmax(pg_current_snapshot())) as impossible"
        self._short = FastReads(self._log_name, changes, self.bell)
        log = self._log_name.replace(":", "\\:")
        self._difference = _question(
            f"select {changes} from {log} where txid >= cast(:next_transaction as xid8) "  # noqa: S608 - names quoted
            f"union all select {changes} from {log} where txid = any(cast(:in_progress as xid8[])) "
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
        state = source.names.quoted(STATE)
        self._write_marks = Statement(
            "airy_seal",
            f"update {state} set mark = $1, replaced_mark = case when mark = $2 then $2 "  # noqa: S608 - names quoted
            f"else $2 || ' ' || left(mark || ' ' || replaced_mark, {MARKS_CHARS_MAX}) end",
        )
        self._forget_mark = Statement(
            "airy_settle",
            f"update {state} set replaced_mark = mark where mark = $1",  # noqa: S608 - names quoted
        )

    async def read(self, after: str, limit: int) -> Batch:
        """See ``ChangeFeed.read``."""
        return await read_current(lambda: self._read_once(after, limit), self._renew)

    async def _read_once(self, after: str, limit: int) -> Batch:
        point = self._parsed(after)
        cluster = self._known_cluster()
        batch = None
        if cluster is not None and self._few and limit > CHANGES_MAX and not point.target:
            batch = await self._reading.run_pipeline(lambda pipeline: self._read_few(pipeline, point, cluster))
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
        return await self._reading.run(self._origin)

    async def restart(self) -> str:
        """See ``ChangeFeed.restart``."""
        # If the store fails before the new epoch has begun, the next read must compare its point with the new origin.
        self._kept = None

        def work(connection: sa.Connection) -> tuple[str, int]:
            connection.execute(_ONE_SNAPSHOT)
            history = self._log.history(connection)
            source = "" if history is None else history.source
            point = str(evolve(PostgresPoint.now(connection, self._log_name), source=source))
            count = connection.execute(
                sa.delete(self._log.rows)
            ).rowcount  # those that this transaction's snapshot sees
            self._log.set_origin(connection, point)
            return point, count

        point, count = await self._writing.run(work)
        logger.warning("change log emptied; changes that were not recorded are not sent", rows=count)
        return point

    async def trim(self, upto: str, limit: int) -> int:
        """See ``ChangeFeed.trim``. What an open transaction has written stays, and nothing else for its sake."""
        point = PostgresPoint.parse(upto)
        read = {"next_transaction": str(point.next_transaction), "in_progress": point.in_progress, "limit": limit}

        def work(connection: sa.Connection) -> int:
            connection.execute(_LATER)
            count = connection.execute(self._trim, read).rowcount
            if count:
                self._log.set_origin(connection, str(evolve(point, mark="")))  # it is for any event log
            return count

        return await self._writing.run(work)

    async def _seal(self, after: str, upto: str, mark: str) -> str:
        """In the session that holds the lease: a recorder that has lost it cannot write its mark."""
        point = evolve(self._parsed(upto), mark=mark)
        replaced_mark = self._parsed(after).mark
        await self._write(self._write_marks, mark, replaced_mark)
        self._reached = str(point), point
        return self._reached[0]

    async def _settle(self, point: str) -> None:
        mark = self._parsed(point).mark
        await self._write(self._forget_mark, mark)

    async def _write(self, statement: Statement, *marks: str) -> None:
        """Write marks, and return once they are on disk.

        Those of ``settle`` too: a machine that loses power may take the end of an event log with it, and a database
        that still accepted the mark before would record into the old epoch again.
        """
        parameters: list[Parameter] = [mark.encode() for mark in marks]

        async def write(pipeline: Pipeline) -> None:
            await pipeline.run((_BEGIN_WRITING, ()), (_ON_DISK, ()), (statement, parameters), (_COMMIT, ()))

        await self._reading.run_pipeline(write)

    def _origin(self, connection: sa.Connection) -> str:
        history = self._log.history(connection)
        if history is None:
            return str(PostgresPoint.now(connection, self._log_name))
        return str(evolve(PostgresPoint.parse(history.origin), source=history.source))

    def _read(self, connection: sa.Connection, point: PostgresPoint, limit: int) -> Batch:
        now = self._now(connection, point)
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
        """``_read`` without a thread; None where ``FastReads`` leaves it to that."""
        few = await self._short.read(pipeline, point, cluster, self._objects)
        if few is None:
            return None
        point.require_history_of(few.now)
        _require_possible(few.rows)
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
            _require_possible(rows)
            whole, target = now, now.snapshot
        if len(rows) < limit:
            return rows, whole
        return rows, evolve(point, place=now.place, source=now.source, target=target, seq=rows[-1][_SEQ])

    def _now(self, connection: sa.Connection, point: PostgresPoint) -> PostgresPoint:
        """The point after everything that is visible now, if ``point`` lies before it; raises ``ResumePointLost``.

        What is kept of the history is compared once for each connection: only a start or an outage brings a point that
        was not read here.
        """
        generation = self._reading.generation
        if self._cluster is None or self._cluster[0] != generation:
            self._cluster = (generation, Cluster.of(connection))
        now = PostgresPoint.now(connection, self._log_name, self._cluster[1])
        point.require_history_of(now)
        if self._kept != generation:
            history = self._log.history(connection)
            if history is not None:
                history.require(point)
                self._source = history.source
            self._kept = generation
        return evolve(now, source=self._source, mark=point.mark)


def _require_possible(rows: Sequence[Row]) -> None:
    """Refuse changes of transactions that have not begun: they are from a dump of another cluster.

    They stay above every snapshot of this one, so each read would give them again, until its numbers catch up.
    """
    if any(row[_IMPOSSIBLE] for row in rows):
        message = "the change log has rows of transactions that have not begun, as after loading a dump of its data"
        raise ResumePointLost(message)


def _question(sql: str) -> Query:
    return Query(sa.text(sql))
