"""When the changes behind the newest events were made: the latency of their delivery is measured from these times.

Bounded, and one entry for each append, not for each event. The caller chooses the clock.
"""

from bisect import bisect_left
from typing import Final

BATCHES_MAX: Final = 4096


class Arrivals:
    """What was noted of the newest ``BATCHES_MAX`` batches, or half of them."""

    def __init__(self) -> None:
        self._last: list[int] = []
        self._at: list[float] = []
        self._after = 0

    def note(self, first: int, last: int, at: float) -> None:
        """Remember that the events from ``first`` to ``last`` came to be at a time; of two times the earlier counts.

        Batches come in order, but one may come again: the store is read while the append to it is under way.
        """
        if self._last and last <= self._last[-1]:
            index = bisect_left(self._last, last)
            self._at[index] = min(self._at[index], at)
            return
        if not self._last:
            self._after = first - 1
        self._last.append(last)
        self._at.append(at)
        if len(self._last) > BATCHES_MAX:
            gone = BATCHES_MAX // 2
            self._after = self._last[gone - 1]
            del self._last[:gone], self._at[:gone]

    def at(self, offset: int) -> float | None:
        """When the event with this offset came to be; None where that is forgotten, or was never noted."""
        index = bisect_left(self._last, offset)
        return self._at[index] if self._after < offset and index < len(self._last) else None

    def clear(self) -> None:
        """Forget all."""
        self._last.clear()
        self._at.clear()
