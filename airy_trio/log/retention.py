"""Trimming of the event log and the change log, in small batches, on the node that records."""

from typing import Final

import structlog
import trio

from airy_trio.capture.feed import ChangeFeed
from airy_trio.errors import Unavailable
from airy_trio.log.options import LogOptions
from airy_trio.log.recorder import Recorder
from airy_trio.log.store import EventStore
from airy_trio.retry import Outage

logger = structlog.get_logger(__name__)

PERIOD_S: Final = 1.0
"""Between the end of one trim and the start of the next."""
EVENTS_MAX: Final = 5000
"""Events deleted in one transaction of the event store."""
CHANGES_MAX: Final = 500
"""Changes deleted in one transaction of the application's database: well under a millisecond of write lock."""


class Retention:
    """Trims both logs in one task, ``run``."""

    def __init__(self, store: EventStore, feed: ChangeFeed, recorder: Recorder, options: LogOptions) -> None:
        self._store = store
        self._feed = feed
        self._recorder = recorder
        self._options = options
        self.trimmed = {"events": 0, "changes": 0}
        """How many were deleted since the start."""

    async def run(self) -> None:
        """Trim while this node records, until cancelled.

        If a store or database is unavailable, the trim is repeated in the next period. One warning for each outage.
        """
        outage = Outage(logger, "trimming postponed")
        while True:
            await trio.sleep(PERIOD_S)
            try:
                await self._trim_events()
                await self._trim_changes()
            except Unavailable as error:
                outage.begin(str(error))
            else:
                outage.end()

    async def _trim_events(self) -> None:
        count = EVENTS_MAX
        while count == EVENTS_MAX and self._recorder.recording:
            count = await self._store.trim(
                age_s=self._options.retain_s,
                keep=self._options.retain_events,
                limit=EVENTS_MAX,
                unused_s=self._options.retain_durables_s,
            )
            self.trimmed["events"] += count

    async def _trim_changes(self) -> None:
        count = CHANGES_MAX
        while count == CHANGES_MAX and self._recorder.recording and self._recorder.recorded is not None:
            count = await self._feed.trim(self._recorder.recorded, CHANGES_MAX)
            self.trimmed["changes"] += count
