"""Which event log the changes of a database are recorded into, and where a recorder goes on in them.

A change log has one consumer: its epoch is kept beside the changes, so that no two logs each get a part of them. It
refuses to know who has the lease.
"""

import structlog

from airy_trio.changes.feed import ChangeFeed, Consumer
from airy_trio.log.eventlog import EventLog
from airy_trio.log.position import Position, new_epoch

logger = structlog.get_logger(__name__)


class Consumption:
    """What one recorder knows and says of it. ``store``: what its log is kept in, in words."""

    def __init__(self, feed: ChangeFeed, log: EventLog, store: str) -> None:
        self._feed = feed
        self._log = log
        self._store = store

    async def foreign(self) -> Consumer | None:
        """The log that the holder of the lease writes, if it is not ours; None also where it has not said so yet.

        Raises ``DatabaseError``, ``StoreUnavailable``.
        """
        consumer = await self._feed.consumer()
        if consumer is None or consumer.epoch == self._log.epoch:
            return None
        await self._log.catch_up()  # the epoch may have begun just now
        return None if consumer.epoch == self._log.epoch else consumer

    async def start_point(self) -> tuple[Position, str, str | None]:
        """The head of the log, where to go on, and the point up to which it is known to be recorded.

        ========== ========== ============================================== ======================================
        our store  consumer   which means                                    done
        ========== ========== ============================================== ======================================
        no point   none       the first start of all                         from the origin; named
        no point   ours       ended before the first append                  from the origin
        no point   another    a new store: the memory of a new process, a    from the origin; named. Its epoch is
                              lost file, another store before us             new, so clients of the old one reload
        a point    ours       a restart, or the lease changed hands          from the point
        a point    none       the change log was made anew                   a new epoch from the origin; named
        a point    another    another store recorded meanwhile, or we ended  a new epoch from the origin; named
                              between beginning an epoch and naming it
        ========== ========== ============================================== ======================================

        Where changes are not kept for one log, it goes on from its point, and without one from now.

        The origin is where ``migrate`` started, or what trimming has reached since: every change after it is still in
        the change log. A point that the database does not know any more shows in the first read.

        Raises ``DatabaseError``, ``StoreUnavailable`` and, where another node records, ``StaleAppend``.
        """
        await self._log.catch_up()
        head = self._log.head  # before the point: who appends in between makes us stale, instead of one append double
        point = await self._log.store.resume_point()
        if not self._feed.consumed:
            if point is None:  # it is now: kept at once, else a restart before the first change would begin later
                point = await self._feed.origin()
                await self._log.append(head, (), point)
            return head, point, point
        consumer = await self._feed.consumer()
        if consumer is not None and consumer.epoch == head.epoch:
            return head, point if point is not None else await self._feed.origin(), point
        origin = await self._feed.origin()
        if point is not None:
            head = await self._log.begin_epoch(head, origin)
            logger.warning("new epoch: these changes were recorded by another log", store=consumer and consumer.store)
        await self.name(head)
        return head, origin, None

    async def disown(self) -> None:
        """Say beside the changes that no log has recorded them, so that the next start begins an epoch.

        For the end of a server whose store was replaced: what is in its place may be an older copy, with positions
        that clients have been given for other events. Raises ``DatabaseError``.
        """
        if self._feed.consumed:
            await self._feed.adopt(Consumer(new_epoch(), self._store))

    async def name(self, head: Position) -> None:
        """Say beside the changes which log they go into. Raises ``DatabaseError``."""
        await self._feed.adopt(Consumer(head.epoch, self._store))
