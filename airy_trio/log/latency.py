"""How long things take, counted into buckets: an owner observes, whoever asks gets the counts.

The buckets are fixed, so that the counts of several processes can be added up. Knows no clock and no exporter.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

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
