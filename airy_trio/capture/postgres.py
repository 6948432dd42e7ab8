"""The change feed of Postgres: the difference of two snapshots of the change log, and the wake-up by writers.

Reading
=======

A batch consists of the rows of transactions that were invisible in the snapshot of the resume point and are visible in
the present one. Each transaction becomes visible exactly once, so no row is skipped and none is repeated, in whatever
order transactions commit, and an open transaction delays no other. Rows are sorted by ``at``, the time at which the
trigger ran. The changed row was locked then, so the changes of one object are in the right order unless the clock is
set back. Even then each event has the present state of its object. Simpler readers lost changes, stalled or were slow;
``docs/explanation/architecture.md`` has the figures.

The transactions that were invisible are found by an index: those from the snapshot's ``xmax`` on, and those in its list
of transactions in progress. A scan from ``xmin`` on would read everything since the oldest open transaction again.

If a difference exceeds the limit, its present snapshot becomes the *target*. It is read in pages, in the order of
``txid`` and ``at``. They contain only rows that are visible in the target. Rows of one transaction may have the same
time; no page ends between these, because the next one continues after a transaction and a time. After the last page the
target becomes the snapshot of the resume point.

A read takes two round trips on the raw connection, without a thread and without SQLAlchemy: the first begins a snapshot
and reads the difference or a page, the second reads the changed objects, releases the wake-up lock if that is due, and
ends the transaction. The objects of many changes are made in a thread, because that takes milliseconds in which clients
must be served. If the database refuses to read one of the objects, further queries in the same snapshot find that
object.

Waking up
=========

Postgres commits notifying transactions one after another, even if no session listens. This costs an application most of
its throughput (``docs/explanation/architecture.md``). Polling costs the application nothing, but then an idle server is
never idle.

Therefore the triggers notify only while the recorder sleeps. An advisory lock shows them whether it sleeps::

    recorder                                      writing transaction, in the trigger

    LISTEN, once for each connection
    try to take the lock exclusively              try to share the lock until the transaction ends
        not granted: keep polling, try later          granted: the recorder is awake; do nothing
        granted: writers notify from now on           not granted: the recorder sleeps; NOTIFY
    read once more
    wait for a notification, then read
    release the lock, or keep it

No commit is missed. A transaction that shares the lock does not notify, and while it is open the recorder cannot take
the lock. Postgres releases the locks of a transaction after its rows have become visible. So when the recorder has the
lock, each transaction that did not notify has ended, and the read that follows sees its rows; every other transaction
that writes will find the lock taken and notify. A notification arrives after the commit, so the read that it causes
sees the rows too. Measured with 800 commits and no timer: 287 sleeps, no wake-up lost, and the application as fast as
without.

- The recorder *tries* to take the lock. If it waited for the lock, its snapshot would hold back vacuum meanwhile.
- The recorder may keep the lock while it reads; then the next transaction notifies again. This is better for rare
  changes: a NOTIFY is cheap for one writer, and taking the lock again costs a round trip. If notifications follow each
  other within ``FREQUENT_S``, or there are many changes, the lock is released together with the read, and the recorder
  polls.
- A transaction that has notified cannot be prepared for a two-phase commit. If the server allows prepared transactions,
  the lock is never taken and the recorder polls.
- The lock ends with its connection. A recorder detects the loss of its connection by ``generation``.
- The lock's key contains the oid of the change log, so several change logs in one database do not disturb each other.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Final, TypeVar

import psycopg
import sqlalchemy as sa
import structlog
import trio
from attrs import evolve

from airy_trio.capture.change_log import MOMENT, TABLE, LoggedChanges, LoggedFeed, PostgresPoint
from airy_trio.capture.feed import Batch, ResumePointLost
from airy_trio.capture.objects import COLUMNS, LOCK_TIMEOUT, Reading, backfills_of, changes_of
from airy_trio.capture.queries import BoundQuery, Row, Rows, refusal_reason
from airy_trio.database import (
    WAKEUP_CLASS,
    DedicatedConnection,
    Names,
    escape_colons,
    is_refusal,
    quote_identifier,
    quote_text,
)
from airy_trio.database.postgres import Parameter, Pipeline, Statement, compiled, text_parameters

FEW: Final = 64
"""The objects of more changes are made in a thread. A read of 5000 rows takes 40 to 130 ms, in which nothing else waits
for Trio's thread for longer than 6 to 10 ms (15 to 35 while other processes want both cores)."""
POLL_FIRST_S: Final = 0.001
"""The pause before the second empty read after a change; the first follows without a pause.

The shortest pause of epoll is a millisecond. With 0.5 ms instead of none, the median from a commit to its client at
1000 commits/s was 3.5 to 3.8 ms, and without a pause 2.8 to 3.1 ms, for 42 instead of 29 % of a core (three rounds in
turn); at 10 and at 100 commits/s there was no difference.
"""
POLL_GROWTH: Final = 2.0
# Reached only while the wake-up cannot be armed, for example because a transaction is open that will not notify, or
# because the server allows prepared transactions.
POLL_MAX_S: Final = 0.05
ARM_FROM_S: Final = 0.004
"""The pause from which on the wake-up is armed instead. The two shorter ones cost as much as arming, and with writers
that follow each other so closely, most commits would have to notify."""
HEARTBEAT_S: Final = 0.4  # less than the idle time-out of a recorder's connection, which must be used to be kept

TXID_MAX: Final = 2**64 - 1
FREQUENT_S: Final = 0.01  # notifying more often would slow the application: its commits wait for each other

_BEGIN: Final = Statement("begin isolation level repeatable read read only")
_BEGIN_WRITING: Final = Statement("begin read write")
_COMMIT: Final = Statement("commit")
_SAVEPOINT: Final = Statement("savepoint airy_query")
_ROLLBACK_QUERY: Final = Statement("rollback to savepoint airy_query")
_ROLLBACK: Final = Statement("rollback")
_LOCK_TIMEOUT: Final = Statement(LOCK_TIMEOUT)
_ONE_SNAPSHOT: Final = sa.text("set transaction isolation level repeatable read")
# Whatever the server's default is: a standby that is away must not delay this, and a standby that takes over has
# another timeline.
_ON_DISK: Final = Statement("set local synchronous_commit = local")
# After a crash, trimmed rows may be back, together with the origin of that time. The application's disk is spared.
_NOT_YET_ON_DISK: Final = sa.text("set local synchronous_commit = off")
_MOMENT: Final = sa.text(f"select {MOMENT}, date_part('epoch', clock_timestamp())")

# The columns of a row of the change log, as this feed reads it.
_COLUMNS: Final = f"{', '.join(COLUMNS)}, txid, date_part('epoch', at)"
_TXID: Final = itemgetter(len(COLUMNS))
_AT: Final = itemgetter(len(COLUMNS) + 1)
_PLACE: Final = itemgetter(len(COLUMNS), len(COLUMNS) + 1)

Asked = tuple[Statement, Sequence[Parameter]]
"""A statement and its parameters."""
A = TypeVar("A")
T = TypeVar("T")

logger = structlog.get_logger(__name__)


class PostgresFeed(LoggedFeed[PostgresPoint]):
    """``ChangeFeed`` over one connection in REPEATABLE READ, and a pool for the few writes."""

    _point = PostgresPoint

    def __init__(self, source: LoggedChanges) -> None:
        super().__init__(source)
        # One session, the reading connection, serves the reads, the lease, the marks of seals, and the wake-up's lock
        # with its LISTEN. If they had separate sessions, one of these could end without the others. A recorder without
        # its lease would go on reading, and one that cannot read would keep the lease. Without the lock, writers would
        # not notify, while the recorder waits for a notification. In one session they end together, and the
        # connection's ``generation`` shows that. The price is that each waits for the one before, so a read ahead
        # begins after the seal of the batch that precedes it (``Recorder``).
        self.wakeup = Wakeup(source.reading, source.names)
        self._pause_s = 0.0
        # The generation of the connection in which ``_verify`` has run, and the point that it has returned.
        self._verified: tuple[int, PostgresPoint] | None = None
        self._log_name = source.names.quoted(TABLE)
        log = self._log_name
        # No statement sees what the present snapshot does not see, so these only have to leave out what the earlier
        # snapshot saw. ``txid`` is the number of the whole transaction, also for a row that was written within a
        # savepoint, and a ``pg_snapshot`` does not list subtransactions either. The two parts have no row in common,
        # because the numbers of transactions in progress are below ``xmax``.
        #
        # Both must use the index and stop at the limit, whatever the statistics. Otherwise a poll that finds nothing
        # reads the whole change log (37 instead of 0.3 ms with 500,000 rows), and the first page of a backlog reads all
        # of it (22 instead of 7 ms with 50,000). The first part has an upper bound, the largest number, because the
        # planner expects a range with two ends to match half a percent of the rows, but an open one a third. The second
        # part is a lateral subquery with a limit, which can only be run as a loop over the transactions.
        recent = _first(f"{log} where txid >= cast($2 as xid8) and txid <= cast('{TXID_MAX}' as xid8)")
        of_one = _first(f"{log} where txid = airy_open.number")
        opened = f"unnest(cast($3 as xid8[])) as airy_open(number) cross join lateral ({of_one}) as airy_of_one"
        self._difference = _in_order(f"({recent}) union all select airy_of_one.* from {opened}")  # noqa: S608 - names quoted
        # ``pg_visible_in_snapshot`` is also true for a transaction that was rolled back, but no statement sees its
        # rows. ``case`` instead of ``and``, because the planner expects each condition to match a third of the rows. If
        # it expects few rows, it reads and sorts all of them for each page.
        following = (
            f"{log} where (txid, at) > (cast($2 as xid8), to_timestamp(cast($3 as float8))) "
            "and case when pg_visible_in_snapshot(txid, cast($4 as pg_snapshot)) "
            "then not pg_visible_in_snapshot(txid, cast($5 as pg_snapshot)) else false end"
        )
        self._page = _in_order(_first(following))
        name = escape_colons(log)
        # The rows that the snapshot of a point sees, as a condition that can use the index. They are deleted by
        # ``ctid``, because a row has no key; its ``ctid`` stays the same, because it is never updated.
        self._trim = sa.text(
            f"delete from {name} where ctid = any(array(select ctid from {name} "  # noqa: S608 - names quoted
            "where txid < cast(:next_transaction as xid8) and txid <> all(cast(:in_progress as xid8[])) "
            "order by txid limit :limit))"
        )

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``.

        After a change, return at once, then after pauses that grow from ``POLL_FIRST_S`` on. After some reads without
        one, return when a writer notifies, at the latest after ``HEARTBEAT_S``. While a transaction is open that will
        not notify, go on polling.
        """
        # A closed connection is opened by the next read, not here. If ``arm`` succeeds, this returns at once, because a
        # read has to come between taking the lock and waiting for a notification.
        if self.wakeup.armed:
            await self.wakeup.wait(HEARTBEAT_S)
        elif self._pause_s < ARM_FROM_S or not self._reading.is_open or not await self.wakeup.arm():
            await trio.sleep(self._pause_s)
            self._pause_s = min(max(self._pause_s * POLL_GROWTH, POLL_FIRST_S), POLL_MAX_S)

    def _discard(self, connection: sa.Connection) -> tuple[PostgresPoint, int]:
        # If the store fails before the new epoch has begun, the next read must compare its point with the new origin.
        self._verified = None
        # One snapshot for the point and the deletion. Otherwise the deletion, as the later statement, could see a
        # change that the point does not cover, and delete it unread.
        connection.execute(_ONE_SNAPSHOT)
        now = PostgresPoint.now(connection, self._log_name)
        return now, connection.execute(sa.delete(self._log.rows)).rowcount  # the rows that this snapshot sees

    def _delete(self, connection: sa.Connection, point: PostgresPoint, limit: int) -> int:
        """See ``LoggedFeed``. An open transaction keeps only its own rows from being trimmed."""
        connection.execute(_NOT_YET_ON_DISK)
        # While a difference is read in pages, ``snapshot`` is still the one before it. So the difference is not deleted
        # until the point after its last page is recorded, and any page can be read again.
        arguments = {"next_transaction": str(point.next_transaction), "in_progress": point.in_progress, "limit": limit}
        return connection.execute(self._trim, arguments).rowcount

    async def _mark(self, statement: sa.TextClause, **marks: str) -> None:
        """See ``LoggedFeed``. Over the connection that holds the lease: a recorder that has lost the lease cannot.

        The marks of ``settle`` must be on disk too: a machine that loses power may lose the end of an event log with
        it, and a database that still accepted the previous mark would record into the old epoch again.
        """
        asked = compiled(statement, marks)
        await self._reading.run_pipeline(
            lambda pipeline: pipeline.run((_BEGIN_WRITING, ()), (_ON_DISK, ()), asked, (_COMMIT, ()))
        )

    async def _read_once(self, after: str, limit: int) -> Batch:
        point = PostgresPoint.parse(after)
        if self._verified is None or self._verified[0] != self._reading.generation:
            self._verified = await self._reading.run(lambda connection: self._verify(connection, point))
        _, here = self._verified
        # A read that is cancelled may leave its transaction open. Then ``run_pipeline`` closes the connection, and the
        # lease ends with it. Nothing is lost: the stored point has not moved, so the next holder of the lease reads the
        # same changes.
        batch, retries = None, 0
        while batch is None:
            read = partial(self._read, point=point, here=here, limit=limit, retries=retries)
            batch, retries = await self._reading.run_pipeline(read), retries + 1
        if batch.changes:
            self._pause_s = 0.0
        return batch

    def _verify(self, connection: sa.Connection, point: PostgresPoint) -> tuple[int, PostgresPoint]:
        """Compare a point with the stored history; return the present point and the connection's generation.

        Once for each connection, because only a start or an outage brings a point that was not read here. Raises
        ``ResumePointLost``.
        """
        here, history = PostgresPoint.now(connection, self._log_name), self._log.history(connection)
        point.require_history_of(here)
        if history is not None:
            history.require(point)
            here = evolve(here, source=history.source)
        # The generation is read within the unit of work, which may open a new connection.
        return self._reading.generation, here

    async def _read(
        self, pipeline: Pipeline, point: PostgresPoint, here: PostgresPoint, limit: int, retries: int
    ) -> Batch | None:
        """Read the next changes and their objects, in one snapshot. ``here``: any point of this connection.

        Returns None if the application has one of the tables locked (see ``LOCK_TIMEOUT``). ``retries``: how often that
        was the case.
        """
        notified, self.wakeup.notified = self.wakeup.notified, False
        # The notifications are discarded before the snapshot is taken: this read covers every commit that was notified
        # until now. A notification that arrives later may be of a commit that the snapshot does not see, and has to end
        # the next wait.
        if notified:
            pipeline.notifications()
        moment = compiled(_MOMENT, {"log": self._log_name})
        # One row more than the limit shows whether this page is the last one. If a full page left that open, the
        # recorded point would not end the difference until the next change, and nothing of it could be trimmed.
        _, [(snapshot, place, now_s)], found = await pipeline.run((_BEGIN, ()), moment, self._changes(point, limit + 1))
        while not (rows := _page_of(found, limit)) and found:
            limit *= 2
            [found] = await pipeline.run(self._changes(point, limit + 1))
        is_last = len(rows) == len(found)
        reading = await _run(len(rows), partial(Reading, self._objects), changes_of(sorted(rows, key=_AT)))
        # To keep the lock saves a round trip after a rare change. During a backlog each writer would notify. If changes
        # are found without a notification, this is mostly the read after arming, and shows that writers are busy right
        # now.
        is_disarming = bool(rows) and (self.wakeup.frequent or not notified or len(rows) > FEW)
        ending = [*(self.wakeup.disarming() if is_disarming else ()), (_COMMIT, ())]
        try:
            answers = await self._answers(pipeline, reading.asked, ending, retries)
        except psycopg.errors.LockNotAvailable:
            await pipeline.run((_ROLLBACK, ()), *ending[:-1])
            return None
        # Compared only now, because the connection, which holds the lease, is kept only if its transaction has ended.
        # Cluster and timeline are those of ``_verify``. The place is compared at each read, because a dump can be
        # restored while the server runs.
        now = evolve(here, snapshot=snapshot, place=place, mark=point.mark)
        point.require_history_of(now)
        _require_possible(rows, now)
        following = self._following(point, now, rows, is_last=is_last)
        # The last page of a difference ends at a target that may be long past. Only a new difference can show that
        # there is no more.
        return Batch(
            objects=await _run(len(rows), reading.objects, answers),
            resume_point=str(following),
            changes=len(rows),
            more=bool(following.target) or bool(point.target),
            age_s=now_s - min(map(_AT, rows)) if rows else None,
            backfills=backfills_of(rows),
            continues=bool(point.target),
        )

    def _changes(self, point: PostgresPoint, limit: int) -> Asked:
        """The statement for the next rows: a whole difference, or a page of it."""
        if point.target:
            return self._page, text_parameters(limit, point.txid, point.at, point.target, point.snapshot)
        return self._difference, text_parameters(limit, point.next_transaction, f"{{{','.join(point.in_progress)}}}")

    def _following(
        self, point: PostgresPoint, now: PostgresPoint, rows: Sequence[Row], *, is_last: bool
    ) -> PostgresPoint:
        """The resume point after these rows: the whole difference or its last page (``is_last``), or another page."""
        target = point.target or now.snapshot
        if is_last:
            return evolve(now, snapshot=target)
        txid, at = _PLACE(rows[-1])
        return evolve(point, place=now.place, source=now.source, target=target, txid=txid, at=at)

    async def _answers(
        self, pipeline: Pipeline, asked: Sequence[BoundQuery], ending: Sequence[Asked], retries: int
    ) -> list[Rows]:
        """Run all queries and then ``ending``, in one round trip unless the database refuses a key."""
        begin: list[Asked] = [(_LOCK_TIMEOUT, ()), (_SAVEPOINT, ())] if asked else []
        if asked and retries:
            # First wait for one of the tables as long as it takes, while no other one is locked. Otherwise a table for
            # whose lock several sessions of the application always wait would never be read.
            begin = [(_SAVEPOINT, ()), _statement(BoundQuery(asked[(retries - 1) % len(asked)].query)), *begin]
        try:
            answers = await pipeline.run(*begin, *map(_statement, asked), *ending)
            return [Rows(rows) for rows in answers[len(begin) : len(begin) + len(asked)]]
        except psycopg.Error as error:
            if not is_refusal(error):
                raise
        # The server has skipped all statements after the refused one, ``ending`` too. So the transaction is still open,
        # and a rollback to the savepoint makes it usable again, with the same snapshot.
        await pipeline.run((_ROLLBACK_QUERY, ()))
        found = [await self._answer(pipeline, bound) for bound in asked]
        await pipeline.run(*ending)
        return found

    async def _answer(self, pipeline: Pipeline, bound: BoundQuery) -> Rows:
        """Do the same as ``BoundQuery.answer``, in a transaction with a savepoint."""
        found: list[Row] = []
        refused: dict[object, str] = {}
        parts = [bound]
        while parts:
            part = parts.pop()
            try:
                [rows] = await pipeline.run(_statement(part))
                found += rows
            except psycopg.Error as error:
                if not part.keys or not is_refusal(error):
                    raise
                await pipeline.run((_ROLLBACK_QUERY, ()))
                if part is bound:
                    await pipeline.run(_statement(BoundQuery(bound.query)))
                if len(part.keys) == 1:
                    refused[part.keys[0]] = refusal_reason(error)
                else:
                    parts += part.halves
        return Rows(found, refused)


def _first(rows: str) -> str:
    """Return a query for the first ``$1`` of some rows of the change log by transaction and time.

    Not by ``ctid`` too, for which Postgres would sort all of the rows if it expects few.
    """
    return f"select *, ctid from {rows} order by txid, at limit cast($1 as int8)"  # noqa: S608 - names quoted


def _in_order(rows: str) -> Statement:
    """Return the statement for the first ``$1`` of some rows, in the order in which a transaction has written them.

    Rows of the same microsecond follow their place in the table, which is nearly always that order.
    """
    ordered = "order by txid, at, ctid limit cast($1 as int8)"
    return Statement(f"select {_COLUMNS} from ({rows}) as airy_rows {ordered}")  # noqa: S608 - names quoted


def _page_of(rows: Sequence[Row], limit: int) -> Sequence[Row]:
    """Return the first ``limit`` rows, without those at their end that have the place of the row after them.

    ``rows``: one more than ``limit``, or all that are left. The next page continues after a transaction and a time, so
    rows with the same place must be in one page. If more than ``limit`` rows have it, the page is empty.
    """
    if len(rows) <= limit:
        return rows
    more = _PLACE(rows[limit])
    return [row for row in rows[:limit] if _PLACE(row) != more]


def _statement(bound: BoundQuery) -> Asked:
    return compiled(bound.query.statement, bound.arguments)


async def _run(changes: int, work: Callable[[A], T], argument: A) -> T:
    """Do a piece of our own work, in a thread if there are many changes."""
    if changes <= FEW:
        return work(argument)
    # An abandoned thread does not use the connection. Its result is dropped.
    return await trio.to_thread.run_sync(work, argument, abandon_on_cancel=True)


def _require_possible(rows: Sequence[Row], now: PostgresPoint) -> None:
    """Raise ``ResumePointLost`` if a change is of a transaction that has not begun: it is from another cluster's dump.

    Such rows stay above every snapshot of this cluster, so each read would return them again until its transaction
    numbers catch up. ``rows`` must be in the order of transactions.
    """
    if rows and int(_TXID(rows[-1])) >= now.next_transaction:
        message = "the change log has rows of transactions that have not begun, as after loading a dump of its data"
        raise ResumePointLost(message)


class Wakeup:
    """The recorder's side, over the connection on which it waits. Used by one task at a time."""

    def __init__(self, connection: DedicatedConnection, names: Names) -> None:
        self._connection = connection
        key = f"{WAKEUP_CLASS}, cast(cast(to_regclass({quote_text(names.quoted(TABLE))}) as oid) as int)"
        self._lock = Statement(
            f"select current_setting('max_prepared_transactions') = '0' and pg_try_advisory_lock({key})"
        )
        self._unlock = Statement(f"select pg_advisory_unlock({key})")
        self._listen = Statement(f"listen {quote_identifier(_channel(names))}")
        self._listening_in = 0  # generation of the connection
        self._armed_in = 0
        self._notified_at = -math.inf
        self.notified = False
        """Whether the last ``wait`` ended with a notification. The reader that answers it sets this to False."""
        self.frequent = False
        """Whether that notification followed the one before within ``FREQUENT_S``: release the lock."""

    @property
    def armed(self) -> bool:
        """Whether writers notify now: the lock was taken, and its connection has not been lost since."""
        return self._armed_in != 0 and self._armed_in == self._connection.generation

    async def arm(self) -> bool:
        """Try to make writers notify from now on. If it returns True, read once more, then ``wait``.

        False while a transaction that has not notified is open. Raises ``DatabaseUnavailable``.
        """
        if not await self._connection.run_pipeline(self._try_lock):
            return False
        self._armed_in = self._connection.generation
        return True

    def disarming(self) -> list[tuple[Statement, tuple[()]]]:
        """The statements that make writers stop notifying, which the caller must run."""
        # Reset before the statement has run. If it fails or is cancelled, the connection is closed, which releases the
        # lock too.
        was_armed, self._armed_in, self.notified = self.armed, 0, False
        return [(self._unlock, ())] if was_armed else []

    async def wait(self, timeout_s: float) -> None:
        """Return when a writer has notified since ``arm``, or after a time. Raises ``DatabaseUnavailable``."""
        self.notified = False
        with trio.move_on_after(timeout_s):
            socket = await self._connection.run_pipeline(_take_notifications)
            if socket is not None:
                # The socket also becomes readable if the connection was lost. The read that follows raises the error.
                await trio.lowlevel.wait_readable(socket)
            now = trio.current_time()
            self.notified, self.frequent, self._notified_at = True, now - self._notified_at < FREQUENT_S, now

    async def _try_lock(self, pipeline: Pipeline) -> bool:
        # In a transaction of its own, before the lock is tried: LISTEN takes effect with its commit, and a writer that
        # finds the lock taken may notify at once.
        if self._listening_in != self._connection.generation:
            await pipeline.run((self._listen, ()))
            self._listening_in = self._connection.generation
        [[(granted,)]] = await pipeline.run((self._lock, ()))
        return bool(granted)


def notify(names: Names, condition: str) -> str:
    """The writer's side, as a statement of a trigger function: under a condition, notify a recorder that sleeps."""
    # A rollback to a savepoint undoes the changes, the shared lock and the notification together. Postgres sends equal
    # notifications of one transaction once, so many statements wake the recorder once.
    oid = f"{quote_text(names.quoted(TABLE))}::regclass::oid::int"
    return (
        f"if {condition} and not pg_try_advisory_xact_lock_shared({WAKEUP_CLASS}, {oid}) then "
        f"perform pg_notify({quote_text(_channel(names))}, ''); end if"
    )


def _channel(names: Names) -> str:
    return f"{names.schema}_changes"


async def _take_notifications(pipeline: Pipeline) -> int | None:  # noqa: ASYNC124 - it sends nothing
    """The socket on which a notification will arrive; None if some have arrived, perhaps along with an answer."""
    return None if pipeline.notifications() else pipeline.socket
