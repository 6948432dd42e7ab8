"""The promises of the event store's port about calls that are broken off: they happen completely or not at all.

A writer that dies in the middle of an append must leave whole batches, each with its resume point. These checks break
calls off by cancelling them, at each checkpoint of the call and after a number of passes of Trio's loop. Then they
close the store, or continue with it. They cannot check what happens when the process or the database server is killed.
For that, let a process run ``write_batches``, kill it, and call ``check_whole_batches`` on what it left.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Final

import trio

from airy_trio.log.store import Acknowledgement, Claim, EventStore, Position, StaleAppend
from airy_trio.testing.store_checks import AGE_S, ALL, BrokenStoreError, OpenStore, event, expect, filled, is_stale, put

BATCH: Final = 3
"""Events in each batch."""
STEPS: Final = range(1, 13)
"""Cancel a call when it waits for the first time, for the second time, and so on."""
PASSES: Final = (*range(3, 12), 20, 50, 200, 1000)
"""Or cancel it after this number of passes of Trio's loop, while a thread or a server works for it."""
BreakOff = Callable[[], AbstractAsyncContextManager[None]]
"""Cancels its block at some moment."""
KEPT: Final = 4
"""Events that a trim leaves."""
ATTEMPTS: Final = 20
"""To acknowledge. An acknowledgement that was cancelled earlier may take effect after the next one."""
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
    """Cancel the block when its task waits for the n-th time: exactly then, in whatever order Trio runs its tasks."""
    with trio.CancelScope() as scope:  # noqa: ASYNC100 - the caller's block has checkpoints
        instrument = _Steps(trio.lowlevel.current_task(), scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(instrument)


@asynccontextmanager
async def after_passes(passes: int) -> AsyncGenerator[None]:
    """Cancel the block after this number of passes of the loop. If it ends earlier, wait for the rest of them."""

    async def cancel_later(scope: trio.CancelScope) -> None:
        for _ in range(passes):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_later, nursery.cancel_scope)
        yield


BREAKS: Final[Sequence[BreakOff]] = (
    *(partial(_after_steps, steps) for steps in STEPS),
    *(partial(after_passes, passes) for passes in PASSES),
)


async def write_batches(store: EventStore, size: int) -> AsyncGenerator[int]:
    """Append batches until closed. Yield the offset at the start, then after each batch that the store has accepted.

    The offset at the start may be higher than the last one that was accepted, because a cancelled append may have
    happened meanwhile. Each batch has the offset of its last event as its resume point.
    """
    head = (await store.bounds()).head
    yield head.offset
    while True:
        numbers = range(head.offset + 1, head.offset + size + 1)
        head = await put(store, head, [event(number) for number in numbers])
        yield head.offset


async def check_whole_batches(store: EventStore, size: int, accepted: int) -> int:
    """Check what ``write_batches`` left: all accepted events, whole batches, no gaps, and the right resume point.

    ``size``: events in each batch. ``accepted``: the last offset that ``write_batches`` yielded. The append of a killed
    writer may still happen during the check, which then starts again. Returns the offset of the newest event. Raises
    ``BrokenStoreError``.
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
    expect(bounds.last >= accepted, f"all accepted events up to {accepted} are stored, not only up to {bounds.last}")
    expect(bounds.last % size == 0, "a batch is stored completely or not at all")
    expect(bounds.last <= accepted + size, "no event is stored that was not appended")
    expect(
        await store.resume_point() == (str(bounds.last) if bounds.last else None),
        "the resume point is that of the last batch",
    )
    after = bounds.floor
    while read := await store.read(after, ALL):
        for offset, found in enumerate(read, start=after.offset + 1):
            expect((found.offset, found.body) == (offset, event(offset).body), f"event {offset} is the one appended")
        after = after.at(read[-1].offset)
    expect(after.offset == bounds.last, "all events up to the head can be read")
    return bounds.last


async def cancelled_appends_leave_whole_batches(open_store: OpenStore) -> None:
    """A cancelled append has happened completely, with its resume point, or not at all, also after a reopening."""
    accepted = 0
    for break_off in BREAKS:
        async with open_store() as store:
            accepted = max(accepted, await _write_until_broken_off(store, accepted, break_off))
        async with open_store() as store:
            accepted = await check_whole_batches(store, BATCH, accepted)


async def cancelled_calls_are_atomic(open_store: OpenStore) -> None:
    """A call that is cancelled at any checkpoint has happened or not, and the store continues from there."""
    async with open_store() as store, open_store() as other:
        await store.acknowledge([Acknowledgement(CLAIM, await filled(store, 2))])
        for break_off in BREAKS:
            for call in (_append, _append, _move_on, _append, _trim, _claim, _acknowledge, _begin):
                head, point = (await store.bounds()).head, await store.resume_point()
                async with break_off():
                    await call(store, head, point or "")
                # The cancelled call may have happened, or may happen later, but never twice.
                await call(store, head, point or "")
                await _expect_whole(other)


async def _append(store: EventStore, head: Position, _point: str) -> None:
    await is_stale(put(store, head, [event(head.offset + 1), event(head.offset + 2)]))  # then it has happened
    bounds = await store.bounds()
    expect(bounds.head == head.at(head.offset + 2), "a cancelled append has happened completely, or can be repeated")
    expect(await store.resume_point() == str(bounds.last), "and its resume point is stored")


async def _move_on(store: EventStore, head: Position, point: str) -> None:
    await store.append(head, [], point)
    expect((await store.bounds()).head == head, "a cancelled append without events does not move the head")
    expect(await store.resume_point() == point, "and stores its resume point when it is repeated")


async def _trim(store: EventStore, _head: Position, _point: str) -> None:
    await store.trim(age_s=AGE_S, keep=KEPT, limit=ALL, unused_s=AGE_S)
    bounds = await store.bounds()
    expect(bounds.last - bounds.first < KEPT, "a cancelled trim can be repeated")


async def _claim(store: EventStore, _head: Position, _point: str) -> None:
    (position,) = await store.claim([CLAIM])
    expect(position is not None, "a cancelled claim does not lose the acknowledged position")
    expect(position == await store.acknowledged(CLAIM.owner, CLAIM.name), "and can be repeated")


async def _acknowledge(store: EventStore, head: Position, _point: str) -> None:
    kept = None
    for _ in range(ATTEMPTS):
        expect(not await store.acknowledge([Acknowledgement(CLAIM, head)]), "the claim is still the newest")
        kept = await store.acknowledged(CLAIM.owner, CLAIM.name)
        if kept == head:
            return
    expect(kept == head, "a cancelled acknowledgement can be repeated")


async def _begin(store: EventStore, head: Position, _point: str) -> None:
    await is_stale(store.begin_epoch(head, "0"))
    bounds = await store.bounds()
    is_empty = bounds.first == bounds.last + 1
    expect(bounds.epoch != head.epoch and is_empty, "a cancelled begin_epoch has happened, or can be repeated")
    expect(await store.resume_point() == "0", "and its resume point is stored")


async def _expect_whole(store: EventStore) -> None:
    """Check that all events from the floor to the head can be read unchanged."""
    bounds = await store.bounds()
    read = await store.read(bounds.floor, ALL)
    expect([one.offset for one in read] == list(range(bounds.first, bounds.last + 1)), "retained events have no gaps")
    expect([one.body for one in read] == [event(one.offset).body for one in read], "and are unchanged")


async def _write_until_broken_off(store: EventStore, accepted: int, break_off: BreakOff) -> int:
    """Append batches until cancelled; return the offset up to which they were accepted."""
    await store.bounds()  # connects, so that the append is cancelled instead of the connection attempt
    async with break_off():
        try:
            async with aclosing(write_batches(store, BATCH)) as writing:
                async for reached in writing:
                    accepted = reached
        except StaleAppend:
            pass  # the cancelled append of an earlier writer has just happened
    return accepted


CRASH_PROMISES: Final = (cancelled_appends_leave_whole_batches, cancelled_calls_are_atomic)
