"""Few changes of Postgres, read in two round trips and without a thread: what there is after most commits.

The first one begins a transaction of one snapshot and reads the difference; the second reads what it is about, lets
writers stop notifying where that is wanted, and ends the transaction. Independent of what a difference is and of what
its rows mean.
"""

from collections.abc import Sequence
from typing import Final

import psycopg
from attrs import frozen
from sqlalchemy.dialects import postgresql

from airy_trio.changes.doorbell import Doorbell
from airy_trio.changes.driver import Answer, Asked, Question, Row
from airy_trio.changes.objects import Objects, changes_of
from airy_trio.changes.points import Cluster, PostgresPoint
from airy_trio.changes.rows import ChangedObject
from airy_trio.database import is_refusal
from airy_trio.pipeline import Parameter, Pipeline, Statement

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


class ShortReads:
    """Reads for one feed. ``log``: the change log's quoted name; ``columns``: what is read of it, with ``seq``."""

    def __init__(self, log: str, columns: str, bell: Doorbell) -> None:
        self._bell = bell
        self._statements: dict[Question, tuple[Statement, Sequence[str]]] = {}
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
            pipeline.disregard_notifications()  # this read answers them, and no later one
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
        return Few(rows, reading.objects([Answer(found) for found in answers[: len(reading.asked)]]), now)

    def _put(self, asked: Asked) -> tuple[Statement, Sequence[Parameter]]:
        """A question as a statement with numbered parameters, which is made once."""
        known = self._statements.get(asked.question)
        if known is None:
            compiled = asked.question.statement.compile(dialect=_NUMBERED)
            statement = Statement(f"airy_read_{len(self._statements)}", str(compiled))
            known = self._statements[asked.question] = statement, compiled.positiontup or ()
        statement, names = known
        arguments = asked.arguments
        return statement, [str(arguments[name]).encode() for name in names]


def _changes(log: str, columns: str) -> str:
    """The difference, as a select with the parameters of ``ShortReads.read``."""
    return (
        f"select {columns} from {log} where txid >= $1::xid8 "  # noqa: S608 - names quoted
        f"union all select {columns} from {log} where txid = any($2::xid8[]) order by seq limit $3::int8"
    )


def _told(found: Sequence[Row], cluster: Cluster, after: PostgresPoint) -> tuple[Sequence[Row], PostgresPoint]:
    """The rows of the change log in an answer to the difference, and the point that follows them."""
    snapshot, oid = found[0][:_MOMENT_COLUMNS]
    rows = [row[_MOMENT_COLUMNS:] for row in found if row[_MOMENT_COLUMNS] is not None]
    return rows, PostgresPoint.at(cluster, snapshot, oid, source=after.source, mark=after.mark)
