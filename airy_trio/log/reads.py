"""Reads of the event store for clients: few at once, and fair by address.

A client that resumes before the tail makes the store scan its log. Many such clients at once would take the store's
threads, its processors and this process' interpreter from the live events. So a read for a client waits here for one
of a few places. Following the log needs no place.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

READS_MAX: Final = 2
"""Reads for clients under way at once."""


class Gate:
    """A semaphore whose places go to the addresses in turn, and within an address to the read that waits longest.

    A thousand reads of one address delay a read of another address by one of them.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._queues: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()  # the next one's first

    def statistics(self) -> dict[str, int]:
        """Return how many tasks are ``waiting`` for a place, and how many places are ``free``."""
        return {"waiting": sum(map(len, self._queues.values())), "free": self._free}

    @asynccontextmanager
    async def place(self, address: str) -> AsyncIterator[None]:
        """Hold a place in this block. While all are taken, wait in the queue of ``address``."""
        if self._free:
            self._free -= 1
        else:
            queue = self._queues.setdefault(address, trio.lowlevel.ParkingLot())
            await queue.park()  # the task that wakes this one leaves its place to it
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._queues:
            address, queue = self._queues.popitem(last=False)
            woken = queue.unpark()  # none if all have been cancelled
            if queue:
                self._queues[address] = queue
            if woken:
                return
        self._free += 1
