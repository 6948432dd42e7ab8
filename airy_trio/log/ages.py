"""How old the changes behind events are, and the latencies that follow from it. Synchronous.

The latency of an event counts from the change behind it. Three clocks are involved: the application's database, which
made the change; the event store, which stamps each event with its own time and stores the age that the change had then;
and this node, which delivers. A node that records knows when it learned of each change (``Arrivals``). All others
compute the time from the stamp and the age, by what they know of the store's clock (``StoreClock``).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import trio

from airy_trio.log.store import Bounds, StoredEvent, milliseconds

ARRIVALS_MAX: Final = 4096
"""The number of batches for which ``Arrivals`` stores a time. Beyond that it forgets the older half."""
LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""The inclusive upper bounds of all buckets but the last, which has none. Fixed, so that processes can be added up."""


class StoreClock:
    """The event store's clock, as of the newest ``Bounds``.

    ``clock`` measures the time since then, in seconds from any beginning. It must be one that cannot be set, such as
    ``time.monotonic``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._skew_ms = 0.0
        self._read_at = -inf

    @property
    def age_s(self) -> float:
        """Seconds since the store's clock was read."""
        return self._clock() - self._read_at

    def update(self, bounds: Bounds) -> None:
        """Set the clock by bounds that were read just now."""
        self._read_at = self._clock()
        self._skew_ms = bounds.now_ms - self._read_at * 1000

    def ms_before(self, age_s: float) -> int:
        """Return the store's time ``age_s`` seconds ago, in milliseconds since 1970."""
        return int(self._clock() * 1000 + self._skew_ms) - milliseconds(age_s)

    def changed_at(self, event: StoredEvent) -> float:
        """Return when an event's change was made, in Trio's time; if its age is unknown, when it was appended."""
        changed_at_ms = event.appended_at_ms - (event.age_ms or 0)
        return trio.current_time() - (self._clock() + (self._skew_ms - changed_at_ms) / 1000)


class Arrivals:
    """When the changes behind the newest events were made. One entry for each batch, not for each event."""

    def __init__(self) -> None:
        self._last: list[int] = []
        self._at: list[float] = []
        self._after = 0

    def add(self, first: int, last: int, at: float) -> None:
        """Store when the changes behind the events ``first`` to ``last`` were made.

        Batches arrive in order, but one may arrive twice, because the store is read while an append to it is under way.
        The earlier time counts.
        """
        # Only the end of each batch is stored: a batch begins after the one before, because the tail has no gaps.
        if self._last and last <= self._last[-1]:
            index = bisect_left(self._last, last)
            self._at[index] = min(self._at[index], at)
            return
        if not self._last:
            self._after = first - 1
        self._last.append(last)
        self._at.append(at)
        if len(self._last) > ARRIVALS_MAX:
            gone = ARRIVALS_MAX // 2
            self._after = self._last[gone - 1]
            del self._last[:gone], self._at[:gone]

    def at(self, offset: int) -> float | None:
        """Return when the change behind this offset was made; None if that was forgotten or never added."""
        index = bisect_left(self._last, offset)
        return self._at[index] if self._after < offset and index < len(self._last) else None

    def clear(self) -> None:
        """Forget everything."""
        self._last.clear()
        self._at.clear()


class Latencies:
    """Counts of durations since the start. ``total_s``: their sum, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.total_s = 0.0

    @property
    def counts(self) -> Sequence[int]:
        """The number of durations in each bucket, not cumulative: one more than there are ``LATENCY_BUCKETS_S``."""
        return tuple(self._counts)

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count a duration. A negative one, which only a clock that was set back yields, counts as 0."""
        duration_s = max(0.0, duration_s)
        self._counts[bisect_left(LATENCY_BUCKETS_S, duration_s)] += times
        self.total_s += duration_s * times
