"""The promises of the event store's port about durable subscriptions: who holds one, and up to where it acknowledged.

Like ``store_promises``, where the checks begin.
"""

from collections.abc import Sequence
from typing import Final

import trio

from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, EventStore, Holder
from airy_trio.testing.store_words import AGE_S, ALL, OpenStore, expect, expect_expired, filled, tick

MANY: Final = 2500
CLAIMS: Final = 8
PAUSES_MS: Final = (10, 100, 1000, 5000)


async def acknowledged_positions_go_forward(open_store: OpenStore) -> None:
    """For each owner and name the furthest position is kept, also over a new epoch."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 5)
        ann, bob, mixed = Holder("ann", "inbox", "1"), Holder("bob", "inbox", "2"), Holder("an", "ninbox", "3")
        expect(await store.acknowledged("ann", "inbox") is None, "nothing is acknowledged at first")
        for offset, kept in ((2, 2), (4, 4), (3, 4), (4, 4)):
            await _acknowledge(store, ann, head.at(offset))
            expect(await other.acknowledged("ann", "inbox") == head.at(kept), "within an epoch it only goes forward")
        await other.acknowledge([Acknowledgement(bob, head.at(1)), Acknowledgement(mixed, head.at(5))])
        expect(await store.acknowledged("ann", "inbox") == head.at(4), "owners and names do not mix")
        expect(await store.acknowledged("bob", "inbox") == head.at(1), "each owner has its own")
        await store.begin_epoch(head, "restarted")
        expect(await store.acknowledged("ann", "inbox") == head.at(4), "it is kept over a new epoch")
        begun = (await store.bounds()).head
        await _acknowledge(store, ann, begun)
        expect(await store.acknowledged("ann", "inbox") == begun, "another epoch replaces it")
        expect(await store.acknowledge([]) == [] == await store.hold([]), "nothing is asked, nothing is answered")


async def what_is_not_used_is_forgotten(open_store: OpenStore) -> None:
    """A trim forgets durable subscriptions that were not held or acknowledged for too long, and no others."""
    async with open_store() as store:
        head = await filled(store, 5)
        for pause_ms in PAUSES_MS:  # on a busy machine what was used just now is soon too old as well
            if await _forgets(store, head, pause_ms):
                break
        again = Holder("ann", "idle", "of old")
        expect(await store.acknowledge([Acknowledgement(again, head.at(4))]) == [], "nobody holds what is forgotten")
        expect(await store.acknowledged("ann", "idle") == head.at(4), "and it is kept anew")


async def _forgets(store: EventStore, head: Position, pause_ms: int) -> bool:
    """Check what a trim forgets; False where all this took too long to tell."""
    holders = [Holder("ann", name, name) for name in ("idle", "acknowledging", "held")]
    await store.hold(holders)
    await store.acknowledge([Acknowledgement(holder, head.at(2)) for holder in holders])
    await store.trim(age_s=AGE_S, keep=ALL, limit=ALL, unused_s=AGE_S)
    expect(await store.acknowledged("ann", "idle") == head.at(2), "what is used stays")
    await tick(store, 2 * pause_ms)
    used_ms = (await store.bounds()).now_ms
    await _acknowledge(store, holders[1], head.at(1))
    await store.hold([Holder("ann", "held", "another")])
    await store.trim(age_s=AGE_S, keep=ALL, limit=ALL, unused_s=pause_ms / 1000)
    trimmed_ms = (await store.bounds()).now_ms
    expect(await store.acknowledged("ann", "idle") is None, "what was not used for too long is forgotten")
    if trimmed_ms - used_ms >= pause_ms:
        return False
    expect(await store.acknowledged("ann", "acknowledging") == head.at(2), "acknowledging again is using it")
    expect(await store.acknowledged("ann", "held") == head.at(2), "so is holding it")
    return True


async def positions_outlive_their_events(open_store: OpenStore) -> None:
    """A trim that deletes all events keeps the positions: a client that returns late can learn that events are gone."""
    async with open_store() as store:
        head = await filled(store, 5)
        await _acknowledge(store, Holder("ann", "inbox", "before"), head.at(2))
        await tick(store)
        expect(await store.trim(age_s=0, keep=0, limit=ALL, unused_s=AGE_S) == head.offset, "all events are old")
        expect(await store.acknowledged("ann", "inbox") == head.at(2), "their trim leaves positions alone")
        expect(await store.hold([Holder("ann", "inbox", "after")]) == [head.at(2)], "and the next holder gets them")
        await expect_expired(store, head.at(2))


async def the_last_holder_is_the_only_one(open_store: OpenStore) -> None:
    """Whoever takes a durable subscription over gets its position; whoever held it before changes it no more."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 9)
        first, second = Holder("ann", "inbox", "first"), Holder("ann", "inbox", "second")
        expect(await store.hold([first]) == [None], "of a new one no position is known")
        expect(await store.acknowledged("ann", "inbox") is None, "holding acknowledges nothing")
        await _acknowledge(store, first, head.at(3))
        expect(await other.hold([second]) == [head.at(3)], "who takes it over gets its position")
        beside = Holder("bob", "inbox", "first")
        refused = await store.acknowledge([Acknowledgement(first, head.at(7)), Acknowledgement(beside, head.at(5))])
        expect(refused == [first], "who held it before is refused, and nobody else")
        expect(await other.acknowledged("ann", "inbox") == head.at(3), "nothing is kept of who is refused")
        expect(await other.acknowledged("bob", "inbox") == head.at(5), "what came beside it is")
        await _acknowledge(other, second, head.at(8))
        expect(await other.hold([second]) == [head.at(8)], "who asks again holds it still")
        await store.begin_epoch(head, None)
        begun = (await store.bounds()).head
        expect(await store.acknowledge([Acknowledgement(first, begun)]) == [first], "a new epoch changes nothing in it")
        expect(await store.hold([first, beside]) == [head.at(8), head.at(5)], "what was held can be taken back")
        expect(await other.acknowledge([Acknowledgement(second, begun)]) == [second], "from whoever has it")


async def many_are_held_at_once(open_store: OpenStore) -> None:
    """Any number at once, answered in order; of several who claim one at the same time one holds it."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 3)
        holders = [Holder(f"o{number % 7}", f"n{number}", "t") for number in range(MANY)]
        await store.acknowledge([Acknowledgement(one, head.at(at % 4)) for at, one in enumerate(holders)])
        found = await other.hold(holders[::-1])
        expect(found == [head.at(at % 4) for at in reversed(range(MANY))], "positions come in the order asked for")
        claims = [Holder("ann", "inbox", f"claim {number}") for number in range(CLAIMS)]
        async with trio.open_nursery() as nursery:
            for number, claim in enumerate(claims):
                nursery.start_soon((store, other)[number % 2].hold, [*holders[:: number + 1], claim])
        left = [one for one in claims if not await store.acknowledge([Acknowledgement(one, head)])]
        expect(len(left) == 1, "of several who claim it at the same time exactly one holds it")


async def _acknowledge(store: EventStore, holder: Holder, position: Position) -> None:
    refused: Sequence[Holder] = await store.acknowledge([Acknowledgement(holder, position)])
    expect(not refused, f"{holder} holds it, and may acknowledge")


DURABLE_PROMISES: Final = (
    acknowledged_positions_go_forward,
    what_is_not_used_is_forgotten,
    positions_outlive_their_events,
    the_last_holder_is_the_only_one,
    many_are_held_at_once,
)
