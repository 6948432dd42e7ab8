"""The bell of a Postgres event store: who appends rings it, who waits need not ask the database again and again.

NOTIFY by the one writer of the log costs nothing; the application's transactions never
notify. A bell only saves time: whoever waits looks by itself as well, often until the bell was heard once (behind a
pooler it never is), then seldom.

The fence of a Postgres event store: a writer that hangs in the middle of an append does not hold up the next one.

A session's time-outs end a writer that is frozen between two statements. They do not run while the server reads what
belongs to a statement (the rows of a COPY), nor where the network swallows it: such a writer would keep the state's row
locked for hours. So each append first takes an advisory lock, and who waits for it in vain ends the session that holds
it: whoever appends holds the lease, so the other one has lost it. Refuses to know what is appended.

A short append to a Postgres event store: few events, in one statement, in one round trip.

It is what lies between most commits and the clients. The same fence, comparison and bell as of any append
(``sql``), and a transaction of its own, in the middle of which no writer can hang: the server has it whole, or not at
all. What it cannot do, because somebody else is inside the fence or the head is elsewhere, it has not begun: the
long way tells why.

What comes next in a Postgres event log, read in one round trip and without a thread, where that is few events.

It is what lies between the append of another node and the clients of this one. One statement sees one snapshot, so
whether the position is still known and what follows it belong together. What it cannot tell it leaves to the long way.
"""

from collections.abc import Sequence
from typing import Any, Final

import psycopg
import sqlalchemy as sa
import structlog
import trio
from attrs import frozen
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import (
    LOCK_CLASS,
    DatabaseUnavailable,
    DedicatedConnection,
    Names,
    connected,
    cut,
    quote_identifier,
    quote_text,
)
from airy_trio.database.postgres import Parameter, Pipeline, Statement
from airy_trio.log.position import Position
from airy_trio.log.sql.tables import COLUMNS, EVENTS, NOW_MS, STATE, stored, written
from airy_trio.log.store import NewEvent, StoredEvent, StoreUnavailable

FENCE_CLASS: Final = LOCK_CLASS + 2
PATIENCE_FIRST_S: Final = 0.15
PATIENCE_MAX_S: Final = 60.0
LOCK_NOT_AVAILABLE: Final = "55P03"

_OBJECT: Final = "cast(cast(to_regclass(:name) as oid) as int)"
_TRY: Final = sa.text(
    f"select pg_try_advisory_xact_lock(:fence_class, {_OBJECT}), set_config('synchronous_commit', 'on', true)"
)
_LIMIT: Final = sa.text("select set_config('lock_timeout', :milliseconds, true)")
_WAIT: Final = sa.text(f"select pg_advisory_xact_lock(:fence_class, {_OBJECT})")
_NO_LIMIT: Final = sa.text("set local lock_timeout to default")
_CUT_OFF: Final = sa.text(
    "select count(pg_terminate_backend(pid)) from pg_locks "
    "where locktype = 'advisory' and classid = :fence_class and objid = to_regclass(:name) and granted "
    "and database = (select oid from pg_database where datname = current_database())"
)


class Fence:
    """The appends of one node. ``patience_s`` doubles with each cut up to an append that succeeds.

    So two nodes whose appends are slow, and not frozen, do not cut each other off for ever.
    """

    def __init__(self, names: Names) -> None:
        self._arguments = {"fence_class": FENCE_CLASS, "name": names.quoted(STATE)}
        self.patience_s = PATIENCE_FIRST_S

    def enter(self, connection: sa.Connection) -> None:
        """Keep others out to the end of this transaction, whose commit is synchronous from now on.

        SQLSTATE ``LOCK_NOT_AVAILABLE`` where another one stays inside.
        """
        if connection.execute(_TRY, self._arguments).one()[0]:
            return
        connection.execute(_LIMIT, {"milliseconds": str(int(self.patience_s * 1000))})
        connection.execute(_WAIT, self._arguments)
        connection.execute(_NO_LIMIT)

    def cut_off(self, connection: sa.Connection) -> int:
        """End the session that is inside, and give how many there were."""
        self.patience_s = min(2 * self.patience_s, PATIENCE_MAX_S)
        count: int = connection.execute(_CUT_OFF, self._arguments).scalar_one()
        return count

    def passed(self) -> None:
        """Note that an append has succeeded."""
        self.patience_s = PATIENCE_FIRST_S


EVENTS_MAX: Final = 8
BYTES_MAX: Final = 64 * 1024
"""Of bodies: what a socket takes at once, so that whoever sends it waits for the answer only."""
_COLUMNS: Final = {
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


@frozen
class _Open:
    """The one connection, and what is asked through it."""

    connection: sa.Connection
    pipeline: Pipeline


class FastAppends:
    """Appends through one connection of an engine, opened by the first and kept."""

    def __init__(self, engine: sa.Engine, names: Names, channel: str) -> None:
        self._engine = engine
        self._channel = channel
        self._statements = [_statement(names, count) for count in range(EVENTS_MAX + 1)]
        self._open: _Open | None = None
        self._busy = False

    def takes(self, events: Sequence[NewEvent]) -> bool:
        """Whether they are few and small enough, and no other append is under way here."""
        return not self._busy and len(events) <= EVENTS_MAX and sum(len(event.body) for event in events) <= BYTES_MAX

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, replaces: str | None = None
    ) -> int | None:
        """Append, and give the time of it (``LogTables.move_head``); None, with nothing written, where it cannot.

        Raises ``psycopg.Error`` or ``sqlalchemy.exc.SQLAlchemyError``; whether it was done is then not known, as after
        a cancellation.
        """
        self._busy = True
        try:
            opened = await self._opened()
            try:
                parameters = self._parameters(expected, events, resume_point, replaces)
                [[(appended_at_ms, *_)]] = await opened.pipeline.run((self._statements[len(events)], parameters))
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

    async def _opened(self) -> _Open:
        if self._open is not None and self._open.pipeline.lost():  # it was idle, perhaps for long
            self._drop()
        if self._open is None:
            connection = await connected(self._engine)
            driver: Any = connection.connection.driver_connection
            self._open = _Open(connection, Pipeline(driver))
        return self._open

    def _drop(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            cut(opened.connection)

    def _parameters(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, replaces: str | None
    ) -> list[Parameter]:
        head = expected.at(expected.offset + len(events))
        texts = expected.epoch, str(expected.offset), str(head.offset), resume_point, replaces, self._channel, str(head)
        parameters: list[Parameter] = [None if text is None else text.encode() for text in texts]
        if not events:
            del parameters[5:]  # nobody is woken
        for offset, event in enumerate(events, start=expected.offset + 1):
            columns = event.type, written(event.object), written(event.conversation_id), written(event.channel_id)
            parameters.append(b"%d" % offset)
            parameters += [None if text is None else text.encode() for text in columns]
            parameters += [event.body, b"t" if event.truncated else b"f"]
            parameters.append(None if event.age_ms is None else b"%d" % event.age_ms)
        return parameters


def _statement(names: Names, count: int) -> Statement:
    """The append of so many events. Postgres compares again where the state was changed by another transaction."""
    state, fence = names.quoted(STATE), f"{FENCE_CLASS}, to_regclass({quote_text(names.quoted(STATE))})::oid::int"
    sql = (
        "with fence as materialized (select set_config('synchronous_commit', 'on', true) as synchronous, "  # noqa: S608 - names quoted
        f"pg_try_advisory_xact_lock({fence}) as entered), "
        f"moved as (update {state} set last = $3::int8, resume_point = $4::text, "
        f"appended_at_ms = greatest(appended_at_ms, {NOW_MS}) "
        "where epoch = $1::text and last = $2::int8 and ($5::text is null or resume_point = $5::text) "
        "and (select entered from fence) returning appended_at_ms)"
    )
    told = "moved.appended_at_ms, fence.synchronous"
    firsts = range(_HEAD_PARAMETERS + 1, _HEAD_PARAMETERS + 1 + count * len(_COLUMNS), len(_COLUMNS))
    if count:
        rows = (", ".join(f"${number}::{type_}" for number, type_ in enumerate(_COLUMNS.values(), n)) for n in firsts)
        columns = ", ".join(map(quote_identifier, _COLUMNS))
        sql += (
            f", added as (insert into {names.quoted(EVENTS)} ({columns}, appended_at_ms) "  # noqa: S608 - names quoted
            f"select given.*, moved.appended_at_ms from moved, (values ({'), ('.join(rows)})) as given({columns}))"
        )
        told += ", case when moved.appended_at_ms is not null then cast(pg_notify($6::text, $7::text) as text) end"
    sql += f" select {told} from fence left join moved on true"  # noqa: S608 - made here
    body = list(_COLUMNS).index("body")
    return Statement(f"airy_append_{count}", sql, frozenset(n - 1 + body for n in firsts))


class FastFollow:
    """Reads through one connection of an engine, opened by the first and kept."""

    def __init__(self, engine: sa.Engine, names: Names) -> None:
        self._session = DedicatedConnection(engine)
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
        """Whether so many events may be asked for here now: by one task, and where there were few the last time."""
        return self._few and not self._busy and limit > EVENTS_MAX

    def found(self, count: int) -> None:
        """Take note of how many there were the long way."""
        self._few = count <= EVENTS_MAX

    async def read(self, after: Position, *, bytes_max: int | None) -> Sequence[StoredEvent] | None:
        """All events after a position; None where they are more than few, and where the long way is to tell why not.

        That is where the position is not known any more, and where the connection is lost, which after a while of
        idleness need not mean that the database is away. Raises ``DatabaseRefused``.
        """
        self._busy = True
        try:
            if not self._session.is_open:
                await self._session.run(lambda _connection: None)
            rows = await self._session.converse(lambda pipeline: self._ask(pipeline, after))
        except DatabaseUnavailable:
            return None
        finally:
            self._busy = False
        epoch, first = rows[0][:2]
        if epoch != after.epoch or after.offset < first - 1:
            return None
        events = list(stored(row[2:] for row in rows if row[2] is not None))
        self._few = len(events) <= EVENTS_MAX
        is_all = self._few and (bytes_max is None or _size(events) < bytes_max)
        return events if is_all else None

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._session.aclose()

    async def _ask(self, pipeline: Pipeline, after: Position) -> list[tuple[Any, ...]]:
        [rows] = await pipeline.run((self._statement, [b"%d" % after.offset]))
        return rows


def _size(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body) for event in events)


logger = structlog.get_logger(__name__)

POLL_S: Final = 0.05
POLL_WITH_BELL_S: Final = 1.0
_RING: Final = sa.text("select pg_notify(:channel, '')")


class Notifications:
    """One connection that listens, opened by the first who waits. ``name``: of the log, in its database.

    ``channel``: where whoever appends notifies, with the position of the new head. ``heard``: the last such position
    that this connection has been told: what is appended after it, it will be told as well.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine
        self.channel = f"{name}_log"
        self.heard = ""
        self._connection: sa.Connection | None = None
        self._busy = False
        self._rings = False
        self._stale = False

    def ring(self, connection: sa.Connection) -> None:
        """Ring when the transaction commits, without saying where the head is then."""
        connection.execute(_RING, {"channel": self.channel})

    async def wait(self) -> str:
        """Return when it rang, with the head that it told; or empty, when it is time to look.

        Raises ``StoreUnavailable`` where the connection stood and was lost: behind the next one may be a database that
        was promoted without the last commits.
        """
        if self._busy:  # a connection's socket can be waited for by one task
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

    def outlived(self) -> None:
        """Say that the database was away and is back, which whoever follows it was told: hang up without telling again.

        A connection of before would be found to be lost at the next wait, and the one outage told as two.
        """
        self._stale = True

    async def aclose(self) -> None:
        """Close the connection, also in a cancelled scope. Idempotent."""
        self._drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _listen_for_a_while(self) -> str:
        try:
            if self._connection is None:
                self._connection = await connected(self._engine, self._begin)
            with trio.move_on_after(POLL_WITH_BELL_S if self._rings else POLL_S):
                return await self._listen(self._connection)
        except (SQLAlchemyError, psycopg.Error) as error:
            lost = type(error).__name__
        else:
            self.heard = ""  # the caller looks by itself
            return ""
        logger.debug("the bell of the event log is away", reason=lost)
        stood = self._connection is not None
        await trio.to_thread.run_sync(self._drop)
        if stood:
            message = f"the connection that listens was lost: {lost}"
            raise StoreUnavailable(message)
        await trio.sleep(POLL_S)  # the next look at the store tells whether it is away
        return ""

    async def _listen(self, connection: sa.Connection) -> str:
        driver: Any = connection.connection.driver_connection
        rung = list(driver.notifies(timeout=0))  # asks without waiting
        if not rung:
            await trio.lowlevel.wait_readable(driver.fileno())
            rung = list(driver.notifies(timeout=0))
        if rung:
            self._rings, self.heard = True, rung[-1].payload
        return self.heard if rung else ""

    def _begin(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"listen {quote_identifier(self.channel)}")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._rings, self.heard = False, ""
        if connection is not None:
            cut(connection)  # who got it from the pool would listen too
