"""The suite for event stores finds stores that are broken on purpose, each with the check of that promise."""
# ruff: noqa: ARG002, SLF001 - a store that is broken on purpose ignores arguments and uses private attributes

import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
import trio.testing
from attrs import evolve

from airy_trio.events.destinations import Destination
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    NewEvent,
    Position,
    StaleAppend,
    StateChange,
    StoredEvent,
    stored_after,
)
from airy_trio.testing.event_store import (
    BrokenStoreError,
    MakePlace,
    OpenStore,
    broken_promises,
    check_event_store,
    check_whole_batches,
    write_batches,
)
from tests.delegating_store import Append, Current, DelegatingStore, Read
from tests.log.places import memory_place, opened

pytestmark = pytest.mark.slow  # the whole suite again and again: several seconds together


class ReordersEvents(DelegatingStore):
    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        found = list(await super().on_read(call))
        return found if len(found) < 3 else [found[1], found[0], *found[2:]]


class LosesAnEvent(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        stored = await super().on_append(call)
        if len(self._events) > 100:
            self._events[50] = self._events[49]
        return stored


class CutsLargeAppends(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        return await super().on_append(evolve(call, events=call.events[:4000]))


class DuplicatesEvents(DelegatingStore):
    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        found = list(await super().on_read(call))
        return [*found[:1], *found][: call.limit]


class ReusesOffsets(MemoryStore):
    """Begins at 1 again when all events are trimmed, like a table that derives the next number from its rows."""

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        count = await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=unused_s)
        if not self._events:
            self._trimmed = 0
        return count


class TearsBatches(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if len(call.events) < 2:
            return await super().on_append(call)
        middle = len(call.events) // 2
        half = await super().on_append(evolve(call, events=call.events[:middle]))
        rest = await super().on_append(
            evolve(call, expected=call.expected.at(half[-1].offset), events=call.events[middle:], replaces=None)
        )
        return [*half, *rest]


class CutsTextsAtNul(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        cut = [event._replace(object=event.object.partition("\0")[0]) for event in call.events]
        return await super().on_append(evolve(call, events=cut))


class LosesTheResumePoint(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        known = self._resume_point
        stored = await super().on_append(call)
        if not call.events:
            self._resume_point = known
        return stored


class StoresTheResumePointFirst(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        self._check_head(call.expected)
        self._resume_point = call.resume_point
        return await super().on_append(call)


class AcceptsStaleWriters(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        return await super().on_append(evolve(call, expected=self._bounds().head))


class IgnoresReplaces(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        return await super().on_append(evolve(call, replaces=None))


class ComparesResumePointsTooEarly(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.replaces is not None and call.replaces != self._resume_point:
            raise StaleAppend("the resume point is another one")
        await trio.lowlevel.checkpoint()
        return await super().on_append(evolve(call, replaces=None))


class ComparesHeadsTooEarly(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        self._check_head(call.expected)
        await trio.lowlevel.checkpoint()
        stored = stored_after(self._bounds().head, call.events, self._now_ms())
        self._events += stored
        self._resume_point = call.resume_point
        self._wake()
        return stored


class AddsTheTailOfAStaleBatch(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        head = self._bounds().head
        missing = head.offset - call.expected.offset
        if call.expected.epoch == head.epoch and 0 < missing < len(call.events):
            await super().on_append(evolve(call, expected=head, events=call.events[missing:]))
        return await super().on_append(call)


class ServesTrimmedPositions(MemoryStore):
    def _check_retained(self, after: Position) -> None:
        if after.epoch != self._epoch:
            super()._check_retained(after)


class TrimsTooMuch(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        return await super().trim(age_s=age_s, keep=max(0, keep - 1), limit=limit, unused_s=unused_s)


class IgnoresDestinations(DelegatingStore):
    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        return await super().on_read(evolve(call, destination=None))


class LimitsBeforeFiltering(DelegatingStore):
    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        kept = {event.offset for event in await super().on_read(evolve(call, destination=None))}
        return [event for event in await super().on_read(call) if event.offset in kept]


class ReturnsTheOldestOfADestination(MemoryStore):
    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        oldest = await self.read(until.at(self._trimmed), 1, destination)
        return oldest[0] if oldest else None


class IgnoresTheEndOfNewest(MemoryStore):
    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        return await super().newest(until.at(10**6), destination)


class ReturnsTheFloorForAnyAge(MemoryStore):
    async def since(self, age_s: float) -> Position:
        return (await self.bounds()).floor


class FoldsEveryType(MemoryStore):
    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        return await super().fold(generation, {*types, *(event.type for event in self._events)}, limit)


class FoldsInTheAppend(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        stored = await super().on_append(call)
        if call.state is not None:
            await self.fold(call.state.generation, {event.type for event in call.events} - {"other"}, 10**6)
        return stored


class FoldsNothingInAnAppend(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None:
            call = evolve(call, state=evolve(call.state, folds=True))
        return await super().on_append(call)


class SkipsWhatWasNotFolded(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        stored = await super().on_append(call)
        if call.state is not None and self._state is not None and not call.state.folds:
            self._state = evolve(self._state, folded=self._bounds().last)
        return stored


class FoldsEverythingAtOnce(MemoryStore):
    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        return await super().fold(generation, types, 10**6)


class FoldsAnyGeneration(MemoryStore):
    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        return await super().fold(self._state.generation if self._state else generation, types, limit)


class KeepsTheOldestEvents(MemoryStore):
    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        kept = dict(self._kept)
        more = await super().fold(generation, types, limit)
        self._kept = kept | {object_: event for object_, event in self._kept.items() if object_ not in kept}
        return more


class SkipsAnEvent(MemoryStore):
    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        more = await super().fold(generation, types, limit)
        if more and self._state is not None:
            self._state = evolve(self._state, folded=self._state.folded + 1)
        return more


class ForgetsEndsBeforeItHasTheEvents(MemoryStore):
    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        for object_ in self._ended:
            self._kept.pop(object_, None)
        self._ended.clear()
        return await super().fold(generation, types, limit)


class TrimsWhatIsNotFolded(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        state, self._state = self._state, None
        count = await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=unused_s)
        self._state = state
        return count


class NothingEverEnds(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None:
            call = evolve(call, state=evolve(call.state, ended=()))
        return await super().on_append(call)


class EndsOnlyWhatHasAnEvent(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None:
            new = {event.object for event in call.events}
            call = evolve(call, state=evolve(call.state, ended=[one for one in call.state.ended if one in new]))
        return await super().on_append(call)


class NothingIsSwept(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None:
            call = evolve(call, state=evolve(call.state, swept={}))
        return await super().on_append(call)


class SweepsMoveEndsBack(MemoryStore):
    """Records a swept event as the end of its object, even if the object has already ended at a later offset."""

    def _change_state(self, change: StateChange, head: int) -> None:
        super()._change_state(change, head)
        folded = 0 if self._state is None else self._state.folded
        for event in self._events:
            if folded < event.offset <= change.swept.get(event.type, 0) and event.object not in change.ended:
                self._ended[event.object] = event.offset


class SweepsEveryType(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None and call.state.swept:
            upto = max(call.state.swept.values())
            types = {event.type for event in self._kept.values()}
            call = evolve(call, state=evolve(call.state, swept=dict.fromkeys(types, upto)))
        return await super().on_append(call)


class ContinuesTheStateOfAnotherGeneration(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None and self._state is not None:
            self._state = evolve(self._state, generation=call.state.generation)
        return await super().on_append(call)


class ContinuesAStateAfterAnAppendWithoutOne(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        state = self._state
        stored = await super().on_append(call)
        self._state = self._state or state
        return stored


class ChangesTheStateBeforeItRejects(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.state is not None and call.expected != self._bounds().head:
            self._change_state(call.state, call.expected.offset)
        return await super().on_append(call)


class ChangesTheStateBeforeItComparesResumePoints(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        if call.replaces is not None and call.state is not None and call.expected == self._bounds().head:
            self._change_state(call.state, call.expected.offset)
        return await super().on_append(call)


class KeepsTheStateIfNothingMoves(DelegatingStore):
    """After an append without a state compares the head and the resume point with those of the state."""

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        state = self._state if not call.events and call.resume_point == self._resume_point else None
        stored = await super().on_append(call)
        self._state = self._state or state
        return stored


class KeepsTheStateOfTheOldEpoch(MemoryStore):
    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        state = self._state
        await super().begin_epoch(expected, resume_point)
        self._state = state
        return self._bounds()


class TrimsTheState(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        count = await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=unused_s)
        self._kept = {object_: one for object_, one in self._kept.items() if one.offset > self._trimmed}
        self._kept_events = None
        return count


class ReadsTheStateBeyondItsEnd(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        return await super().on_current(evolve(call, state=evolve(call.state, until=call.after.at(10**6))))


class ReadsTheWholeStateAtOnce(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        return await super().on_current(evolve(call, limit=10**6))


class IgnoresBytesOfTheState(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        return await super().on_current(evolve(call, bytes_max=None))


class IgnoresDestinationsOfTheState(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        return await super().on_current(evolve(call, destination=None))


class ReadsTheStateInAnyEpoch(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        until = Position(self._epoch, call.state.until.offset)
        return await super().on_current(evolve(call, state=evolve(call.state, until=until)))


class CutsLargeStates(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        return await super().on_current(evolve(call, limit=min(call.limit, 1000)))


class ReadsAnyGeneration(DelegatingStore):
    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        generation = call.state.generation if self._state is None else self._state.generation
        return await super().on_current(evolve(call, state=evolve(call.state, generation=generation)))


class IgnoresBytes(DelegatingStore):
    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        return await super().on_read(evolve(call, bytes_max=None))


class StopsBeforeBytesMax(DelegatingStore):
    """Leaves out the event that exceeds ``bytes_max``, so a reader cannot detect that there is one."""

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        found = await super().on_read(call)
        fits = call.bytes_max is None or sum(len(event.body) for event in found) <= call.bytes_max
        return found if fits or len(found) == 1 else found[:-1]


class CountsBytesOfOtherDestinations(DelegatingStore):
    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        kept = {event.offset for event in await super().on_read(evolve(call, destination=None))}
        return [event for event in await super().on_read(evolve(call, bytes_max=None)) if event.offset in kept]


class KeepsEventsOfTheOldEpoch(MemoryStore):
    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        events = list(self._events)
        bounds = await super().begin_epoch(expected, resume_point)
        self._events += events
        return bounds


class KeepsTheEpoch(MemoryStore):
    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        await super().begin_epoch(expected, resume_point)
        self._epoch = expected.epoch
        return self._bounds()


class BeginsEpochsAfterAnyHead(MemoryStore):
    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        return await super().begin_epoch(self._bounds().head, resume_point)


class NeverWakes(MemoryStore):
    def _wake(self) -> None:
        pass


class WakesForEpochsOnly(MemoryStore):
    def _wake(self) -> None:
        if not self._events:
            super()._wake()


class MixesOwners(MemoryStore):
    async def acknowledged(self, owner: str, name: str) -> Position | None:
        return await super().acknowledged("", owner + name)

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        mixed = [
            Acknowledgement(Claim("", one.claim.owner + one.claim.name, ""), one.position) for one in acknowledgements
        ]
        return await super().acknowledge(mixed)


class AcknowledgesBackwards(MemoryStore):
    def _acknowledge(self, claim: Claim, position: Position) -> bool:
        kept = super()._acknowledge(claim, position)
        if kept:
            self._durables[claim.owner, claim.name].position = position
        return kept


class AcceptsAcknowledgementsOfAnyClaim(MemoryStore):
    def _acknowledge(self, claim: Claim, position: Position) -> bool:
        known = self._durables.get((claim.owner, claim.name))
        return super()._acknowledge(claim if known is None else evolve(claim, token=known.token), position)


class RejectsAllIfOneIsRejected(MemoryStore):
    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        claims = [one.claim for one in acknowledgements]
        known = [self._durables.get((claim.owner, claim.name)) for claim in claims]
        if any(one is not None and one.token != claim.token for one, claim in zip(known, claims, strict=True)):
            return claims
        return await super().acknowledge(acknowledgements)


class LosesThePositionOnAClaim(MemoryStore):
    """Deletes the position when another client claims the subscription."""

    def _claim(self, claim: Claim) -> Position | None:
        self._durables.pop((claim.owner, claim.name), None)
        return super()._claim(claim)


class AClaimIsNoUse(MemoryStore):
    def _claim(self, claim: Claim) -> Position | None:
        known = self._durables.get((claim.owner, claim.name))
        used_at_ms = 0 if known is None else known.used_at_ms
        position = super()._claim(claim)
        self._durables[claim.owner, claim.name].used_at_ms = used_at_ms
        return position


class DeletesPositionsWithEvents(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        return await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=min(age_s, unused_s))


class NeverDeletesPositions(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        return await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=math.inf)


class AnswersInTheOrderOfNames(MemoryStore):
    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        return await super().claim(sorted(claims, key=lambda claim: (claim.owner, claim.name)))


class KeepsTheFirstClaim(MemoryStore):
    def _claim(self, claim: Claim) -> Position | None:
        known = self._durables.get((claim.owner, claim.name))
        return super()._claim(claim) if known is None else known.position


class LosesAges(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        ageless = [event._replace(age_ms=None) for event in call.events]
        return await super().on_append(evolve(call, events=ageless))


class TimesFall(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        stored = await super().on_append(call)
        fallen = [event._replace(appended_at_ms=event.appended_at_ms - 1000 * event.offset) for event in stored]
        if fallen:
            self._events[-len(fallen) :] = fallen
        return fallen


class TearsACancelledAppend(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        self._check_head(call.expected)
        stored = stored_after(call.expected, call.events, self._now_ms())
        self._events += stored[:1]
        await trio.lowlevel.checkpoint()
        self._events += stored[1:]
        self._resume_point = call.resume_point
        self._wake()
        return stored


class KeepsTheLockOfACancelledCall(DelegatingStore):
    locked = False

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        while self.locked:  # noqa: ASYNC110 - broken on purpose
            await trio.sleep(1)
        self.locked = True
        try:
            return await super().on_append(call)
        except StaleAppend:
            self.locked = False
            raise
        finally:
            self.locked = trio.current_effective_deadline() < 0  # true if the call was cancelled


class LosesAClaimThatIsCancelled(MemoryStore):
    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        known = {(one.owner, one.name): self._durables.pop((one.owner, one.name), None) for one in claims}
        await trio.lowlevel.checkpoint()
        self._durables |= {key: durable for key, durable in known.items() if durable is not None}
        return await super().claim(claims)


class TearsACancelledEpoch(MemoryStore):
    """Deletes the events first, and begins the epoch later."""

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        self._check_head(expected)
        self._events.clear()
        await trio.lowlevel.checkpoint()
        return await super().begin_epoch(self._bounds().head, resume_point)


class WritesLater(MemoryStore):
    """Accepts an append, but writes it only with the next one. If the process ends, the last append is lost."""

    def __init__(self, place: MemoryStore) -> None:
        super().__init__()
        self.place = place
        self.later: tuple[Position, Sequence[NewEvent], str] | None = None

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        if self.later is not None:
            await self.place.append(*self.later)
        self.later = (expected, events, resume_point)
        return stored_after(expected, events, 0)

    async def bounds(self) -> Bounds:
        return await self.place.bounds()

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        return await self.place.read(after, limit, destination, bytes_max=bytes_max)

    async def resume_point(self) -> str | None:
        return await self.place.resume_point()

    async def wait(self, after: Position) -> None:
        await self.place.wait(after)


@asynccontextmanager
async def place_with_late_writes() -> AsyncIterator[OpenStore]:
    place = MemoryStore()
    yield lambda: opened(WritesLater(place))


async def test_late_writes_are_found(autojump_clock: trio.testing.MockClock) -> None:
    assert "cancelled_appends_leave_whole_batches" in await broken_promises(place_with_late_writes)


@pytest.mark.parametrize(
    "store_class",
    [
        TearsACancelledAppend,
        TearsACancelledEpoch,
        KeepsTheLockOfACancelledCall,
        LosesAClaimThatIsCancelled,
    ],
)
async def test_torn_cancelled_calls_are_found(
    store_class: type[MemoryStore], autojump_clock: trio.testing.MockClock
) -> None:
    assert "cancelled_calls_are_atomic" in await broken_promises(places_of(store_class))


BROKEN: dict[type[MemoryStore], str] = {
    TearsACancelledAppend: "cancelled_appends_leave_whole_batches",
    ReordersEvents: "random_schedules_agree_with_a_list",
    LosesAnEvent: "large_appends_are_whole",
    CutsLargeAppends: "large_appends_are_whole",
    DuplicatesEvents: "random_schedules_agree_with_a_list",
    ReusesOffsets: "trims_delete_the_oldest",
    TearsBatches: "batches_are_read_whole",
    CutsTextsAtNul: "events_are_returned_unchanged",
    LosesAges: "random_schedules_agree_with_a_list",
    LosesTheResumePoint: "random_schedules_agree_with_a_list",
    StoresTheResumePointFirst: "batches_are_read_whole",
    IgnoresReplaces: "random_schedules_agree_with_a_list",
    ComparesResumePointsTooEarly: "resume_points_are_compared",
    AcceptsStaleWriters: "stale_appends_are_rejected",
    ComparesHeadsTooEarly: "one_of_many_writers_wins",
    AddsTheTailOfAStaleBatch: "stale_appends_are_rejected",
    ServesTrimmedPositions: "trims_delete_the_oldest",
    TrimsTooMuch: "trims_delete_the_oldest",
    IgnoresDestinations: "random_schedules_agree_with_a_list",
    LimitsBeforeFiltering: "random_schedules_agree_with_a_list",
    ReturnsTheOldestOfADestination: "random_schedules_agree_with_a_list",
    IgnoresTheEndOfNewest: "random_schedules_agree_with_a_list",
    ReturnsTheFloorForAnyAge: "since_finds_young_events",
    FoldsEveryType: "random_schedules_agree_with_a_list",
    FoldsInTheAppend: "random_schedules_agree_with_a_list",
    KeepsTheOldestEvents: "random_schedules_agree_with_a_list",
    TrimsTheState: "random_schedules_agree_with_a_list",
    ReadsTheStateBeyondItsEnd: "random_schedules_agree_with_a_list",
    NothingEverEnds: "random_schedules_agree_with_a_list",
    EndsOnlyWhatHasAnEvent: "random_schedules_agree_with_a_list",
    ForgetsEndsBeforeItHasTheEvents: "random_schedules_agree_with_a_list",
    FoldsEverythingAtOnce: "the_state_is_folded_in_steps",
    FoldsNothingInAnAppend: "random_schedules_agree_with_a_list",
    SkipsWhatWasNotFolded: "random_schedules_agree_with_a_list",
    FoldsAnyGeneration: "the_state_is_folded_in_steps",
    SkipsAnEvent: "the_state_is_folded_in_steps",
    TrimsWhatIsNotFolded: "the_state_is_folded_in_steps",
    NothingIsSwept: "random_schedules_agree_with_a_list",
    SweepsMoveEndsBack: "an_end_is_not_moved_back",
    SweepsEveryType: "random_schedules_agree_with_a_list",
    ContinuesTheStateOfAnotherGeneration: "random_schedules_agree_with_a_list",
    ContinuesAStateAfterAnAppendWithoutOne: "random_schedules_agree_with_a_list",
    ChangesTheStateBeforeItRejects: "random_schedules_agree_with_a_list",
    KeepsTheStateOfTheOldEpoch: "random_schedules_agree_with_a_list",
    ReadsAnyGeneration: "random_schedules_agree_with_a_list",
    ChangesTheStateBeforeItComparesResumePoints: "random_schedules_agree_with_a_list",
    KeepsTheStateIfNothingMoves: "random_schedules_agree_with_a_list",
    ReadsTheStateInAnyEpoch: "random_schedules_agree_with_a_list",
    CutsLargeStates: "large_states_are_whole",
    ReadsTheWholeStateAtOnce: "random_schedules_agree_with_a_list",
    IgnoresBytesOfTheState: "random_schedules_agree_with_a_list",
    IgnoresDestinationsOfTheState: "random_schedules_agree_with_a_list",
    IgnoresBytes: "random_schedules_agree_with_a_list",
    StopsBeforeBytesMax: "random_schedules_agree_with_a_list",
    CountsBytesOfOtherDestinations: "random_schedules_agree_with_a_list",
    KeepsEventsOfTheOldEpoch: "random_schedules_agree_with_a_list",
    KeepsTheEpoch: "random_schedules_agree_with_a_list",
    BeginsEpochsAfterAnyHead: "random_schedules_agree_with_a_list",
    NeverWakes: "wait_returns_when_the_head_moves",
    WakesForEpochsOnly: "wait_returns_when_the_head_moves",
    MixesOwners: "acknowledged_positions_go_forward",
    AcceptsAcknowledgementsOfAnyClaim: "the_newest_claim_wins",
    RejectsAllIfOneIsRejected: "the_newest_claim_wins",
    LosesThePositionOnAClaim: "the_newest_claim_wins",
    KeepsTheFirstClaim: "the_newest_claim_wins",
    AClaimIsNoUse: "unused_subscriptions_are_deleted",
    NeverDeletesPositions: "unused_subscriptions_are_deleted",
    DeletesPositionsWithEvents: "positions_outlive_their_events",
    AnswersInTheOrderOfNames: "many_claims_at_once",
    TimesFall: "random_schedules_agree_with_a_list",
    AcknowledgesBackwards: "acknowledged_positions_go_forward",
}


@asynccontextmanager
async def place_without_persistence() -> AsyncIterator[OpenStore]:
    """Yield a place that loses everything when the process ends."""
    yield lambda: opened(MemoryStore())


def places_of(store_class: type[MemoryStore]) -> MakePlace:
    @asynccontextmanager
    async def make_place() -> AsyncIterator[OpenStore]:
        store = store_class()
        yield lambda: opened(store)

    return make_place


@pytest.mark.parametrize("store_class", BROKEN, ids=lambda store_class: store_class.__name__)
async def test_each_broken_promise_is_found(
    store_class: type[MemoryStore], autojump_clock: trio.testing.MockClock
) -> None:
    assert BROKEN[store_class] in await broken_promises(places_of(store_class))


async def test_a_store_that_does_not_persist_is_found(autojump_clock: trio.testing.MockClock) -> None:
    assert "reopened_stores_continue" in await broken_promises(place_without_persistence)


async def test_a_correct_store_breaks_no_promise(autojump_clock: trio.testing.MockClock) -> None:
    assert await broken_promises(memory_place) == {}


async def test_all_broken_promises_are_reported_together(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(
        *[BrokenStoreError] * 4, match=r"since_finds_young_events.*random_schedules_agree_with_a_list"
    ):
        await check_event_store(places_of(TimesFallAndDestinationsAreIgnored))


class TimesFallAndDestinationsAreIgnored(TimesFall, IgnoresDestinations):
    pass


async def written(store: MemoryStore, batches: int, size: int = 3) -> int:
    accepted = 0
    async with aclosing(write_batches(store, size)) as writing:
        async for accepted in writing:
            if accepted == batches * size:
                break
    return accepted


async def test_whole_batches_pass() -> None:
    store = MemoryStore()
    accepted = await written(store, batches=4)
    assert await check_whole_batches(store, 3, accepted) == 12
    assert await check_whole_batches(store, 3, accepted - 3) == 12  # the last answer may be lost


@pytest.mark.parametrize("damage", ["torn", "lost", "point", "changed", "more"])
async def test_damaged_batches_are_found(damage: str) -> None:
    store = MemoryStore()
    accepted = await written(store, batches=4)
    match damage:
        case "torn":
            del store._events[-1]
        case "lost":
            accepted += 3
        case "point":
            store._resume_point = "9"
        case "changed":
            store._events[5] = store._events[5]._replace(body=b"")
        case _:
            accepted -= 6
    with pytest.raises(BrokenStoreError):
        await check_whole_batches(store, 3, accepted)
