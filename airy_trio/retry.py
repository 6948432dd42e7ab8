"""Retrying while another system is unavailable: how long to pause, and what to log.

A task that retries has a ``Backoff`` for its pauses. It has an ``Outage`` if it logs: the first failure and the
recovery are a line each, and the failures between them are silent.
"""

import structlog


class Backoff:
    """Pauses that double from ``first_s`` up to ``max_s`` until ``reset``."""

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._pause_s = 0.0

    def next_s(self) -> float:
        """Return the seconds to pause after this failure."""
        self._pause_s = min(max(2 * self._pause_s, self._first_s), self._max_s)
        return self._pause_s

    def reset(self) -> None:
        """Start again with ``first_s``, after a success."""
        self._pause_s = 0.0


class Outage:
    """Logs once that something has become unavailable, and once that it is available again.

    ``unavailable`` and ``available`` are the log events. ``reason`` is the last one given; None while it is available.
    """

    def __init__(self, logger: structlog.stdlib.BoundLogger, unavailable: str, available: str) -> None:
        self._logger = logger
        self._unavailable = unavailable
        self._available = available
        self.reason: str | None = None

    def begin(self, reason: str) -> None:
        """Note a failure. Only the first one of an outage is logged."""
        if self.reason is None:
            self._logger.warning(self._unavailable, reason=reason)
        self.reason = reason

    def end(self) -> None:
        """Note a success. It is logged if it ends an outage."""
        if self.reason is not None:
            self._logger.info(self._available)
        self.reason = None
