"""A short append to a Postgres event store: few events, in one statement, in one round trip.

It is what lies between most commits and the clients. The same fence, comparison and bell as of any append
(``sql``), and a transaction of its own, in the middle of which no writer can hang: the server has it whole, or not at
all. What it cannot do, because somebody else is inside the fence or the head is elsewhere, it has not begun: the
long way tells why.
"""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio.database import Names, connected, cut, quote_identifier, quote_text
from airy_trio.log.position import Position
from airy_trio.log.sql_fence import FENCE_CLASS
from airy_trio.log.sql_texts import written
from airy_trio.log.store import NewEvent
from airy_trio.log.tables import EVENTS, NOW_MS, STATE
from airy_trio.pipeline import Parameter, Pipeline, Statement

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


class ShortAppends:
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
