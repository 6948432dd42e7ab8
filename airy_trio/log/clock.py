"""The clock of an event store, which stamps the events, in the terms of this node's clocks."""

from collections.abc import Callable
from math import inf

import trio

from airy_trio.log.store import Bounds, StoredEvent


class StoreClock:
    """What time it is at the store, as of its newest ``Bounds``.

    ``clock`` gives seconds since whenever, and nobody sets it; it measures the store's clock between two looks at it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._skew_ms = 0.0
        self._looked_at = -inf

    @property
    def age_s(self) -> float:
        """How long ago that was."""
        return self._clock() - self._looked_at

    def look(self, bounds: Bounds) -> None:
        """Set it by bounds that were read just now."""
        self._looked_at = self._clock()
        self._skew_ms = bounds.now_ms - self._looked_at * 1000

    def ms_before(self, age_s: float) -> int:
        """The time of the store so long ago, in milliseconds."""
        return int(self._clock() * 1000 + self._skew_ms - age_s * 1000)

    def changed_at(self, event: StoredEvent) -> float:
        """When the change behind an event was made, in Trio's time; if its age is not known, when it was appended."""
        changed_at_ms = event.appended_at_ms - (event.age_ms or 0)
        return trio.current_time() - (self._clock() + (self._skew_ms - changed_at_ms) / 1000)
