"""The event store in Postgres: ``SqlStore`` in pipelines, with a fence and notifications.

Pipelines. Everything on the route from a commit to a client runs on a few native connections, in Trio and without a
thread; each unit of work is one round trip. An append is one statement, which has its rows as arrays. Many events are
sent by COPY instead, between two further round trips. Further statements in the same transaction note which objects
have ended.

Fence. A writer that hangs in the middle of an append must not block the next one. The time-outs of its session end a
writer that is frozen between two statements. They do not run while the server reads the data of a statement, nor if the
network swallows it, and then such a writer would keep the state's row locked for hours. So each append first acquires
an advisory lock, and a writer that tries in vain for a while ends the session that holds it. That is safe because only
the holder of the lease appends: the other session belongs to a recorder that has lost it.

Notifications. The one writer of the log notifies with each append, which costs it nothing; the application's
transactions never notify. A notification only saves time. Followers poll as well: often until the first notification
has arrived, rarely after that. A follower that begins to listen notifies once, so it soon knows whether notifications
reach it; behind a pooler they do not.
"""
# ruff: noqa: D102 - the port documents each method

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
import structlog
import trio

from airy_trio.database import (
    FENCE_CLASS,
    Database,
    DatabaseError,
    DatabaseRefused,
    DedicatedConnection,
    Names,
    PipelinePool,
    close_all,
    quote_identifier,
    quote_text,
)
from airy_trio.database.postgres import Parameter, Pipeline, Statement, array, compiled, copied_rows, text_parameters
from airy_trio.log.reads import READS_MAX
from airy_trio.log.sql.store import SqlStore, digest, state_values
from airy_trio.log.sql.tables import (
    CURRENT,
    DIGEST_BYTES,
    ENDED,
    EVENTS,
    MARK,
    NOW_MS,
    NUL,
    STATE,
    PostgresTables,
    Step,
    escaped,
)
from airy_trio.log.store import Bounds, NewEvent, Position, StateChange, StoredEvent, StoreUnavailable, stored_after

PATIENCE_FIRST_S: Final = 0.15
"""How long an append waits at the fence before it ends the session that is inside."""
PATIENCE_MAX_S: Final = 60.0
FENCE_POLL_S: Final = 0.005
"""Between the first two attempts to enter it; each pause is twice as long as the one before."""
FENCE_POLL_MAX_S: Final = 0.1

CONNECTIONS_MAX: Final = 8
"""Units of work that run at once, not counting reads on behalf of clients."""
COPY_FROM: Final = 2000
"""From this number of events on, COPY is used: 2000 take 12 ms either way, 5000 take 27 ms by COPY, 34 ms in arrays."""
SLICE_EVENTS: Final = 500
"""Events encoded between two checkpoints of a COPY: less than a millisecond."""

POLL_S: Final = 0.05
"""Between two looks at the head while no notification has arrived on this connection."""
POLL_NOTIFIED_S: Final = 1.0
"""The same once one has."""

_ARRAYS: Final = frozenset(range(10, 17))
"""The parameters of an append that are arrays: those after ten others."""
_BEGIN: Final = Statement("begin")
_COMMIT: Final = Statement("commit")

logger = structlog.get_logger(__name__)


class PostgresStore(SqlStore):
    """``EventStore`` in Postgres. ``direct`` has the sessions of a recorder; no pooler may be in between.

    ``patience_s`` at the fence doubles each time that a session is ended, until an append succeeds. So two nodes whose
    appends are slow, and not frozen, stop ending each other's sessions.
    """

    def __init__(self, names: Names, replaying: Database, direct: Database) -> None:
        self._pool = PipelinePool(direct.engine, CONNECTIONS_MAX)
        self._replays = PipelinePool(replaying.engine, READS_MAX)
        super().__init__(
            PostgresTables(names),
            # A read is run again if its connection was lost while it was idle. A write is not, because it may have been
            # committed.
            reading=partial(self._run, self._pool, repeatable=True),
            replaying=partial(self._run, self._replays, repeatable=True),
            writing=partial(self._run, self._pool),
        )
        channel = f"{names.schema}_log"
        self._notifications = Notifications(direct.engine, channel)
        self._databases = replaying, direct
        self._statements = _Statements(names, channel)
        self.patience_s = PATIENCE_FIRST_S

    async def bounds(self) -> Bounds:
        try:
            return await super().bounds()
        except StoreUnavailable:
            self._notifications.reconnect()
            raise

    async def wait(self, after: Position) -> None:
        while True:
            # If the last notification named this head, a later append would have been notified too, so the bounds need
            # not be read.
            if self._notifications.head != str(after) and (await self.bounds()).head != after:
                return
            head = await self._notifications.wait()
            if head and head != str(after):
                return

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        parts = self._notifications, self._pool, self._replays, *self._databases
        await close_all(*(part.aclose for part in parts))

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        head = expected.at(expected.offset + len(events))
        notified = str(head) if events else None  # without events there is nothing to wake a follower for
        parameters = text_parameters(
            expected.epoch, str(expected.offset), str(head.offset), resume_point, replaces, notified
        )
        parameters += text_parameters(*state_values(expected.offset, head, resume_point, state).values())
        copied = len(events) >= COPY_FROM
        if not copied:
            parameters += map(array, _APPENDED.values(), _columns(events))
        following: list[tuple[Statement, Sequence[Parameter]]] = []
        if state is not None and state.ended:
            # Postgres rejects an upsert that would change a row twice, and ``ended`` may name an object twice.
            over = array("bytea", [digest(escaped(object_)) for object_ in set(state.ended)])
            following.append((self._statements.end, [over, str(head.offset).encode()]))
        if state is not None and state.swept:
            types, offsets = list(state.swept), list(state.swept.values())
            following.append((self._statements.sweep, [array("text", types), array("int8", offsets)]))
        rows = partial(_rows, expected, events) if copied else None
        moving = self._move_head(self._statements.append[copied], parameters, following, rows)
        return stored_after(expected, events, await self._unless_stale(expected, moving))

    async def _begin_epoch(self, expected: Position, epoch: str, resume_point: str | None) -> int | None:
        parameters = [*text_parameters(expected.epoch, str(expected.offset), epoch, resume_point)]
        return await self._move_head(self._statements.begin_epoch, parameters)

    async def _move_head(
        self,
        statement: Statement,
        parameters: Sequence[Parameter],
        following: Sequence[tuple[Statement, Sequence[Parameter]]] = (),
        rows: Callable[[int], Iterable[bytes]] | None = None,
    ) -> int | None:
        """Run a statement inside the fence; return the time, or None if the head is another one.

        ``following``: statements that run after it in the same transaction, also if the head is another one. ``rows``:
        returns the events for that time, in parts, which are copied before ``following`` runs.

        If another session stays inside for ``patience_s``, end that session and raise ``StoreUnavailable``: the caller
        tries again.
        """

        async def attempt(pipeline: Pipeline) -> Sequence[Any]:
            if rows is None:
                [[answer], *_] = await pipeline.run((statement, parameters), *following)
            else:
                # The fence is held until the end of the transaction. If this task is cancelled between two steps, the
                # pool closes the connection. Then the server rolls back and releases the fence.
                _, [answer] = await pipeline.run((_BEGIN, ()), (statement, parameters))
                if answer[1] is not None:
                    await pipeline.copy(self._statements.copy, rows(answer[1]))
                await pipeline.run(*following, (_COMMIT, ()))
            return answer

        give_up_at, pause_s = trio.current_time() + self.patience_s, FENCE_POLL_S
        while True:
            entered, moved_at_ms, *_ = await self._pool.run_pipeline(attempt)
            if entered:
                self.patience_s = PATIENCE_FIRST_S
                return moved_at_ms  # type: ignore[no-any-return]
            left_s = give_up_at - trio.current_time()
            if left_s <= 0:
                await self._end_session_inside()
                give_up_at = trio.current_time() + self.patience_s  # for the next session, if one is inside by now
            await trio.sleep(min(pause_s, max(left_s, FENCE_POLL_S)))
            pause_s = min(2 * pause_s, FENCE_POLL_MAX_S)

    async def _end_session_inside(self) -> None:
        """End the session inside the fence and raise ``StoreUnavailable``; return if that session has already left."""
        waited_s = self.patience_s
        message = f"the append of another session did not end within {waited_s:g} s"
        try:
            [[(count,)]] = await self._pool.run((self._statements.end_session_inside, ()))
        except DatabaseRefused as error:
            # The other server may log in as another role, whose sessions this role may not end. That session ends by
            # itself, at the latest when Postgres finds that its connection is lost.
            raise StoreUnavailable(f"{message}, and this role may not end that session: {error}") from None
        if count == 0:
            return
        self.patience_s = min(2 * waited_s, PATIENCE_MAX_S)
        logger.warning("ended the database session of an append that hung", sessions=count)
        raise StoreUnavailable(f"{message}; its session was ended")

    async def _run(self, pool: PipelinePool, *steps: Step, repeatable: bool = False) -> list[Any]:
        statements = [compiled(step.statement, step.values) for step in steps]
        results = await self._translated(pool.run(*statements, repeatable=repeatable))
        return [step.convert(rows) for step, rows in zip(steps, results, strict=True)]


_APPENDED: Final = {
    "type": "text",
    "object": "text",
    "conversation_id": "text",
    "channel_id": "text",
    "body": "bytea",
    "truncated": "bool",
    "age_ms": "int8",
}
"""The columns of an append, in the order of ``NewEvent``, which are given as arrays."""


class _Statements:
    """The statements that SQLAlchemy cannot write: those inside the fence.

    If another transaction has changed the state meanwhile, Postgres evaluates the comparison again.
    """

    def __init__(self, names: Names, channel: str) -> None:
        self._state, self._channel = names.quoted(STATE), quote_text(channel)
        columns = ", ".join(map(quote_identifier, _APPENDED))
        arrays = ", ".join(f"unnest(${number}::{type_}[])" for number, type_ in enumerate(_APPENDED.values(), 11))
        append_by = partial(
            self._in_fence,
            # ``SqliteTables.advance`` does the same and explains it.
            changed=f"last = $3::int8, resume_point = $4::text, appended_at_ms = greatest(appended_at_ms, {NOW_MS}), "
            "generation = coalesce($7::text, generation), marks = coalesce($8::text, marks), state_at = $9::text, "
            "folded = case when $7::text <> coalesce(generation, '') or folded = $2::int8 "
            "then coalesce($10::int8, folded) else folded end",
            condition="($5::text is null or resume_point = $5::text)",
            returned="appended_at_ms",
            notified="$6::text",
        )
        added = (
            f", added as (insert into {names.quoted(EVENTS)} "  # noqa: S608 - names quoted
            f'("offset", appended_at_ms, {columns}) '
            # In the select list the functions return row after row; after "from" Postgres would store all rows first.
            f"select generate_series($2::int8 + 1, $3::int8), moved.at, {arrays} from moved)"
        )
        self.append = {
            copied: Statement(append_by(further="" if copied else added), _ARRAYS) for copied in (False, True)
        }
        """By whether the events are copied afterwards."""
        # If the append was rejected, this transaction has not written the row of the state, and these change nothing.
        # An append may note an object as ended, at the new head, and as swept, at an older event; the later offset
        # counts.
        note = (
            f"with moved as (select 1 from {self._state} where xmin = pg_current_xact_id_if_assigned()::xid) "  # noqa: S608 - names quoted
            f'insert into {names.quoted(ENDED)} as known (digest, "offset") select over.* from moved, '
            '({}) as over on conflict (digest) do update set "offset" = greatest(known."offset", excluded."offset")'
        )
        self.end = Statement(note.format("select unnest($1::bytea[]), $2::int8"), frozenset({0}))
        # A sweep concerns the objects in the state, and those of events that a fold would add to it later.
        old = (
            f'select digest, max("offset") from (select digest, type, "offset" from {names.quoted(CURRENT)} '  # noqa: S608 - names quoted
            f"union all select substring(sha256(convert_to(object, 'UTF8')), 1, {DIGEST_BYTES}), type, \"offset\" "
            f'from {names.quoted(EVENTS)} where "offset" > (select folded from {self._state}) '
            'and "offset" <= (select max(upto) from unnest($2::int8[]) as upto)) as of_state '
            'join unnest($1::text[], $2::int8[]) as swept(type, upto) using (type) where "offset" <= upto '
            "group by digest"
        )
        self.sweep = Statement(note.format(old), frozenset({0, 1}))
        self.copy = f'copy {names.quoted(EVENTS)} ("offset", appended_at_ms, {columns}) from stdin (format binary)'
        begin_epoch = self._in_fence(
            changed='epoch = $3::text, "first" = $2::int8 + 1, resume_point = $4::text',
            condition="true",
            returned=NOW_MS,
            notified="''",  # it names no head
        )
        self.begin_epoch = Statement(begin_epoch)
        self.end_session_inside = Statement(
            "select count(pg_terminate_backend(pid)) from pg_locks where locktype = 'advisory' and granted "  # noqa: S608 - names quoted
            f"and classid = {FENCE_CLASS} and objid = to_regclass({quote_text(self._state)}) "
            "and database = (select oid from pg_database where datname = current_database())",
        )

    def _in_fence(self, *, changed: str, condition: str, returned: str, notified: str, further: str = "") -> str:
        """Enter the fence; if the head is $1 and $2, change the state, and notify unless that is null.

        Returns whether the fence was entered, and what the change ``returned``.
        """
        # One statement, so that an append is one round trip. Postgres evaluates independent parts of a statement in any
        # order, so each part refers to the one that must come before it. The update needs the result of the fence.
        # While another session is inside, no row qualifies, so the update does not wait for the lock on the row that
        # the other session has changed. The insert takes the time from the updated row, and adds nothing if there is
        # none; Postgres runs it although nothing reads its result. The notification depends on that row as well, and is
        # sent at the commit.
        return (
            "with fence as materialized (select set_config('synchronous_commit', 'on', true) as synchronous, "  # noqa: S608 - names quoted
            f"pg_try_advisory_xact_lock({FENCE_CLASS}, to_regclass({quote_text(self._state)})::oid::int) as entered), "
            f"moved as (update {self._state} set {changed} where epoch = $1::text and last = $2::int8 "
            f"and {condition} and (select entered from fence) returning {returned} as at){further} "
            "select fence.entered, moved.at, fence.synchronous, case when moved.at is not null "
            f"and {notified} is not null then cast(pg_notify({self._channel}, {notified}) as text) end "
            "from fence left join moved on true"
        )


def _columns(events: Sequence[NewEvent]) -> list[Sequence[Any]]:
    # The statement has these parameters even without events, as empty arrays.
    columns: list[Sequence[Any]] = list(zip(*events, strict=True)) or [()] * len(_APPENDED)
    for number in (1, 2, 3):
        columns[number] = _all_escaped(columns[number])
    return columns


def _all_escaped(texts: Sequence[str | None]) -> Sequence[str | None]:
    """Return texts as stored. One search in the joined texts takes a tenth of the time of a search in each text."""
    joined = "".join(filter(None, texts))
    return list(map(escaped, texts)) if NUL in joined or MARK in joined else texts


def _rows(expected: Position, events: Sequence[NewEvent], moved_at_ms: int) -> Iterator[bytes]:
    for start in range(0, len(events), SLICE_EVENTS):
        columns = _columns(events[start : start + SLICE_EVENTS])
        offsets = range(expected.offset + start + 1, expected.offset + start + 1 + len(columns[0]))
        times = [moved_at_ms] * len(offsets)
        yield copied_rows(("int8", "int8", *_APPENDED.values()), [offsets, times, *columns])


class Notifications:
    """Waits for notifications of appends over one connection, which the first wait opens. For one task.

    ``head``: the position in the last notification, empty if there was none or it named none. If the connection is
    alive, it will be notified of everything that is appended after that position.
    """

    def __init__(self, engine: sa.Engine, channel: str) -> None:
        self._connection = DedicatedConnection(engine)
        self._listen = Statement(f"listen {quote_identifier(channel)}")
        # An empty notification wakes this connection too, if notifications reach it.
        self._notify = Statement(f"select pg_notify({quote_text(channel)}, '')")
        self._listening_in: int | None = None  # generation of the connection
        self.head = ""
        self._notified = self._stale = False

    async def wait(self) -> str:
        """Wait for a notification and return the head that it names; return empty text when it is time to look.

        Raises ``StoreUnavailable`` if an open connection was lost: the next one may lead to a database that was
        promoted without the last commits.
        """
        was_open = False
        try:
            if self._stale:
                self._stale, self._notified, self.head = False, False, ""
                await self.aclose()
                return ""
            # An open connection may not listen yet, if a wait was cancelled while it was being opened.
            if self._listening_in != self._connection.generation:
                await self._connection.run_pipeline(self._begin, reopen=True)
                self._listening_in = self._connection.generation
            was_open = True
            with trio.move_on_after(POLL_NOTIFIED_S if self._notified else POLL_S):
                return await self._next()
            self.head = ""  # so that the caller looks
        except DatabaseError as error:
            logger.debug("the connection for notifications of the event log was lost", reason=str(error))
            self._notified, self.head = False, ""
            if was_open:
                raise StoreUnavailable(f"the connection that listens was lost: {error}") from None
            await trio.sleep(POLL_S)  # the caller's next look at the store finds out whether the database is away
        return ""

    def reconnect(self) -> None:
        """Replace the connection at the next wait, because the caller has just found the database unavailable.

        Otherwise the wait would find the old connection lost, and the same outage would be reported again.
        """
        self._stale = True

    async def aclose(self) -> None:
        """Close the connection, also in a cancelled scope. Idempotent."""
        await self._connection.aclose()

    async def _begin(self, pipeline: Pipeline) -> None:
        # An append before this takes effect is not missed: the empty notification names no head, so the caller reads
        # the bounds again. If the notification does not arrive, the caller does so after ``POLL_S``.
        await pipeline.run((self._notify, ()), (self._listen, ()))  # one transaction

    async def _next(self) -> str:
        socket, received = await self._connection.run_pipeline(_received)
        if not received:
            await trio.lowlevel.wait_readable(socket)
            _, received = await self._connection.run_pipeline(_received)
        # The last one is enough: every notification that names a head replaces those before it, and after an empty one
        # the caller reads the bounds.
        if received:
            self._notified, self.head = True, received[-1]
        return received[-1] if received else ""


async def _received(pipeline: Pipeline) -> tuple[int, list[str]]:  # noqa: ASYNC124 - it sends nothing
    return pipeline.socket, pipeline.notifications()
