"""The turnstile: what clients ask is let through so many at a time that what they are sent never waits long.

The event loop runs, in each of its turns, everybody who can go on. A crowd that asks much at once, or that was not
listened to for a moment, would make one turn as long as all that it asks, and an event takes several turns from the
database to a client. So who has read something from a client enters here before it is looked at: a bounded number in
each turn, the others in theirs, first come first served; so does who has met its end. Events and heart-beats do not
come by.
"""

from typing import Final

import trio

ENTRIES_PER_TURN: Final = 16
"""Of some 0.1 to 0.5 ms each."""


class Turnstile:
    """``run`` is its task. Where that has ended it stands open, so that sessions end as they would."""

    def __init__(self) -> None:
        self._left = ENTRIES_PER_TURN
        self._waiting = trio.lowlevel.ParkingLot()
        self._called = trio.Event()
        self._open = False
        self._waited = 0

    def statistics(self) -> dict[str, int]:
        """How many are ``waiting`` now; how many have ``waited`` longer than for the next turn, since the start."""
        return {"waiting": len(self._waiting), "waited": self._waited}

    async def enter(self) -> None:
        """Return in a turn in which there is room; at once, without a checkpoint, where that is this one."""
        if self._open:
            return
        if self._left:
            self._left -= 1
            return
        self._called.set()
        self._waited += len(self._waiting) >= ENTRIES_PER_TURN  # without a crowd there is room in the next turn
        await self._waiting.park()

    async def run(self) -> None:
        """Let through who waits, turn by turn, for ever."""
        try:
            while True:
                await self._called.wait()
                self._called = trio.Event()
                self._left = ENTRIES_PER_TURN - len(self._waiting.unpark(count=ENTRIES_PER_TURN))
                while self._waiting:
                    await trio.lowlevel.checkpoint()
                    self._left = ENTRIES_PER_TURN - len(self._waiting.unpark(count=ENTRIES_PER_TURN))
        finally:
            self._open = True
            self._waiting.unpark_all()
