"""What the checks of event stores share: making events, appending them, waiting for the clock, and expectations."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from airy_trio.log.store import EventStore, NewEvent, Position, PositionExpired, StaleAppend, StoredEvent

OpenStore = Callable[[], AbstractAsyncContextManager[EventStore]]
"""Opens the store in one place, as one more process would. The store is closed at the end of the block."""

AGE_S: Final = 3600.0
"""An age that no event of a check reaches."""
ENDLESS_S: Final = sys.float_info.max
"""The longest age."""
ALL: Final = 1000
"""A limit that no result of a check reaches."""
WRITERS: Final = 4
"""Writers that append at the same time."""
TICK_MS: Final = 20
TICK_POLL_S: Final = 0.001


class BrokenStoreError(AssertionError):
    """A broken promise. The message states the promise."""


def expect(kept: object, promise: str) -> None:
    """Raise ``BrokenStoreError`` if a promise is not kept."""
    if not kept:
        raise BrokenStoreError(promise)


def event(number: int, **changed: str | None) -> NewEvent:
    """Make an event that differs from those of all other numbers. ``changed``: its fields except the body."""
    facts = {"type": "message.updated", "object": f"message:{number}", "conversation_id": "c1", "channel_id": "ch1"}
    return NewEvent(body=b'{"number": %d}' % number, **{**facts, **changed})  # type: ignore[arg-type]


def events(first: int, last: int) -> list[NewEvent]:
    """Make the events from one number to another, both included."""
    return [event(number) for number in range(first, last + 1)]


async def filled(store: EventStore, *batches: int) -> Position:
    """Append batches of these sizes, numbered from 1 in an empty store; return the head."""
    head = (await store.bounds()).head
    for size in batches:
        head = await put(store, head, events(head.offset + 1, head.offset + size))
    return head


async def put(store: EventStore, head: Position, new: Sequence[NewEvent]) -> Position:
    """Append events, with the offset of the last one as the resume point; return the new head."""
    stored = await store.append(head, new, str(head.offset + len(new)))
    return head.at(head.offset + len(stored))


async def tick(store: EventStore, for_ms: int = TICK_MS) -> None:
    """Wait until the store's clock has advanced."""
    start_ms = (await store.bounds()).now_ms
    while True:
        if (await store.bounds()).now_ms - start_ms >= for_ms:
            return
        await trio.sleep(TICK_POLL_S)


async def is_stale(call: Awaitable[object]) -> bool:
    """Return whether a call is rejected with ``StaleAppend``."""
    try:
        await call
    except StaleAppend:
        return True
    return False


async def winners(stores: Sequence[EventStore], append: Callable[[EventStore, int], Awaitable[object]]) -> list[int]:
    """Let several writers append at the same time, on these stores by turns; return those that are not rejected."""
    won: list[int] = []

    async def write(writer: int) -> None:
        if not await is_stale(append(stores[writer % len(stores)], writer)):
            won.append(writer)

    async with trio.open_nursery() as nursery:
        for writer in range(WRITERS):
            nursery.start_soon(write, writer)
    return won


async def expect_stale(
    store: EventStore, expected: Position, new: Sequence[NewEvent], *, replaces: str | None = None
) -> None:
    """Check that an append after another head, or in place of another resume point, is rejected and changes nothing."""
    before = await contents(store)
    stored = f"the head is {before[0]} and the resume point {before[2]!r}"
    rejected = await is_stale(store.append(expected, new, "stale", replaces=replaces))
    expect(rejected, f"an append after {expected}, in place of {replaces!r}, is rejected if {stored}")
    expect(await contents(store) == before, "a rejected append changes nothing")


async def expect_expired(store: EventStore, position: Position) -> None:
    """Check that ``read`` raises ``PositionExpired`` for a position."""
    expired = await is_expired(store.read(position, ALL))
    expect(expired, f"reading after {position}, which is gone, raises PositionExpired")


async def is_expired(call: Awaitable[object]) -> bool:
    """Return whether a call is rejected with ``PositionExpired``."""
    try:
        await call
    except PositionExpired:
        return True
    return False


async def contents(store: EventStore) -> tuple[Position, Sequence[StoredEvent], str | None]:
    """Return the head, all events and the resume point."""
    bounds = await store.bounds()
    return bounds.head, list(await store.read(bounds.floor, ALL)), await store.resume_point()
