"""The next batch of a backlog, read while the last one is appended: both are mostly the databases' work.

A second task of the recorder, for a read in a thread needs one to wait for it. It keeps no position and decides
nothing: what it was asked for and nobody takes is thrown away, and reading again after the same point gives the same.
"""

import trio
from attrs import define, field

from airy_trio.changes.feed import Batch, ChangeFeed


@define(eq=False)
class _Read:
    """One read: its end, and then what it gave or raised; neither where the task ended before."""

    point: str
    limit: int
    asked_at: float = field(factory=trio.current_time)
    ended: trio.Event = field(factory=trio.Event)
    batch: Batch | None = None
    error: Exception | None = None


class ReadAhead:
    """Reads a feed for one recorder, ahead while ``run`` runs, else when it is asked.

    A feed that is not ``consumed`` is never read ahead: it remembers what it has given since the point that was
    recorded, and goes back to no point before the last but one.
    """

    def __init__(self, feed: ChangeFeed) -> None:
        self._feed = feed
        self._begun: _Read | None = None
        self._running = False
        self._asks, self._asked = trio.open_memory_channel[_Read](1)

    async def run(self) -> None:
        """Read what is begun, one batch after the other, for ever."""
        self._running = True
        try:
            async for read in self._asked:
                await self._read(read)
                del read  # else its batch stays in memory until the next one is begun
        finally:
            self._running = False
            if self._begun is not None:
                self._begun.ended.set()

    async def _read(self, read: _Read) -> None:
        try:
            read.batch = await self._feed.read(read.point, read.limit)
        except Exception as error:  # noqa: BLE001 - it is the recorder's, who asked and would have got it itself
            read.error = error
        finally:
            read.ended.set()

    def begin(self, point: str, limit: int) -> None:
        """Begin to read after a point. What was begun before must have been taken or thrown away."""
        if self._running and self._feed.consumed:
            self._begun = _Read(point, limit)
            self._asks.send_nowait(self._begun)

    async def take(self, point: str, limit: int) -> tuple[Batch, float]:
        """Give the batch after a point, and when it was asked for; read now where just that was not begun.

        Raises what ``ChangeFeed.read`` does.
        """
        begun, self._begun = self._begun, None
        if begun is not None:
            await begun.ended.wait()
            if (begun.point, begun.limit) == (point, limit):
                if begun.error is not None:
                    raise begun.error
                if begun.batch is not None:
                    return begun.batch, begun.asked_at
        asked_at = trio.current_time()
        return await self._feed.read(point, limit), asked_at

    async def throw_away(self) -> None:
        """Wait for the end of what was begun, and forget it: a feed is read by one task at a time."""
        begun, self._begun = self._begun, None
        if begun is not None:
            await begun.ended.wait()
