"""The event store in Postgres: ``SqlStore`` with a fence, fast paths for few events, and notifications.

Fence. A writer that hangs in the middle of an append must not block the next one. The time-outs of its session end a
writer that is frozen between two statements. They do not run while the server reads the data of a statement (the rows
of a COPY), nor if the network swallows it, and then such a writer would keep the state's row locked for hours. So each
append first acquires an advisory lock, and a writer that waits for it in vain ends the session that holds it. That is
safe because only the holder of the lease appends: the other session belongs to a recorder that has lost it.

Fast paths. Most commits lead to a few events. These are appended, and read by followers on other nodes, with one
statement in one round trip and without a thread. The append has the same fence, comparison and notification as any
append. It is a transaction of its own, and no writer can hang in the middle: the server has it whole or not at all.
If a fast path cannot proceed (another writer is inside the fence, the head is another one, there are more events) it
has written nothing, and the regular path does the work or raises the reason. One statement sees one snapshot, so the
fast read decides from the same snapshot whether the position is still known and what follows it.

Notifications. The one writer of the log notifies with each append, which costs it nothing; the application's
transactions never notify. A notification only saves time. Followers poll as well: often until the first notification
has arrived (behind a pooler none ever does), rarely after that.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy as sa
import structlog
import trio
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import (
    LOCK_CLASS,
    Database,
    DatabaseUnavailable,
    DedicatedConnection,
    Names,
    close_all,
    discard,
    open_connection,
    quote_identifier,
    quote_text,
    translated,
)
from airy_trio.database.postgres import Parameter, Pipeline, Statement
from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position
from airy_trio.log.sql.store import SqlStore, Work
from airy_trio.log.sql.tables import COLUMNS, EVENTS, NOW_MS, STATE, PostgresTables, escaped, stored
from airy_trio.log.store import Bounds, NewEvent, StoredEvent, StoreUnavailable, stored_after

FENCE_CLASS: Final = LOCK_CLASS + 2
PATIENCE_FIRST_S: Final = 0.15
"""How long an append waits at the fence before it ends the session that is inside."""
PATIENCE_MAX_S: Final = 60.0
LOCK_NOT_AVAILABLE: Final = "55P03"

EVENTS_MAX: Final = 8
"""How many events the fast paths append or read."""
BYTES_MAX: Final = 64 * 1024
"""Bytes of bodies in a fast append: a socket takes as much at once, so the writer waits for the answer only."""

POLL_S: Final = 0.05
"""Between two looks at the head while no notification has arrived on this connection."""
POLL_NOTIFIED_S: Final = 1.0
"""The same once one has."""

logger = structlog.get_logger(__name__)

T = TypeVar("T")


class PostgresStore(SqlStore):
    """``EventStore`` in Postgres. All its own connections are of the engine of ``appending``."""

    def __init__(self, tables: PostgresTables, reading: sa.Engine, appending: Database, names: Names) -> None:
        snapshots = reading.execution_options(isolation_level="REPEATABLE READ")  # a unit of work sees one snapshot
        super().__init__(tables, snapshots, appending)
        self._notifications = Notifications(appending.engine, tables.channel)
        self._fence = Fence(names)
        self._fast_appends = FastAppends(appending.engine, names, tables.channel)
        self._fast_follow = FastFollow(appending.engine, names)
        self._away = False

    async def bounds(self) -> Bounds:
        """See ``EventStore.bounds``."""
        try:
            bounds = await super().bounds()
        except StoreUnavailable:
            self._away = True
            raise
        if self._away:
            self._notifications.reconnect()
        self._away = False
        return bounds

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.append``."""
        if self._fast_appends.takes(events):
            now_ms = await self._translated(self._fast_appends.append(expected, events, resume_point, replaces))
            if now_ms is not None:
                self._fence.passed()
                return stored_after(expected, events, now_ms)
        return await super().append(expected, events, resume_point, replaces=replaces)

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.read``."""
        if destination is not None:
            return await super().read(after, limit, destination, bytes_max=bytes_max)
        if self._fast_follow.takes(limit):
            few = await self._translated(self._fast_follow.read(after, bytes_max=bytes_max))
            if few is not None:
                return few
        found = await super().read(after, limit, bytes_max=bytes_max)
        self._fast_follow.adapt(len(found))
        return found

    async def wait(self, after: Position) -> None:
        """See ``EventStore.wait``."""
        while True:
            if self._notifications.head != str(after) and (await self.bounds()).head != after:
                return
            head = await self._notifications.wait()
            if head and head != str(after):
                return

    async def aclose(self) -> None:
        """See ``SqlStore.aclose``."""
        parts = self._notifications, self._fast_appends, self._fast_follow
        await close_all(*(part.aclose for part in parts), super().aclose)

    async def _move_head(self, work: Work[T]) -> T:
        """Run a unit of work inside the fence.

        If another session stays inside for too long, end that session and raise ``StoreUnavailable``: the caller tries
        again.
        """

        def enter(connection: sa.Connection) -> T:
            self._fence.enter(connection)
            return work(connection)

        try:
            done = await self._appending.write(enter)
        except DatabaseUnavailable as error:
            shut_out, reason = error.sqlstate == LOCK_NOT_AVAILABLE, str(error)
        else:
            self._fence.passed()
            return done
        if shut_out:
            count = await self._run(self._appending.write, self._fence.end_session_inside)
            logger.warning("ended the database session of an append that hung", sessions=count)
        raise StoreUnavailable(reason)


_OBJECT: Final = "cast(cast(to_regclass(:name) as oid) as int)"
_TRY: Final = sa.text(
    f"select pg_try_advisory_xact_lock(:fence_class, {_OBJECT}), set_config('synchronous_commit', 'on', true)"
)
_LIMIT: Final = sa.text("select set_config('lock_timeout', :milliseconds, true)")
_WAIT: Final = sa.text(f"select pg_advisory_xact_lock(:fence_class, {_OBJECT})")
_NO_LIMIT: Final = sa.text("set local lock_timeout to default")
_END_SESSION: Final = sa.text(
    "select count(pg_terminate_backend(pid)) from pg_locks "
    "where locktype = 'advisory' and classid = :fence_class and objid = to_regclass(:name) and granted "
    "and database = (select oid from pg_database where datname = current_database())"
)


class Fence:
    """Admits one append at a time.

    ``patience_s`` doubles each time that a session is ended, until an append succeeds. So two nodes whose appends are
    slow, and not frozen, stop ending each other's sessions.
    """

    def __init__(self, names: Names) -> None:
        self._arguments = {"fence_class": FENCE_CLASS, "name": names.quoted(STATE)}
        self.patience_s = PATIENCE_FIRST_S

    def enter(self, connection: sa.Connection) -> None:
        """Keep others out until the end of this transaction, whose commit is synchronous from now on.

        Raises an error with SQLSTATE ``LOCK_NOT_AVAILABLE`` if another session stays inside for ``patience_s``.
        """
        if connection.execute(_TRY, self._arguments).one()[0]:
            return
        connection.execute(_LIMIT, {"milliseconds": str(int(self.patience_s * 1000))})
        connection.execute(_WAIT, self._arguments)
        connection.execute(_NO_LIMIT)

    def end_session_inside(self, connection: sa.Connection) -> int:
        """End the session that is inside; return how many there were."""
        self.patience_s = min(2 * self.patience_s, PATIENCE_MAX_S)
        count: int = connection.execute(_END_SESSION, self._arguments).scalar_one()
        return count

    def passed(self) -> None:
        """Reset the patience, because an append has succeeded."""
        self.patience_s = PATIENCE_FIRST_S


_APPENDED: Final = {
    "offset": "int8",
    "type": "text",
    "object": "text",
    "conversation_id": "text",
    "channel_id": "text",
    "body": "bytea",
    "truncated": "bool",
    "age_ms": "int8",
}
_HEAD_PARAMETERS: Final = 7


class FastAppends:
    """Appends few events over one connection, which the first append opens.

    It has a connection of its own rather than a ``DedicatedConnection``, because that waits for its turn, which costs
    one pass of Trio's loop; here a second append at the same time takes the regular path.
    """

    def __init__(self, engine: sa.Engine, names: Names, channel: str) -> None:
        self._engine = engine
        self._channel = channel
        self._statements = [_append_statement(names, count) for count in range(EVENTS_MAX + 1)]
        self._connection: sa.Connection | None = None
        self._pipeline: Pipeline | None = None
        self._busy = False

    def takes(self, events: Sequence[NewEvent]) -> bool:
        """Return whether the events are few and small enough, and no other fast append is running."""
        return not self._busy and len(events) <= EVENTS_MAX and sum(len(event.body) for event in events) <= BYTES_MAX

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, replaces: str | None = None
    ) -> int | None:
        """Append, and return the time (``LogTables.move_head``); None, with nothing written, if it cannot.

        Raises ``DatabaseError``. It is then not known whether the events were appended, as after a cancellation.
        """
        self._busy = True
        try:
            pipeline = await self._opened()
            parameters = self._parameters(expected, events, resume_point, replaces)
            [[(appended_at_ms, *_)]] = await pipeline.run((self._statements[len(events)], parameters))
        except (SQLAlchemyError, psycopg.Error) as error:
            self._drop()
            raise translated(error) from None
        except BaseException:
            self._drop()
            raise
        finally:
            self._busy = False
        return appended_at_ms  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close the connection, also in a cancelled scope. Idempotent."""
        self._drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _opened(self) -> Pipeline:
        if self._pipeline is not None and self._pipeline.lost():  # the server has closed it while it was idle
            self._drop()
        if self._pipeline is None:
            self._connection = await open_connection(self._engine)
            driver: Any = self._connection.connection.driver_connection
            self._pipeline = Pipeline(driver)
        return self._pipeline

    def _drop(self) -> None:
        connection, self._connection, self._pipeline = self._connection, None, None
        if connection is not None:
            discard(connection)

    def _parameters(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, replaces: str | None
    ) -> list[Parameter]:
        head = expected.at(expected.offset + len(events))
        texts = expected.epoch, str(expected.offset), str(head.offset), resume_point, replaces, self._channel, str(head)
        parameters: list[Parameter] = [None if text is None else text.encode() for text in texts]
        if not events:
            del parameters[5:]  # there is nothing to notify followers of
        for offset, event in enumerate(events, start=expected.offset + 1):
            columns = event.type, escaped(event.object), escaped(event.conversation_id), escaped(event.channel_id)
            parameters.append(b"%d" % offset)
            parameters += [None if text is None else text.encode() for text in columns]
            parameters += [event.body, b"t" if event.truncated else b"f"]
            parameters.append(None if event.age_ms is None else b"%d" % event.age_ms)
        return parameters


def _append_statement(names: Names, count: int) -> Statement:
    """Return the statement that appends ``count`` events.

    If another transaction has changed the state meanwhile, Postgres evaluates the comparison again.
    """
    state, fence = names.quoted(STATE), f"{FENCE_CLASS}, to_regclass({quote_text(names.quoted(STATE))})::oid::int"
    sql = (
        "with fence as materialized (select set_config('synchronous_commit', 'on', true) as synchronous, "  # noqa: S608 - names quoted
        f"pg_try_advisory_xact_lock({fence}) as entered), "
        f"moved as (update {state} set last = $3::int8, resume_point = $4::text, "
        f"appended_at_ms = greatest(appended_at_ms, {NOW_MS}) "
        "where epoch = $1::text and last = $2::int8 and ($5::text is null or resume_point = $5::text) "
        "and (select entered from fence) returning appended_at_ms)"
    )
    results = "moved.appended_at_ms, fence.synchronous"
    firsts = range(_HEAD_PARAMETERS + 1, _HEAD_PARAMETERS + 1 + count * len(_APPENDED), len(_APPENDED))
    if count:
        rows = (", ".join(f"${number}::{type_}" for number, type_ in enumerate(_APPENDED.values(), n)) for n in firsts)
        columns = ", ".join(map(quote_identifier, _APPENDED))
        sql += (
            f", added as (insert into {names.quoted(EVENTS)} ({columns}, appended_at_ms) "  # noqa: S608 - names quoted
            f"select given.*, moved.appended_at_ms from moved, (values ({'), ('.join(rows)})) as given({columns}))"
        )
        results += ", case when moved.appended_at_ms is not null then cast(pg_notify($6::text, $7::text) as text) end"
    sql += f" select {results} from fence left join moved on true"  # noqa: S608 - made here
    body = list(_APPENDED).index("body")
    return Statement(f"airy_append_{count}", sql, frozenset(n - 1 + body for n in firsts))


class FastFollow:
    """Reads the next events of the log, if they are few, over one connection, which the first read opens."""

    def __init__(self, engine: sa.Engine, names: Names) -> None:
        self._connection = DedicatedConnection(engine)
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
        """Return whether a read is worth trying: no other one is running, and the last one found few events."""
        return self._few and not self._busy and limit > EVENTS_MAX

    def adapt(self, count: int) -> None:
        """Adapt to the number of events that a regular read has found."""
        self._few = count <= EVENTS_MAX

    async def read(self, after: Position, *, bytes_max: int | None) -> Sequence[StoredEvent] | None:
        """Return all events after a position; None if there are more than a few, or if the read failed.

        It fails if the position is no longer known, or if the connection is lost. After a while of idleness the latter
        need not mean that the database is away; the regular read finds out. Raises ``DatabaseRefused``.
        """
        self._busy = True
        try:
            if not self._connection.is_open:
                await self._connection.run(lambda _connection: None)
            rows = await self._connection.run_pipeline(lambda pipeline: self._query(pipeline, after))
        except DatabaseUnavailable:
            return None
        finally:
            self._busy = False
        epoch, first = rows[0][:2]
        if epoch != after.epoch or after.offset < first - 1:
            return None
        events = list(stored(row[2:] for row in rows if row[2] is not None))
        self._few = len(events) <= EVENTS_MAX
        is_all = self._few and (bytes_max is None or sum(len(event.body) for event in events) < bytes_max)
        return events if is_all else None

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._connection.aclose()

    async def _query(self, pipeline: Pipeline, after: Position) -> list[tuple[Any, ...]]:
        [rows] = await pipeline.run((self._statement, [b"%d" % after.offset]))
        return rows


class Notifications:
    """Waits for notifications of appends over one connection, which the first waiting task opens.

    ``head``: the position in the last notification, empty if there was none or it named none. If the connection is
    alive, it will be notified of everything that is appended after that position.
    """

    def __init__(self, engine: sa.Engine, channel: str) -> None:
        self._engine = engine
        self._channel = channel
        self.head = ""
        self._connection: sa.Connection | None = None
        self._busy = False
        self._notified = False
        self._stale = False

    async def wait(self) -> str:
        """Wait for a notification and return the head that it names; return empty text when it is time to look.

        Raises ``StoreUnavailable`` if an open connection was lost: the next one may lead to a database that was
        promoted without the last commits.
        """
        if self._busy:  # only one task can wait for a socket
            await trio.sleep(POLL_S)
            return ""
        self._busy = True
        try:
            if self._stale:
                self._stale = False
                await trio.to_thread.run_sync(self._drop)
                return ""
            return await self._listen_for_a_while()
        finally:
            self._busy = False

    def reconnect(self) -> None:
        """Replace the connection at the next wait, because the database was away and is back.

        The caller has been informed of this outage. The old connection would be found lost at the next wait, and the
        same outage would be reported again.
        """
        self._stale = True

    async def aclose(self) -> None:
        """Close the connection, also in a cancelled scope. Idempotent."""
        self._drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _listen_for_a_while(self) -> str:
        try:
            if self._connection is None:
                self._connection = await open_connection(self._engine, self._begin)
            with trio.move_on_after(POLL_NOTIFIED_S if self._notified else POLL_S):
                return await self._listen(self._connection)
        except (SQLAlchemyError, psycopg.Error) as error:
            reason = type(error).__name__
        else:
            self.head = ""  # so that the caller looks
            return ""
        logger.debug("the connection for notifications of the event log was lost", reason=reason)
        was_open = self._connection is not None
        await trio.to_thread.run_sync(self._drop)
        if was_open:
            message = f"the connection that listens was lost: {reason}"
            raise StoreUnavailable(message)
        await trio.sleep(POLL_S)  # the caller's next look at the store finds out whether the database is away
        return ""

    async def _listen(self, connection: sa.Connection) -> str:
        driver: Any = connection.connection.driver_connection
        received = list(driver.notifies(timeout=0))  # does not wait
        if not received:
            await trio.lowlevel.wait_readable(driver.fileno())
            received = list(driver.notifies(timeout=0))
        if not received:
            return ""
        self._notified, self.head = True, received[-1].payload
        return self.head

    def _begin(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"listen {quote_identifier(self._channel)}")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._notified, self.head = False, ""
        if connection is not None:
            discard(connection)  # in the pool its next user would listen too
