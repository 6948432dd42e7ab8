"""Few changes of Postgres, read in one round trip or two and without a thread: what there is after most commits.

The first one begins a transaction of one snapshot and reads the difference; the second reads what it is about, lets go
of the doorbell, and ends the transaction. Where the doorbell has rung, something is there, and mostly of the kinds that
changed last: so their rows are read in the first one too, which then ends the transaction itself. Where that guess was
wrong, all is read again in two. It refuses to know what a difference is and what its rows mean.
"""

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from airy_trio.changes.doorbell import Doorbell
from airy_trio.changes.driver import Asked, Row
from airy_trio.changes.guesses import NUMBERED, Guesses
from airy_trio.changes.objects import Objects, changes_of
from airy_trio.changes.points import Cluster, PostgresPoint
from airy_trio.changes.rows import ChangedObject
from airy_trio.pipeline import Parameter, Pipeline, Statement

CHANGES_MAX: Final = 64
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

    def __init__(self, log: str, columns: str, objects: Objects, bell: Doorbell) -> None:
        self._objects = objects
        self._bell = bell
        self._statements: dict[int, tuple[Statement, Sequence[str]]] = {}
        name = log.replace("'", "''")
        self._difference = Statement(
            "airy_difference",
            "select cast(pg_current_snapshot() as text), coalesce(cast(cast(to_regclass("  # noqa: S608 - names quoted
            f"'{name}') as oid) as text), ''), found.* from (select) moment left join ({_changes(log, columns)}) found "
            "on true order by seq",
        )
        self._guesses = Guesses(objects.guesses(_changes(log, "kind, key_1, seq")))

    async def read(self, pipeline: Pipeline, after: PostgresPoint, cluster: Cluster) -> Few | None:
        """Read what follows a point that has no target; None where those are more than few.

        The objects are only read where there is no doubt that the point is of this history: ``now`` is to be compared
        by the caller. Raises ``psycopg.Error``.
        """
        texts = str(after.next_transaction), f"{{{','.join(after.in_progress)}}}", str(CHANGES_MAX + 1)
        asked = [text.encode() for text in texts]
        rung, self._bell.rung = self._bell.rung, False
        if rung:
            pipeline.disregard_notifications()  # this read answers them, and no later one
        if rung and self._guesses.made:
            few = await self._read_at_once(pipeline, asked, cluster)
            if few is not None:
                return few
        _, found = await pipeline.run((_BEGIN, ()), (self._difference, asked))
        rows, now = _told(found, cluster)
        if len(rows) > CHANGES_MAX:
            await pipeline.run((_ROLLBACK, ()))
            return None
        if not rows:
            await pipeline.run((_COMMIT, ()))
            return Few(rows, (), now)
        self._guesses.note(row[0] for row in rows)
        reading = self._objects.reading(changes_of(rows))
        answers = await pipeline.run(*map(self._put, reading.asked), *self._bell.letting_go(), (_COMMIT, ()))
        return Few(rows, reading.objects(answers[: len(reading.asked)]), now)

    async def _read_at_once(self, pipeline: Pipeline, asked: Sequence[Parameter], cluster: Cluster) -> Few | None:
        """Read the difference and what it is guessed to be about; None where that was wrong, or those are more.

        Who is only rung for now and then stays asleep: to be woken costs a writer little, to fall asleep costs us more.
        """
        guessed = [(guess.statement, asked) for guess in self._guesses.made]
        letting_go = self._bell.letting_go() if self._bell.hurried else ()
        told = await pipeline.run((_BEGIN, ()), (self._difference, asked), *guessed, *letting_go, (_COMMIT, ()))
        rows, now = _told(told[1], cluster)
        if len(rows) > CHANGES_MAX or not self._guesses.cover((row[0], row[2]) for row in rows):
            return None
        reading = self._objects.reading(changes_of(rows))
        return Few(rows, reading.objects(self._guesses.answers(reading.asked, told[2:])), now)

    def _put(self, asked: Asked) -> tuple[Statement, Sequence[Parameter]]:
        """A question as a statement with numbered parameters, which is made once."""
        known = self._statements.get(id(asked.question))  # a question lives as long as the objects
        if known is None:
            compiled = asked.question.statement.compile(dialect=NUMBERED)
            statement = Statement(f"airy_read_{len(self._statements)}", str(compiled))
            known = self._statements[id(asked.question)] = statement, compiled.positiontup or ()
        statement, names = known
        arguments = asked.arguments
        return statement, [str(arguments[name]).encode() for name in names]


def _changes(log: str, columns: str) -> str:
    """The difference, as a select with the parameters of ``ShortReads.read``."""
    return (
        f"select {columns} from {log} where txid >= $1::xid8 "  # noqa: S608 - names quoted
        f"union all select {columns} from {log} where txid = any($2::xid8[]) order by seq limit $3::int8"
    )


def _told(found: Sequence[Row], cluster: Cluster) -> tuple[Sequence[Row], PostgresPoint]:
    """The rows of the change log in an answer to the difference, and the point then."""
    snapshot, oid = found[0][:_MOMENT_COLUMNS]
    rows = [row[_MOMENT_COLUMNS:] for row in found if row[_MOMENT_COLUMNS] is not None]
    return rows, PostgresPoint.at(cluster, snapshot, oid)
