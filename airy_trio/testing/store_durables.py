"""The promises of the event store's port about durable subscriptions: who holds one, and up to where it acknowledged.

Like ``store_promises``, where the checks begin.

What an event store must hold after its writer, or the place itself, has died in the middle of an append.

A writer appends batches of one size, each with the resume point that names the offset of its last event, and says
after each that it was accepted; then it is killed at any moment. Here that is a call cancelled at each of its
checkpoints, after which the store is closed, or goes on; what a real kill leaves is for ``check_whole_batches``.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Final

import trio

from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, Claim, EventStore, StaleAppend
from airy_trio.testing.store_words import (
    AGE_S,
    ALL,
    BrokenStoreError,
    OpenStore,
    event,
    expect,
    expect_expired,
    filled,
    put,
    tick,
)

BATCH: Final = 3
STEPS: Final = range(1, 13)
"""A call is cancelled where it waits for the first time, for the second time, and so on."""
TURNS: Final = (*range(3, 12), 20, 50, 200, 1000)
"""Or after so many turns of Trio's loop, while something else works for it: a thread, a server."""
BreakOff = Callable[[], AbstractAsyncContextManager[None]]
"""Cancels what runs in its block at some moment."""
KEPT: Final = 4
ATTEMPTS: Final = 20
CLAIM: Final = Claim("ann", "inbox", "token")


class _Steps(trio.abc.Instrument):
    """Cancels a scope when a task waits for the n-th time."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self._task = task
        self._scope = scope
        self._left = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


@asynccontextmanager
async def _after_steps(steps: int) -> AsyncGenerator[None]:
    """Cancel the block where its task waits for the n-th time: exactly there, in whatever order Trio runs its tasks."""
    with trio.CancelScope() as scope:  # noqa: ASYNC100 - the block has them
        instrument = _Steps(trio.lowlevel.current_task(), scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(instrument)


@asynccontextmanager
async def _after_turns(turns: int) -> AsyncGenerator[None]:
    """Cancel the block after so many turns of the loop, or wait that long after its end."""

    async def cancel_later(scope: trio.CancelScope) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_later, nursery.cancel_scope)
        yield


BREAKS: Final[Sequence[BreakOff]] = (
    *(partial(_after_steps, steps) for steps in STEPS),
    *(partial(_after_turns, turns) for turns in TURNS),
)


async def write_batches(store: EventStore, size: int) -> AsyncGenerator[int]:
    """Append batches for ever; give the offset at the start, then after each batch that the store has accepted.

    What is there at the start may be more than anybody knew: an append that was broken off has happened meanwhile.
    """
    head = (await store.bounds()).head
    yield head.offset
    while True:
        numbers = range(head.offset + 1, head.offset + size + 1)
        head = await put(store, head, [event(number) for number in numbers])
        yield head.offset


async def check_whole_batches(store: EventStore, size: int, accepted: int) -> int:
    """Check what ``write_batches`` left: all that was accepted, whole batches, gapless, the resume point that belongs.

    An append that a dead writer had under way may still happen: then it checks again. Gives the offset of the newest
    event. Raises ``BrokenStoreError``.
    """
    while True:
        head = (await store.bounds()).head
        try:
            return await _check_once(store, size, accepted)
        except BrokenStoreError as error:
            broken = error
        if (await store.bounds()).head == head:
            raise broken


async def _check_once(store: EventStore, size: int, accepted: int) -> int:
    bounds = await store.bounds()
    expect(bounds.last >= accepted, f"what was accepted up to {accepted} is there, not only up to {bounds.last}")
    expect(bounds.last % size == 0, "a batch is there whole or not at all")
    expect(bounds.last <= accepted + size, "nothing is there that nobody appended")
    expect(await store.resume_point() == (str(bounds.last) if bounds.last else None), "with its resume point")
    after = bounds.floor
    while read := await store.read(after, ALL):
        for offset, found in enumerate(read, start=after.offset + 1):
            expect((found.offset, found.body) == (offset, event(offset).body), f"event {offset} is the one appended")
        after = after.at(read[-1].offset)
    expect(after.offset == bounds.last, "up to the head everything can be read")
    return bounds.last


async def a_crash_in_an_append_leaves_whole_batches(open_store: OpenStore) -> None:
    """A writer that dies in the middle of an append has appended all of it, with its resume point, or nothing."""
    accepted = 0
    for break_off in BREAKS:
        async with open_store() as store:
            accepted = max(accepted, await _write_until_broken_off(store, accepted, break_off))
        async with open_store() as store:
            accepted = await check_whole_batches(store, BATCH, accepted)


async def the_nth_call_that_fails_happens_whole_or_not_at_all(open_store: OpenStore) -> None:
    """Whichever call is broken off, and wherever: it has happened or not, and the store goes on from there."""
    async with open_store() as store, open_store() as other:
        await store.acknowledge([Acknowledgement(CLAIM, await filled(store, 2))])
        for break_off in BREAKS:
            for call in (_append, _append, _move_on, _append, _trim, _claim, _acknowledge, _begin):
                head, point = (await store.bounds()).head, await store.resume_point()
                async with break_off():
                    await call(store, head, point or "")
                await call(store, head, point or "")  # it may have happened, or happen yet: never twice
                await _expect_whole(other)


async def _append(store: EventStore, head: Position, _point: str) -> None:
    await _unless_stale(lambda: put(store, head, [event(head.offset + 1), event(head.offset + 2)]))
    bounds = await store.bounds()
    expect(bounds.head == head.at(head.offset + 2), "a broken-off append is there whole, or can be done again")
    expect(await store.resume_point() == str(bounds.last), "with its resume point")


async def _move_on(store: EventStore, head: Position, point: str) -> None:
    await store.append(head, [], point)
    expect((await store.bounds()).head == head, "an append without events moves nothing, also broken off")
    expect(await store.resume_point() == point, "and stores its resume point when it is done again")


async def _trim(store: EventStore, _head: Position, _point: str) -> None:
    await store.trim(age_s=AGE_S, keep=KEPT, limit=ALL, unused_s=AGE_S)
    bounds = await store.bounds()
    expect(bounds.last - bounds.first < KEPT, "a broken-off trim can be done again")


async def _claim(store: EventStore, _head: Position, _point: str) -> None:
    (position,) = await store.claim([CLAIM])
    expect(position is not None, "a broken-off claim loses nothing of what was acknowledged")
    expect(position == await store.acknowledged(CLAIM.owner, CLAIM.name), "and can be made again")


async def _acknowledge(store: EventStore, head: Position, _point: str) -> None:
    kept = None
    for _ in range(ATTEMPTS):  # one of another epoch, broken off long ago, may happen yet
        expect(not await store.acknowledge([Acknowledgement(CLAIM, head)]), "it is the holder still")
        kept = await store.acknowledged(CLAIM.owner, CLAIM.name)
        if kept == head:
            return
    expect(kept == head, "a broken-off acknowledgement can be made again")


async def _begin(store: EventStore, head: Position, _point: str) -> None:
    await _unless_stale(lambda: store.begin_epoch(head, "0"))
    bounds = await store.bounds()
    is_empty = bounds.first == bounds.last + 1
    expect(bounds.epoch != head.epoch and is_empty, "a broken-off epoch has begun, or can be begun")
    expect(await store.resume_point() == "0", "with its resume point")


async def _unless_stale(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except StaleAppend:
        return  # it was broken off, and has happened all the same


async def _expect_whole(store: EventStore) -> None:
    """Check that everything from the floor to the head can be read, as it was appended."""
    bounds = await store.bounds()
    read = await store.read(bounds.floor, ALL)
    expect([one.offset for one in read] == list(range(bounds.first, bounds.last + 1)), "nothing is there by halves")
    expect([one.body for one in read] == [event(one.offset).body for one in read], "and nothing was changed")


async def _write_until_broken_off(store: EventStore, accepted: int, break_off: BreakOff) -> int:
    """Append batches, to be cancelled in the middle; give the offset up to which they were accepted."""
    await store.bounds()  # so that it is a call that is broken off, and not a connection that is being made
    async with break_off():
        try:
            async with aclosing(write_batches(store, BATCH)) as writing:
                async for reached in writing:
                    accepted = reached
        except StaleAppend:
            pass  # what the one before had under way has happened just now
    return accepted


CRASH_PROMISES: Final = (
    a_crash_in_an_append_leaves_whole_batches,
    the_nth_call_that_fails_happens_whole_or_not_at_all,
)


MANY: Final = 2500
CLAIMS: Final = 8
PAUSES_MS: Final = (10, 100, 1000, 5000)


async def acknowledged_positions_go_forward(open_store: OpenStore) -> None:
    """For each owner and name the furthest position is kept, also over a new epoch."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 5)
        ann, bob, mixed = Claim("ann", "inbox", "1"), Claim("bob", "inbox", "2"), Claim("an", "ninbox", "3")
        expect(await store.acknowledged("ann", "inbox") is None, "nothing is acknowledged at first")
        for offset, kept in ((2, 2), (4, 4), (3, 4), (4, 4)):
            await _acknowledge_as_holder(store, ann, head.at(offset))
            expect(await other.acknowledged("ann", "inbox") == head.at(kept), "within an epoch it only goes forward")
        await other.acknowledge([Acknowledgement(bob, head.at(1)), Acknowledgement(mixed, head.at(5))])
        expect(await store.acknowledged("ann", "inbox") == head.at(4), "owners and names do not mix")
        expect(await store.acknowledged("bob", "inbox") == head.at(1), "each owner has its own")
        await store.begin_epoch(head, "restarted")
        expect(await store.acknowledged("ann", "inbox") == head.at(4), "it is kept over a new epoch")
        begun = (await store.bounds()).head
        await _acknowledge_as_holder(store, ann, begun)
        expect(await store.acknowledged("ann", "inbox") == begun, "another epoch replaces it")
        expect(await store.acknowledge([]) == [] == await store.claim([]), "nothing is asked, nothing is answered")


async def what_is_not_used_is_forgotten(open_store: OpenStore) -> None:
    """A trim forgets durable subscriptions that were not held or acknowledged for too long, and no others."""
    async with open_store() as store:
        head = await filled(store, 5)
        for pause_ms in PAUSES_MS:  # on a busy machine what was used just now is soon too old as well
            if await _forgets(store, head, pause_ms):
                break
        again = Claim("ann", "idle", "of old")
        expect(await store.acknowledge([Acknowledgement(again, head.at(4))]) == [], "nobody holds what is forgotten")
        expect(await store.acknowledged("ann", "idle") == head.at(4), "and it is kept anew")


async def _forgets(store: EventStore, head: Position, pause_ms: int) -> bool:
    """Check what a trim forgets; False where all this took too long to tell."""
    claims = [Claim("ann", name, name) for name in ("idle", "acknowledging", "held")]
    await store.claim(claims)
    await store.acknowledge([Acknowledgement(claim, head.at(2)) for claim in claims])
    await store.trim(age_s=AGE_S, keep=ALL, limit=ALL, unused_s=AGE_S)
    expect(await store.acknowledged("ann", "idle") == head.at(2), "what is used stays")
    await tick(store, 2 * pause_ms)
    used_ms = (await store.bounds()).now_ms
    await _acknowledge_as_holder(store, claims[1], head.at(1))
    await store.claim([Claim("ann", "held", "another")])
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
        await _acknowledge_as_holder(store, Claim("ann", "inbox", "before"), head.at(2))
        await tick(store)
        expect(await store.trim(age_s=0, keep=0, limit=ALL, unused_s=AGE_S) == head.offset, "all events are old")
        expect(await store.acknowledged("ann", "inbox") == head.at(2), "their trim leaves positions alone")
        expect(await store.claim([Claim("ann", "inbox", "after")]) == [head.at(2)], "and the next holder gets them")
        await expect_expired(store, head.at(2))


async def the_last_holder_is_the_only_one(open_store: OpenStore) -> None:
    """Whoever takes a durable subscription over gets its position; whoever held it before changes it no more."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 9)
        first, second = Claim("ann", "inbox", "first"), Claim("ann", "inbox", "second")
        expect(await store.claim([first]) == [None], "of a new one no position is known")
        expect(await store.acknowledged("ann", "inbox") is None, "holding acknowledges nothing")
        await _acknowledge_as_holder(store, first, head.at(3))
        expect(await other.claim([second]) == [head.at(3)], "who takes it over gets its position")
        beside = Claim("bob", "inbox", "first")
        refused = await store.acknowledge([Acknowledgement(first, head.at(7)), Acknowledgement(beside, head.at(5))])
        expect(refused == [first], "who held it before is refused, and nobody else")
        expect(await other.acknowledged("ann", "inbox") == head.at(3), "nothing is kept of who is refused")
        expect(await other.acknowledged("bob", "inbox") == head.at(5), "what came beside it is")
        await _acknowledge_as_holder(other, second, head.at(8))
        expect(await other.claim([second]) == [head.at(8)], "who asks again holds it still")
        await store.begin_epoch(head, None)
        begun = (await store.bounds()).head
        expect(await store.acknowledge([Acknowledgement(first, begun)]) == [first], "a new epoch changes nothing in it")
        expect(await store.claim([first, beside]) == [head.at(8), head.at(5)], "what was held can be taken back")
        expect(await other.acknowledge([Acknowledgement(second, begun)]) == [second], "from whoever has it")


async def many_are_held_at_once(open_store: OpenStore) -> None:
    """Any number at once, answered in order; of several who claim one at the same time one holds it."""
    async with open_store() as store, open_store() as other:
        head = await filled(store, 3)
        held = [Claim(f"o{number % 7}", f"n{number}", "t") for number in range(MANY)]
        await store.acknowledge([Acknowledgement(one, head.at(at % 4)) for at, one in enumerate(held)])
        found = await other.claim(held[::-1])
        expect(found == [head.at(at % 4) for at in reversed(range(MANY))], "positions come in the order asked for")
        claims = [Claim("ann", "inbox", f"claim {number}") for number in range(CLAIMS)]
        async with trio.open_nursery() as nursery:
            for number, claim in enumerate(claims):
                nursery.start_soon((store, other)[number % 2].claim, [*held[:: number + 1], claim])
        left = [one for one in claims if not await store.acknowledge([Acknowledgement(one, head)])]
        expect(len(left) == 1, "of several who claim it at the same time exactly one holds it")


async def _acknowledge_as_holder(store: EventStore, claim: Claim, position: Position) -> None:
    refused: Sequence[Claim] = await store.acknowledge([Acknowledgement(claim, position)])
    expect(not refused, f"{claim} holds it, and may acknowledge")


DURABLE_PROMISES: Final = (
    acknowledged_positions_go_forward,
    what_is_not_used_is_forgotten,
    positions_outlive_their_events,
    the_last_holder_is_the_only_one,
    many_are_held_at_once,
)
