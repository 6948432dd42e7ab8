"""Few changes of Postgres, read in two round trips and without a thread: what there is to read after most commits.

The first one begins a transaction of one snapshot and reads the difference; the second reads what it is about, lets go
of the doorbell, and ends the transaction. It refuses to know what a difference is and what its rows mean.
"""

from collections.abc import Sequence
from typing import Final

from attrs import frozen
from sqlalchemy.dialects import postgresql

from airy_trio.changes.doorbell import Doorbell
from airy_trio.changes.driver import Asked, Row
from airy_trio.changes.objects import Objects, changes_of
from airy_trio.changes.points import Cluster, PostgresPoint
from airy_trio.changes.rows import ChangedObject
from airy_trio.pipeline import Parameter, Pipeline, Statement

CHANGES_MAX: Final = 64
_BEGIN: Final = Statement("airy_begin", "begin isolation level repeatable read read only")
_COMMIT: Final = Statement("airy_commit", "commit")
_ROLLBACK: Final = Statement("airy_rollback", "rollback")
_MOMENT_COLUMNS: Final = 2
_NUMBERED: Final = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


@frozen
class Few:
    """The rows of the change log after a point, at most ``CHANGES_MAX``, what they are about, and the point then."""

    rows: Sequence[Row]
    objects: tuple[ChangedObject, ...]
    now: PostgresPoint


class ShortReads:
    """Reads for one feed. ``log``: the change log's quoted name; ``columns``: what is read of it, with ``seq``."""

    def __init__(self, log: str, columns: str, objects: Objects, bell: Doorbell) -> None:
        self._objects = objects
        self._bell = bell
        self._statements: dict[int, tuple[Statement, Sequence[str]]] = {}
        name = log.replace("'", "''")
        self._difference = Statement(
            "airy_difference",
            "select cast(pg_current_snapshot() as text), coalesce(cast(cast(to_regclass("  # noqa: S608 - names quoted
            f"'{name}') as oid) as text), ''), found.* from (select) moment left join ("
            f"select {columns} from {log} where txid >= $1::xid8 "
            f"union all select {columns} from {log} where txid = any($2::xid8[]) order by seq limit $3::int8"
            ") found on true order by seq",
        )

    async def read(self, pipeline: Pipeline, after: PostgresPoint, cluster: Cluster) -> Few | None:
        """Read what follows a point that has no target; None where those are more than few.

        The objects are only read where there is no doubt that the point is of this history: ``now`` is to be compared
        by the caller. Raises ``psycopg.Error``.
        """
        limit = CHANGES_MAX + 1
        asked = [str(after.next_transaction), f"{{{','.join(after.in_progress)}}}", str(limit)]
        _, found = await pipeline.run((_BEGIN, ()), (self._difference, [text.encode() for text in asked]))
        snapshot, oid = found[0][:_MOMENT_COLUMNS]
        rows = [row[_MOMENT_COLUMNS:] for row in found if row[_MOMENT_COLUMNS] is not None]
        now = PostgresPoint.at(cluster, snapshot, oid)
        if len(rows) >= limit:
            await pipeline.run((_ROLLBACK, ()))
            return None
        if not rows:
            await pipeline.run((_COMMIT, ()))
            return Few(rows, (), now)
        reading = self._objects.reading(changes_of(rows))
        answers = await pipeline.run(*map(self._put, reading.asked), *self._bell.letting_go(), (_COMMIT, ()))
        return Few(rows, reading.objects(answers[: len(reading.asked)]), now)

    def _put(self, asked: Asked) -> tuple[Statement, Sequence[Parameter]]:
        """A question as a statement with numbered parameters, which is made once."""
        known = self._statements.get(id(asked.question))  # a question lives as long as the objects
        if known is None:
            compiled = asked.question.statement.compile(dialect=_NUMBERED)
            statement = Statement(f"airy_read_{len(self._statements)}", str(compiled))
            known = self._statements[id(asked.question)] = statement, compiled.positiontup or ()
        statement, names = known
        return statement, [str(asked.arguments[name]).encode() for name in names]
