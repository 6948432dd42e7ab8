"""A queue at which client input waits, so that a crowd of clients cannot delay the delivery of events.

Trio runs each runnable task once in every pass of its event loop, and an event needs several passes from the database
to a client. If thousands of clients send something at the same moment, and all of it is handled in one pass, every
event waits for the sum of that work.

A task that has read client input therefore awaits ``FairQueue.enter`` before it handles the input; so does a task whose
connection has ended, because hundreds may be reset together. A bounded number of tasks proceeds in each pass. Events
and heart-beats do not enter the queue.

Tasks wait in order of arrival, grouped by client address; addresses are served round-robin. Ten thousand connections
from one address wait for each other; a client from another address waits for at most one of them.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

ENTRIES_PER_PASS: Final = 8
"""One costs 0.1 to 0.5 ms. Each piece of input brings one message, which is answered in this pass or the next."""
HANDSHAKES_PER_PASS: Final = 1
"""Steps of TLS handshakes: one costs 0.25 ms of the processor with a P-256 key, 0.6 ms with RSA-2048, 2 ms with
RSA-4096. A worker thread would add 0.3 to 0.5 ms to each, and a crowd would wait for threads instead of in the queues
of its addresses."""

Turn = Callable[[], Awaitable[object]]
"""Waits for a task's turn: ``FairQueue.enter`` with the address of its client."""


class FairQueue:
    """Admits ``entries_per_pass`` tasks in each pass. Needs a task for ``run``; after it ends, all are admitted.

    ``waited``: tasks that waited longer than for the next pass, since the start.
    """

    def __init__(self, entries_per_pass: int = ENTRIES_PER_PASS) -> None:
        self._per_pass = self._left = entries_per_pass
        self._waiting: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()  # the first address is served next
        self._not_empty = trio.Event()
        self._open = False
        self.waited = 0

    @property
    def waiting(self) -> int:
        """The number of tasks that wait now."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, address: str = "") -> None:
        """Return in a pass that has room for this task: without a checkpoint if that is the current one."""
        if self._open:
            return
        if self._left:
            self._left -= 1
            return
        # `run` restores `_left` only if a task waits: restoring it in each pass would wake `run` without need. So on an
        # idle server one task in `entries_per_pass` waits, for two passes.
        self._not_empty.set()
        lot = self._waiting.get(address)
        if lot is None:
            lot = self._waiting[address] = trio.lowlevel.ParkingLot()
        # An estimate of the tasks ahead, which is right if all addresses have as many waiting as this one.
        self.waited += (len(lot) + 1) * len(self._waiting) > self._per_pass
        await lot.park()

    async def run(self) -> None:
        """Admit waiting tasks once in each pass, until cancelled."""
        try:
            while True:
                await self._not_empty.wait()
                self._not_empty = trio.Event()
                self._start_pass()
                while self._waiting:
                    # Ends in the next pass, in which the tasks that were admitted run too. So there is one round in
                    # each pass.
                    await trio.lowlevel.checkpoint()
                    self._start_pass()
        finally:
            # Sessions have to close in order after this task was cancelled.
            self._open = True
            for lot in self._waiting.values():
                lot.unpark_all()
            self._waiting.clear()

    def _start_pass(self) -> None:
        left = self._per_pass
        while left and self._waiting:
            address, lot = self._waiting.popitem(last=False)
            left -= len(lot.unpark())  # nothing if all its tasks were cancelled
            if lot:
                self._waiting[address] = lot  # to the end of the round
        self._left = left
