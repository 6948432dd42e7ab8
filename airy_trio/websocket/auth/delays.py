"""How long a refused CONNECT waits for its answer: longer with each that the same address has had refused lately.

Guessing is slowed, and who is let in is never: only refusals are counted and only they wait. The memory is bounded: the
address that was refused the longest ago is forgotten first. Nothing waits here.
"""

import math
from collections import OrderedDict
from typing import Final

FIRST_S: Final = 0.1
"""Each further one doubles it."""
MOST_S: Final = 2.0
DECAY_S: Final = 10.0
"""After this time without a refusal one of an address is forgotten, after twice the time another, and so on."""
COUNTED_MAX: Final = 6
"""More change nothing: the delay is at its most before."""
ADDRESSES_MAX: Final = 10_000


class Delays:
    """Refusals by address."""

    def __init__(self) -> None:
        self._refusals: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, when the last; that first

    def __len__(self) -> int:
        return len(self._refusals)

    def refused(self, address: str, now: float) -> float:
        """Count a refusal, and give how long its answer is to wait, in seconds. ``now``: in Trio's time."""
        count, at = self._refusals.pop(address, (0, now))
        count = max(0, count - int((now - at) / DECAY_S))
        self._refusals[address] = (min(count + 1, COUNTED_MAX), now)
        if len(self._refusals) > ADDRESSES_MAX:
            self._refusals.popitem(last=False)
        return min(math.ldexp(FIRST_S, count), MOST_S)
