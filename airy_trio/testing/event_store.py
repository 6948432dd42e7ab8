"""A suite that checks the promises of the event store's port, ``airy_trio.stores.EventStore``. Needs no pytest.

For authors of a store. A *place* is where events are stored: a database, a file, a server. ``make_place`` returns an
async context manager that creates a new and empty place, and yields a function that opens the store there. Each call of
that function simulates one more process that uses the place. Everything runs in one Trio loop::

    @asynccontextmanager
    async def make_place():
        with tempfile.TemporaryDirectory() as folder:

            yield lambda: open_my_store(f"mine://{folder}/events")  # as in the entry point

    trio.run(check_event_store, make_place)

The suite simulates failures in the middle of a call by cancelling the call at one of its checkpoints. It cannot check:

- that accepted events survive if the process or the storage is killed. Let a process run ``write_batches``, kill it,
  open the place again, and call ``check_whole_batches``;
- that a store whose storage stops answering raises ``StoreUnavailable`` within its own time-outs, and does not repeat
  the write;
- that ``StoreReplaced`` or a new epoch follows if the storage is deleted, replaced or emptied under the store;
- that no replica or cache on another machine answers from before an append;
- that the clock is the same for processes on several machines;
- that errors do not show the URL.

Each check is about one promise, in the modules next to this one. The last, ``random_schedules_agree_with_a_list``,
calls the verbs in random order and compares every result with that of a list. Only this check covers limits and
destinations of reads. It also covers most of what is promised about rejected appends, epochs and the current state. Its
seeds are always the same, so a failure can be repeated.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Final

import trio
from attrs import define, evolve, field

from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfConversation, OfType, Within, covers
from airy_trio.log.store import (
    EventStore,
    NewEvent,
    Position,
    PositionExpired,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
    new_epoch,
    stored_after,
    up_to_bytes,
)
from airy_trio.testing.store_changes import CHANGE_PROMISES
from airy_trio.testing.store_checks import AGE_S, BrokenStoreError, OpenStore, event, expect, is_expired, is_stale
from airy_trio.testing.store_crashes import CRASH_PROMISES, check_whole_batches, write_batches
from airy_trio.testing.store_reads import READ_PROMISES, STATE_PROMISES

__all__ = [
    "BrokenStoreError",
    "MakePlace",
    "OpenStore",
    "broken_promises",
    "check_event_store",
    "check_whole_batches",
    "write_batches",
]

MakePlace = Callable[[], AbstractAsyncContextManager[OpenStore]]
"""Creates a new, empty place, and deletes it at the end."""

CHECK_TIMEOUT_S: Final = 60.0
"""Time-out of one check."""
SCHEDULES: Final = 5
STEPS: Final = 100
"""Random schedules, and the calls in each."""
TYPES: Final = ("message.updated", "tag.updated", "channel.updated")
KEPT: Final = TYPES[1:]
"""The types of the events in the schedules, and those that are kept."""
OBJECTS: Final = {name: TYPES[number % 3] for number, name in enumerate((*"abcdefghijk", "l\0\1"))}
"""The objects of the schedules, each with the type of its events."""
CONTINUED: Final = 0.9
ENDED: Final = 0.04
SWEPT: Final = 0.12
"""How often an append continues the state, how often it ends an object, and how often it sweeps a type."""
SIZES: Final = (*[0] * 20, 100, 70_000)
AGES_MS: Final = (None, 0, 2_500, 2**40)
LIMITS: Final = (1, 3, 10, 40)
BYTES_MAX: Final = (None, 1, 40, 400, 70_020)
"""How many bytes are added to the body of an event, ages of changes, and the limits of reads in events and in bytes."""
OTHER_EPOCH: Final = "other0"
_DESTINATIONS: Final[tuple[Destination, ...]] = (
    EVERYTHING,
    OfType("message.updated"),
    OfType("tag.updated"),
    OfChannel("ch1"),
    OfChannel(""),
    OfConversation("c2"),
    Within(EVERYTHING, frozenset({"ch0", "ch2"})),
    Within(OfType("message.updated"), frozenset({"ch1", "c1", ""})),
    Within(OfConversation("c1"), frozenset({"ch1"})),
)


async def check_event_store(make_place: MakePlace) -> None:
    """Run every check, each in a new place. Raises an ``ExceptionGroup`` with all promises that are broken."""
    broken = await broken_promises(make_place)
    if broken:
        message = f"the event store breaks its promises: {', '.join(broken)}"
        raise ExceptionGroup(message, list(broken.values()))


async def broken_promises(make_place: MakePlace) -> dict[str, Exception]:
    """Run every check, each in a new place; return the errors of broken promises, by name of the check."""
    broken: dict[str, Exception] = {}
    for check in CHECKS:
        try:
            with trio.fail_after(CHECK_TIMEOUT_S):
                async with make_place() as open_store:
                    await check(open_store)
        except Exception as error:  # noqa: BLE001 - an exception that the port does not name is a finding too
            broken[check.__name__] = error
    return broken


@define
class _Model:
    """The expected contents: ``trimmed`` events are gone, ``events`` follow."""

    epoch: str
    trimmed: int = 0
    events: list[StoredEvent] = field(factory=list)
    resume_point: str | None = None
    appended_at_ms: int = 0

    state: StoredState | None = None
    generation: str = "none00"  # of the newest state
    kept: dict[str, StoredEvent] = field(factory=dict)
    ended: dict[str, int] = field(factory=dict)
    swept: dict[str, int] = field(factory=dict)

    @property
    def head(self) -> Position:
        return Position(self.epoch, self.trimmed + len(self.events))

    @property
    def trimmable(self) -> int:
        """The number of events that a trim may delete."""
        return len(self.events) if self.state is None else self.state.folded - self.trimmed

    def change_state(self, change: StateChange | None, before: int) -> None:
        """Do what an append after the offset ``before`` does to the current state."""
        if change is None:
            self.state = None
            return
        folded = before
        if self.state is not None and self.state.generation == change.generation:
            folded = self.state.folded
        else:
            self.kept.clear()
            self.ended.clear()
            self.swept.clear()
        if folded == before and not change.folds:
            folded = self.head.offset
        self.state = StoredState(change.generation, change.marks, folded)
        self.generation = change.generation
        for type_, upto in change.swept.items():
            self.swept[type_] = max(upto, self.swept.get(type_, 0))
        self.ended |= dict.fromkeys(change.ended, self.head.offset)

    def fold(self, folded: int) -> None:
        """Do what a fold does that ends at an offset."""
        if self.state is not None:
            new = self.events[self.state.folded - self.trimmed : folded - self.trimmed]
            self.kept |= {one.object: one for one in new if one.type in KEPT}
            self.state = evolve(self.state, folded=folded)

    def current(self) -> list[StoredEvent]:
        """Return the current state."""
        kept = sorted(self.kept.values())
        return [one for one in kept if one.offset > max(self.ended.get(one.object, 0), self.swept.get(one.type, 0))]


async def random_schedules_agree_with_a_list(open_store: OpenStore) -> None:
    """Appends, trims, reads and new epochs in any order, by two processes, have the results that a list would have."""
    async with open_store() as one, open_store() as two:
        for seed in range(SCHEDULES):
            random = Random(seed)  # noqa: S311 - the same schedule each time
            bounds = await one.begin_epoch((await one.bounds()).head, None)
            model = _Model(bounds.epoch, bounds.first - 1)
            for _ in range(STEPS):
                await _step(random.choice((one, two)), model, random)
                await _compare(random.choice((one, two)), model, random)


async def _step(store: EventStore, model: _Model, random: Random) -> None:
    match random.choices(("append", "stale", "fold", "trim", "epoch"), (8, 2, 5, 4, 0.2))[0]:
        case "append":
            new = [_random_event(random) for _ in range(random.choice((0, 0, 0, 1, 2, 5, 30)))]
            replaced = model.resume_point
            model.resume_point = random.choice((replaced or "", str(random.random())))
            state = _random_change(model, new, random) if random.random() < CONTINUED else None
            before, replaces = model.head, random.choice((None, replaced))
            stored = await store.append(before, new, model.resume_point, replaces=replaces, state=state)
            at_ms = stored[0].appended_at_ms if stored else model.appended_at_ms
            expect(list(stored) == stored_after(before, new, at_ms), "an append returns its events with their offsets")
            expect(at_ms >= model.appended_at_ms, "times of appends never decrease")
            model.appended_at_ms = at_ms
            model.events += stored
            model.change_state(state, before.offset)
        case "stale":
            new = [_random_event(random) for _ in range(random.randint(0, 3))]
            known = random.randint(0, model.head.offset + 2)
            expected = random.choice((model.head, model.head.at(known), Position(OTHER_EPOCH, model.head.offset)))
            replaces = "other" if expected == model.head else None
            state = _random_change(model, new, random)
            rejected = await is_stale(store.append(expected, new, "stale", replaces=replaces, state=state))
            expect(
                rejected, f"an append after {expected} with replaces={replaces!r} is rejected; the head is {model.head}"
            )
            if replaces is None:
                rejected = await is_stale(store.begin_epoch(expected, "stale"))
                expect(rejected, f"begin_epoch after {expected} is rejected at {model.head}")
        case "fold":
            generation = model.state.generation if model.state is not None and random.random() < CONTINUED else "other0"
            more = await store.fold(generation, KEPT, random.randint(1, 20))
            state_now = (await store.bounds()).state
            if model.state is None or state_now is None or generation == "other0":
                expect(not more and state_now == model.state, "only the state of that generation is folded")
            else:
                expect(model.state.folded <= state_now.folded <= model.head.offset, "the state is folded in order")
                expect(more or state_now.folded == model.head.offset, "a fold that ends has no events left")
                model.fold(state_now.folded)
        case "trim":
            keep, limit = random.randint(0, 20), random.randint(1, 30)
            count = await store.trim(age_s=AGE_S, keep=keep, limit=limit, unused_s=AGE_S)
            most = min(max(0, len(model.events) - keep), limit, model.trimmable)
            expect(count == most, f"trim to {keep}, at most {limit}, and no event that the current state lacks")
            del model.events[:count]
            model.trimmed += count
        case _:
            model.resume_point = random.choice((None, str(random.random())))
            bounds = await store.begin_epoch(model.head, model.resume_point)
            expect(bounds.epoch != model.epoch, "a new epoch has a new name")
            expect(bounds.first == bounds.last + 1, "a new epoch is empty")
            model.epoch, model.trimmed = bounds.epoch, bounds.first - 1
            model.events.clear()
            model.change_state(None, 0)


async def _compare(store: EventStore, model: _Model, random: Random) -> None:
    bounds = await store.bounds()
    expect((bounds.first, bounds.head) == (model.trimmed + 1, model.head), "the bounds are those of the list")
    expect(bounds.now_ms >= model.appended_at_ms, "the times of appends and of the bounds are from one clock")
    expect(await store.resume_point() == model.resume_point, "the resume point is the one stored last")
    destination, limit, bytes_max = random.choice(_DESTINATIONS), random.choice(LIMITS), random.choice(BYTES_MAX)
    after = model.head.at(random.randint(0, model.head.offset + 2))
    wanted = [one for one in model.events if covers(destination, one)]
    try:
        read = list(await store.read(after, limit, destination, bytes_max=bytes_max))
    except PositionExpired:
        expect(after.offset < model.trimmed, f"{after} is retained and can be read after")
    else:
        expect(after.offset >= model.trimmed, f"{after} is trimmed and cannot be read after")
        following = list(up_to_bytes([one for one in wanted if one.offset > after.offset][:limit], bytes_max))
        expect(read == following, f"the next {limit} events, or {bytes_max} bytes, of {destination} after {after}")
    newest = [one for one in wanted if one.offset <= after.offset]
    found = await store.newest(after, destination)
    expect(found == (newest[-1] if newest else None), f"the newest of {destination} up to {after}")
    other = Position(OTHER_EPOCH, 5 * (model.head.offset % 2))
    expired = await is_expired(store.newest(other, destination)) and await is_expired(store.read(other, limit))
    expect(expired, "reads at a position of another epoch raise PositionExpired")
    if model.state is None:
        expect(bounds.state is None, "an append without a state change, or a new epoch, ends the current state")
        expired = await is_expired(store.current(StateAt(model.generation, model.head), after, limit))
        expect(expired, "reading a state that has ended raises PositionExpired")
        return
    expect(bounds.state == model.state, "the generation and its marks are those stored last")
    after = random.choice((model.head.at(0), after))
    current = [one for one in model.current() if after.offset < one.offset]
    until = model.head.at(random.choice((model.state.folded, random.randint(0, model.state.folded))))
    page = await store.current(StateAt(model.state.generation, until), after, limit, destination, bytes_max=bytes_max)
    wanted = [one for one in current if covers(destination, one) and one.offset <= until.offset]
    promise = "the newest folded event of each object that was neither ended nor swept, up to the limits"
    expect(
        list(page) == list(up_to_bytes(wanted[:limit], bytes_max)),
        f"the state of {destination} after {after}, {limit} events or {bytes_max} bytes, has {promise}",
    )
    for gone in (
        StateAt(OTHER_EPOCH, until),
        StateAt(model.state.generation, Position(OTHER_EPOCH, until.offset)),
        StateAt(model.state.generation, model.head.at(model.state.folded + 1)),
    ):
        expired = await is_expired(store.current(gone, after, limit))
        expect(expired, f"{gone} is not {model.state}, so reading it raises PositionExpired")


def _random_change(model: _Model, new: Sequence[NewEvent], random: Random) -> StateChange:
    """Make a change of the current state that an append of these events may have."""
    generation = model.state.generation if model.state and random.random() < CONTINUED else new_epoch()
    ended = [name for name in (*OBJECTS, *OBJECTS, "object:none") if random.random() < ENDED]  # some names twice
    begin = random.choice((0, 0 if model.state is None else model.state.folded))  # or only what is not folded yet
    swept = {type_: random.randint(begin, model.head.offset) for type_ in TYPES if random.random() < SWEPT}
    folds = any(one.type in KEPT for one in new)
    return StateChange(generation=generation, marks=str(random.random()), ended=ended, swept=swept, folds=folds)


def _random_event(random: Random) -> NewEvent:
    object_ = random.choice([*OBJECTS])
    made = event(
        random.randrange(10_000),
        object=object_,
        type=OBJECTS[object_],
        channel_id=random.choice(("ch1", "ch2", None)),
        conversation_id=random.choice(("c1", "c2", None)),
    )
    return made._replace(body=made.body + b" " * random.choice(SIZES), age_ms=random.choice(AGES_MS))


CHECKS: Final = (
    *READ_PROMISES,
    *STATE_PROMISES,
    *CHANGE_PROMISES,
    *CRASH_PROMISES,
    random_schedules_agree_with_a_list,
)
