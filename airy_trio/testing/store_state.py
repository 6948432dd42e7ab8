"""The promises of the event store's port about the current state: what appends, folds and reads do."""

from collections.abc import Sequence
from typing import Final

import trio

from airy_trio.log.store import (
    EventStore,
    NewEvent,
    Position,
    StateAt,
    StateChange,
)
from airy_trio.testing.store_checks import AGE_S, ALL, OpenStore, event, expect

FIRST: Final = "first0"
SECOND: Final = "second"
"""Names of generations. None is ever used again."""
TYPES: Final = ("channel.updated", "message.updated", "tag.updated")
LARGE: Final = 1100
"""Events of a large append, and objects of a large state."""


async def the_state_is_folded_in_steps(open_store: OpenStore) -> None:
    """A state is folded in steps, in order; no event that it lacks is trimmed, and no other generation is folded."""
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        expect(not await store.fold(FIRST, TYPES, ALL), "without a state there is nothing to fold")
        head = await _append(store, head, "abcdefabcdef" * 4, StateChange(generation=FIRST))
        expect(not await store.fold(SECOND, TYPES, 10), "another generation is not folded")
        steps = [(await other.bounds()).state]
        while await store.fold(FIRST, TYPES, 10):
            steps.append((await other.bounds()).state)
            folded = steps[-1].folded if steps[-1] else 0
            expect(await _offsets(other, head) == list(range(folded - 5, folded + 1)), "each step is in order")
            await store.trim(age_s=AGE_S, keep=0, limit=ALL, unused_s=AGE_S)
            expect((await other.bounds()).first == folded + 1, "exactly the folded events may be trimmed")
        expect(len(steps) > 1, "a step adds about as many events as it may, and not all")
        expect(await _offsets(other, head) == list(range(43, 49)), "the last step has the rest")
        head = await _append(store, head, "ab" * 20, StateChange(generation=FIRST, ended=["object:c"]))
        async with trio.open_nursery() as nursery:
            for one in (store, other, store, other):
                nursery.start_soon(_fold, one)
        expect(await _offsets(other, head) == [46, 47, 48, head.offset - 1, head.offset], "several folds are as one")


async def an_end_is_not_moved_back(open_store: OpenStore) -> None:
    """An object that has ended stays ended if its type is swept later up to an earlier offset; folds change nothing."""
    async with open_store() as store:
        head = (await store.bounds()).head
        head = await _append(store, head, "aa", StateChange(generation=FIRST))
        head = await _append(store, head, "", StateChange(generation=FIRST, ended=["object:a"]))
        head = await _append(store, head, "", StateChange(generation=FIRST, swept={"message.updated": 1}))
        for _ in range(2):
            expect(await _offsets(store, head) == [], "an end counts up to the later of its two offsets")
            await _fold(store)


async def large_states_are_whole(open_store: OpenStore) -> None:
    """A state may have thousands of objects and several MiB, and one append may change it as much."""
    new = [event(number) for number in range(LARGE)]
    larger = [one._replace(body=b"." * 2000) for one in new]
    old = event(0, object="object:old")
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        head = await _append(store, head, [old], StateChange(generation=FIRST))
        head = await _append(store, head, new, StateChange(generation=FIRST))
        await _fold(store, limit=LARGE // 2)
        expect(await _offsets(other, head) == list(range(1, LARGE + 2)), "all objects of a large append")
        change = StateChange(generation=FIRST, ended=(new[0].object,), swept={old.type: 1})
        head = await _append(store, head, larger, change)
        await _fold(store, limit=LARGE // 2)
        expect(await _offsets(other, head) == list(range(LARGE + 3, 2 * LARGE + 2)), "a large append ends and sweeps")
        change = StateChange(generation=FIRST, ended=[one.object for one in new[:-9]])
        head = await _append(store, head, "", change)
        for _ in range(2):
            expect(await _offsets(other, head) == list(range(2 * LARGE - 7, 2 * LARGE + 2)), "what has not ended stays")
            await _fold(store, limit=LARGE // 2)


async def _fold(store: EventStore, limit: int = ALL) -> None:
    while await store.fold(FIRST, TYPES, limit):
        pass


async def _append(store: EventStore, head: Position, new: str | Sequence[NewEvent], change: StateChange) -> Position:
    """Append events, or one for each letter, of an object named by it; return the head."""
    made = [event(1, object=f"object:{one}") if isinstance(one, str) else one for one in new]
    stored = await store.append(head, made, f"point {head.offset}", state=change)
    return head.at(head.offset + len(stored))


async def _offsets(store: EventStore, until: Position) -> list[int]:
    """Return the offsets of the state up to a position, or up to where it is folded."""
    bounds = await store.bounds()
    if bounds.state is not None and bounds.epoch == until.epoch:
        until = min(until, until.at(bounds.state.folded))
    return [one.offset for one in await store.current(StateAt(FIRST, until), until.at(0), 2 * LARGE)]


STATE_PROMISES: Final = (
    the_state_is_folded_in_steps,
    an_end_is_not_moved_back,
    large_states_are_whole,
)
