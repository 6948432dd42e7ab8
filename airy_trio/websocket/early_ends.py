"""Sampled log lines about connections that end before CONNECT is accepted.

Any client can open thousands of such connections in a second, without credentials.
"""

import math
from collections import Counter
from typing import Final

import structlog
import trio

logger = structlog.get_logger(__name__)

LOG_EARLY_ENDS_EVERY_S: Final = 10.0
"""For each event and reason, one line in this time is logged at level info."""


class EarlyEnds:
    """Logs one line for each event and reason in ``LOG_EARLY_ENDS_EVERY_S`` at level info, all others at level debug.

    A line at level info has ``not_logged``: the number of lines at level debug since the one before it. Memory is kept
    for each event and reason, so a reason must come from a small, fixed set and contain nothing that a client sends.
    """

    def __init__(self) -> None:
        self._logged_at: dict[tuple[str, str], float] = {}
        self._not_logged: Counter[tuple[str, str]] = Counter()

    def log(self, event: str, reason: str, /, **fields: object) -> None:
        """Log an event; ``reason`` selects the sample that it belongs to."""
        now = trio.current_time()
        key = event, reason
        if now < self._logged_at.get(key, -math.inf) + LOG_EARLY_ENDS_EVERY_S:
            self._not_logged[key] += 1
            logger.debug(event, **fields)
        else:
            self._logged_at[key] = now
            logger.info(event, **fields, not_logged=self._not_logged.pop(key, 0))
