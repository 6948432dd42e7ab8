"""The words that the checks of event stores are written in: events, appends, clocks, and what is expected.

Nothing here is a promise; those are in ``store_promises``, ``store_changes``, ``store_durables`` and ``store_crashes``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from airy_trio.log.position import Position
from airy_trio.log.store import EventStore, NewEvent, PositionExpired, StaleAppend, StoredEvent

OpenStore = Callable[[], AbstractAsyncContextManager[EventStore]]
"""Opens the store in one place, as one more process would; the store is closed at the end of the block."""

AGE_S: Final = 3600.0
ALL: Final = 1000
TICK_MS: Final = 20
TICK_POLL_S: Final = 0.001


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


async def expect_stale(
    store: EventStore, expected: Position, new: Sequence[NewEvent], *, replaces: str | None = None
) -> None:
    """Check that an append after what is not the head, or in place of another resume point, changes nothing."""
    before = await contents(store)
    try:
        await store.append(expected, new, "stale", replaces=replaces)
    except StaleAppend:
        expect(await contents(store) == before, "a refused append changes nothing")
    else:
        stored = f"the head is {before[0]} and the resume point {before[2]!r}"
        expect(kept=False, promise=f"an append after {expected}, in place of {replaces!r}, is refused where {stored}")


async def expect_expired(store: EventStore, after: Position) -> None:
    """Check that reading after a position is refused."""
    try:
        await store.read(after, ALL)
    except PositionExpired:
        return
    expect(kept=False, promise=f"reading after {after}, which is gone, raises PositionExpired")


async def contents(store: EventStore) -> tuple[Position, Sequence[StoredEvent], str | None]:
    """Give the head, all events and the resume point."""
    bounds = await store.bounds()
    return bounds.head, list(await store.read(bounds.floor, ALL)), await store.resume_point()
