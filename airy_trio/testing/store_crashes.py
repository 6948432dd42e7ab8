"""What an event store must hold after its writer, or the place itself, has died in the middle of an append.

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
from airy_trio.log.store import Acknowledgement, EventStore, Holder, StaleAppend
from airy_trio.testing.store_words import AGE_S, ALL, BrokenStoreError, OpenStore, event, expect, filled, put

BATCH: Final = 3
STEPS: Final = range(1, 13)
"""A call is cancelled where it waits for the first time, for the second time, and so on."""
TURNS: Final = (*range(3, 12), 20, 50, 200, 1000)
"""Or after so many turns of Trio's loop, while something else works for it: a thread, a server."""
BreakOff = Callable[[], AbstractAsyncContextManager[None]]
"""Cancels what runs in its block at some moment."""
KEPT: Final = 4
ATTEMPTS: Final = 20
HOLDER: Final = Holder("ann", "inbox", "token")


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
        await store.acknowledge([Acknowledgement(HOLDER, await filled(store, 2))])
        for break_off in BREAKS:
            for call in (_append, _append, _move_on, _append, _trim, _hold, _acknowledge, _begin):
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


async def _hold(store: EventStore, _head: Position, _point: str) -> None:
    (position,) = await store.hold([HOLDER])
    expect(position is not None, "a broken-off claim loses nothing of what was acknowledged")
    expect(position == await store.acknowledged(HOLDER.owner, HOLDER.name), "and can be made again")


async def _acknowledge(store: EventStore, head: Position, _point: str) -> None:
    kept = None
    for _ in range(ATTEMPTS):  # one of another epoch, broken off long ago, may happen yet
        expect(not await store.acknowledge([Acknowledgement(HOLDER, head)]), "it is the holder still")
        kept = await store.acknowledged(HOLDER.owner, HOLDER.name)
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
