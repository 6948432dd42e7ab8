"""The event store in the memory of this process: for one node, and empty after each restart."""
# ruff: noqa: D102 - the port documents each method

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import islice, takewhile
from operator import attrgetter

import trio
from attrs import define, evolve

from airy_trio.events.destinations import EVERYTHING, Destination, covers
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    NewEvent,
    Position,
    PositionExpired,
    StaleAppend,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
    new_epoch,
    stored_after,
    up_to_bytes,
)


@define
class _Durable:
    """One durable subscription: its newest claim, and what was acknowledged."""

    token: str
    position: Position | None
    used_at_ms: int


class MemoryStore:
    """An ``EventStore`` in a list. ``clock`` returns seconds since 1970.

    Each verb but ``wait`` has one checkpoint, at its start. The rest runs in one step of Trio, so every verb is atomic.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._epoch = new_epoch()
        self._events: list[StoredEvent] = []
        self._trimmed = 0
        self._appended_at_ms = 0
        self._resume_point: str | None = None
        self._state: StoredState | None = None
        self._kept: dict[str, StoredEvent] = {}  # the current state by object, in the order of the events
        # The same events as a list, in which a reader finds its position by bisection. None after a change until the
        # next read, so that a fold in many steps does not copy them at each step.
        self._kept_events: list[StoredEvent] | None = None
        self._ended: dict[str, int] = {}  # by object: the head when it ended; its events up to there do not count
        self._durables: dict[tuple[str, str], _Durable] = {}
        self._changed = trio.Event()

    async def bounds(self) -> Bounds:
        await trio.lowlevel.checkpoint()
        return self._bounds()

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        await trio.lowlevel.checkpoint()
        self._check_head(expected)
        if replaces is not None and replaces != self._resume_point:
            raise StaleAppend("the stored resume point is not the one that the writer replaces")
        now_ms = self._appended_at_ms = max(self._now_ms(), self._appended_at_ms)
        stored = stored_after(expected, events, now_ms)
        self._events += stored
        self._resume_point = resume_point
        if state is None:
            self._state = None
        else:
            self._change_state(state, expected.offset)
        if stored:
            self._wake()
        return stored

    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        await trio.lowlevel.checkpoint()
        if self._state is None or self._state.generation != generation:
            return False
        start = self._state.folded - self._trimmed
        events = self._events[start : start + limit]
        for event in (one for one in events if one.type in types):
            self._kept.pop(event.object, None)  # so that it moves to the end
            self._kept[event.object] = event
        folded = self._state.folded + len(events)
        for object_, offset in [(object_, offset) for object_, offset in self._ended.items() if offset <= folded]:
            if object_ in self._kept and self._kept[object_].offset <= offset:
                del self._kept[object_]
            del self._ended[object_]
        self._kept_events = None
        self._state = evolve(self._state, folded=folded)
        return folded < self._bounds().last

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        await trio.lowlevel.checkpoint()
        self._check_retained(after)
        wanted = EVERYTHING if destination is None else destination
        # A map instead of a slice: a reader that takes a few events should not copy the rest of the log.
        following = map(self._events.__getitem__, range(after.offset - self._trimmed, len(self._events)))
        belonging = (event for event in following if covers(wanted, event))
        return list(up_to_bytes(islice(belonging, limit), bytes_max))

    async def current(
        self,
        state: StateAt,
        after: Position,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        await trio.lowlevel.checkpoint()
        known = self._state
        gone = known is None or known.generation != state.generation or known.folded < state.until.offset
        if state.until.epoch != self._epoch or gone:
            raise PositionExpired(f"the state {state.generation} up to {state.until} is gone")
        wanted = EVERYTHING if destination is None else destination
        if self._kept_events is None:
            self._kept_events = list(self._kept.values())
        start = bisect_right(self._kept_events, after.offset, key=attrgetter("offset"))
        following = islice(self._kept_events, start, None)
        kept = takewhile(lambda event: event.offset <= state.until.offset, following)
        events = (event for event in kept if self._ended.get(event.object, 0) < event.offset)
        return list(up_to_bytes(islice((event for event in events if covers(wanted, event)), limit), bytes_max))

    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        await trio.lowlevel.checkpoint()
        if until.epoch != self._epoch:
            raise PositionExpired(f"{until} is not of epoch {self._epoch}")
        newest_first = reversed(range(min(until.offset - self._trimmed, len(self._events))))
        until_now = map(self._events.__getitem__, newest_first)
        return next((event for event in until_now if covers(destination, event)), None)

    async def since(self, age_s: float) -> Position:
        await trio.lowlevel.checkpoint()
        since_ms = self._now_ms() - age_s * 1000
        older = bisect_left(self._events, since_ms, key=attrgetter("appended_at_ms"))
        return Position(self._epoch, self._trimmed + older)

    async def resume_point(self) -> str | None:
        await trio.lowlevel.checkpoint()
        return self._resume_point

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        await trio.lowlevel.checkpoint()
        self._check_head(expected)
        self._epoch = new_epoch()
        self._events.clear()
        self._trimmed = 0
        self._resume_point = resume_point
        self._state = None
        self._wake()
        return self._bounds()

    async def wait(self, after: Position) -> None:
        await trio.lowlevel.checkpoint()
        while self._bounds().head == after:
            await self._changed.wait()

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        await trio.lowlevel.checkpoint()
        now_ms = self._now_ms()
        before_ms, unused_before_ms = now_ms - age_s * 1000, now_ms - unused_s * 1000
        older = bisect_left(self._events, before_ms, key=attrgetter("appended_at_ms"))
        retained = len(self._events) if self._state is None else self._state.folded - self._trimmed
        count = min(limit, retained, max(older, len(self._events) - keep))
        del self._events[:count]
        self._trimmed += count
        for key in [key for key, durable in self._durables.items() if durable.used_at_ms < unused_before_ms]:
            del self._durables[key]
        return count

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        durable = self._durables.get((owner, name))
        return None if durable is None else durable.position

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        await trio.lowlevel.checkpoint()
        return [self._claim(claim) for claim in claims]

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        await trio.lowlevel.checkpoint()
        return [one.claim for one in acknowledgements if not self._acknowledge(one.claim, one.position)]

    def _claim(self, claim: Claim) -> Position | None:
        known = self._durables.get((claim.owner, claim.name))
        position = None if known is None else known.position
        self._durables[claim.owner, claim.name] = _Durable(claim.token, position, self._now_ms())
        return position

    def _acknowledge(self, claim: Claim, position: Position) -> bool:
        known = self._durables.setdefault((claim.owner, claim.name), _Durable(claim.token, None, 0))
        if known.token != claim.token:
            return False
        if known.position is None or known.position.epoch != position.epoch or known.position < position:
            known.position = position
        known.used_at_ms = self._now_ms()
        return True

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _bounds(self) -> Bounds:
        return Bounds(
            epoch=self._epoch,
            first=self._trimmed + 1,
            last=self._trimmed + len(self._events),
            now_ms=self._now_ms(),
            state=self._state,
        )

    def _change_state(self, change: StateChange, head: int) -> None:
        folded = head
        if self._state is None or self._state.generation != change.generation:
            self._kept.clear()
            self._ended.clear()
        else:
            folded = self._state.folded
        if folded == head and not change.folds:
            folded = self._bounds().last
        self._state = StoredState(change.generation, change.marks, folded)
        # A sweep also concerns events that are not folded yet. They are noted like those of objects that have ended, so
        # that the fold drops them.
        for type_, upto in change.swept.items():
            for event in [one for one in self._kept.values() if one.type == type_ and one.offset <= upto]:
                del self._kept[event.object]
            # Everything up to ``upto`` may have been trimmed; a negative index would count from the end.
            unfolded = self._events[folded - self._trimmed : max(0, upto - self._trimmed)]
            for event in (one for one in unfolded if one.type == type_):
                self._ended[event.object] = max(event.offset, self._ended.get(event.object, 0))
        self._ended |= dict.fromkeys(change.ended, self._bounds().last)
        self._kept_events = None

    def _check_head(self, expected: Position) -> None:
        head = self._bounds().head
        if expected != head:
            raise StaleAppend(f"the head is {head}, not {expected}")

    def _check_retained(self, after: Position) -> None:
        if after.epoch != self._epoch or after.offset < self._trimmed:
            raise PositionExpired(f"events after {after} are gone")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
