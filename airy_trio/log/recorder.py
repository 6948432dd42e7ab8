"""The recorder: reads the change feed, translates, appends with the resume point. The one place where the three meet.

It records only while it holds the lease. Whatever goes wrong between reading and appending, it starts again from the
resume point that the store holds, so that a batch is appended once or not at all; the store's compare-and-append
fences a recorder that does not know that it is none any more.
"""

import structlog
import trio
from attrs import frozen

from airy_trio.changes.feed import Batch, ChangeFeed, Consumer, Lease, ResumePointLost
from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.events.codec import EventTooLargeError, encode
from airy_trio.events.models import Event
from airy_trio.events.translate import EventsOptions, RowFault, translate
from airy_trio.log.eventlog import EventLog
from airy_trio.log.position import Position
from airy_trio.log.store import NewEvent, StaleAppend

logger = structlog.get_logger(__name__)

LEASE_POLL_S = 0.05
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.5  # less than the idle time-out of a recorder's session


class ForeignConsumerError(AiryTrioError):
    """Another event log records these changes: this server would serve a log that nobody writes."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        super().__init__(
            f"another server records the changes of this database into another event log ({consumer.store}); "
            "give both the same [log] store and url"
        )


@frozen(kw_only=True)
class RecorderOptions:
    """What the recorder is told: rows of the change log in a batch, bytes of a body, and the store in words."""

    batch_rows_max: int
    body_bytes_max: int
    events: EventsOptions
    store: str


class Recorder:
    """One task, ``run``. Row faults and misfits are counted in ``statistics``."""

    def __init__(self, feed: ChangeFeed, lease: Lease, log: EventLog, options: RecorderOptions) -> None:
        self._feed = feed
        self._lease = lease
        self._log = log
        self._options = options
        self._counts = {"events": 0, "changes": 0, "faults": 0, "misfits": 0}
        self.recording = False
        self.recorded: str | None = None
        """The last resume point that the store is known to hold; what lies before it may be trimmed."""

    def statistics(self) -> dict[str, int]:
        """Since the start: ``events`` appended, ``changes`` read, row ``faults``, metadata ``misfits``."""
        return dict(self._counts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record while the lease is ours, wait for it while it is not; for ever.

        Started once the lease is known to be another's, or the first batch is recorded. Raises
        ``ForeignConsumerError``, and what waiting does not heal; an ``Unavailable`` only before it has started.
        """
        starting = _Starting(task_status)
        pause_s = 0.0
        while True:
            try:
                await self._hold(starting, said_unavailable=pause_s > 0)
            except (Unavailable, StaleAppend) as error:
                self.recording = False
                if not starting.done and isinstance(error, Unavailable):
                    raise
                if not pause_s:
                    logger.warning("recording interrupted", reason=str(error))
                pause_s = min(max(2 * pause_s, BACKOFF_FIRST_S), BACKOFF_MAX_S)
                await trio.sleep(pause_s)
            else:
                pause_s = 0.0

    async def _hold(self, starting: "_Starting", *, said_unavailable: bool) -> None:
        """One life of the lease: until it is lost, which shows as ``Unavailable`` or ``StaleAppend``."""
        await self._wait_for_lease(starting)
        head, point = await self._start_point()
        logger.info("recording again" if said_unavailable else "recording", store=self._options.store)
        self.recorded = point
        while True:
            head, batch = await self._record(head, point)
            point = batch.resume_point
            self.recording = True
            starting.finish()
            if not batch.more:
                await self._feed.wait()
            if not await self._lease.try_acquire():
                message = "the lease was lost"
                raise StaleAppend(message)

    async def _wait_for_lease(self, starting: "_Starting") -> None:
        ours = False
        while not await self._lease.try_acquire():
            ours = ours or await self._is_our_log()
            if not starting.done:
                logger.info("another server records; this one serves")
                starting.finish()
            await trio.sleep(LEASE_POLL_S)

    async def _is_our_log(self) -> bool:
        """Whether the holder of the lease writes into the log that we serve; False while it has not said so yet."""
        await self._log.catch_up()
        consumer = await self._feed.consumer()
        if consumer is not None and consumer.epoch != self._log.epoch:
            raise ForeignConsumerError(consumer)
        return consumer is not None

    async def _start_point(self) -> tuple[Position, str]:
        """The head of the log, and where to go on: its resume point, if it has recorded these changes so far."""
        await self._log.catch_up()
        point = await self._log.store.resume_point()
        consumer = await self._feed.consumer()
        if consumer is not None and consumer.epoch == self._log.epoch:
            return self._log.head, point if point is not None else await self._feed.origin()
        origin = await self._feed.origin()
        if point is not None:  # what this log's clients know is of another history
            await self._log.begin_epoch(origin)
            logger.warning("new epoch: these changes were recorded by another log", store=consumer and consumer.store)
        await self._feed.adopt(Consumer(self._log.epoch, self._options.store))
        return self._log.head, origin

    async def _record(self, head: Position, point: str) -> tuple[Position, Batch]:
        """Read one batch and append what it means; give the head after it."""
        try:
            batch = await self._feed.read(point, self._options.batch_rows_max)
        except ResumePointLost as error:
            restarted = await self._feed.restart()
            await self._log.begin_epoch(restarted)
            await self._feed.adopt(Consumer(self._log.epoch, self._options.store))
            logger.warning("new epoch: the database has another history", reason=str(error))
            return self._log.head, Batch(objects=(), resume_point=restarted, changes=0, more=True)
        if batch.changes:
            events = self._events(batch)
            head = await self._log.append(head, events, batch.resume_point)
            self.recorded = batch.resume_point
            self._counts["changes"] += batch.changes
            self._counts["events"] += len(events)
        return head, batch

    def _events(self, batch: Batch) -> list[NewEvent]:
        translation = translate(batch.objects, self._options.events)
        self._counts["misfits"] += translation.misfits
        for fault in translation.faults:
            self._report(fault)
        events = []
        for event in translation.events:
            try:
                body, truncated = encode(event, self._options.body_bytes_max)
            except EventTooLargeError as error:
                self._report(RowFault(table=event.type, key=event.object[:80], reason=str(error)))
                continue
            events.append(_new_event(event, body, truncated=truncated))
        return events

    def _report(self, fault: RowFault) -> None:
        self._counts["faults"] += 1
        logger.warning("row fault", table=fault.table, key=fault.key, reason=fault.reason)


class _Starting:
    """Says once that the recorder has started."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self.done = False

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self._task_status.started()


def _new_event(event: Event, body: bytes, *, truncated: bool) -> NewEvent:
    return NewEvent(
        type=event.type,
        object=event.object,
        conversation_id=event.conversation_id,
        channel_id=event.channel_id,
        body=body,
        truncated=truncated,
    )
