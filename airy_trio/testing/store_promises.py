"""The promises of the event store's port, one check each, in the order in which an author meets them.

Each check takes a function that opens the store in a place of its own, which is new and empty. They know the port and
nothing of any store.
"""
# ruff: noqa: PLR2004 - the expected value belongs into the check

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfConversation, OfType
from airy_trio.log.position import Position
from airy_trio.log.store import (
    Acknowledgement,
    EventStore,
    Holder,
    NewEvent,
    PositionExpired,
    StaleAppend,
    StoredEvent,
    stored_after,
)

OpenStore = Callable[[], AbstractAsyncContextManager[EventStore]]
"""Opens the store in one place, as one more process would; the store is closed at the end of the block."""

AGE_S: Final = 3600.0
ALL: Final = 1000
TICK_MS: Final = 20
TICK_POLL_S: Final = 0.001
WRITERS: Final = 4


class BrokenStoreError(AssertionError):
    """A promise that was not kept, in words."""


def expect(kept: object, promise: str) -> None:
    """Raise ``BrokenStoreError`` where a promise is not kept."""
    if not kept:
        raise BrokenStoreError(promise)


def event(number: int, **changed: str | None) -> NewEvent:
    """Make an event that differs from every other ``number``."""
    facts = {"type": "message.updated", "object": f"message:{number}", "conversation_id": "c1", "channel_id": "ch1"}
    return NewEvent(body=b'{"number": %d}' % number, **{**facts, **changed})  # type: ignore[arg-type]


def events(first: int, last: int) -> list[NewEvent]:
    """Make the events from one number to another, both included."""
    return [event(number) for number in range(first, last + 1)]


async def filled(store: EventStore, *batches: int) -> Position:
    """Append batches of these sizes, numbered from 1 on in a store that is empty; give the head."""
    head = (await store.bounds()).head
    for size in batches:
        head = await put(store, head, events(head.offset + 1, head.offset + size))
    return head


async def put(store: EventStore, head: Position, new: Sequence[NewEvent]) -> Position:
    """Append, with a resume point that tells what the head is after it; give that head."""
    stored = await store.append(head, new, str(head.offset + len(new)))
    return head.at(head.offset + len(stored))


async def tick(store: EventStore, for_ms: int = TICK_MS) -> None:
    """Let the store's clock go on."""
    start_ms = (await store.bounds()).now_ms
    while True:
        if (await store.bounds()).now_ms - start_ms >= for_ms:
            return
        await trio.sleep(TICK_POLL_S)


async def expect_stale(store: EventStore, expected: Position, new: Sequence[NewEvent]) -> None:
    """Check that an append after a position that is not the head is refused and changes nothing."""
    before = await _contents(store)
    try:
        await store.append(expected, new, "stale")
    except StaleAppend:
        expect(await _contents(store) == before, "a refused append changes nothing")
    else:
        expect(kept=False, promise=f"an append after {expected} is refused where the head is {before[0]}")


async def expect_expired(store: EventStore, after: Position) -> None:
    """Check that reading after a position is refused."""
    try:
        await store.read(after, ALL)
    except PositionExpired:
        return
    expect(kept=False, promise=f"reading after {after}, which is gone, raises PositionExpired")


async def _contents(store: EventStore) -> tuple[Position, Sequence[StoredEvent], str | None]:
    bounds = await store.bounds()
    return bounds.head, list(await store.read(bounds.floor, ALL)), await store.resume_point()


async def a_new_store_is_empty(open_store: OpenStore) -> None:
    """A store that nobody wrote to has an epoch, and nothing else."""
    async with open_store() as store:
        bounds = await store.bounds()
        expect(Position.parse(str(bounds.head)) == bounds.head, "an epoch is six of [a-z0-9]")
        expect((bounds.first, bounds.last) == (1, 0), "a new store is bounded by first 1, last 0")
        expect(await store.resume_point() is None, "a new store has no resume point")
        expect(not await store.read(bounds.head, ALL), "a new store has nothing to read")
        expect(not await store.recent(bounds.head, AGE_S, ALL), "a new store has nothing recent")
        expect(await store.trim(age_s=0, keep=0, limit=ALL) == 0, "a new store has nothing to trim")
        expect((await store.bounds()).head == bounds.head, "the epoch stays")


async def offsets_are_gapless(open_store: OpenStore) -> None:
    """Whatever the sizes of the batches, offsets go from 1 on without a gap, in the order of the appends."""
    async with open_store() as store:
        head = (await store.bounds()).head
        for size in (1, 3, 0, 250, 1):
            new = events(head.offset + 1, head.offset + size)
            stored = list(await store.append(head, new, "point"))
            times = stored[0].appended_at_ms if stored else 0
            expect(stored == stored_after(head, new, times), "an append gives its events with the offsets that follow")
            head = head.at(head.offset + size)
            bounds = await store.bounds()
            expect((bounds.first, bounds.head) == (1, head), "the bounds are those of what was appended")
        read = list(await store.read(head.at(0), ALL))
        expect([one.offset for one in read] == list(range(1, head.offset + 1)), "reading gives every offset, in order")
        expect(
            [one.object for one in read] == [f"message:{number}" for number in range(1, head.offset + 1)], "in order"
        )
        times_ms = [one.appended_at_ms for one in read]
        expect(times_ms == sorted(times_ms), "the times of appending never fall")
        expect(times_ms[-1] <= (await store.bounds()).now_ms, "they are by the clock that the bounds tell")


async def events_come_back_as_they_were(open_store: OpenStore) -> None:
    """Any text and any octets are kept, and None is not the empty text."""
    new = [
        NewEvent(type="tag.updated", object="tag:", conversation_id=None, channel_id=None, body=b""),
        NewEvent(type="tag.updated", object="tag: '\"%\\:{}", conversation_id=None, channel_id="", body=b"\0\r\n"),
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
            "events are kept as they were",
        )
        expect(await store.resume_point() == "résumé 'point' \U0001f600", "the resume point is kept as it was")


async def a_stale_append_is_refused(open_store: OpenStore) -> None:
    """Who does not know the head writes nothing, neither events nor resume point."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 3)
        for expected in (head.at(2), head.at(0), head.at(4), Position("other0", 3)):
            await expect_stale(store, expected, events(4, 5))
            await expect_stale(other, expected, [])
        await put(other, head, events(4, 4))
        await expect_stale(store, head, events(4, 4))


async def one_of_many_writers_wins(open_store: OpenStore) -> None:
    """Of several who append after the same head at the same time exactly one does, with its own resume point."""
    async with open_store() as one, open_store() as two:
        head = (await one.bounds()).head
        for _ in range(5):
            won: list[int] = []
            async with trio.open_nursery() as nursery:
                for writer in range(WRITERS):
                    nursery.start_soon(_write_pair, (one, two)[writer % 2], writer, head, won)
            expect(len(won) == 1, "exactly one of several concurrent appends takes effect")
            bodies = {read.body for read in await two.read(head, ALL)}
            expect(bodies == {event(won[0]).body}, "what is there is what the winner wrote")
            expect(await two.resume_point() == f"of {won[0]}", "the resume point is the winner's")
            head = head.at(head.offset + 2)
            expect((await two.bounds()).head == head, "the head is after what the winner wrote")


async def _write_pair(store: EventStore, writer: int, head: Position, won: list[int]) -> None:
    try:
        await store.append(head, [event(writer), event(writer)], f"of {writer}")
    except StaleAppend:
        return
    won.append(writer)


async def an_append_without_events_moves_nothing(open_store: OpenStore) -> None:
    """It stores the resume point; no offset moves."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 2)
        expect(not await store.append(head, [], "further"), "an append without events gives none")
        expect((await other.bounds()).head == head, "an append without events moves no offset")
        expect(await other.resume_point() == "further", "an append without events stores the resume point")


async def reads_keep_to_their_bounds(open_store: OpenStore) -> None:
    """After every position, up to every limit; nothing at the head and beyond, and nothing of another epoch."""
    async with open_store() as writer, open_store() as reader:
        head = await filled(writer, 4, 3)
        for after in range(head.offset + 3):
            for limit in (1, 2, ALL):
                read = [one.offset for one in await reader.read(head.at(after), limit)]
                expect(read == list(range(after + 1, head.offset + 1))[:limit], f"the next {limit} after {after}")
        await expect_expired(reader, Position("other0", 1))


async def destinations_filter(open_store: OpenStore) -> None:
    """Read and recent give the events of one destination; limits count those alone."""
    new = [event(number, channel_id=f"ch{number % 2}", conversation_id=f"c{number % 3}") for number in range(1, 13)]
    new += [event(13, type="tag.updated", channel_id=None, conversation_id=None), event(14, channel_id=None)]
    wanted: dict[Destination, Sequence[int]] = {
        EVERYTHING: range(1, 15),
        OfChannel("ch1"): range(1, 13, 2),
        OfConversation("c2"): range(2, 13, 3),
        OfType("tag.updated"): (13,),
        OfType("channel.updated"): (),
        OfChannel("c1"): (),
        OfChannel(""): (),
    }
    async with open_store() as store:
        head = await put(store, (await store.bounds()).head, new)
        for destination, offsets in wanted.items():
            for limit in (2, ALL):
                read = [one.offset for one in await store.read(head.at(0), limit, destination)]
                expect(read == list(offsets)[:limit], f"the first {limit} events of {destination}")
                recent = [one.offset for one in await store.recent(head, AGE_S, limit, destination)]
                expect(recent == list(offsets)[-limit:], f"the newest {limit} events of {destination}")


async def recent_is_the_newest_of_each(open_store: OpenStore) -> None:
    """Of each object its newest event up to a position, in order; not older than asked for, by the store's clock."""
    async with open_store() as store:
        start = (await store.bounds()).head
        head = await put(store, start, [event(1, object=name) for name in "abcab"])
        await tick(store)
        head = await put(store, head, [event(1, object=name) for name in "bd"])

        async def recent(until: int, age_s: float, limit: int = ALL) -> list[int]:
            return [one.offset for one in await store.recent(start.at(until), age_s, limit)]

        expect(await recent(7, AGE_S) == [3, 4, 6, 7], "the newest event of each object, in order")
        expect(await recent(7, AGE_S, 2) == [6, 7], "of more than the limit the newest")
        expect(await recent(5, AGE_S) == [3, 4, 5], "the newest up to a position, whatever came after it")
        expect(await recent(9, AGE_S) == [3, 4, 6, 7], "beyond the head is the head")
        await tick(store)
        expect(await recent(7, TICK_MS / 2000) == [], "nothing older than asked for")
        try:
            await store.recent(Position("other0", 7), AGE_S, ALL)
        except PositionExpired:
            return
        expect(kept=False, promise="recent of another epoch raises PositionExpired")


async def trimming_forgets_from_the_old_end(open_store: OpenStore) -> None:
    """Only what is too old or too many goes, oldest first, at most ``limit``; offsets are never used again."""
    async with open_store() as store, open_store() as reader:
        head = await filled(store, 10)
        expect(await store.trim(age_s=AGE_S, keep=10, limit=ALL) == 0, "what is young and not too many stays")
        expect(await store.trim(age_s=AGE_S, keep=4, limit=3) == 3, "trim deletes at most its limit")
        expect((await reader.bounds()).first == 4, "trim moves the first offset")
        expect(await store.trim(age_s=AGE_S, keep=4, limit=ALL) == 3, "trim gives how many it deleted")
        bounds = await reader.bounds()
        expect((bounds.first, bounds.head) == (7, head), "the newest stay, and so does the head")
        expect([one.offset for one in await reader.read(bounds.floor, ALL)] == [7, 8, 9, 10], "the rest can be read")
        await expect_expired(reader, bounds.floor.at(5))
        await tick(store)
        head = await put(store, head, events(11, 12))
        expect(await store.trim(age_s=TICK_MS / 2000, keep=ALL, limit=ALL) >= 4, "what is too old goes")
        await tick(store)
        await store.trim(age_s=0, keep=ALL, limit=ALL)
        bounds = await reader.bounds()
        expect((bounds.first, bounds.head) == (13, head), "the head stays after everything is trimmed")
        expect(not await reader.read(head, ALL), "the head can be read after, also when it was trimmed")
        expect(await reader.resume_point() == "12", "trim leaves the resume point alone")
        head = await put(store, head, events(13, 13))
        expect([one.offset for one in await reader.read(head.at(12), ALL)] == [13], "offsets go on after a trim")


async def an_epoch_ends_all_positions(open_store: OpenStore) -> None:
    """A new epoch has another name and begins empty; nobody can write or read on in the old one."""
    async with open_store() as store, open_store() as other:
        old = await filled(store, 5)
        for expected in (old.at(4), Position("other0", 5)):
            try:
                await store.begin_epoch(expected, "stale")
            except StaleAppend:
                expect((await _contents(other))[0] == old, "a refused epoch changes nothing")
            else:
                expect(kept=False, promise=f"an epoch begun after {expected} is refused where the head is {old}")
        begun = await store.begin_epoch(old, "restarted")
        bounds = await other.bounds()
        expect(begun.head == bounds.head, "beginning an epoch gives its bounds")
        expect(bounds.epoch != old.epoch, "a new epoch has a new name")
        expect((bounds.first, bounds.last) == (1, 0), "a new epoch is empty")
        expect(await other.resume_point() == "restarted", "a new epoch begins with its resume point")
        await expect_expired(other, old)
        await expect_stale(other, old, events(6, 6))
        head = await put(other, bounds.head, events(1, 2))
        expect([one.offset for one in await store.read(bounds.head, ALL)] == [1, 2], "offsets begin at 1")
        expect((await other.begin_epoch(head, None)).last == 0, "a new epoch may begin without a resume point")
        expect(await store.resume_point() is None, "and then has none")


async def waiting_ends_when_the_head_moves(open_store: OpenStore) -> None:
    """Whoever waits after a position is woken by any writer, also by a new epoch; never too late."""
    async with open_store() as writer, open_store() as reader:
        start = (await writer.bounds()).head
        head = await put(writer, start, events(1, 1))
        await reader.wait(start)  # returns at once: the head has moved
        await reader.wait(Position("other0", 1))
        for step in range(4):
            async with trio.open_nursery() as nursery:
                for waiter in (reader, writer):
                    nursery.start_soon(_wait_until_moved, waiter, head)
                await trio.sleep(0.02 if step % 2 else 0)
                if step < 3:
                    head = await put(writer, head, events(step, step))
                else:
                    await writer.begin_epoch(head, "restarted")


async def _wait_until_moved(store: EventStore, head: Position) -> None:
    while (await store.bounds()).head == head:
        await store.wait(head)  # it may return for nothing


async def batches_are_seen_whole(open_store: OpenStore) -> None:
    """A reader sees all of a batch with its resume point, or nothing. A cancelled append may still happen, whole."""
    async with open_store() as writer, open_store() as reader:
        head = (await writer.bounds()).head
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_batches, reader, done)
            for _ in range(10):
                head = await put(writer, head, events(1, 10))
            for patience in (*[0] * 8, *range(1, 10)):
                async with trio.open_nursery() as cancelled:
                    cancelled.start_soon(_cancel_after, cancelled.cancel_scope, patience)
                    await _put_unless_stale(writer, head)
                head = await _expect_whole(writer)
            done.set()


async def _put_unless_stale(store: EventStore, head: Position) -> None:
    """Append ten events, unless an append that was cancelled has happened after all."""
    try:
        await put(store, head, events(1, 10))
    except StaleAppend:
        expect((await store.bounds()).head > head, "an append is refused only where the head has moved")


async def _watch_batches(reader: EventStore, done: trio.Event) -> None:
    while not done.is_set():
        head = await _expect_whole(reader)
        expect(len(await reader.read(head.at(0), ALL)) % 10 == 0, "no part of a batch can be read")


async def _expect_whole(store: EventStore) -> Position:
    while True:
        head, point = (await store.bounds()).head, await store.resume_point()
        expect(head.offset % 10 == 0, f"the head is never inside a batch, as {head} is")
        if (await store.bounds()).head == head:
            expect(point == (str(head.offset) if head.offset else None), f"{point} does not belong to {head}")
            return head


async def _cancel_after(scope: trio.CancelScope, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def trims_leave_reads_and_epochs_whole(open_store: OpenStore) -> None:
    """Beside trims that never stop a read is gapless or refused, and the trim of an old epoch spares the new one."""
    async with open_store() as writer, open_store() as trimmer, open_store() as reader:
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_trim_to_five, trimmer, done)
            nursery.start_soon(_expect_gapless, reader, done)
            head = (await writer.bounds()).head
            for _ in range(12):
                for _ in range(4):
                    head = await put(writer, head, events(1, 8))
                head = (await writer.begin_epoch(head, None)).head
                head = await put(writer, head, events(1, 5))
                kept = [one.offset for one in await writer.read(head.at(0), ALL)]
                expect(kept == [1, 2, 3, 4, 5], f"the newest five stay, not only {kept}")
            done.set()


async def _trim_to_five(store: EventStore, done: trio.Event) -> None:
    while not done.is_set():
        await store.trim(age_s=AGE_S, keep=5, limit=7)


async def _expect_gapless(store: EventStore, done: trio.Event) -> None:
    while not done.is_set():
        after = (await store.bounds()).floor
        try:
            read = [one.offset for one in await store.read(after, ALL)]
        except PositionExpired:
            continue
        expect(read == list(range(after.offset + 1, after.offset + 1 + len(read))), f"{read} follows {after} gapless")


async def a_reopened_store_goes_on(open_store: OpenStore) -> None:
    """What was appended, trimmed and acknowledged is the same for whoever opens the place next."""
    async with open_store() as store:
        head = await filled(store, 6)
        await store.trim(age_s=AGE_S, keep=4, limit=ALL)
        await store.acknowledge([Acknowledgement(Holder("owner", "name", "token"), head.at(3))])
        before = await _contents(store)
    async with open_store() as store:
        expect(
            await _contents(store) == before, "events, positions and resume point outlive the process that wrote them"
        )
        expect((await store.bounds()).first == 3, "so does what was trimmed")
        expect(await store.acknowledged("owner", "name") == head.at(3), "so do acknowledged positions")
        expect((await put(store, head, events(7, 7))).offset == 7, "and offsets go on")


PROMISES: Final = (
    a_new_store_is_empty,
    offsets_are_gapless,
    events_come_back_as_they_were,
    a_stale_append_is_refused,
    one_of_many_writers_wins,
    an_append_without_events_moves_nothing,
    reads_keep_to_their_bounds,
    destinations_filter,
    recent_is_the_newest_of_each,
    trimming_forgets_from_the_old_end,
    an_epoch_ends_all_positions,
    waiting_ends_when_the_head_moves,
    batches_are_seen_whole,
    trims_leave_reads_and_epochs_whole,
    a_reopened_store_goes_on,
)
