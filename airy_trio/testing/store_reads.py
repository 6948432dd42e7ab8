"""The promises of the event store's port about appends, reads and the current state.

Each check receives a function that opens the store in a new and empty place of its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from airy_trio.events.destinations import OfChannel, OfConversation
from airy_trio.log.store import EventStore, NewEvent, Position, StateAt, StateChange, stored_after
from airy_trio.testing.store_checks import (
    AGE_S,
    ALL,
    ENDLESS_S,
    TICK_MS,
    OpenStore,
    event,
    events,
    expect,
    expect_stale,
    filled,
    put,
    tick,
    winners,
)

_LARGE: Final = ((5000, 100), (96, 64 * 1024))
"""Appends that a server makes: the number of events, and the size of each body. The second has 6 MiB."""

FIRST: Final = "first0"
SECOND: Final = "second"
"""Names of generations. None is ever used again."""
TYPES: Final = ("channel.updated", "message.updated", "tag.updated")
LARGE_STATE: Final = 1100
"""Events of a large append, and objects of a large state."""


async def a_new_store_is_empty(open_store: OpenStore) -> None:
    """A new store has an epoch, and nothing else."""
    async with open_store() as store:
        bounds = await store.bounds()
        expect(Position.parse(str(bounds.head)) == bounds.head, "an epoch is six characters of [a-z0-9]")
        expect((bounds.first, bounds.last) == (1, 0), "the bounds of a new store are first 1, last 0")
        expect(await store.resume_point() is None, "a new store has no resume point")
        expect(not await store.read(bounds.head, ALL), "a new store has nothing to read")
        expect(await store.since(AGE_S) == bounds.head, "a new store has nothing recent")
        expect(bounds.state is None, "a new store has no current state")
        expect(await store.trim(age_s=0, keep=0, limit=ALL, unused_s=AGE_S) == 0, "a new store has nothing to trim")
        expect((await store.bounds()).head == bounds.head, "a trim does not change the epoch")


async def large_appends_are_whole(open_store: OpenStore) -> None:
    """One append may have thousands of events, or several MiB, and all can be read in another process."""
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        for count, size in _LARGE:
            after, new = head, [event(number)._replace(body=b"x" * size) for number in range(count)]
            head = await put(store, head, new)
            expect(
                (await other.bounds()).head == head == after.at(after.offset + count), f"{count} events are appended"
            )
            expect(await other.resume_point() == str(head.offset), "with their resume point")
            read = list(await other.read(after, 2 * count))
            stored = stored_after(after, new, read[0].appended_at_ms) if read else []
            expect(read == stored, f"all {count} events of {size} bytes can be read, in order")


async def events_are_returned_unchanged(open_store: OpenStore) -> None:
    """Any text and any octets are returned unchanged, and None differs from the empty text."""
    new = [
        NewEvent(type="tag.updated", object="tag:", conversation_id=None, channel_id=None, body=b""),
        NewEvent(type="tag.updated", object="tag: '\"%\\:{}", conversation_id=None, channel_id="", body=b"\0\r\n"),
        NewEvent(type="tag.updated", object="tag:\0 \1 \0010", conversation_id="\0", channel_id="\1\0", body=b"\1"),
        NewEvent(
            type="message.updated",
            object="message:\U0001f600\u0301",
            conversation_id="ü/\n\t",
            channel_id="a" * 500,
            body=bytes(range(256)) * 300,
            truncated=True,
        ),
    ]
    async with open_store() as store:
        head = (await store.bounds()).head
        stored = await store.append(head, new, "résumé 'point' \U0001f600")
        read = await store.read(head, ALL)
        expect(
            list(read) == list(stored) == stored_after(head, new, read[0].appended_at_ms),
            "events are returned unchanged",
        )
        for odd in (OfConversation("\0"), OfChannel("\1\0")):
            expect(list(await store.read(head, ALL, odd)) == [stored[2]], "and are found by any text")
        expect(await store.resume_point() == "résumé 'point' \U0001f600", "the resume point is returned unchanged")


async def stale_appends_are_rejected(open_store: OpenStore) -> None:
    """A writer that does not know the head writes nothing, neither events nor resume point."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 3)
        for expected in (head.at(2), head.at(0), head.at(4), Position("other0", 3)):
            await expect_stale(store, expected, events(4, 5))
            await expect_stale(other, expected, [])
        await put(other, head, events(4, 4))
        await expect_stale(store, head, events(4, 4))


async def one_of_many_writers_wins(open_store: OpenStore) -> None:
    """Of several concurrent appends after the same head exactly one happens, with its own resume point."""
    async with open_store() as one, open_store() as two:
        head = (await one.bounds()).head
        for _ in range(5):
            won = await winners((one, two), partial(_append_pair, head))
            expect(len(won) == 1, "exactly one of several concurrent appends takes effect")
            bodies = {read.body for read in await two.read(head, ALL)}
            expect(bodies == {event(won[0]).body}, "the stored events are the winner's")
            expect(await two.resume_point() == f"of {won[0]}", "the resume point is the winner's")
            head = head.at(head.offset + 2)
            expect((await two.bounds()).head == head, "the head is after the winner's events")


async def _append_pair(head: Position, store: EventStore, writer: int) -> None:
    await store.append(head, [event(writer), event(writer)], f"of {writer}")


async def resume_points_are_compared(open_store: OpenStore) -> None:
    """With ``replaces``, an append after the head happens only if that resume point is stored."""
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        await expect_stale(store, head, [], replaces="unknown")
        head, known = await filled(store, 2), "2"
        await expect_stale(other, head, [], replaces="")
        for number in range(5):
            won = await winners((store, other), partial(_replace, head, known, number))
            expect(len(won) == 1, "exactly one of several writers replaces a resume point that all of them know")
            known = f"{number} of {won[0]}"
            expect(await other.resume_point() == known, "the stored resume point is the winner's")


async def _replace(head: Position, known: str, number: int, store: EventStore, writer: int) -> None:
    await store.append(head, [], f"{number} of {writer}", replaces=known)


async def since_finds_young_events(open_store: OpenStore) -> None:
    """``since`` returns the position before the first event that is younger than the given age."""
    async with open_store() as store:
        head = await put(store, (await store.bounds()).head, [event(number) for number in range(1, 4)])
        old_ms = (await store.read(head.at(2), 1))[0].appended_at_ms
        while (await store.bounds()).now_ms < old_ms + 10 * TICK_MS:
            await tick(store)
        head = await put(store, head, [event(4), event(5)])
        expect(await store.since(AGE_S) == head.at(0), "all events are younger than an hour")
        expect(await store.since(ENDLESS_S) == head.at(0), "an age may have any length")
        count = await store.trim(age_s=ENDLESS_S, keep=ALL, limit=ALL, unused_s=ENDLESS_S)
        expect(count == 0, "nothing is too old if the age has no limit")
        age_ms = (await store.bounds()).now_ms - old_ms - 5 * TICK_MS
        expect(await store.since(age_ms / 1000) == head.at(3), "older events are before the position")
        await tick(store)
        expect(await store.since(TICK_MS / 2000) == head, "no event is that young")
        await store.trim(age_s=AGE_S, keep=2, limit=ALL, unused_s=AGE_S)
        expect(await store.since(AGE_S) == head.at(3), "since is not before the oldest retained event")


READ_PROMISES: Final = (
    a_new_store_is_empty,
    large_appends_are_whole,
    events_are_returned_unchanged,
    stale_appends_are_rejected,
    one_of_many_writers_wins,
    resume_points_are_compared,
    since_finds_young_events,
)


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
        expect(
            await _offsets(other, head) == [46, 47, 48, head.offset - 1, head.offset],
            "several folds are as one",
        )


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
    new = [event(number) for number in range(LARGE_STATE)]
    larger = [one._replace(body=b"." * 2000) for one in new]
    old = event(0, object="object:old")
    async with open_store() as store, open_store() as other:
        head = (await store.bounds()).head
        head = await _append(store, head, [old], StateChange(generation=FIRST))
        head = await _append(store, head, new, StateChange(generation=FIRST))
        await _fold(store, limit=LARGE_STATE // 2)
        expect(await _offsets(other, head) == list(range(1, LARGE_STATE + 2)), "all objects of a large append")
        change = StateChange(generation=FIRST, ended=(new[0].object,), swept={old.type: 1})
        head = await _append(store, head, larger, change)
        await _fold(store, limit=LARGE_STATE // 2)
        expect(
            await _offsets(other, head) == list(range(LARGE_STATE + 3, 2 * LARGE_STATE + 2)),
            "a large append ends and sweeps",
        )
        change = StateChange(generation=FIRST, ended=[one.object for one in new[:-9]])
        head = await _append(store, head, "", change)
        for _ in range(2):
            expect(
                await _offsets(other, head) == list(range(2 * LARGE_STATE - 7, 2 * LARGE_STATE + 2)),
                "what has not ended stays",
            )
            await _fold(store, limit=LARGE_STATE // 2)


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
    return [one.offset for one in await store.current(StateAt(FIRST, until), until.at(0), 2 * LARGE_STATE)]


STATE_PROMISES: Final = (
    the_state_is_folded_in_steps,
    an_end_is_not_moved_back,
    large_states_are_whole,
)
