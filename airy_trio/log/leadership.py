"""Which event log the changes of a database are recorded into, and where a recorder goes on in them.

A change log has one consumer: its epoch is kept next to the changes, so that no two logs each get a part of them. An
event log has one source: its resume point names the change log, so that no two databases write into it. Independent of
the lease.

Between two recorders that could both record: which of them leaves it to the other while that is there.

A server in several processes has one of them record and serve nobody, so that clients and changes do not share an
interpreter; its workers record only while that one is away. It is a preference and no lock: who records is decided by
the lease alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

import structlog
import trio

from airy_trio.capture.feed import ChangeFeed, Consumer
from airy_trio.errors import AiryTrioError
from airy_trio.log.event_log import EventLog
from airy_trio.log.position import Position, new_epoch

LEASE_POLL_S: Final = 0.05
"""Between two questions for a lease that another one holds."""
DEFERENT_POLL_S: Final = 0.5
"""The same for who defers: the other one asks ten times as often. Where that one hangs, it is noticed so much later."""
HELD_MIN_S: Final = 5.0
"""How long who took the lease although it defers keeps it before it offers it again, since the other one may hang."""


class LeaderPreference:
    """Whether a recorder leaves the lease to another one, as somebody says who sees whether that one is there."""

    def __init__(self) -> None:
        self.asked = False
        """Whether it is to."""
        self._asked_at = -inf
        self._needed = trio.Event()
        self._sleep = trio.CancelScope()

    def ask(self) -> None:
        """Have it left to the other one, which is there now."""
        self.asked = True
        self._asked_at = trio.current_time()
        self._needed = trio.Event()
        self._sleep.cancel()

    def withdraw(self) -> None:
        """Have it left to nobody: the other one is away."""
        self.asked = False
        self._needed.set()

    def is_due(self, held_since: float) -> bool:
        """Whether who has held the lease since then, in Trio's time, is to leave it now."""
        return self.asked and trio.current_time() >= self._due_at(held_since)

    @contextmanager
    def until_due(self, held_since: float) -> Iterator[trio.CancelScope]:
        """Cancel what the holder of the lease waits for in this block, where it is to leave it. For one task.

        Whoever was cancelled must leave it then, also where that was withdrawn at once.
        """
        with trio.CancelScope(deadline=self._due_at(held_since) if self.asked else inf) as self._sleep:
            yield self._sleep

    def _due_at(self, held_since: float) -> float:
        return held_since if self._asked_at >= held_since else held_since + HELD_MIN_S

    async def pause(self) -> None:
        """Sleep between two questions for the lease; who defers much longer, and only while it is asked to."""
        await trio.sleep(LEASE_POLL_S)
        if self.asked:
            with trio.move_on_after(DEFERENT_POLL_S):
                await self._needed.wait()


logger = structlog.get_logger(__name__)


class ForeignLogError(AiryTrioError):
    """The event log holds the events of another database, or way of capture. Nothing was written to it."""

    def __init__(self, store: str) -> None:
        super().__init__(
            f"the event log at {store} holds the events of another database, or of another changes.capture; give each "
            "its own [log] url, or stop the other server and take the event log over with: airy-trio migrate "
            "--adopt-log --config FILE"
        )


class Consumption:
    """What one recorder knows and says of it. ``store``: what its log is kept in, in words.

    ``shareable``: whether the settings of another database could name the same log by mistake.
    """

    def __init__(self, feed: ChangeFeed, log: EventLog, store: str, *, shareable: bool) -> None:
        self._feed = feed
        self._log = log
        self._store = store
        self._shareable = shareable

    async def foreign(self) -> Consumer | None:
        """The log that the holder of the lease writes, if it is not ours; None also where it has not said so yet.

        Raises ``DatabaseError``, ``StoreUnavailable``.
        """
        consumer = await self._feed.consumer()
        if consumer is None or consumer.epoch == self._log.epoch:
            return None
        await self._log.catch_up()  # the epoch may have begun just now
        return None if consumer.epoch == self._log.epoch else consumer

    async def has_begun(self) -> bool:
        """Whether the log has had its first epoch, which this node then knows: no client gets a position from before.

        Raises ``StoreUnavailable``.
        """
        if await self._log.store.resume_point() is None:
            return False
        await self._log.catch_up()
        return True

    async def start_point(self) -> tuple[Position, str]:
        """Give the head of the log and the resume point that it holds, from which to go on.

        ========== ========== ============================================== ======================================
        our store  consumer   which means                                    done
        ========== ========== ============================================== ======================================
        no point   any        the first start of all, or a new store: the    a new epoch from the origin; named
                              memory of a new process, a lost file
        a point    ours       a restart, or the lease changed hands          from the point
        a point    none       the change log was made again                  a new epoch from the origin; named
        a point    another    another store recorded meanwhile, or we ended  a new epoch from the origin; named
                              between beginning an epoch and naming it
        ========== ========== ============================================== ======================================

        A point of another database is refused if the log is shareable. A log without a point gets its first one by a
        new epoch, because that is compared: of two databases that start on one empty log, one becomes its source and
        the other one is refused.

        If changes are not kept for one log, it goes on from its point, and without one from now.

        The origin is where ``migrate`` started, or what trimming has reached since: every change after it is still in
        the change log. A point that the database does not know any more shows in the first read.

        Raises ``DatabaseError``, ``StoreUnavailable``, ``ForeignLogError`` and, if another node records,
        ``StaleAppend``.
        """
        await self._log.catch_up()
        head = self._log.head  # before the point: an append in between makes us stale, instead of one append double
        point = await self._log.store.resume_point()
        consumer = await self._feed.consumer()
        if point is not None:
            if self._shareable and await self._feed.is_foreign(point):
                raise ForeignLogError(self._store)
            if not self._feed.consumed or (consumer is not None and consumer.epoch == head.epoch):
                return head, await self._identified(head, point)
            logger.warning("new epoch: these changes were recorded by another log", store=consumer and consumer.store)
        return await self.begin_epoch(head, await self._feed.origin())

    async def _identified(self, head: Position, point: str) -> str:
        """Store the point of an older version with the identity of its database, before another database names it."""
        identified = await self._feed.identified(point) if self._shareable else point
        if identified != point:
            await self._log.append(head, (), identified, replaces=point)
        return identified

    async def begin_epoch(self, head: Position, start: str) -> tuple[Position, str]:
        """Begin an epoch from a resume point and name it next to the changes.

        Give its head and the point that the log holds. Raises ``DatabaseError``, ``StoreUnavailable``, ``StaleAppend``.
        """
        sealed = await self._feed.seal(start, start)  # else a copy from before the first append would pass for this one
        begun = await self._log.begin_epoch(head, sealed)
        if self._feed.consumed:
            await self._feed.adopt(Consumer(begun.epoch, self._store))
        return begun, sealed

    async def disown(self) -> None:
        """Say beside the changes that no log has recorded them, so that the next start begins an epoch.

        For the end of a server whose store was replaced: what is in its place may be an older copy, with positions
        that clients have been given for other events. Raises ``DatabaseError``.
        """
        if self._feed.consumed:
            await self._feed.adopt(Consumer(new_epoch(), self._store))
