"""Between two recorders that could both record: which of them leaves it to the other while that is there.

A server in several processes has one of them record and serve nobody, so that clients and changes do not share an
interpreter; its workers record only while that one is away. It is a preference and no lock: who records is decided by
the lease alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

import trio

LEASE_POLL_S: Final = 0.05
"""Between two questions for a lease that another one holds."""
DEFERENT_POLL_S: Final = 0.5
"""The same for who defers: the other one asks ten times as often. Where that one hangs, it is noticed so much later."""
HELD_MIN_S: Final = 5.0
"""How long who took the lease although it defers keeps it before it offers it again, since the other one may hang."""


class Deference:
    """Whether a recorder leaves the lease to another one, as somebody says who sees whether that one is there."""

    def __init__(self) -> None:
        self.asked = False
        """Whether it is to."""
        self._asked_at = -inf
        self._needed = trio.Event()
        self._sleep = trio.CancelScope()

    def ask(self) -> None:
        """Have it left to the other one, which is there now."""
        self.asked = True
        self._asked_at = trio.current_time()
        self._needed = trio.Event()
        self._sleep.cancel()

    def withdraw(self) -> None:
        """Have it left to nobody: the other one is away."""
        self.asked = False
        self._needed.set()

    def is_due(self, held_since: float) -> bool:
        """Whether who has held the lease since then, in Trio's time, is to leave it now."""
        return self.asked and trio.current_time() >= self._due_at(held_since)

    @contextmanager
    def until_due(self, held_since: float) -> Iterator[trio.CancelScope]:
        """Cancel what the holder of the lease waits for in this block, where it is to leave it. For one task.

        Whoever was cancelled must leave it then, also where that was withdrawn at once.
        """
        with trio.CancelScope(deadline=self._due_at(held_since) if self.asked else inf) as self._sleep:
            yield self._sleep

    def _due_at(self, held_since: float) -> float:
        return held_since if self._asked_at >= held_since else held_since + HELD_MIN_S

    async def pause(self) -> None:
        """Sleep between two questions for the lease; who defers much longer, and only while it is asked to."""
        await trio.sleep(LEASE_POLL_S)
        if self.asked:
            with trio.move_on_after(DEFERENT_POLL_S):
                await self._needed.wait()
