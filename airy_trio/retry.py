"""Failures that repeat: how long to pause until the next attempt, and which of them to log.

A task that retries calls ``until_available``. A task with a loop of its own has a ``Backoff`` for the pauses, or an
``Outage`` if it also logs: the first failure and the recovery are logged, the failures between them are not. If other
programs can cause thousands of failures, a ``Sample`` decides which of them are logged.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
import trio
from attrs import define, field

from airy_trio.errors import Unavailable

T = TypeVar("T")

FIRST_S: Final = 0.05
MAX_S: Final = 1.0
"""Pauses between two attempts to reach a database or an event store, from the first to the longest."""
LOG_EVERY_S: Final = 10.0
"""Minimum time between two logged occurrences of one ``Sample``."""


@define(eq=False)
class Backoff:
    """Pauses that double from ``first_s`` up to ``max_s`` until ``reset``."""

    first_s: float = FIRST_S
    max_s: float = MAX_S
    _pause_s: float = field(default=0.0, init=False)

    def next_s(self) -> float:
        """Return the seconds to pause after this failure."""
        self._pause_s = min(max(2 * self._pause_s, self.first_s), self.max_s)
        return self._pause_s

    def reset(self) -> None:
        """Start again with ``first_s``, after a success."""
        self._pause_s = 0.0


async def until_available(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return the result of ``attempt``; retry with backoff while it raises ``Unavailable``."""
    backoff = Backoff()
    while True:
        try:
            return await attempt()
        except Unavailable:
            await trio.sleep(backoff.next_s())


@define(eq=False)
class Outage:
    """Logs once that something has become unavailable, and once that it is available again.

    ``unavailable`` and ``available`` are the log events; if ``available`` is empty, the recovery is left to the caller.
    ``reason`` is the last one given, ``since`` the begin in Trio's time. Both are None while it is available.
    """

    logger: structlog.stdlib.BoundLogger
    unavailable: str
    available: str = ""
    backoff: Backoff = field(factory=Backoff)
    reason: str | None = field(default=None, init=False)
    since: float | None = field(default=None, init=False)

    def begin(self, reason: str, **values: object) -> float:
        """Note a failure; return the seconds to pause. The first one of an outage is logged, with the values."""
        if self.reason is None:
            self.since = trio.current_time()
            self.logger.warning(self.unavailable, reason=reason, **values)
        self.reason = reason
        return self.backoff.next_s()

    def end(self) -> None:
        """Note a success. It is logged if it ends an outage."""
        if self.reason is not None and self.available:
            self.logger.info(self.available)
        self.reason = self.since = None
        self.backoff.reset()


@define(eq=False)
class Sample:
    """Selects the occurrences to log: the first one, then at most one in ``LOG_EVERY_S``."""

    _count: int = field(default=0, init=False)
    _log_at: float = field(default=-math.inf, init=False)

    def take(self) -> int:
        """Count an occurrence; return 0 if it must not be logged.

        Otherwise return the number of occurrences since the last one that was logged, including this one.
        """
        self._count += 1
        now = trio.current_time()
        if now < self._log_at:
            return 0
        count, self._count, self._log_at = self._count, 0, now + LOG_EVERY_S
        return count
