"""Which event log the changes of a database are recorded into, and where a recorder resumes.

The lease decides which server records. This module decides whether it may, and from which resume point; the two are
independent of each other.

A change log has one consumer. The epoch of that event log is stored next to the changes, so that two logs never each
get a part of them. An event log has one source. Its resume point identifies the change log, so that two databases never
write into it.
"""

import structlog

from airy_trio.capture.feed import ChangeFeed, Consumer
from airy_trio.errors import AiryTrioError
from airy_trio.log.event_log import EventLog
from airy_trio.log.store import Position, new_epoch

logger = structlog.get_logger(__name__)


class ForeignConsumerError(AiryTrioError):
    """Another event log records these changes: this server would serve a log that is not written.

    The server that starts later fails with this error, even if it finds the lease free because the other server has a
    short outage. A server that had already started is not ended. It reports an interruption, and records again when
    the lease is free.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        super().__init__(
            f"another server records the changes of this database into another event log ({consumer.store}); "
            "give both the same [log] store and url"
        )


class ForeignLogError(AiryTrioError):
    """The event log holds the events of another change log, or of another capture mode. Nothing was written to it."""

    def __init__(self, store: str) -> None:
        super().__init__(
            f"the event log at {store} holds the events of another database, or of another database.schema or "
            "changes.capture; give each its own [log] url, or stop the other server and take the event log over with: "
            "airy-trio migrate --adopt-log --config FILE"
        )


class Consumption:
    """The relation between one change feed and one event log.

    ``store``: a description of the log's store for people. ``shareable``: whether the settings of another database
    could name the same log by mistake.
    """

    def __init__(self, feed: ChangeFeed, log: EventLog, store: str, *, shareable: bool) -> None:
        self._feed = feed
        self._log = log
        self._store = store
        self._shareable = shareable

    async def start_point(self) -> tuple[Position, str]:
        """Return the head of the log and the resume point that it holds, from which to read on.

        ========== ========== ============================================== ======================================
        our store  consumer   meaning                                        action
        ========== ========== ============================================== ======================================
        no point   any        the first start of all, or a new store: the    begin an epoch at the origin; name it
                              memory of a new process, a lost file
        a point    ours       a restart, or the lease changed hands          continue from the point
        a point    none       the change log was made again                  begin an epoch at the origin; name it
        a point    another    another store recorded meanwhile, or we ended  begin an epoch at the origin; name it
                              between beginning an epoch and naming it
        ========== ========== ============================================== ======================================

        If the log is shareable, a point of another database is rejected. A log without a point gets its first one by
        beginning an epoch, because that compares the head: of two databases that start on one empty log, one becomes
        its source and the other one is rejected.

        If the changes are not kept for one log, the recorder continues from the log's point, or starts from now.

        The origin is where ``migrate`` started, or the point that trimming has reached since: every change after it is
        still in the change log. A point that the database no longer knows is detected by the first read.

        Raises ``DatabaseError``, ``StoreUnavailable``, ``ForeignLogError`` and, if another node records,
        ``StaleAppend``.
        """
        # Otherwise this node's head might be older than the store's, and the first append stale.
        await self._log.catch_up()
        # The head is read before the point. An append in between then makes this recorder stale; in the other order
        # that append would be repeated.
        head = self._log.head
        point = await self._log.store.resume_point()
        consumer = await self._feed.consumer()
        if point is not None:
            identified = await self._feed.identified(point) if self._shareable else point
            if identified is None:
                raise ForeignLogError(self._store)
            if not self._feed.consumed or (consumer is not None and consumer.epoch == head.epoch):
                if identified != point:  # an older version wrote it; identified before another database uses this log
                    await self._log.append(head, (), identified, replaces=point)
                return head, identified
            logger.warning("new epoch: these changes were recorded by another log", store=consumer and consumer.store)
        return await self.begin_epoch(head, await self._feed.origin())

    async def begin_epoch(self, head: Position, start: str) -> tuple[Position, str]:
        """Begin an epoch at a resume point and name it next to the changes; return its head and the stored point.

        Raises ``DatabaseError``, ``StoreUnavailable``, ``StaleAppend``.
        """
        # Unsealed, a copy of the database from before the first append would be taken for this one.
        sealed = await self._feed.seal(start, start)
        # The log and the changes may be in two databases, so the two steps cannot be one transaction. The epoch comes
        # first, because the store chooses its name. If this process ends in between, the next recorder finds another
        # name next to the changes and begins an epoch again (the last row of the table in ``start_point``). Then
        # clients reload twice, and no change is skipped.
        begun = await self._log.begin_epoch(head, sealed)
        await self._feed.adopt(Consumer(begun.epoch, self._store))
        return begun, sealed

    async def foreign(self) -> Consumer | None:
        """Return the log that the holder of the lease writes, if it is not ours; None also if it is not named yet.

        Raises ``DatabaseError``, ``StoreUnavailable``.
        """
        consumer = await self._feed.consumer()
        if consumer is None or consumer.epoch == self._log.epoch:
            return None
        await self._log.catch_up()  # the epoch may have begun just now
        return None if consumer.epoch == self._log.epoch else consumer

    async def has_begun(self) -> bool:
        """Return whether the log has had its first epoch; this node then knows it.

        Serving earlier would give clients positions from before that epoch. Raises ``StoreUnavailable``.
        """
        if await self._log.store.resume_point() is None:
            return False
        await self._log.catch_up()
        return True

    async def disown(self) -> None:
        """Store next to the changes that no log has recorded them, so that the next start begins an epoch.

        For the end of a server whose store was replaced: the new store may be an older copy, in which positions that
        clients have received belong to other events. Raises ``DatabaseError``.
        """
        await self._feed.adopt(Consumer(new_epoch(), self._store))
