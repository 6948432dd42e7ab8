"""The promises of the event store's port about the current state: what appends change, and what reads return of it."""
# ruff: noqa: PLR2004 - the expected value belongs in the check

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

from airy_trio.events.destinations import Destination, OfChannel, OfConversation, OfType, Within
from airy_trio.log.store import (
    EventStore,
    NewEvent,
    Position,
    PositionExpired,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
)
from airy_trio.testing.store_checks import AGE_S, ALL, OpenStore, event, expect, is_stale

FIRST: Final = "first0"
SECOND: Final = "second"
THIRD: Final = "third0"
"""Names of generations. None is ever used again."""
LARGE: Final = 1100
"""Events of a large append, and objects of a large state."""


async def the_state_has_what_was_kept(open_store: OpenStore) -> None:
    """The state has the event of each object that was kept last, in order; no trim changes it."""
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        head = await _append(store, head, "abcab", StateChange(generation=FIRST, marks="one", kept=(2, 3, 4)))
        expect((await other.bounds()).state == StoredState(FIRST, "one"), "bounds names the state and its marks")
        expect(await _offsets(other, head) == [3, 4, 5], "each object once, with the event that was kept, in order")
        head = await _append(store, head, "bdc", StateChange(generation=FIRST, marks="two", kept=(0, 1)))
        expect((await other.bounds()).state == StoredState(FIRST, "two"), "the marks are those of the last append")
        expect(await _offsets(other, head) == [3, 4, 6, 7], "an event that is not kept changes nothing")
        expect(await _offsets(other, head.at(5)) == [3, 4], "an object whose event is newer by now is left out")
        await store.trim(age_s=AGE_S, keep=0, limit=ALL, unused_s=AGE_S)
        expect(await _offsets(other, head) == [3, 4, 6, 7], "a trim deletes nothing of the state")
        head = await _append(store, head, "", StateChange(generation=FIRST, ended=("object:c", "object:none")))
        expect((await other.bounds()).state == StoredState(FIRST, ""), "the marks may be empty")
        expect(await _offsets(other, head) == [4, 6, 7], "an object that has ended is left out, without an event too")
        head = await _append(store, head, "c", StateChange(generation=FIRST, kept=(0,)))
        expect(await _offsets(other, head) == [4, 6, 7, 9], "an object may begin again")


async def a_type_is_swept(open_store: OpenStore) -> None:
    """Sweeping a type removes its events up to an offset, except those of objects that the same append keeps."""
    async with open_store() as store:
        head = (await store.bounds()).head
        head = await _append(store, head, "abcd", StateChange(generation=FIRST, kept=(0, 1, 2, 3)))
        tag = event(5, object="object:t", type="tag.updated")
        head = await _append(store, head, [tag], StateChange(generation=FIRST, kept=(0,)))
        swept = {"message.updated": 3, "channel.updated": 9}
        head = await _append(store, head, "a", StateChange(generation=FIRST, kept=(0,), swept=swept))
        expect(await _offsets(store, head) == [4, 5, 6], "what is older is gone, of that type only")
        head = await _append(store, head, "", StateChange(generation=FIRST, swept={"message.updated": 4}))
        expect(await _offsets(store, head) == [5, 6], "without an event too")
        new = event(7, object="object:n", type="channel.updated")
        head = await _append(store, head, [new], StateChange(generation=FIRST, kept=(0,)))
        expect(await _offsets(store, head) == [5, 6, 7], "nothing that is appended later is swept")


async def generations_and_epochs_end_the_state(open_store: OpenStore) -> None:
    """A new generation begins empty. A writer without support for the state, or a new epoch, ends it."""
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        head = await _append(store, head, "ab", StateChange(generation=FIRST, kept=(0, 1)))
        head = await _append(store, head, "b", StateChange(generation=SECOND, kept=(0,)))
        expect(await _offsets(other, head, SECOND) == [3], "a new generation has nothing of the old one")
        await _expect_gone(other, head, FIRST)
        while await store.trim(age_s=AGE_S, keep=ALL, limit=1, unused_s=AGE_S):
            pass
        changes = (
            StateChange(generation=FIRST),
            StateChange(generation=SECOND, kept=(0,)),
            StateChange(generation=SECOND, ended=("object:b",)),
            StateChange(generation=SECOND, swept={"message.updated": 9}),
        )
        for change, (expected, replaces) in product(changes, ((head.at(1), None), (head, "other"))):
            stale = store.append(expected, [event(4, object="object:b")], "x", replaces=replaces, state=change)
            rejected = await is_stale(stale)
            expect(rejected and await _offsets(other, head, SECOND) == [3], "a stale append does not change the state")
        for new in ([event(4)], []):
            stored = await store.append(head, new, await store.resume_point() or "")
            head = head.at(head.offset + len(stored))
            expect((await other.bounds()).state is None, "an append without a state ends it")
            await _expect_gone(other, head, SECOND)
            head = await _append(store, head, "d", StateChange(generation=SECOND, kept=(0,)))
        begun = await store.begin_epoch(head, "begun")
        expect((await other.bounds()).state is None, "a new epoch has no state")
        await _expect_gone(other, head, SECOND)
        await _expect_gone(other, begun.head, SECOND)
        head = await _append(store, begun.head, "e", StateChange(generation=THIRD, kept=(0,)))
        expect(await _offsets(other, head, THIRD) == [begun.last + 1], "until it begins again")
        await _expect_gone(other, Position("other0", head.offset), THIRD)


async def states_are_read_in_pages(open_store: OpenStore) -> None:
    """Pages of the state are one read in parts: by number, by bytes, by destination, and while others append."""
    new = [
        event(number, object=f"object:{number}\0\1", channel_id=f"ch{number % 2}", conversation_id=f"c{number % 3}")
        for number in range(1, 13)
    ]
    new += [event(13, type="tag.updated", channel_id=None, conversation_id=None)]
    wanted: Mapping[Destination | None, Sequence[int]] = {
        None: range(1, 14),
        OfType("tag.updated"): (13,),
        OfChannel("ch1"): range(1, 13, 2),
        OfConversation("c2"): range(2, 13, 3),
        Within(OfConversation("c2"), frozenset({"ch1"})): (5, 11),
        OfChannel("none"): (),
    }
    async with open_store() as store:
        head = (await store.bounds()).head
        head = await _append(store, head, new, StateChange(generation=FIRST, kept=range(13)))
        state = StateAt(FIRST, head)
        for destination, offsets in wanted.items():
            for limit in (1, 4, ALL):
                after = head.at(0)
                found: list[StoredEvent] = []
                while page := await store.current(state, after, limit, destination):
                    expect(len(page) <= limit, "a page has at most its limit")
                    found += page
                    after = head.at(page[-1].offset)
                expect([one.offset for one in found] == list(offsets), f"pages of {limit} of {destination}")
                expect([one.body for one in found] == [new[at - 1].body for at in offsets], "the events are unchanged")
        size = len(new[0].body)
        page = await store.current(state, head.at(0), ALL, bytes_max=size + 1)
        expect([one.offset for one in page] == [1, 2], "a page ends with the event that reaches bytes_max")
        first = await store.current(state, head.at(0), 6)
        await _append(store, head, [new[1], new[8]], StateChange(generation=FIRST, kept=(0, 1)))
        rest = await store.current(state, head.at(6), ALL)
        expect(len(first) == 6, "six of thirteen")
        expect([one.offset for one in rest] == [7, 8, 10, 11, 12, 13], "what changed since is found in the log instead")


async def large_states_are_whole(open_store: OpenStore) -> None:
    """A state may have thousands of objects and several MiB, and one append may change it as much."""
    new = [event(number) for number in range(LARGE)]
    larger = [one._replace(body=b"." * 2000) for one in new]
    old = event(0, object="object:old")
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        head = await _append(store, head, [old], StateChange(generation=FIRST, kept=(0,)))
        head = await _append(store, head, new, StateChange(generation=FIRST, kept=range(LARGE)))
        expect(await _offsets(other, head) == list(range(1, LARGE + 2)), "all objects of a large append")
        change = StateChange(generation=FIRST, kept=range(1, LARGE), ended=(new[0].object,), swept={old.type: 1})
        head = await _append(store, head, larger, change)
        expect(await _offsets(other, head) == list(range(LARGE + 3, 2 * LARGE + 2)), "a large append ends and sweeps")
        change = StateChange(generation=FIRST, ended=[one.object for one in new[:-9]])
        head = await _append(store, head, "", change)
        expect(await _offsets(other, head) == list(range(2 * LARGE - 7, 2 * LARGE + 2)), "what has not ended stays")


async def _append(store: EventStore, head: Position, new: str | Sequence[NewEvent], change: StateChange) -> Position:
    """Append events, or one for each letter, of an object named by it; return the head."""
    made = [event(1, object=f"object:{one}") if isinstance(one, str) else one for one in new]
    stored = await store.append(head, made, f"point {head.offset}", state=change)
    return head.at(head.offset + len(stored))


async def _offsets(store: EventStore, until: Position, generation: str = FIRST) -> list[int]:
    return [one.offset for one in await store.current(StateAt(generation, until), until.at(0), 2 * LARGE)]


async def _expect_gone(store: EventStore, until: Position, generation: str) -> None:
    try:
        await _offsets(store, until, generation)
    except PositionExpired:
        return
    expect(kept=False, promise=f"reading the state {generation} up to {until} raises PositionExpired")


STATE_PROMISES: Final = (
    the_state_has_what_was_kept,
    a_type_is_swept,
    generations_and_epochs_end_the_state,
    states_are_read_in_pages,
    large_states_are_whole,
)
