"""The suite for event stores catches stores that are broken on purpose, each by the checks that are about it."""
# ruff: noqa: ARG002, SLF001 - a store that is broken on purpose ignores what it was told, and reaches inside

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
import trio.testing
from attrs import evolve

from airy_trio.events.destinations import Destination
from airy_trio.log.memory import MemoryStore
from airy_trio.log.position import Position
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    NewEvent,
    StaleAppend,
    StoredEvent,
    stored_after,
    up_to_bytes,
)
from airy_trio.testing.event_store import (
    BrokenStoreError,
    MakePlace,
    OpenStore,
    broken_promises,
    check_event_store,
    check_whole_batches,
)
from airy_trio.testing.store_crashes import write_batches
from tests.log.places import memory_place, opened


class Reorders(MemoryStore):
    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        found = list(await super().read(after, limit, destination, bytes_max=bytes_max))
        return found if len(found) < 3 else [found[1], found[0], *found[2:]]


class Forgets(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        stored = await super().append(expected, events, resume_point, replaces=replaces)
        if len(self._events) > 100:
            self._events[50] = self._events[49]
        return stored


class Duplicates(MemoryStore):
    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        found = list(await super().read(after, limit, destination, bytes_max=bytes_max))
        return [*found[:1], *found][:limit]


class ReusesOffsets(MemoryStore):
    """Begins again at 1 once everything is trimmed, as a table does that knows only its rows."""

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        count = await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=unused_s)
        if not self._events:
            self._trimmed = 0
        return count


class TearsBatches(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        if len(events) < 2:
            return await super().append(expected, events, resume_point, replaces=replaces)
        half = await super().append(expected, events[: len(events) // 2], resume_point, replaces=replaces)
        rest = await super().append(expected.at(half[-1].offset), events[len(events) // 2 :], resume_point)
        return [*half, *rest]


class CutsTextsAtTheirNul(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        cut = [event._replace(object=event.object.partition("\0")[0]) for event in events]
        return await super().append(expected, cut, resume_point, replaces=replaces)


class LosesTheResumePoint(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        known = self._resume_point
        stored = await super().append(expected, events, resume_point, replaces=replaces)
        if not events:
            self._resume_point = known
        return stored


class StoresTheResumePointFirst(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        self._check_head(expected)
        self._resume_point = resume_point
        return await super().append(expected, events, resume_point, replaces=replaces)


class TakesStaleWriters(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        return await super().append(self._bounds().head, events, resume_point, replaces=replaces)


class PutsTheResumePointBack(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        return await super().append(expected, events, resume_point)


class ComparesResumePointsBeforeItLocks(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        if replaces is not None and replaces != self._resume_point:
            message = "the resume point is another one"
            raise StaleAppend(message)
        await trio.lowlevel.checkpoint()
        return await super().append(expected, events, resume_point)


class ComparesBeforeItLocks(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        self._check_head(expected)
        await trio.lowlevel.checkpoint()
        stored = stored_after(self._bounds().head, events, self._now_ms())
        self._events += stored
        self._resume_point = resume_point
        self._wake()
        return stored


class AddsTheTailOfAStaleBatch(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        head = self._bounds().head
        if expected.epoch == head.epoch and expected.offset < head.offset < expected.offset + len(events):
            await super().append(head, events[head.offset - expected.offset :], resume_point, replaces=replaces)
        return await super().append(expected, events, resume_point, replaces=replaces)


class ServesTrimmedPositions(MemoryStore):
    def _check_retained(self, after: Position) -> None:
        if after.epoch != self._epoch:
            super()._check_retained(after)


class TrimsTooMuch(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        return await super().trim(age_s=age_s, keep=max(0, keep - 1), limit=limit, unused_s=unused_s)


class IgnoresDestinations(MemoryStore):
    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        return await super().read(after, limit, bytes_max=bytes_max)


class LimitsBeforeItFilters(MemoryStore):
    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        kept = {event.offset for event in await super().read(after, limit, bytes_max=bytes_max)}
        return [
            event
            for event in await super().read(after, limit, destination, bytes_max=bytes_max)
            if event.offset in kept
        ]


class ShowsOldStates(MemoryStore):
    async def recent(
        self,
        until: Position,
        age_s: float,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        return (await super().recent(until, age_s, 10**6, destination))[:limit]


class IgnoresBytes(MemoryStore):
    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        return await super().read(after, limit, destination)


class StopsBeforeItsBytes(MemoryStore):
    """Leaves out the event that does not fit any more, so that nobody can tell whether there is one."""

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        found = await super().read(after, limit, destination, bytes_max=bytes_max)
        fits = bytes_max is None or sum(len(event.body) for event in found) <= bytes_max
        return found if fits or len(found) == 1 else found[:-1]


class CountsBytesOfAll(MemoryStore):
    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        kept = {event.offset for event in await super().read(after, limit, bytes_max=bytes_max)}
        return [event for event in await super().read(after, limit, destination) if event.offset in kept]


class KeepsTheOldestForItsBytes(MemoryStore):
    async def recent(
        self,
        until: Position,
        age_s: float,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        return list(up_to_bytes(await super().recent(until, age_s, limit, destination), bytes_max))


class KeepsEventsOverAnEpoch(MemoryStore):
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


class BeginsEpochsForAnybody(MemoryStore):
    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        return await super().begin_epoch(self._bounds().head, resume_point)


class WakesNobody(MemoryStore):
    def _wake(self) -> None:
        pass


class WakesOnlyForEpochs(MemoryStore):
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


class TakesAcknowledgementsOfAnybody(MemoryStore):
    def _acknowledge(self, claim: Claim, position: Position) -> bool:
        known = self._durables.get((claim.owner, claim.name))
        return super()._acknowledge(claim if known is None else evolve(claim, token=known.token), position)


class RefusesAllWhereOneIsRefused(MemoryStore):
    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        claims = [one.claim for one in acknowledgements]
        known = [self._durables.get((claim.owner, claim.name)) for claim in claims]
        if any(one is not None and one.token != claim.token for one, claim in zip(known, claims, strict=True)):
            return claims
        return await super().acknowledge(acknowledgements)


class ForgetsWhoHolds(MemoryStore):
    """Keeps the position of whoever held it before only until somebody else does."""

    def _claim(self, claim: Claim) -> Position | None:
        self._durables.pop((claim.owner, claim.name), None)
        return super()._claim(claim)


class HoldingIsNoUse(MemoryStore):
    def _claim(self, claim: Claim) -> Position | None:
        known = self._durables.get((claim.owner, claim.name))
        used_at_ms = 0 if known is None else known.used_at_ms
        position = super()._claim(claim)
        self._durables[claim.owner, claim.name].used_at_ms = used_at_ms
        return position


class ForgetsPositionsWithEvents(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        return await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=min(age_s, unused_s))


class NeverForgetsPositions(MemoryStore):
    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        return await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=math.inf)


class AnswersInTheOrderOfKeys(MemoryStore):
    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        return await super().claim(sorted(claims, key=lambda claim: (claim.owner, claim.name)))


class HoldsOnlyWhatNobodyHolds(MemoryStore):
    def _claim(self, claim: Claim) -> Position | None:
        known = self._durables.get((claim.owner, claim.name))
        return super()._claim(claim) if known is None else known.position


class ForgetsAges(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        ageless = [event._replace(age_ms=None) for event in events]
        return await super().append(expected, ageless, resume_point, replaces=replaces)


class TimesFall(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        stored = await super().append(expected, events, resume_point, replaces=replaces)
        fallen = [event._replace(appended_at_ms=event.appended_at_ms - 1000 * event.offset) for event in stored]
        if fallen:
            self._events[-len(fallen) :] = fallen
        return fallen


class IsTornWhereItIsBrokenOff(MemoryStore):
    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        self._check_head(expected)
        stored = stored_after(expected, events, self._now_ms())
        self._events += stored[:1]
        await trio.lowlevel.checkpoint()
        self._events += stored[1:]
        self._resume_point = resume_point
        self._wake()
        return stored


class KeepsTheLockOfACallThatFailed(MemoryStore):
    locked = False

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        while self.locked:  # noqa: ASYNC110 - it is broken on purpose
            await trio.sleep(1)
        self.locked = True
        try:
            return await super().append(expected, events, resume_point, replaces=replaces)
        except StaleAppend:
            self.locked = False
            raise
        finally:
            self.locked = trio.current_effective_deadline() < 0  # that is: cancelled


class ForgetsWhoHoldsWhereItIsBrokenOff(MemoryStore):
    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        known = {(one.owner, one.name): self._durables.pop((one.owner, one.name), None) for one in claims}
        await trio.lowlevel.checkpoint()
        self._durables |= {key: durable for key, durable in known.items() if durable is not None}
        return await super().claim(claims)


class BeginsTwiceWhereItIsBrokenOff(MemoryStore):
    """Takes the events away, and names the new epoch later."""

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        self._check_head(expected)
        self._events.clear()
        await trio.lowlevel.checkpoint()
        return await super().begin_epoch(self._bounds().head, resume_point)


class WritesLater(MemoryStore):
    """Says that an event is accepted, and writes it with the next call: a process that ends has not written it."""

    def __init__(self, place: MemoryStore) -> None:
        super().__init__()
        self.place = place
        self.later: tuple[Position, Sequence[NewEvent], str] | None = None

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
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
async def late_place() -> AsyncIterator[OpenStore]:
    place = MemoryStore()
    yield lambda: opened(WritesLater(place))


async def test_a_store_that_writes_later_is_caught(autojump_clock: trio.testing.MockClock) -> None:
    assert "cancelled_appends_leave_whole_batches" in await broken_promises(late_place)


@pytest.mark.parametrize(
    "store_class",
    [
        IsTornWhereItIsBrokenOff,
        BeginsTwiceWhereItIsBrokenOff,
        KeepsTheLockOfACallThatFailed,
        ForgetsWhoHoldsWhereItIsBrokenOff,
    ],
)
async def test_a_call_that_fails_half_done_is_caught(
    store_class: type[MemoryStore], autojump_clock: trio.testing.MockClock
) -> None:
    assert "cancelled_calls_are_atomic" in await broken_promises(places_of(store_class))


BROKEN: dict[type[MemoryStore], str] = {
    IsTornWhereItIsBrokenOff: "cancelled_appends_leave_whole_batches",
    Reorders: "reads_respect_their_limits",
    Forgets: "offsets_are_gapless",
    Duplicates: "reads_respect_their_limits",
    ReusesOffsets: "trims_delete_the_oldest",
    TearsBatches: "batches_are_read_whole",
    CutsTextsAtTheirNul: "events_are_returned_unchanged",
    ForgetsAges: "ages_are_stored",
    LosesTheResumePoint: "appends_without_events_keep_the_head",
    StoresTheResumePointFirst: "batches_are_read_whole",
    PutsTheResumePointBack: "resume_points_are_compared",
    ComparesResumePointsBeforeItLocks: "resume_points_are_compared",
    TakesStaleWriters: "stale_appends_are_rejected",
    ComparesBeforeItLocks: "one_of_many_writers_wins",
    AddsTheTailOfAStaleBatch: "stale_appends_are_rejected",
    ServesTrimmedPositions: "trims_delete_the_oldest",
    TrimsTooMuch: "trims_delete_the_oldest",
    IgnoresDestinations: "destinations_filter",
    LimitsBeforeItFilters: "destinations_filter",
    ShowsOldStates: "recent_is_the_newest_of_each",
    IgnoresBytes: "reads_end_at_bytes_max",
    StopsBeforeItsBytes: "reads_end_at_bytes_max",
    CountsBytesOfAll: "reads_end_at_bytes_max",
    KeepsTheOldestForItsBytes: "recent_ends_at_bytes_max",
    KeepsEventsOverAnEpoch: "epochs_end_all_positions",
    KeepsTheEpoch: "epochs_end_all_positions",
    BeginsEpochsForAnybody: "epochs_end_all_positions",
    WakesNobody: "wait_returns_when_the_head_moves",
    WakesOnlyForEpochs: "wait_returns_when_the_head_moves",
    MixesOwners: "acknowledged_positions_go_forward",
    TakesAcknowledgementsOfAnybody: "the_newest_claim_wins",
    RefusesAllWhereOneIsRefused: "the_newest_claim_wins",
    ForgetsWhoHolds: "the_newest_claim_wins",
    HoldsOnlyWhatNobodyHolds: "the_newest_claim_wins",
    HoldingIsNoUse: "unused_subscriptions_are_deleted",
    NeverForgetsPositions: "unused_subscriptions_are_deleted",
    ForgetsPositionsWithEvents: "positions_outlive_their_events",
    AnswersInTheOrderOfKeys: "many_claims_at_once",
    TimesFall: "offsets_are_gapless",
    AcknowledgesBackwards: "acknowledged_positions_go_forward",
}


@asynccontextmanager
async def forgetful_place() -> AsyncIterator[OpenStore]:
    """A place where nothing outlives the process."""
    yield lambda: opened(MemoryStore())


def places_of(store_class: type[MemoryStore]) -> MakePlace:
    @asynccontextmanager
    async def make_place() -> AsyncIterator[OpenStore]:
        store = store_class()
        yield lambda: opened(store)

    return make_place


@pytest.mark.parametrize("store_class", BROKEN, ids=lambda store_class: store_class.__name__)
async def test_a_broken_store_is_caught(store_class: type[MemoryStore], autojump_clock: trio.testing.MockClock) -> None:
    assert BROKEN[store_class] in await broken_promises(places_of(store_class))


async def test_a_store_that_outlives_nothing_is_caught(autojump_clock: trio.testing.MockClock) -> None:
    assert "reopened_stores_continue" in await broken_promises(forgetful_place)


async def test_a_good_store_is_not_accused(autojump_clock: trio.testing.MockClock) -> None:
    assert await broken_promises(memory_place) == {}


async def test_all_that_is_broken_is_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(*[BrokenStoreError] * 5, match=r"offsets_are_gapless.*destinations_filter"):
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


async def test_what_a_crash_leaves_is_checked() -> None:
    store = MemoryStore()
    accepted = await written(store, batches=4)
    assert await check_whole_batches(store, 3, accepted) == 12
    assert await check_whole_batches(store, 3, accepted - 3) == 12  # the last answer may have been lost


@pytest.mark.parametrize("damage", ["torn", "lost", "point", "changed", "more"])
async def test_what_a_crash_must_not_leave_is_caught(damage: str) -> None:
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
