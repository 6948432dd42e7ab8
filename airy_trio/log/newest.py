"""The newest events: of a store, read backwards from its end, which is what a tail begins with; and of a tail."""

from collections.abc import Sequence
from typing import Final

from airy_trio.events.destinations import Destination
from airy_trio.log.store import Bounds, EventStore, PositionExpired, StoredEvent, is_all
from airy_trio.log.tail import Tail

READ_EVENTS_MAX: Final = 1000
READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""One page, in events and in bytes of bodies."""
PAGE_EVENTS_FIRST: Final = 64


async def read_newest(store: EventStore, bounds: Bounds, *, events_max: int, bytes_max: int) -> list[StoredEvent]:
    """The newest events, as many as a tail of these bounds holds, in order; read in pages bounded by bytes too.

    Fewer where something was trimmed just now, or an epoch began: who reads on will see. Raises ``StoreUnavailable``.
    """
    found: list[StoredEvent] = []  # the newest first
    size, offset, count = 0, bounds.last, PAGE_EVENTS_FIRST
    while offset >= bounds.first and len(found) < events_max and size < bytes_max:
        count = min(count, offset + 1 - bounds.first)
        after = bounds.head.at(offset - count)
        try:
            page = await store.read(after, count, bytes_max=READ_BYTES_MAX)
        except PositionExpired:
            break
        if len(page) < count and not is_all(page, count, READ_BYTES_MAX):
            count = max(1, len(page) // 2)  # fewer, so that the page ends where the last one began
            continue
        if len(page) < count:
            break
        for event in reversed(page):
            found.append(event)
            size += len(event.body)
        offset -= count
        count = min(2 * count, READ_EVENTS_MAX)
    return found[:events_max][::-1]


def newest_in(
    tail: Tail, destination: Destination, *, since_ms: int, limit: int, bytes_max: int
) -> Sequence[StoredEvent] | None:
    """The recent window of a destination (``Tail.newest_of_each``); None where the tail does not reach back so far."""
    asking = object()
    view = tail.attach(destination, asking)
    try:
        return tail.newest_of_each(view, since_ms=since_ms, limit=limit, bytes_max=bytes_max)
    finally:
        tail.detach(view, asking)
