"""The fair queue: what clients ask is let through so many at a time that what they are sent never waits long.

The event loop runs, in each of its turns, everybody who can go on. A crowd that asks much at once, or that was not
listened to for a moment, would make one turn as long as all that it asks, and an event takes several turns from the
database to a client. So who has read something from a client enters here before it is looked at: a bounded number in
each turn, the others in theirs; so does who has met its end. Events and heart-beats do not come by.

Who waits stands in the queue of its address, first come first served, and one of each queue is let through in its turn:
ten thousand connections from one address wait for each other, and somebody from another only for one of them.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

ENTRIES_PER_TURN: Final = 8
"""Of some 0.1 to 0.5 ms each; with what was read comes one message, which is answered in the same or the next turn."""
HANDSHAKES_PER_TURN: Final = 1
"""Steps of TLS handshakes: 0.25 ms of the processor with a P-256 key, 0.6 with RSA-2048, 2 with RSA-4096. In a thread
each costs 0.3 to 0.5 ms more, and a crowd that waits for threads would not wait in the queues of its addresses."""

Turn = Callable[[], Awaitable[object]]
"""How somebody waits for its turn: ``FairQueue.enter``, for its address."""


class FairQueue:
    """``run`` is its task. After that has ended it stands open, so that sessions end as they would."""

    def __init__(self, entries_per_turn: int = ENTRIES_PER_TURN) -> None:
        self._per_turn = self._left = entries_per_turn
        self._queues: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()  # the next one's first
        self._called = trio.Event()
        self._open = False
        self._waited = 0

    def statistics(self) -> dict[str, int]:
        """How many are ``waiting`` now; how many have ``waited`` longer than for the next turn, since the start."""
        return {"waiting": sum(map(len, self._queues.values())), "waited": self._waited}

    async def enter(self, address: str = "") -> None:
        """Return in a turn in which there is room; at once, without a checkpoint, where that is this one.

        ``address``: whose turn it is, as connections are counted (``addresses.counted``).
        """
        if self._open:
            return
        if self._left:
            self._left -= 1
            return
        self._called.set()
        queue = self._queues.get(address)
        if queue is None:
            queue = self._queues[address] = trio.lowlevel.ParkingLot()
        self._waited += (len(queue) + 1) * len(self._queues) > self._per_turn  # all before it, if all are as long
        await queue.park()

    async def run(self) -> None:
        """Let through who waits, turn by turn, for ever."""
        try:
            while True:
                await self._called.wait()
                self._called = trio.Event()
                self._let_through()
                while self._queues:
                    await trio.lowlevel.checkpoint()
                    self._let_through()
        finally:
            self._open = True
            for queue in self._queues.values():
                queue.unpark_all()
            self._queues.clear()

    def _let_through(self) -> None:
        """Begin a turn: one of each queue goes on, queue by queue, until there is no room or nobody waits."""
        left = self._per_turn
        while left and self._queues:
            address, queue = self._queues.popitem(last=False)
            left -= len(queue.unpark())  # none where all have given up
            if queue:
                self._queues[address] = queue
        self._left = left
