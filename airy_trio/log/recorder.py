"""The recorder: reads the change feed, translates, appends with the resume point. The one place where the three meet.

It records only while it holds the lease. Whatever goes wrong between reading and appending, it starts again from the
resume point that the store holds, so that a batch is appended once or not at all; the store's compare-and-append
fences a recorder that does not know that it is none any more. It refuses to know which database and which store.

From a batch of the change feed to what is appended: how large one may be, and what it means as events.

A batch is appended whole, with the resume point after it, so it is the read that has to be small enough: as many rows
of the change log as make about ``BATCH_BYTES_MAX`` of bodies. What turns out larger is read again with fewer rows. It
refuses to know feeds and stores.

The next batch of a backlog, read while the last one is appended: both are mostly the databases' work.

A second task of the recorder, for a read in a thread needs one to wait for it. It keeps no position and decides
nothing: what it was asked for and nobody takes is thrown away, and reading again after the same point gives the same.
"""

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import structlog
import trio
from attrs import define, field, frozen

from airy_trio.capture.feed import Batch, ChangeFeed, Consumer, Lease, ResumePointLost
from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.events.codec import EventTooLargeError, encode
from airy_trio.events.models import TYPES, Event
from airy_trio.events.translate import EventsOptions, RowFault, translate
from airy_trio.log.event_log import EventLog
from airy_trio.log.leadership import LEASE_POLL_S, Consumption, ForeignLogError, LeaderPreference
from airy_trio.log.position import Position
from airy_trio.log.store import NewEvent, StaleAppend

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of bodies in one append, unless a single change makes more: a store's time-outs are made for less than seconds."""
SLICE_OBJECTS: Final = 250
"""Translated between two checkpoints, which is some milliseconds: clients are served meanwhile."""


@frozen(kw_only=True)
class Meaning:
    """What a batch means: events to append, rows that cannot become one, and metadata that became strings.

    ``size``: bytes of the bodies. ``share``: how much of the batch this is; less than 1 where it became too large.
    """

    events: Sequence[NewEvent]
    faults: Sequence[RowFault]
    misfits: int
    size: int
    share: float


@frozen
class _Collected:
    """What has been translated so far, except the figures."""

    events: list[NewEvent] = field(factory=list)
    faults: list[RowFault] = field(factory=list)


async def meaning_of(batch: Batch, options: EventsOptions, *, body_bytes_max: int) -> Meaning:
    """Translate a batch and encode its events, up to ``BATCH_BYTES_MAX``; a batch of one change whole."""
    found = _Collected()
    size = misfits = done = 0
    while done < len(batch.objects) and (size <= BATCH_BYTES_MAX or batch.changes <= 1):
        if done:
            await trio.lowlevel.checkpoint()
        translation = translate(batch.objects[done : done + SLICE_OBJECTS], options)
        done = min(done + SLICE_OBJECTS, len(batch.objects))
        misfits += translation.misfits
        found.faults.extend(translation.faults)
        size += _encode(translation.events, body_bytes_max, found)
    whole = batch.changes <= 1 or size <= BATCH_BYTES_MAX
    share = 1.0 if whole else min(done / len(batch.objects), BATCH_BYTES_MAX / size)
    return Meaning(events=found.events, faults=found.faults, misfits=misfits, size=size, share=share)


def _encode(events: Sequence[Event], body_bytes_max: int, found: _Collected) -> int:
    size = 0
    for event in events:
        try:
            body, truncated = encode(event, body_bytes_max)
        except EventTooLargeError as error:
            found.faults.append(error.fault)
        else:
            found.events.append(_new_event(event, body, truncated=truncated))
            size += len(body)
    return size


def _new_event(event: Event, body: bytes, *, truncated: bool) -> NewEvent:
    return NewEvent(event.type, event.object, event.conversation_id, event.channel_id, body, truncated)


class BatchRows:
    """How many rows of the change log are read at once: ``limit``, from what the settings allow down to 1."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self.limit = rows_max  # an object that changes in two pages of a backlog is told twice

    def fitted(self, batch: Batch, size: int) -> None:
        """A batch had bodies of so many bytes: where it was full and twice as much would fit, double."""
        if batch.changes >= self.limit and 2 * size <= BATCH_BYTES_MAX:
            self.limit = min(2 * self.limit, self._rows_max)

    def exceeded(self, batch: Batch, share: float) -> None:
        """Only about this share of a batch, less than 1, would have fitted: read fewer rows, at least one."""
        self.limit = max(1, int(batch.changes * share * 0.9))


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


logger = structlog.get_logger(__name__)

_TYPE = attrgetter("type")

CONSUMER_POLL_S = 1.0
FOREIGN_PATIENCE_S = 2.0  # a recorder begins an epoch in the store first, and names it beside the changes just after
BEGINNING_PATIENCE_S = 2.0  # a recorder that holds the lease of an empty log begins its first epoch at once
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.5  # less than the idle time-out of a recorder's session
NEWCOMER_PAUSE_S = 2 * BACKOFF_MAX_S  # a recorder that is alive takes the lease in this time


class ForeignConsumerError(AiryTrioError):
    """Another event log records these changes: this server would serve a log that is not written.

    The server that comes later is the one to refuse: it raises this at its start, also if it finds the lease free for
    as long as an outage of the other one lasts. A server that has started with its log named stays, as after an
    interruption, and records again when the lease is free.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        super().__init__(
            f"another server records the changes of this database into another event log ({consumer.store}); "
            "give both the same [log] store and url"
        )


@frozen(kw_only=True)
class RecorderOptions:
    """Limits of a recorder: rows of the change log in a batch, bytes of a body; and its store in words.

    ``shareable``: see ``Consumption``.
    """

    batch_rows_max: int
    body_bytes_max: int
    events: EventsOptions
    store: str
    shareable: bool = False


class Recorder:
    """One task, ``run``, and ``ahead.run`` beside it. Row faults and misfits are counted in ``statistics``."""

    def __init__(
        self,
        feed: ChangeFeed,
        lease: Lease,
        log: EventLog,
        options: RecorderOptions,
        *,
        deference: LeaderPreference | None = None,
    ) -> None:
        self._feed = feed
        self.ahead = ReadAhead(feed)
        """Reads the next batch of a backlog while the last one is appended, where its task runs."""
        self._lease = lease
        self._log = log
        self._options = options
        self._consumption = Consumption(feed, log, options.store, shareable=options.shareable)
        self._deference = LeaderPreference() if deference is None else deference
        self._rows = BatchRows(options.batch_rows_max)
        self._counts = Counter({"events": 0, "changes": 0, "faults": 0, "misfits": 0})
        self._types = Counter(dict.fromkeys(TYPES, 0))
        self._behind_since: float | None = None
        self._pause_s = 0.0
        self.recording = False
        """Whether this node holds the lease and its last batch was recorded."""
        self.recorded: str | None = None
        """The last resume point that the store is known to hold; what lies before it may be trimmed."""
        self.interruption: str | None = None
        """Why nothing is recorded now, in words; None while this node records, or another one does."""

    @property
    def lag_s(self) -> float:
        """For how long there has been something that is not recorded yet; 0 also where another node records."""
        return 0.0 if self._behind_since is None else trio.current_time() - self._behind_since

    def statistics(self) -> dict[str, int]:
        """Since the start: ``events`` appended, ``changes`` read, row ``faults``, metadata ``misfits``."""
        return dict(self._counts)

    def events_by_type(self) -> dict[str, int]:
        """The events appended since the start, by type; 0 for a type that has not occurred."""
        return dict(self._types)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC114, ASYNC128 - _Starting calls it
        """Record while the lease is ours, wait for it while it is not; for ever. An interruption is said once.

        Started once another server is known to write our log, or the first batch is recorded. Raises what waiting does
        not heal; ``ForeignConsumerError``, ``ForeignLogError`` and an ``Unavailable`` only before it has started.
        """
        starting = _Starting(task_status)
        while True:
            try:
                await self._hold(starting)
            except (Unavailable, StaleAppend, ForeignLogError) as error:
                if not (starting.done or isinstance(error, StaleAppend)):
                    raise
                if not self._pause_s:
                    logger.warning("recording interrupted", reason=str(error))
                self._pause_s = min(max(2 * self._pause_s, BACKOFF_FIRST_S), BACKOFF_MAX_S)
                self.recording, self.interruption = False, str(error)
                self._fall_behind()
                await trio.sleep(self._pause_s)
            finally:
                self.recording = False

    async def _hold(self, starting: "_Starting") -> None:
        """One life of the lease: returns when it is lost, which may also show as ``Unavailable`` or ``StaleAppend``."""
        await self.ahead.throw_away()
        await self._wait_for_lease(starting)
        if not starting.done and await self._consumption.foreign() is not None:
            await self._lease.release()
            await trio.sleep(NEWCOMER_PAUSE_S)  # the server whose log is named comes first, if it is alive
            await self._wait_for_lease(starting)
        held_since = trio.current_time()
        head, point = await self._consumption.start_point()
        self.recorded = point
        while True:
            self._fall_behind()
            head, point, more = await self._record(head, point, self.recorded)
            if not self.recording:
                logger.info("recording again" if self._pause_s else "recording", store=self._options.store)
                self.recording, self.interruption, self._pause_s = True, None, 0.0
            starting.finish()
            if not more:
                self._behind_since = None
                await self._feed.settle(self.recorded)
                with self._deference.until_due(held_since) as sleep:
                    await self._feed.wait()
                if sleep.cancelled_caught:  # in the middle of something: it gives way though that may be withdrawn
                    await self._give_way()
                    return
            if self._deference.is_due(held_since):
                await self._give_way()
                return
            if not await self._lease.try_acquire():
                logger.warning("the lease was lost: another server may record")
                return

    async def _give_way(self) -> None:
        """Release the lease: the process that asks for it most often gets it."""
        logger.info("recording is left to the process that does nothing else")
        self.recording, self._behind_since = False, None
        await self.ahead.throw_away()
        await trio.sleep(LEASE_POLL_S)  # by then the other workers have heard it too, and do not ask so often
        await self._lease.release()

    async def _wait_for_lease(self, starting: "_Starting") -> None:
        """Return with the lease. If another log is named for longer than beginning an epoch takes, a start fails.

        Raises ``ForeignConsumerError``.
        """
        if self._deference.asked:  # who comes first is the other one, also where all come back from an outage at once
            await self._feed.consumer()
            await self._deference.pause()
        look_at = foreign_since = asked_since = trio.current_time()
        while not await self._lease.try_acquire():
            now = trio.current_time()
            if now >= look_at:
                foreign = await self._consumption.foreign()
                if foreign is None:
                    if (
                        starting.done
                        or now - asked_since >= BEGINNING_PATIENCE_S
                        or await self._consumption.has_begun()
                    ):
                        look_at = foreign_since = now + CONSUMER_POLL_S
                        self.interruption, self._behind_since = None, None
                        starting.serve()
                elif now - foreign_since >= FOREIGN_PATIENCE_S:
                    error = ForeignConsumerError(foreign)
                    if not starting.done:
                        raise error
                    if self.interruption is None:
                        logger.error("recording interrupted", reason=str(error))
                    self.interruption = str(error)
                    self._fall_behind()
            await self._deference.pause()

    async def disown(self) -> None:
        """See ``Consumption.disown``."""
        await self._consumption.disown()

    async def _record(self, head: Position, point: str, recorded: str) -> tuple[Position, str, bool]:
        """Read the batch after ``point`` and append its events.

        ``recorded``: the resume point that the store holds. Give the head and the point after the batch, and whether
        there is more. Reading ahead begins after the seal, which needs the same connection.
        """
        try:
            batch, meaning, asked_at = await self._read(point)
        except ResumePointLost as error:
            return await self._restart(head, point, error)
        reached = batch.resume_point
        if batch.changes:
            reached = await self._feed.seal(recorded, reached)
        if batch.more:
            self.ahead.begin(reached, self._rows.limit)
        if batch.changes:
            changed_at = None if batch.age_s is None else asked_at - batch.age_s
            head = await self._log.append(head, meaning.events, reached, replaces=recorded, changed_at=changed_at)
            self.recorded = reached
            self._count(batch, meaning)
        return head, reached, batch.more

    async def _read(self, point: str) -> tuple[Batch, Meaning, float]:
        """Read one batch and say what it means and when it was asked for.

        One that is too large to append is read again with fewer rows.
        """
        while True:
            batch, asked_at = await self.ahead.take(point, self._rows.limit)
            meaning = await meaning_of(batch, self._options.events, body_bytes_max=self._options.body_bytes_max)
            if meaning.share == 1:
                self._rows.fitted(batch, meaning.size)
                return batch, meaning, asked_at
            self._rows.exceeded(batch, meaning.share)

    async def _restart(self, head: Position, point: str, reason: ResumePointLost) -> tuple[Position, str, bool]:
        """Begin an epoch after the changes that are visible now."""
        # Stale? That must show before changes are forgotten.
        await self._log.append(head, (), point, replaces=self.recorded)
        head, self.recorded = await self._consumption.begin_epoch(head, await self._feed.restart())
        logger.warning("new epoch: the database has another history", reason=str(reason))
        return head, self.recorded, True

    def _fall_behind(self) -> None:
        """Note that there may be something to record, from now on unless from before."""
        if self._behind_since is None:
            self._behind_since = trio.current_time()

    def _count(self, batch: Batch, meaning: Meaning) -> None:
        """Count and tell, once it is recorded: what is read again after an interruption is told once."""
        self._counts["changes"] += batch.changes
        self._counts["events"] += len(meaning.events)
        self._types.update(map(_TYPE, meaning.events))
        self._counts["misfits"] += meaning.misfits
        self._counts["faults"] += len(meaning.faults)
        for fault in meaning.faults:
            logger.warning("row fault", table=fault.table, key=fault.key, reason=fault.reason)


class _Starting:
    """Says once that the recorder has started."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self.done = False

    def serve(self) -> None:
        """Another server records."""
        if not self.done:
            logger.info("another server records; this one serves")
            self.finish()

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self._task_status.started()
