"""The event store in SQL, as far as Postgres and SQLite have it in common.

An append compares the single row of the state with what the writer expects, writes events and resume point, and
commits: atomic, without gaps, fenced. An event that was sent to a client must not be lost. So commits are synchronous
on Postgres whatever the server's default, and an SQLite file is written with ``synchronous = full``.

A unit of work is a few ``Step``s, which run in one transaction: in a thread on SQLite, in one round trip on Postgres.
What their rows mean is decided here, for both.

``first`` in the state decides which events exist: no read looks below it. So beginning an epoch only moves ``first``.
The rows that this leaves behind, however many, are deleted by ``trim`` in the same small slices as expired events.

A unit that reads needs no snapshot, although Postgres has a new one for each statement. Epochs never return, and
``first`` only grows. So if the state that is read last still has the position, no event after it was missing from the
rows that were read before.
"""
# ruff: noqa: D102 - the port documents each method

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from airy_trio.database import DatabaseError, DatabaseUnavailable
from airy_trio.events.destinations import Destination
from airy_trio.log.sql.tables import (
    DIGEST_BYTES,
    FOLD_BYTES,
    FOLD_SCAN,
    STATE_FORM,
    UNLIMITED,
    Durable,
    LogTables,
    Step,
    stored,
)
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    Position,
    PositionExpired,
    StaleAppend,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
    StoreUnavailable,
    milliseconds,
    new_epoch,
    up_to_bytes,
)

T = TypeVar("T")

_NO_EPOCH = ""  # of a row that was claimed and has no acknowledgement yet


Run = Callable[..., Awaitable[Any]]
"""Runs the ``Step``s that it is given in one transaction; returns the result of each. Raises the errors of the port."""


class StateRow(NamedTuple):
    """A row of ``LogTables.bounds`` or ``LogTables.aged``. ``before``: of ``aged``, the newest offset of that age."""

    epoch: str
    first: int
    last: int
    resume_point: str | None
    now_ms: int
    generation: str
    marks: str
    folded: int | None
    in_step: bool
    before: int = 0

    @property
    def bounds(self) -> Bounds:
        """The bounds that the port returns."""
        state = None
        # Otherwise an event that the current state lacks may have been trimmed while the state was missing.
        if self.in_step and self.folded is not None and self.folded >= self.first - 1:
            state = StoredState(self.generation, self.marks, self.folded)
        return Bounds(epoch=self.epoch, first=self.first, last=self.last, now_ms=self.now_ms, state=state)


class SqlStore:
    """``EventStore`` in SQL. Each dialect adds its own ``wait`` and ``append``, and ``_begin_epoch`` for this class.

    ``replaying``: for reads on behalf of clients, as many as there may be at once (``READS_MAX``). The reads that
    follow the log must not wait for their scans.
    """

    def __init__(self, tables: LogTables, reading: Run, replaying: Run, writing: Run) -> None:
        self._tables = tables
        self._reading, self._replaying, self._writing = reading, replaying, writing
        self._state = Step(tables.bounds, convert=state_row)
        self._used_since_ms = 0  # no durable subscription was last used before this time
        self._clean_epoch: str | None = None  # there are no rows below the ``first`` of this epoch
        self._clean_generation: str | None = None  # the current state has no rows of other generations than this

    async def bounds(self) -> Bounds:
        [state] = await self._reading(self._state)
        return state.bounds  # type: ignore[no-any-return]

    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        """See ``EventStore.fold``.

        What there is to add is found without a lock. If another fold is faster, this one adds nothing.
        """
        tables, values = self._tables, {"types": sorted(types), "limit": limit, "fold_bytes": FOLD_BYTES}
        foldable = Step(tables.foldable, values), Step(tables.over, values)
        state, [(last, count, found)], over = await self._reading(self._state, *foldable)
        bounds = state.bounds
        if bounds.state is None or bounds.state.generation != generation:
            return False
        low = bounds.state.folded
        # The first event always fits, so ``last`` is None only if none was found. If all that were found fit, and there
        # are fewer than ``limit``, the rest of the scanned range has none of these types. Then the state moves to the
        # end of the range.
        high = last if count == limit or count < found else min(bounds.last, low + FOLD_SCAN * limit)
        values |= {"of": bounds.epoch, "of_generation": generation, "low": low, "high": high}
        if over:  # apart from the rest: an append that notes the same objects holds the row that is advanced
            values["digests"] = [digest for (digest,) in over]
            deletes = Step(tables.delete_ended, values), Step(tables.forget_ended, values)
            await self._writing(*tables.before_fold, *deletes)
        if high > low:
            adds = [Step(tables.fold, values)] * bool(count)
            advance = Step(tables.advance_state, values)
            left = Step(tables.over, values)
            *_, moved, over = await self._writing(*tables.before_fold, *adds, advance, left)
            return high < bounds.last or not moved or bool(over)
        return len(over) == limit

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        statement, values = self._tables.statement_for(destination, self._tables.read)
        values |= {"after": after.offset, "limit": limit}
        run = self._reading if destination is None else self._replaying
        events, bounds = await self._events(run, statement, values, bytes_max)
        if after.epoch != bounds.epoch or after < bounds.floor:
            raise PositionExpired(f"the events after {after} are gone")
        return events

    async def current(
        self,
        state: StateAt,
        after: Position,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        statement, values = self._tables.statement_for(destination, self._tables.kept)
        values |= {
            "generation": state.generation, "after": after.offset, "until": state.until.offset, "limit": limit,
        }  # fmt: skip
        before = self._tables.before_kept
        events, bounds = await self._events(self._replaying, statement, values, bytes_max, before=before)
        current = bounds.state
        gone = current is None or current.generation != state.generation or current.folded < state.until.offset
        if state.until.epoch != bounds.epoch or gone:
            raise PositionExpired(f"the state {state.generation} up to {state.until} is gone")
        return events

    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        statement, values = self._tables.statement_for(destination, self._tables.newest)
        values |= {"epoch": until.epoch, "until": until.offset}
        events, bounds = await self._events(self._replaying, statement, values, None)
        if until.epoch != bounds.epoch:
            raise PositionExpired(f"{until} is not of epoch {bounds.epoch}")
        return events[0] if events else None

    async def since(self, age_s: float) -> Position:
        [state] = await self._replaying(self._aged(age_s))
        return state.bounds.head.at(state.before)  # type: ignore[no-any-return]

    async def resume_point(self) -> str | None:
        [state] = await self._reading(self._state)
        return state.resume_point  # type: ignore[no-any-return]

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        """See ``EventStore.begin_epoch``.

        Offsets go on from the head, so that all old rows are below ``first``, and nothing reads or appends there.
        """
        epoch = new_epoch()
        now_ms = await self._unless_stale(expected, self._begin_epoch(expected, epoch, resume_point))
        return Bounds(epoch=epoch, first=expected.offset + 1, last=expected.offset, now_ms=now_ms)

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        """See ``EventStore.trim``.

        What is old is found without a lock. If there is any, a short transaction deletes it. That updates the state
        last, so that its row is locked for the commit only. If another one has trimmed or begun an epoch meanwhile,
        ``first`` is beyond the rows, so nothing reads them.
        """
        tables = self._tables
        [state] = await self._reading(self._aged(age_s))
        bounds = state.bounds
        first = max(bounds.first, min(max(state.before, bounds.last - keep) + 1, bounds.first + limit))
        if bounds.state is not None:
            first = max(bounds.first, min(first, bounds.state.folded + 1))
        lowest = await self._lowest(bounds)
        deleted = min(first, lowest + limit) - 1
        steps = []
        unused_before_ms = bounds.now_ms - milliseconds(unused_s)
        if await self._has_unused(unused_before_ms, bounds.now_ms):
            steps.append(Step(tables.delete_durables, {"unused_before_ms": unused_before_ms}))
        if lowest <= deleted:
            steps.append(Step(tables.delete_events, {"lowest": lowest, "highest": deleted}))
        if state.generation != self._clean_generation:
            await self._delete_stale(state.generation, limit)
        if first > bounds.first:
            steps.append(Step(tables.trim_to, {"of": bounds.epoch, "new_first": first}))
        if not steps:
            return 0
        *_, trimmed = await self._writing(*steps)
        # Rows of former epochs do not count: readers lost them when their epoch ended. If only such rows are deleted,
        # this returns 0, and the caller goes on in its next period.
        return first - bounds.first if trimmed else 0

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        step = Step(self._tables.position, {"owner": owner, "name": name})
        [positions] = await self._reading(step)
        return _position(*positions[0]) if positions else None

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        rows = [(claim.owner, claim.name, claim.token, _NO_EPOCH, 0) for claim in claims]
        claimed = await self._upsert(self._tables.claim, rows)
        positions = {(owner, name): _position(epoch, offset) for owner, name, epoch, offset in claimed}
        return [positions[claim.owner, claim.name] for claim in claims]

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        rows = [
            (one.claim.owner, one.claim.name, one.claim.token, one.position.epoch, one.position.offset)
            for one in acknowledgements
        ]
        kept = {tuple(row) for row in await self._upsert(self._tables.acknowledge, rows)}
        return [one.claim for one in acknowledgements if (one.claim.owner, one.claim.name) not in kept]

    async def _begin_epoch(self, expected: Position, epoch: str, resume_point: str | None) -> int | None:
        """Begin an epoch, and return the time; None, with nothing written, if the head is not ``expected``."""
        raise NotImplementedError

    def _check(self) -> None:
        """Raise ``StoreReplaced`` if the database is not the one that was opened."""

    def _aged(self, age_s: float) -> Step:
        return Step(self._tables.aged, {"age_ms": milliseconds(age_s)}, state_row)

    async def _events(
        self,
        run: Run,
        statement: Any,  # noqa: ANN401 - SQLAlchemy's
        values: dict[str, Any],
        bytes_max: int | None,
        *,
        before: Sequence[Step] = (),
    ) -> tuple[list[StoredEvent], Bounds]:
        """Return the events that a statement selects after the steps ``before`` it, and then the bounds."""
        values["bytes_max"] = UNLIMITED if bytes_max is None else bytes_max
        step = Step(statement, values, lambda rows: list(up_to_bytes(stored(rows), bytes_max)))
        *_, events, state = await run(*before, step, self._state)
        return events, state.bounds

    async def _upsert(self, statement: Any, rows: list[Durable]) -> list[Any]:  # noqa: ANN401 - SQLAlchemy's
        """Store rows in the order of their keys, so that two nodes cannot wait for each other's rows."""
        if not rows:
            return []
        results = await self._writing(*self._tables.upserts(statement, sorted(rows)))
        return [row for result in results for row in result]

    async def _lowest(self, bounds: Bounds) -> int:
        """Return the offset of the oldest row, at most ``first``. Slow after many deletes, so that it is remembered."""
        # Once there are no rows below ``first``, this stays true for the rest of the epoch: then a trim deletes all
        # rows below the ``first`` that it sets.
        if self._clean_epoch == bounds.epoch:
            return bounds.first
        [[(lowest,)]] = await self._reading(Step(self._tables.lowest))
        if lowest is None or lowest >= bounds.first:
            self._clean_epoch, lowest = bounds.epoch, bounds.first
        return int(lowest)

    async def _delete_stale(self, generation: str, limit: int) -> None:
        """Delete rows of one former generation of the current state. A scan, so it is remembered if none are left."""
        [generations] = await self._reading(Step(self._tables.stale))
        if not generations:
            self._clean_generation = generation
            return
        [[stale]] = generations
        await self._writing(Step(self._tables.delete_stale, {"stale": stale, "limit": limit}))

    async def _has_unused(self, before_ms: int, now_ms: int) -> bool:
        """Return whether there are durable subscriptions that were last used before this time.

        The table has no index by time of use, because that would make each acknowledgement more expensive. Instead it
        is scanned once for the oldest row. Times of use only grow, so another scan is due when that row would be old
        enough.
        """
        if before_ms <= self._used_since_ms:
            return False
        [[(oldest_ms,)]] = await self._reading(Step(self._tables.oldest_use))
        self._used_since_ms = now_ms if oldest_ms is None else oldest_ms
        return self._used_since_ms < before_ms

    async def _translated(self, answer: Awaitable[T]) -> T:
        """Await something that raises ``DatabaseError``, and raise ``StoreUnavailable`` if waiting helps."""
        try:
            return await answer
        except DatabaseError as error:
            # A removed or replaced file may also appear as an error of the database, when a connection is opened. Then
            # the reason to report is what happened to the file.
            self._check()
            if isinstance(error, DatabaseUnavailable):
                raise StoreUnavailable(str(error)) from None
            raise

    async def _unless_stale(self, expected: Position, answer: Awaitable[T | None]) -> T:
        """Await a change of the head. Raises ``StaleAppend`` if it returns None: then nothing was written."""
        result = await self._translated(answer)
        if result is not None:
            return result
        head = (await self.bounds()).head
        if head == expected:
            raise StaleAppend("the resume point is not the one that the writer expects")
        raise StaleAppend(f"the head is {head}, not {expected}")


def state_values(before: int, head: Position, point: str, change: StateChange | None) -> dict[str, str | int | None]:
    """Return what an append that ends at ``head`` stores in the columns of the current state.

    ``state_at`` names this head. ``fold_to``: how far the state is folded then, if it was folded up to ``before``.
    """
    if change is None:
        return {"generation": None, "marks": None, "state_at": None, "fold_to": None}
    state_at, fold_to = f"{STATE_FORM}{head} {point}", before if change.folds else head.offset
    return {"generation": change.generation, "marks": change.marks, "state_at": state_at, "fold_to": fold_to}


def digest(stored_object: str) -> bytes:
    """Return the key of an object in the current state. ``stored_object``: its ``escaped`` text.

    A digest, because Postgres limits the size of index entries; SHA-256, because Postgres can compute it.
    """
    return sha256(stored_object.encode()).digest()[:DIGEST_BYTES]


def _position(epoch: str, offset: int) -> Position | None:
    return None if epoch == _NO_EPOCH else Position(epoch, offset)


def state_row(rows: Iterable[Any]) -> StateRow:
    """Return the only row of ``LogTables.bounds`` or ``LogTables.aged``. Raises ``StoreUnavailable`` if it is missing.

    While a dump is being restored, the table may exist before its row does.
    """
    for row in rows:
        return StateRow(*row)
    raise StoreUnavailable("log_state has no row: a dump is being restored, or the table was emptied")
