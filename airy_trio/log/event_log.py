"""The event log as one node sees it: the store, its newest events in memory, and which views have grown.

One task, ``follow``, reads what other nodes append; the recorder of this node appends through ``append``. Both end
in the same place, the tail, which takes an event once. What this node has seen never goes back: a store that has lost
events of its end (restored, failed over) is given a new epoch. Knows nothing of clients: whoever reads a view attaches
to it and asks ``wait_grown``.

The clock of an event store, which stamps the events, in the terms of this node's clocks.

A store that has gone back (restored, failed over): how a node that knows better finds out, and what it does then.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from math import inf
from operator import attrgetter

import structlog
import trio

from airy_trio.events.destinations import Destination, OfConversation
from airy_trio.log.latency import Arrivals, Latencies
from airy_trio.log.options import LogOptions
from airy_trio.log.position import Position
from airy_trio.log.reads import READS_MAX, Gate, Reads
from airy_trio.log.store import (
    Bounds,
    EventStore,
    NewEvent,
    PositionExpired,
    StaleAppend,
    StoredEvent,
    StoreUnavailable,
    is_all,
)
from airy_trio.log.tail import READ_BYTES_MAX, READ_EVENTS_MAX, Growth, Tail, View, newest_in, read_newest


class StoreClock:
    """What time it is at the store, as of its newest ``Bounds``.

    ``clock`` gives seconds since whenever, and nobody sets it; it measures the store's clock between two looks at it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._skew_ms = 0.0
        self._looked_at = -inf

    @property
    def age_s(self) -> float:
        """How long ago that was."""
        return self._clock() - self._looked_at

    def look(self, bounds: Bounds) -> None:
        """Set it by bounds that were read just now."""
        self._looked_at = self._clock()
        self._skew_ms = bounds.now_ms - self._looked_at * 1000

    def ms_before(self, age_s: float) -> int:
        """The time of the store so long ago, in milliseconds."""
        return int(self._clock() * 1000 + self._skew_ms - age_s * 1000)

    def changed_at(self, event: StoredEvent) -> float:
        """When the change behind an event was made, in Trio's time; if its age is not known, when it was appended."""
        changed_at_ms = event.appended_at_ms - (event.age_ms or 0)
        return trio.current_time() - (self._clock() + (self._skew_ms - changed_at_ms) / 1000)


logger = structlog.get_logger(__name__)


async def is_truncated(store: EventStore, bounds: Bounds, known: Position, newest: StoredEvent | None) -> bool:
    """Whether the store has lost events up to ``known``, of the same epoch as its ``bounds``.

    ``newest``: after an outage, the event at ``known``, if it is in memory: the store may have lost and replaced it.
    Raises ``StoreUnavailable``.
    """
    if bounds.last < known.offset:
        return True
    if newest is None or newest.offset < bounds.first:
        return False
    try:
        found = await store.read(known.at(newest.offset - 1), 1)
    except PositionExpired:  # trimmed just now, or an epoch began: what follows will tell
        return False
    return list(found) != [newest]


async def disown(store: EventStore, bounds: Bounds, known: Position) -> Bounds:
    """Begin an epoch, so that no position that a client was given ever names another event; the bounds after it.

    Raises ``StoreUnavailable``.
    """
    logger.error("the event store has lost events that clients were sent", known=str(known), found=str(bounds.head))
    try:
        return await store.begin_epoch(bounds.head, await store.resume_point())
    except StaleAppend:  # another node did, or has appended to what is left
        return await store.bounds()


_APPEND = attrgetter("appended_at_ms", "age_ms")  # the same for all events of one append
OWN_APPEND_S = 0.1
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
BOUNDS_AGE_S = 5.0  # at which `follow` asks for them again, as for the store's clock
LAG_EVERY_S = 1.0
"""Between two looks at the store's head, by which the lag of ``follow`` is measured."""


class EventLog:
    """The store and its tail. ``open`` comes first; then ``follow`` runs as a task for as long as the log is used.

    ``clock``: see ``StoreClock``.
    """

    def __init__(self, store: EventStore, options: LogOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.retain_s = options.retain_s
        """How long the store keeps an event."""
        self.retain_durables_s = options.retain_durables_s
        """How long the store keeps the position of a durable subscription that is not used."""
        self._clock = StoreClock(clock)
        self._tail = Tail(events_max=options.tail_events, bytes_max=options.tail_bytes)
        self._tail_events, self._tail_bytes = options.tail_events, options.tail_bytes
        self._head: Position | None = None
        # The store may have lost events whenever it was away. Doubts are counted, not flagged: `catch_up` awaits the
        # store, and must not settle a doubt that is raised meanwhile.
        self._doubts = self._doubts_settled = 0
        self._reading = trio.Lock()  # who read the bounds of an epoch must not act on them after it has ended
        self._append_ended: trio.Event | None = None
        self._growth = Growth()
        self.gate = Gate(READS_MAX)
        """To be passed, for its address, by whatever a client makes the store answer."""
        self._reads = Reads(store)
        self._arrivals = Arrivals()
        self.appending = Latencies()
        """How long the store takes for an append."""
        self.away: str | None = None
        """Why the store cannot be read now, in words; None while it can."""
        self._away_since: float | None = None
        # A head of the store, and when it was asked for. It is replaced once this node has reached it: the newest one
        # is never reached while others append.
        self._goal: tuple[Position, float] | None = None
        self._goal_asked_at: float | None = None

    @property
    def head(self) -> Position:
        """The newest position that this node knows."""
        if self._head is None:
            message = "open() comes first"
            raise RuntimeError(message)
        return self._head

    @property
    def away_s(self) -> float:
        """For how many seconds the store has not been readable; 0 while it is."""
        return 0.0 if self._away_since is None else trio.current_time() - self._away_since

    @property
    def follow_lag_s(self) -> float:
        """For how many seconds the store has had events that this node lacks, or not said whether it has.

        0 if this node has them all. Measured by ``watch_lag``, at most ``LAG_EVERY_S`` late.
        """
        since = self._goal_asked_at
        if self._goal is not None and not self._has_reached(self._goal[0]):
            since = self._goal[1]
        return 0.0 if since is None else trio.current_time() - since

    @property
    def epoch(self) -> str:
        """The epoch of the head."""
        return self.head.epoch

    def statistics(self) -> dict[str, int]:
        """What the tail holds: ``events``, ``bytes`` of bodies, ``views``; and the ``head``'s offset."""
        return {**self._tail.statistics(), "head": self.head.offset}

    async def open(self) -> None:
        """Read the store's bounds and its newest events. Raises ``StoreUnavailable``."""
        async with self._reading:
            await self._start(await self._bounds())
            await self._read_on()

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        changed_at: float | None = None,
    ) -> Position:
        """Append after ``expected`` with the resume point, wake who reads, and give the new head.

        ``changed_at``: when the oldest of the changes was made, in Trio's time. Latencies are measured from it, on
        other nodes by the age that each event carries; what the store waits before it stamps the append is not in it.

        The writer says where it believes the head to be: this node's own ``head`` follows other writers, and would
        let pass what the store's comparison must refuse. Raises what ``EventStore.append`` does.
        """
        begun_at = trio.current_time()
        if changed_at is not None:
            age_ms = max(0, round((begun_at - changed_at) * 1000))
            # Half the cost of `_replace`: 1.5 ms for 5000 events, next to 15 ms of CPU time for their append.
            events = [NewEvent._make((*event[:-1], age_ms)) for event in events]
        ended = self._append_ended = trio.Event()
        try:
            stored = await self.store.append(expected, events, resume_point, replaces=replaces)
            self.appending.observe(trio.current_time() - begun_at)
            self._take(expected.epoch, stored, changed_at)
        except StoreUnavailable:
            self._doubts += 1
            raise
        finally:
            ended.set()
        # Let the task that serves readers run before the writer does its next batch: clients wait for this event. Trio
        # runs the tasks of one pass in random order, so after one checkpoint that task has run, or runs later in the
        # same pass; after two it has run. Waiting for the task itself would be no better: while it serves many clients,
        # the next batch would wait for all of them. Shielded, because the append has happened.
        for _ in range(2):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return expected.at(expected.offset + len(stored))

    async def begin_epoch(self, expected: Position, resume_point: str) -> Position:
        """Drop everything, start a new epoch, and give its head: the history of the database was lost.

        Raises what ``EventStore.begin_epoch`` does.
        """
        async with self._reading:
            await self._start(await self.store.begin_epoch(expected, resume_point))
            return self.head

    async def follow(self) -> None:
        """Take what any node appends, for ever. A store that is away is waited for; said once, and once it is back."""
        pause_s = 0.0
        while True:
            try:
                if pause_s:
                    await self.catch_up()
                    logger.info("event store available again")
                    pause_s, self.away, self._away_since = 0.0, None, None
                known = self.head
                await self.store.wait(known)
                await self._end_of_append()
                if self.head == known:  # else it was this node's own append, which is in the tail
                    await self._go_on()
            except StoreUnavailable as error:
                if not pause_s:
                    self._away_since = trio.current_time()
                    logger.warning("event store unavailable", reason=str(error))
                self._doubts += 1
                self.away = str(error)
                pause_s = min(max(2 * pause_s, BACKOFF_FIRST_S), BACKOFF_MAX_S)
                await trio.sleep(pause_s)

    async def watch_lag(self) -> None:
        """Measure ``follow_lag_s``. Runs until cancelled."""
        while True:
            await trio.sleep(LAG_EVERY_S)
            if self.away is None:
                await self._look_for_lag()

    async def catch_up(self) -> None:
        """Read up to the store's head, into a new epoch if there is one. Raises ``StoreUnavailable``."""
        async with self._reading:
            while True:
                await self._compare()
                await self._read_on()
                if not self._doubtful:
                    return

    def attach(self, destination: Destination, reader: object) -> View:
        """Register a reader of a destination: its view is reported by ``wait_grown`` from now on."""
        return self._tail.attach(destination, reader)

    def detach(self, view: View, reader: object) -> None:
        """Take a reader away. Idempotent."""
        self._tail.detach(view, reader)

    def after(self, view: View, offset: int, *, events_max: int, bytes_max: int) -> Sequence[StoredEvent]:
        """The next events of a view from memory. Raises ``LookupError`` where ``offset < view.evicted``."""
        return self._tail.after(view, offset, events_max=events_max, bytes_max=bytes_max)

    async def read(
        self, after: Position, limit: int, destination: Destination, *, bytes_max: int, address: str = ""
    ) -> Sequence[StoredEvent]:
        """Read the next events of a destination from the store, for a client at ``address``.

        Raises ``PositionExpired``, ``StoreUnavailable``.
        """
        async with self.gate.place(address):
            return await self._reads.read(after, self.head, limit, destination, bytes_max=bytes_max)

    async def recent(
        self, destination: Destination, *, age_s: float, limit: int, bytes_max: int, address: str = ""
    ) -> tuple[Position, Sequence[StoredEvent]]:
        """Return where live goes on, and the newest event of each object of a destination before that.

        If the tail does not reach back far enough, the store is asked, for a client at ``address``. Raises
        ``StoreUnavailable`` if that is away.
        """
        while True:
            found = self.recent_in_tail(destination, age_s=age_s, limit=limit, bytes_max=bytes_max)
            if found is not None:
                return found
            head = self.head
            async with self.gate.place(address):
                try:
                    return head, await self.store.recent(head, age_s, limit, destination, bytes_max=bytes_max)
                except PositionExpired:  # an epoch began meanwhile; the tail knows it after this
                    await self.catch_up()

    def recent_in_tail(
        self, destination: Destination, *, age_s: float, limit: int, bytes_max: int
    ) -> tuple[Position, Sequence[StoredEvent]] | None:
        """Return what ``recent`` returns if the tail reaches back far enough; None if the store must be asked."""
        since_ms = self._clock.ms_before(age_s)
        found = newest_in(self._tail, destination, since_ms=since_ms, limit=limit, bytes_max=bytes_max)
        return None if found is None else (self.head, found)

    async def channels_of(self, conversation: OfConversation, *, address: str = "") -> frozenset[str]:
        """Return the channel of a conversation's newest event; empty if there is no such event, or it has no channel.

        If the tail does not reach back far enough, the store is asked, for a client at ``address``. Raises
        ``StoreUnavailable`` if that is away.
        """
        while True:
            since_ms = self._clock.ms_before(self.retain_s)
            found = newest_in(self._tail, conversation, since_ms=since_ms, limit=1, bytes_max=1)
            if found is None:
                async with self.gate.place(address):
                    try:
                        found = await self._reads.newest(self.head, self.retain_s, conversation)
                    except PositionExpired:  # an epoch began meanwhile; the tail knows it after this
                        await self.catch_up()
                        continue
            kept = [event for event in found if event.appended_at_ms >= since_ms]
            return frozenset(event.channel_id for event in kept if event.channel_id is not None)

    async def floor(self) -> Position:
        """The oldest position after which everything is retained, of the ``head``'s epoch.

        Raises ``StoreUnavailable``.
        """
        while (bounds := await self._bounds()).epoch != self.epoch:  # it began just now
            await self.catch_up()
        return bounds.floor

    def changed_at(self, event: StoredEvent) -> float:
        """When the change behind an event was made, in Trio's time; if that is not known, when it was appended."""
        changed_at = self._arrivals.at(event.offset)
        return self._clock.changed_at(event) if changed_at is None else changed_at

    async def wait_grown(self) -> frozenset[View]:
        """The views with readers that grew, or lost their past, since the last call. For one consumer."""
        return await self._growth.wait()

    def _has_reached(self, head: Position) -> bool:
        return head.epoch == self.epoch and head <= self.head

    async def _look_for_lag(self) -> None:
        asked_at = self._goal_asked_at = trio.current_time()
        try:
            head = (await self.store.bounds()).head
        except StoreUnavailable:
            self._doubts += 1  # `follow` may be asleep, and must not go on as if it had missed nothing
            return
        finally:
            self._goal_asked_at = None
        if self._goal is None or self._has_reached(self._goal[0]):
            self._goal = head, asked_at
        elif self._goal[0].epoch != head.epoch:  # that one is never reached
            self._goal = head, self._goal[1]

    @property
    def _doubtful(self) -> bool:
        """Whether the store was away since its end was last compared with this node's newest event."""
        return self._doubts != self._doubts_settled

    async def _go_on(self) -> None:
        """Take what was appended after the head; where that is not simply what comes next, ``catch_up``.

        It lies between the append of another node and the clients of this one: one question to the store, mostly.
        """
        async with self._reading:
            if not self._doubtful and self._clock.age_s < BOUNDS_AGE_S:
                known = self.head
                with suppress(PositionExpired):
                    events = await self.store.read(known, READ_EVENTS_MAX, bytes_max=READ_BYTES_MAX)
                    if not self._doubtful:
                        self._take(known.epoch, events)
                        if events and is_all(events, READ_EVENTS_MAX, READ_BYTES_MAX):
                            return
        await self.catch_up()

    async def _end_of_append(self) -> None:
        """Give this node's own append, which may just have woken us, the time to end: then nothing has to be read."""
        if self._append_ended is not None:
            with trio.move_on_after(OWN_APPEND_S):
                await self._append_ended.wait()

    async def _compare(self) -> None:
        """Begin an epoch if the store has lost events, and follow it into a new one. Settles doubts.

        Raises ``StoreUnavailable``.
        """
        # All three belong together, and to the time before the store is asked: an event that this node appends
        # meanwhile is not lost, and must not stand in for the one to compare.
        known, newest, doubts = self.head, self._tail.newest if self._doubtful else None, self._doubts
        bounds = await self._bounds()
        while bounds.epoch == known.epoch and await is_truncated(self.store, bounds, known, newest):
            bounds = await disown(self.store, bounds, known)
        self._doubts_settled = doubts
        if bounds.epoch != self.epoch:
            if known.offset:  # nobody has missed anything of an epoch without events
                logger.warning("new epoch", epoch=bounds.epoch, was=self.epoch)
            await self._start(bounds)

    async def _bounds(self) -> Bounds:
        bounds = await self.store.bounds()
        self._clock.look(bounds)
        return bounds

    async def _start(self, bounds: Bounds) -> None:
        """Fill the tail with the newest events, however many are retained before them."""
        newest = await read_newest(self.store, bounds, events_max=self._tail_events, bytes_max=self._tail_bytes)
        offset = newest[0].offset - 1 if newest else bounds.last
        self._head = Position(bounds.epoch, offset)
        self._arrivals.clear()
        self._growth.report(self._tail.start_after(offset))
        self._take(bounds.epoch, newest)

    async def _read_on(self) -> None:
        while True:
            after = self.head
            try:
                events = await self.store.read(after, READ_EVENTS_MAX, bytes_max=READ_BYTES_MAX)
            except PositionExpired:  # this node slept through the retention, or an epoch began just now
                await self._start(await self._bounds())
                continue
            if self._doubtful:  # they may be of a store that has replaced the compared one
                return
            self._take(after.epoch, events)
            if is_all(events, READ_EVENTS_MAX, READ_BYTES_MAX):
                return

    def _take(self, epoch: str, events: Sequence[StoredEvent], changed_at: float | None = None) -> None:
        """Add events to the tail, unless ``follow`` must first read what lies before them."""
        if epoch != self.epoch or not events or events[0].offset > self.head.offset + 1:
            return
        if changed_at is None:
            for _, group in groupby(events, _APPEND):
                appended = tuple(group)
                self._arrivals.note(appended[0].offset, appended[-1].offset, self._clock.changed_at(appended[0]))
        else:
            self._arrivals.note(events[0].offset, events[-1].offset, changed_at)
        self._growth.report(self._tail.extend(events))
        self._head = self.head.at(self._tail.last)
