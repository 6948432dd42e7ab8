"""The promises of the event store's port about changes: trims, wake-ups, restarts, durable subscriptions."""
# ruff: noqa: PLR2004 - the expected value belongs in the check

from collections.abc import Sequence
from typing import Final

import trio

from airy_trio.log.store import Acknowledgement, Claim, EventStore, Position, PositionExpired
from airy_trio.testing.store_checks import (
    AGE_S,
    ALL,
    TICK_MS,
    OpenStore,
    contents,
    events,
    expect,
    expect_expired,
    filled,
    is_stale,
    put,
    tick,
)
from airy_trio.testing.store_crashes import after_passes

MANY: Final = 2500
"""Claims in one call."""
CLAIMS: Final = 8
"""Concurrent claims of one subscription."""
PAUSES_MS: Final = (10, 100, 1000, 5000)
"""Ages after which an unused subscription is deleted, tried in order until the machine is fast enough for one."""


async def trims_delete_the_oldest(open_store: OpenStore) -> None:
    """A trim deletes only events that are too old or too many, the oldest first. Offsets are never used again."""
    async with open_store() as store, open_store() as reader:
        head = await filled(store, 10)
        expect(await store.trim(age_s=AGE_S, keep=4, limit=3, unused_s=AGE_S) == 3, "trim deletes at most its limit")
        expect(await store.trim(age_s=AGE_S, keep=4, limit=ALL, unused_s=AGE_S) == 3, "trim returns their number")
        await expect_expired(reader, head.at(5))
        await tick(store)
        head = await put(store, head, events(11, 12))
        expect(
            await store.trim(age_s=TICK_MS / 2000, keep=ALL, limit=ALL, unused_s=AGE_S) >= 4,
            "old events go",
        )
        await tick(store)
        await store.trim(age_s=0, keep=ALL, limit=ALL, unused_s=AGE_S)
        bounds = await reader.bounds()
        expect((bounds.first, bounds.head) == (13, head), "the head does not move when all events are trimmed")
        expect(not await reader.read(head, ALL), "reading after a trimmed head is possible")
        expect(await reader.resume_point() == "12", "trim does not change the resume point")
        head = await put(store, head, events(13, 13))
        expect([one.offset for one in await reader.read(head.at(12), ALL)] == [13], "offsets continue after a trim")


async def wait_returns_when_the_head_moves(open_store: OpenStore) -> None:
    """Wait returns after an append or a new epoch of any process, also if it happened before the call."""
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
        await store.wait(head)  # it may return without a change


async def batches_are_read_whole(open_store: OpenStore) -> None:
    """A reader finds all of a batch with its resume point, or none of it. This includes cancelled appends."""
    async with open_store() as writer, open_store() as reader:
        head = (await writer.bounds()).head
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_batches, reader, done)
            for _ in range(10):
                head = await put(writer, head, events(1, 10))
            for patience in (*[0] * 8, *range(1, 10)):
                async with after_passes(patience):  # the append of the round before may have happened
                    if await is_stale(put(writer, head, events(1, 10))):
                        expect((await writer.bounds()).head > head, "an append is rejected only if the head has moved")
                head = await _expect_whole(writer)
            done.set()


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


async def trims_do_not_disturb_reads_and_epochs(open_store: OpenStore) -> None:
    """During trims a read has no gaps or is rejected, and trimming an old epoch does not affect the new one."""
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
                kept = [one.offset for one in await writer.read((await writer.bounds()).floor, ALL)]
                newest = list(range(head.offset - 4, head.offset + 1))
                expect(kept == newest, f"the newest five stay: {newest}, not {kept}")
            done.set()


async def _trim_to_five(store: EventStore, done: trio.Event) -> None:
    while not done.is_set():
        await store.trim(age_s=AGE_S, keep=5, limit=7, unused_s=AGE_S)


async def _expect_gapless(store: EventStore, done: trio.Event) -> None:
    while not done.is_set():
        after = (await store.bounds()).floor
        try:
            read = [one.offset for one in await store.read(after, ALL)]
        except PositionExpired:
            continue
        expect(read == list(range(after.offset + 1, after.offset + 1 + len(read))), f"{read} follows {after}, no gap")


async def reopened_stores_continue(open_store: OpenStore) -> None:
    """Appends, trims and acknowledgements are still there when the place is opened again."""
    async with open_store() as store:
        head = await filled(store, 6)
        await store.trim(age_s=AGE_S, keep=4, limit=ALL, unused_s=AGE_S)
        await store.acknowledge([Acknowledgement(Claim("owner", "name", "token"), head.at(3))])
        before = await contents(store)
    async with open_store() as store:
        expect(
            await contents(store) == before, "events, positions and resume point outlive the process that wrote them"
        )
        expect((await store.bounds()).first == 3, "so do trims")
        expect(await store.acknowledged("owner", "name") == head.at(3), "so do acknowledged positions")
        expect((await put(store, head, events(7, 7))).offset == 7, "and offsets continue")


async def acknowledged_positions_go_forward(open_store: OpenStore) -> None:
    """For each owner and name the furthest position is stored. It outlives its epoch."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 5)
        ann, bob, mixed = Claim("ann", "inbox", "1"), Claim("bob", "inbox", "2"), Claim("an", "ninbox", "3")
        expect(await store.acknowledged("ann", "inbox") is None, "a new subscription has no acknowledged position")
        for offset, stored in ((2, 2), (4, 4), (3, 4), (4, 4)):
            await _acknowledge(store, ann, head.at(offset))
            expect(
                await other.acknowledged("ann", "inbox") == head.at(stored),
                "positions only go forward",
            )
        await other.acknowledge([Acknowledgement(bob, head.at(1)), Acknowledgement(mixed, head.at(5))])
        expect(await store.acknowledged("ann", "inbox") == head.at(4), "owners and names do not mix")
        expect(await store.acknowledged("bob", "inbox") == head.at(1), "each owner has its own")
        await store.begin_epoch(head, "restarted")
        expect(await store.acknowledged("ann", "inbox") == head.at(4), "a position outlives its epoch")
        begun = (await store.bounds()).head
        await _acknowledge(store, ann, begun)
        expect(await store.acknowledged("ann", "inbox") == begun, "a position of another epoch replaces it")
        expect(await store.acknowledge([]) == [] == await store.claim([]), "empty calls return nothing")


async def unused_subscriptions_are_deleted(open_store: OpenStore) -> None:
    """A trim deletes durable subscriptions that were not claimed or acknowledged for too long, and no others."""
    async with open_store() as store:
        head = await filled(store, 5)
        for pause_ms in PAUSES_MS:  # on a busy machine a subscription that was used just now is soon too old
            if await _deletes_unused(store, head, pause_ms):
                break
        again = Claim("ann", "idle", "of old")
        expect(
            await store.acknowledge([Acknowledgement(again, head.at(4))]) == [],
            "a deleted subscription has no claim",
        )
        expect(await store.acknowledged("ann", "idle") == head.at(4), "and its position is stored again")


async def _deletes_unused(store: EventStore, head: Position, pause_ms: int) -> bool:
    """Check what a trim deletes. Return False if the check took so long that its result is unclear."""
    claims = [Claim("ann", name, name) for name in ("idle", "acknowledging", "claimed")]
    await store.claim(claims)
    await store.acknowledge([Acknowledgement(claim, head.at(2)) for claim in claims])
    await store.trim(age_s=AGE_S, keep=ALL, limit=ALL, unused_s=AGE_S)
    expect(await store.acknowledged("ann", "idle") == head.at(2), "a subscription that is used stays")
    await tick(store, 2 * pause_ms)
    used_ms = (await store.bounds()).now_ms
    await _acknowledge(store, claims[1], head.at(1))
    await store.claim([Claim("ann", "claimed", "another")])
    await store.trim(age_s=AGE_S, keep=ALL, limit=ALL, unused_s=pause_ms / 1000)
    trimmed_ms = (await store.bounds()).now_ms
    expect(await store.acknowledged("ann", "idle") is None, "a subscription that was not used for too long is deleted")
    if trimmed_ms - used_ms >= pause_ms:
        return False
    expect(await store.acknowledged("ann", "acknowledging") == head.at(2), "an acknowledgement is a use")
    expect(await store.acknowledged("ann", "claimed") == head.at(2), "a claim is a use")
    return True


async def positions_outlive_their_events(open_store: OpenStore) -> None:
    """A trim of all events retains the positions, so that a client that returns late learns that events are gone."""
    async with open_store() as store:
        head = await filled(store, 5)
        await _acknowledge(store, Claim("ann", "inbox", "before"), head.at(2))
        await tick(store)
        expect(await store.trim(age_s=0, keep=0, limit=ALL, unused_s=AGE_S) == head.offset, "a trim deletes all events")
        expect(await store.acknowledged("ann", "inbox") == head.at(2), "the trim does not change positions")
        expect(await store.claim([Claim("ann", "inbox", "after")]) == [head.at(2)], "and the next claim returns them")
        await expect_expired(store, head.at(2))


async def the_newest_claim_wins(open_store: OpenStore) -> None:
    """The newest claim of a durable subscription gets its position. Older claims can no longer change it."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 9)
        first, second = Claim("ann", "inbox", "first"), Claim("ann", "inbox", "second")
        expect(await store.claim([first]) == [None], "the first claim of a subscription returns no position")
        expect(await store.acknowledged("ann", "inbox") is None, "a claim acknowledges nothing")
        await _acknowledge(store, first, head.at(3))
        expect(await other.claim([second]) == [head.at(3)], "the next claim returns the position")
        bob = Claim("bob", "inbox", "first")
        rejected = await store.acknowledge([Acknowledgement(first, head.at(7)), Acknowledgement(bob, head.at(5))])
        expect(rejected == [first], "the older claim is rejected, and no other")
        expect(await other.acknowledged("ann", "inbox") == head.at(3), "the rejected position is not stored")
        expect(await other.acknowledged("bob", "inbox") == head.at(5), "the other one of the same call is")
        await _acknowledge(other, second, head.at(8))
        expect(await other.claim([second]) == [head.at(8)], "the same claim can be repeated")
        await store.begin_epoch(head, None)
        begun = (await store.bounds()).head
        expect(await store.acknowledge([Acknowledgement(first, begun)]) == [first], "claims outlive epochs")
        expect(await store.claim([first, bob]) == [head.at(8), head.at(5)], "an older claim can be repeated")
        expect(await other.acknowledge([Acknowledgement(second, begun)]) == [second], "and replaces the newer one")


async def many_claims_at_once(open_store: OpenStore) -> None:
    """One call may have many claims, answered in order. Of several concurrent claims of one subscription one wins."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 3)
        held = [Claim(f"o{number % 7}", f"n{number}", "t") for number in range(MANY)]
        await store.acknowledge([Acknowledgement(one, head.at(at % 4)) for at, one in enumerate(held)])
        found = await other.claim(held[::-1])
        expect(found == [head.at(at % 4) for at in reversed(range(MANY))], "positions are in the order of the claims")
        claims = [Claim("ann", "inbox", f"claim {number}") for number in range(CLAIMS)]
        async with trio.open_nursery() as nursery:
            for number, claim in enumerate(claims):
                nursery.start_soon((store, other)[number % 2].claim, [*held[:: number + 1], claim])
        left = [one for one in claims if not await store.acknowledge([Acknowledgement(one, head)])]
        expect(len(left) == 1, "of several concurrent claims exactly one wins")


async def _acknowledge(store: EventStore, claim: Claim, position: Position) -> None:
    rejected: Sequence[Claim] = await store.acknowledge([Acknowledgement(claim, position)])
    expect(not rejected, f"{claim} is the newest claim and may acknowledge")


CHANGE_PROMISES: Final = (
    trims_delete_the_oldest,
    wait_returns_when_the_head_moves,
    batches_are_read_whole,
    trims_do_not_disturb_reads_and_epochs,
    reopened_stores_continue,
    acknowledged_positions_go_forward,
    unused_subscriptions_are_deleted,
    positions_outlive_their_events,
    the_newest_claim_wins,
    many_claims_at_once,
)
