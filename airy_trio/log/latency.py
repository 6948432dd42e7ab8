"""How long things take, counted into buckets: an owner observes, whoever asks gets the counts.

The buckets are fixed, so that the counts of several processes can be added up. Knows no clock and no exporter.

When the changes behind the newest events were made: the latency of their delivery is measured from these times.

Bounded, and one entry for each append, not for each event. The caller chooses the clock.
"""

from bisect import bisect_left
from collections.abc import Sequence
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


BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""The upper bounds of all buckets but the last, which has none; each includes its bound."""


class Latencies:
    """Counts of durations since the start. ``total_s``: their sum, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    @property
    def counts(self) -> Sequence[int]:
        """How many fell into each bucket, not cumulative: one more than there are ``BOUNDS_S``."""
        return tuple(self._counts)

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count a duration; a negative one, which only a clock that was set back gives, as none at all."""
        duration_s = max(0.0, duration_s)
        self._counts[bisect_left(BOUNDS_S, duration_s)] += times
        self.total_s += duration_s * times
