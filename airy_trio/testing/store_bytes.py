"""The promises of the event store's port about bytes: how much of large events one answer holds, one check each.

They know the port and nothing of any store.
"""

from typing import Final

from airy_trio.events.destinations import Destination, OfChannel
from airy_trio.log.position import Position
from airy_trio.log.store import EventStore, NewEvent
from airy_trio.testing.store_words import AGE_S, ALL, OpenStore, event, expect, put

_SIZES: Final = (10, 0, 10, 70_000, 10, 10, 100_000, 10, 10, 10)
"""Of the bodies of the events 1 to 10; odd ones are of channel ``odd``, even ones of ``even``."""


async def reads_end_at_their_bytes(open_store: OpenStore) -> None:
    """A read ends with the event that brings the bodies to its bytes; what is not asked for does not count."""
    wanted: dict[tuple[int, int, Destination | None], list[int]] = {
        (0, 1, None): [1],
        (0, 10, None): [1],
        (0, 11, None): [1, 2, 3],
        (0, 20, None): [1, 2, 3],
        (0, 21, None): [1, 2, 3, 4],
        (0, 70_020, None): [1, 2, 3, 4],
        (0, 70_021, None): [1, 2, 3, 4, 5],
        (3, 1, None): [4],
        (4, 100_020, None): [5, 6, 7],
        (4, 1_000_000, None): [5, 6, 7, 8, 9, 10],
        (9, 10, None): [10],
        (10, 1, None): [],
        (0, 21, OfChannel("odd")): [1, 3, 5],
        (0, 31, OfChannel("odd")): [1, 3, 5, 7],
        (0, 70_011, OfChannel("even")): [2, 4, 6, 8],
        (5, 1, OfChannel("nobody")): [],
    }
    async with open_store() as store:
        head = await _put_sizes(store)
        for (after, bytes_max, destination), offsets in wanted.items():
            read = await store.read(head.at(after), ALL, destination, bytes_max=bytes_max)
            expect([one.offset for one in read] == offsets, f"{bytes_max} bytes after {after}: {offsets}")
        read = await store.read(head.at(0), 2, bytes_max=100)
        expect([one.offset for one in read] == [1, 2], "the limit counts as well")


async def recent_ends_at_its_bytes(open_store: OpenStore) -> None:
    """The bytes of the recent window are counted from the newest event on, over the newest of each object alone."""
    async with open_store() as store:
        head = await _put_sizes(store)
        head = await put(store, head, [_sized(11, 5)._replace(object="message:7")])  # the large one is old by this
        for bytes_max, offsets in (
            (1, [11]),
            (5, [11]),
            (6, [10, 11]),
            (36, [6, 8, 9, 10, 11]),
            (50, [5, 6, 8, 9, 10, 11]),
            (56, [4, 5, 6, 8, 9, 10, 11]),
            (70_056, [3, 4, 5, 6, 8, 9, 10, 11]),
            (1_000_000, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]),
        ):
            recent = await store.recent(head, AGE_S, ALL, bytes_max=bytes_max)
            expect([one.offset for one in recent] == offsets, f"the newest of each object in {bytes_max} bytes")
        recent = await store.recent(head.at(10), AGE_S, ALL, OfChannel("even"), bytes_max=21)
        expect([one.offset for one in recent] == [6, 8, 10], "what is not asked for does not count")
        recent = await store.recent(head, AGE_S, 2, bytes_max=1_000_000)
        expect([one.offset for one in recent] == [10, 11], "the limit counts as well")


async def _put_sizes(store: EventStore) -> Position:
    new = [_sized(number, size) for number, size in enumerate(_SIZES, start=1)]
    return await put(store, (await store.bounds()).head, new)


def _sized(number: int, size: int) -> NewEvent:
    return event(number, channel_id="odd" if number % 2 else "even")._replace(body=b"x" * size)


BYTES: Final = (reads_end_at_their_bytes, recent_ends_at_its_bytes)
