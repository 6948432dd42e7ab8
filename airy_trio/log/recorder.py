"""The recorder reads the change feed, translates the changes and appends the events together with the resume point.

Exactly once. A recorder records only while it holds the lease. After any failure between reading and appending it
starts again from the resume point that the store holds, so a batch is appended once or not at all. The lease alone
would not ensure that: a recorder may have lost it without noticing. Therefore each append states the head and the
resume point that the recorder expects, and the store rejects it (``StaleAppend``) if either differs.

Size of a batch. A batch is appended whole, with the resume point after it, so the read has to be small enough. The
limit is a number of rows of the change log which is adapted so that a batch has at most ``BATCH_BYTES_MAX`` of bodies.
A batch that turns out larger is read again with fewer rows.

Reading ahead. During a backlog the next batch is read while the last one is appended, because both are mostly work of
the databases. This needs a second task, ``ReadAhead.run``, since a read in a thread needs a task that waits for it.
That task has no position and decides nothing: a batch that is not taken is discarded, and reading again after the same
point returns the same changes.

Standby. The workers of a command share the machine with a process that only records. They are standbys: they poll the
lease ten times less often than that process does, so it nearly always wins, and a worker that holds the lease offers it
now and then. The processes do not need to know about each other; the lease alone decides.

Upkeep. The node that records also adds events to the current state and trims both logs (``Retention``), the change log
only up to the recorded resume point.
"""

from collections import Counter
from collections.abc import Sequence
from math import inf
from operator import attrgetter
from typing import Final

import structlog
import trio
from attrs import field, frozen

from airy_trio.capture.feed import Batch, ChangeFeed, Lease, ResumePointLost
from airy_trio.errors import MappingError, Unavailable, lines_of
from airy_trio.events.models import TYPES
from airy_trio.events.translate import EventsOptions, EventTooLargeError, encode, translate
from airy_trio.events.values import RowFault
from airy_trio.log.current import StateOptions, StateRecorder, fold
from airy_trio.log.event_log import EventLog
from airy_trio.log.leadership import Consumption, ForeignConsumerError, ForeignLogError
from airy_trio.log.options import LogOptions
from airy_trio.log.store import EventStore, NewEvent, Position, StaleAppend, StateChange, StoredState
from airy_trio.retry import Backoff, Outage

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes of bodies in one append, unless a single change makes more. The time-outs of stores assume appends that take
less than a second."""
SLICE_OBJECTS: Final = 250
"""Objects translated between two checkpoints: some milliseconds, after which clients are served."""
LEASE_POLL_S: Final = 0.05
"""Between two attempts to acquire a lease that another recorder holds."""
STANDBY_POLL_S: Final = 10 * LEASE_POLL_S
"""The same for a standby, which also waits as long before its first attempt."""
STANDBY_TERM_S: Final = 10.0
"""How long a standby records before it offers the lease by releasing it. If the recorder process is down or hangs, the
offer delays events by ``STANDBY_POLL_S`` in vain, so it should be rare."""
CONSUMER_POLL_S: Final = 1.0
"""Between two checks that the holder of the lease writes the same event log."""
FOREIGN_PATIENCE_S: Final = 2.0
"""How long another log may be named: a recorder begins an epoch in the store first, and names it just after."""
BEGINNING_PATIENCE_S: Final = 2.0
"""How long an empty log may have no epoch: a recorder that holds the lease begins the first one at once."""
BACKOFF_MAX_S: Final = 0.5
"""Less than the idle time-out of a recorder's session."""
NEWCOMER_PAUSE_S: Final = 2 * BACKOFF_MAX_S
"""A recorder that is alive acquires a released lease in this time."""
TRIM_PERIOD_S: Final = 1.0
"""Between the end of one trim and the start of the next."""
TRIM_EVENTS_MAX: Final = 5000
"""Events deleted in one transaction of the event store."""
TRIM_CHANGES_MAX: Final = 500
"""Changes deleted in one transaction of the application's database: well under a millisecond of write lock."""

logger = structlog.get_logger(__name__)

_TYPE = attrgetter("type")


@frozen(kw_only=True)
class RecorderOptions:
    """Limits of a recorder and its part among others.

    ``batch_rows_max``: rows of the change log in a batch. ``body_bytes_max``: bytes of one body. ``store``,
    ``shareable``: see ``Consumption``. ``standby``: leave recording to the process that only records, if it is alive.
    ``state``: what is kept in the current state.
    """

    batch_rows_max: int
    body_bytes_max: int
    events: EventsOptions
    store: str
    shareable: bool = False
    standby: bool = False
    state: StateOptions = field(factory=StateOptions)


class Recorder:
    """The tasks ``run`` and ``ahead.run``, which must run together: ``run`` waits for the reads of ``ahead.run``."""

    def __init__(self, feed: ChangeFeed, lease: Lease, log: EventLog, options: RecorderOptions) -> None:
        self._feed = feed
        self.ahead = ReadAhead(feed)
        self._lease = lease
        self._log = log
        self._options = options
        self.consumption = Consumption(feed, log, options.store, shareable=options.shareable)
        # Begin with the largest, because an object that changes in two batches of a backlog is sent twice.
        self._limit = options.batch_rows_max
        self._state = StateRecorder(options.state)
        self._appends = self._folded = 0  # appends with something to fold, and those of them that are folded
        self.counts = Counter({"events": 0, "changes": 0, "faults": 0, "value_faults": 0, "kept": 0, "ended": 0})
        """Counts since the start: ``events`` appended, ``changes`` read, row ``faults``.

        ``value_faults``: metadata values that could not be converted to their declared type and became strings.
        ``kept``: events of types whose current state is kept. ``ended``: objects that left the current state.
        """
        self.events_by_type = Counter(dict.fromkeys(TYPES, 0))
        """The number of events of each type appended since the start, 0 for a type that has not occurred."""
        self._behind_since: float | None = None
        self._outage = Outage(logger, "recording interrupted", backoff=Backoff(max_s=BACKOFF_MAX_S))
        self._task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        self._has_started = False  # whether the start was reported
        self.recording = False
        """Whether this node holds the lease and its last batch was recorded."""
        self.recorded: str | None = None
        """The last resume point that the store is known to hold; changes before it may be trimmed."""

    @property
    def interruption(self) -> str | None:
        """Why nothing is recorded now; None while this node or another one records."""
        return self._outage.reason

    @property
    def lag_s(self) -> float:
        """For how long there have been changes that are not recorded; 0 also if another node records."""
        return 0.0 if self._behind_since is None else trio.current_time() - self._behind_since

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC114, ASYNC128 - _finish_start calls it
        """Record while this node holds the lease, wait for it otherwise, until cancelled.

        Reports that it has started when another server is known to write our log, or when the first batch is recorded.

        Error handling: an outage is logged once, and recording is retried until it succeeds. The same applies after the
        start if the log is foreign (``ForeignLogError``), or if a mapped table or column was dropped or renamed. In the
        last case the changes wait in the change log, the clients stay connected, and the recorder releases the lease,
        because a server with a new mapping can record. Before the start these errors are raised. Errors that waiting
        does not resolve are always raised.
        """
        self._task_status = task_status
        while True:
            try:
                await self._lead()
            except (Unavailable, StaleAppend, ForeignLogError, MappingError) as error:
                # A stale append does not make a start fail: another recorder has appended, and the next attempt reads
                # the new head.
                if not (self._has_started or isinstance(error, StaleAppend)):
                    raise
                # Before the pause, because retention works while ``recording`` is set. The ``finally`` is for the other
                # ways out of ``_lead``: a lease that was lost or offered, and a cancellation.
                self.recording, reason = False, "; ".join(lines_of(error))
                self._mark_behind()
                if isinstance(error, MappingError) and self._outage.reason != reason:
                    self._outage.end()  # so that this reason is logged too
                pause_s = self._outage.begin(reason)
                if isinstance(error, MappingError):
                    await self._lease.release()
                await trio.sleep(pause_s)
            finally:
                self.recording = False

    async def fold(self, *, until: float) -> bool:
        """Add what was appended to the current state, up to a time (Trio's); return whether there is more."""
        while self.recording and self._folded < self._appends:
            if trio.current_time() >= until:
                return True
            # Read before the fold, because what is appended during the fold may not be part of it and needs another
            # one.
            appends, kept = self._appends, self._options.state.kept
            if not kept or not await fold(self._log.store, self._state.generation, kept):
                self._folded = appends
        return False

    async def _lead(self) -> None:
        """Acquire the lease and record until it is lost or offered.

        Its loss may also show as ``Unavailable`` or ``StaleAppend``.
        """
        await self.ahead.discard()
        await self._acquire_lease()
        if not self._has_started and await self.consumption.foreign() is not None:
            # The server whose log is named may only have a short outage. If it is alive it acquires the lease now.
            await self._lease.release()
            await trio.sleep(NEWCOMER_PAUSE_S)
            await self._acquire_lease()
        offer_at = trio.current_time() + STANDBY_TERM_S if self._options.standby else inf
        head, point = await self.consumption.start_point()
        bounds = await self._log.store.bounds()
        # If the head has moved meanwhile, the first append is stale, and nothing that begins here is stored.
        self._state.begin(bounds if bounds.head == head else None)
        self._appends += 1  # by the recorder before, perhaps
        self.recorded = begun_at = point
        # ``head`` is what the next append expects. ``point`` is after what was read. ``self.recorded`` is the resume
        # point in the store, which the next append replaces. A batch without changes moves only ``point``, because
        # nothing has to be stored for it. An append that failed may have taken effect. So an error ends this method,
        # and its next call reads all three again.
        while True:
            self._mark_behind()
            head, point, more = await self._record(head, point, self.recorded)
            if not self.recording:
                # After the first read: a server whose mapping no longer fits must not end the state of another server.
                if self.recorded == begun_at:
                    await self._replace_state(head, begun_at, bounds.state)
                logger.info("recording" if self._outage.since is None else "recording again", store=self._options.store)
                self.recording = True
                self._outage.end()
            self._finish_start()
            if not more:
                self._behind_since = None
                await self._feed.settle(self.recorded)
                with trio.move_on_at(offer_at):  # a cancelled wait may have closed the session: the lease must go then
                    await self._feed.wait()
            if trio.current_time() >= offer_at:
                logger.info("lease offered to the recorder process")
                self.recording, self._behind_since = False, None
                await self.ahead.discard()
                await self._lease.release()
                return
            # This makes no query while the lease is held. It detects that the session was lost and opened again, which
            # loses the advisory lock without any error here.
            if not await self._lease.try_acquire():
                logger.warning("the lease was lost: another server may record")
                return

    async def _acquire_lease(self) -> None:
        """Poll the lease until this node holds it.

        Meanwhile the consumer of the changes is checked: if it stays another event log for ``FOREIGN_PATIENCE_S``, a
        start fails with ``ForeignConsumerError``, and a server that has started reports an interruption.
        """
        poll_s = STANDBY_POLL_S if self._options.standby else LEASE_POLL_S
        if self._options.standby:
            await trio.sleep(poll_s)  # a recorder process that is alive makes several attempts meanwhile
        check_at = foreign_since = waiting_since = trio.current_time()
        if self.interruption is not None:
            check_at += CONSUMER_POLL_S  # another server that cannot record holds the lease for one read
        while not await self._lease.try_acquire():
            now = trio.current_time()
            if now >= check_at and await self._check_consumer(now - foreign_since, now - waiting_since):
                check_at = foreign_since = now + CONSUMER_POLL_S
            await trio.sleep(poll_s)

    async def _check_consumer(self, foreign_s: float, waited_s: float) -> bool:
        """Check the consumer of the changes; return whether another server records them into our log, and report it.

        ``foreign_s``: for how long it has been another log, if it is one now. ``waited_s``: for how long the lease has
        not been free.
        """
        foreign = await self.consumption.foreign()
        if foreign is not None:
            if foreign_s >= FOREIGN_PATIENCE_S:
                error = ForeignConsumerError(foreign)
                if not self._has_started:
                    raise error
                if self.interruption != str(error):
                    self._outage.begin(str(error))
                self._mark_behind()
            return False
        if not (self._has_started or waited_s >= BEGINNING_PATIENCE_S or await self.consumption.has_begun()):
            return False
        self._behind_since = None
        self._outage.end()
        self._finish_start("another server records; this one serves")
        return True

    async def _replace_state(self, head: Position, point: str, known: StoredState | None) -> None:
        """Replace a state that was recorded in another way at once: the next change may come much later."""
        state = self._state.change(head.offset, (), (), continues=True)  # without backfills the marks stay
        if known is not None and (state is None or (known.generation, known.marks) != (state.generation, state.marks)):
            await self._log.append(head, (), point, replaces=point, state=state)

    async def _record(self, head: Position, point: str, recorded: str) -> tuple[Position, str, bool]:
        """Read the batch after ``point`` and append its events.

        ``recorded``: the resume point that the store holds. Returns the head and the point after the batch, and whether
        there is more to read.
        """
        try:
            batch, translated, requested_at = await self._read(point)
        except ResumePointLost as error:
            return await self._restart(head, point, error)
        reached = batch.resume_point
        if batch.changes:
            reached = await self._feed.seal(recorded, reached)
        # After the seal, which uses the same connection. If the append fails, `_lead` discards this read.
        if batch.more:
            self.ahead.begin(reached, self._limit)
        if batch.changes:
            # From the time of the request, although the database computes the age a little later. So a latency is
            # rather too long than too short.
            changed_at = None if batch.age_s is None else requested_at - batch.age_s
            state = self._state.change(
                head.offset, translated.events, translated.ended, batch.backfills, continues=batch.continues
            )
            head = await self._log.append(
                head, translated.events, reached, replaces=recorded, changed_at=changed_at, state=state
            )
            self.recorded = reached
            if state is not None and (state.folds or state.ended or state.swept):
                self._appends += 1
            self._count(batch, translated, state)
        return head, reached, batch.more

    async def _read(self, point: str) -> tuple[Batch, "TranslatedBatch", float]:
        """Read a batch that is small enough to append, and translate it; return also when it was requested."""
        while True:
            batch, requested_at = await self.ahead.take(point, self._limit)
            events, bytes_max = self._options.events, self._options.body_bytes_max
            translated = await translate_batch(batch, events, body_bytes_max=bytes_max, smallest=self._limit <= 1)
            self._limit = adapted_limit(self._limit, self._options.batch_rows_max, batch, translated)
            if translated.share == 1:
                return batch, translated, requested_at

    async def _restart(self, head: Position, point: str, reason: ResumePointLost) -> tuple[Position, str, bool]:
        """Begin an epoch after the changes that are visible now."""
        # ``restart`` makes the feed forget changes. A stale recorder must not do that, and this append detects it.
        await self._log.append(head, (), point, replaces=self.recorded)
        head, self.recorded = await self.consumption.begin_epoch(head, await self._feed.restart())
        self._state.begin(None)
        logger.warning("new epoch: the database has another history", reason=str(reason))
        return head, self.recorded, True

    def _finish_start(self, event: str = "") -> None:
        """Report once that the recorder has started, and log ``event`` if there is one. Idempotent."""
        if not self._has_started:
            if event:
                logger.info(event)
            self._has_started = True
            self._task_status.started()

    def _mark_behind(self) -> None:
        """There may be changes to record: start measuring the lag, unless it is being measured."""
        if self._behind_since is None:
            self._behind_since = trio.current_time()

    def _count(self, batch: Batch, translated: "TranslatedBatch", state: StateChange | None) -> None:
        """Count a batch and log its faults, after the append: a batch that is read again must not count twice."""
        self.counts["changes"] += batch.changes
        self.counts["events"] += len(translated.events)
        self.events_by_type.update(map(_TYPE, translated.events))
        self.counts["value_faults"] += translated.value_faults
        if state is not None:
            self.counts["kept"] += sum(event.type in self._options.state.kept for event in translated.events)
            self.counts["ended"] += len(state.ended)
        self.counts["faults"] += len(translated.faults)
        for fault in translated.faults:
            logger.warning("row fault", table=fault.table, key=fault.key, reason=fault.reason)


@frozen(kw_only=True)
class TranslatedBatch:
    """The events of a batch and the rows that could not become one.

    ``value_faults``: metadata values that became strings. ``size``: bytes of the bodies. ``share``: how much of the
    batch fits into an append; 1 if all of it, and only then are the events complete. ``ended``: see ``Translation``.
    """

    events: Sequence[NewEvent]
    faults: Sequence[RowFault]
    value_faults: int
    size: int
    share: float
    ended: Sequence[tuple[str, str]] = ()


async def translate_batch(
    batch: Batch, options: EventsOptions, *, body_bytes_max: int, smallest: bool = False
) -> TranslatedBatch:
    """Translate a batch and encode its events; stop beyond ``BATCH_BYTES_MAX``, except in a batch of one change.

    ``smallest``: the batch was read with a limit of 1. If it has more changes, the feed cannot separate them, and the
    batch counts as one change.
    """
    smallest = smallest or batch.changes <= 1
    events: list[NewEvent] = []
    faults: list[RowFault] = []
    ended: list[tuple[str, str]] = []
    size = value_faults = done = 0
    while done < len(batch.objects) and (size <= BATCH_BYTES_MAX or smallest):
        if done:
            await trio.lowlevel.checkpoint()
        translation = translate(batch.objects[done : done + SLICE_OBJECTS], options)
        done = min(done + SLICE_OBJECTS, len(batch.objects))
        value_faults += translation.value_faults
        faults += translation.faults
        ended += translation.ended
        for event in translation.events:
            try:
                body, truncated = encode(event, body_bytes_max)
            except EventTooLargeError as error:
                faults.append(error.fault)
            else:
                new = NewEvent(event.type, event.object, event.conversation_id, event.channel_id, body, truncated)
                events.append(new)
                size += len(body)
    whole = smallest or size <= BATCH_BYTES_MAX
    # Two upper estimates of the part that fits: how much was translated before the size exceeded the limit, and the
    # ratio of the limit to that size. If the lower one is still too high, the next read is cut again.
    share = 1.0 if whole else min(done / len(batch.objects), BATCH_BYTES_MAX / size)
    return TranslatedBatch(events=events, faults=faults, value_faults=value_faults, size=size, share=share, ended=ended)


def adapted_limit(limit: int, rows_max: int, batch: Batch, translated: TranslatedBatch) -> int:
    """Return how many rows of the change log to read after a batch that was read with ``limit``, at most ``rows_max``.

    If the batch is too large: fewer, but at least one. If it was full, and one twice as large would fit: twice as many.
    """
    if translated.share < 1:
        # A tenth less than the estimate, because rows differ in size, and each batch that is too large costs another
        # read. The new limit is below the old one even if the batch exceeded that.
        return max(1, int(min(batch.changes, limit) * translated.share * 0.9))
    if batch.changes >= limit and 2 * translated.size <= BATCH_BYTES_MAX:
        return min(2 * limit, rows_max)
    return limit


class ReadAhead:
    """Reads a feed for one recorder, ahead of it, in the task ``run``.

    A change of 100,000 rows is recorded at 39,000 instead of 33,000 events/s on Postgres, and at 36,000 instead of
    32,000 on SQLite (medians of three interleaved rounds).

    A feed that is not ``consumed`` is never read ahead: it remembers the objects that it has returned since the
    recorded point, and can only go back to the last two points.
    """

    def __init__(self, feed: ChangeFeed) -> None:
        self._feed = feed
        # Room for one, so that ``begin`` never waits for ``run``, nor ``run`` for ``take``.
        self._requests, self._requested = trio.open_memory_channel[tuple[str, int]](1)
        self._results, self._read = trio.open_memory_channel[Batch | Exception](1)
        self._begun_at: float | None = None  # of the read that is not yet taken or discarded

    async def run(self) -> None:
        """Perform the reads that were begun, until cancelled."""
        async for point, limit in self._requested:
            try:
                self._results.send_nowait(await self._feed.read(point, limit))
            except Exception as error:  # noqa: BLE001 - raised by ``take``, in the recorder's task
                self._results.send_nowait(error)

    def begin(self, point: str, limit: int) -> None:
        """Begin to read after a point. The next call must be ``take`` with the same arguments, or ``discard``."""
        if self._feed.consumed:
            self._begun_at = trio.current_time()
            self._requests.send_nowait((point, limit))

    async def take(self, point: str, limit: int) -> tuple[Batch, float]:
        """Return the batch after a point and when it was requested; if no read was begun, read it now.

        Raises the errors of ``ChangeFeed.read``.
        """
        if self._begun_at is None:
            requested_at = trio.current_time()
            return await self._feed.read(point, limit), requested_at
        result, requested_at = await self._read.receive(), self._begun_at
        self._begun_at = None
        if isinstance(result, Exception):
            raise result
        return result, requested_at

    async def discard(self) -> None:
        """Wait until the read that was begun has ended, and drop it: only one task may read a feed at a time."""
        if self._begun_at is not None:
            await self._read.receive()
            self._begun_at = None


class Retention:
    """Adds events to the current state and trims both logs, in small batches, in one task, ``run``."""

    def __init__(self, store: EventStore, feed: ChangeFeed, recorder: Recorder, options: LogOptions) -> None:
        self._store = store
        self._feed = feed
        self._recorder = recorder
        self._options = options
        self._trimmed_upto: str | None = None  # all changes before this resume point are trimmed
        self.trimmed = {"events": 0, "changes": 0}
        """How many were deleted since the start."""

    async def run(self) -> None:
        """Fold and trim while this node records, until cancelled.

        If a store or database is unavailable, this is repeated in the next period. One warning for each outage.
        """
        outage = Outage(logger, "trimming postponed")
        more = False
        while True:
            await trio.sleep(0 if more else TRIM_PERIOD_S)
            more = False
            try:
                # The fold comes first, because no trim deletes events that the current state lacks.
                more = await self._recorder.fold(until=trio.current_time() + TRIM_PERIOD_S)
                await self._trim_events()
                await self._trim_changes()
            except Unavailable as error:
                outage.begin(str(error))
            else:
                outage.end()

    async def _trim_events(self) -> None:
        count = TRIM_EVENTS_MAX
        while count == TRIM_EVENTS_MAX and self._recorder.recording:
            count = await self._store.trim(
                age_s=self._options.retain_s,
                keep=self._options.retain_events,
                limit=TRIM_EVENTS_MAX,
                unused_s=self._options.retain_durables_s,
            )
            self.trimmed["events"] += count

    async def _trim_changes(self) -> None:
        # Trim only after something was recorded. Otherwise this would be the most frequent transaction of an idle
        # server, and on SQLite it takes the write lock, which the application may need.
        while self._recorder.recording and self._recorder.recorded not in (None, self._trimmed_upto):
            upto = self._recorder.recorded
            count = await self._feed.trim(upto, TRIM_CHANGES_MAX)
            self.trimmed["changes"] += count
            if count < TRIM_CHANGES_MAX:
                self._trimmed_upto = upto
