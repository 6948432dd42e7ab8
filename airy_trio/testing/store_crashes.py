"""What an event store must hold after its writer, or the place itself, has died in the middle of an append.

A writer appends batches of one size, each with the resume point that names the offset of its last event, and says
after each that it was accepted; then it is killed at any moment.
"""

from collections.abc import AsyncGenerator

from airy_trio.log.store import EventStore
from airy_trio.testing.store_promises import ALL, event, expect, put


async def write_batches(store: EventStore, size: int) -> AsyncGenerator[int]:
    """Append batches for ever; give the offset that was reached after each that the store has accepted."""
    head = (await store.bounds()).head
    while True:
        numbers = range(head.offset + 1, head.offset + size + 1)
        head = await put(store, head, [event(number) for number in numbers])
        yield head.offset


async def check_whole_batches(store: EventStore, size: int, accepted: int) -> int:
    """Check what ``write_batches`` left: all that was accepted, whole batches, gapless, the resume point that belongs.

    Gives the offset of the newest event. Raises ``BrokenStoreError``.
    """
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
