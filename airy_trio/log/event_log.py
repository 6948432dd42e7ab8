"""The event log as one node sees it: the event store, its newest events in memory, and which views have grown.

**Two sources, one order.** The recorder of this node appends through ``append``. One task, ``follow``, reads what other
nodes append. Both pass their events to ``_take``, which accepts only events that follow the head and skips those that
are in the tail already. So every event is in the tail once and in order, whichever source had it first. If this node
appends events whose predecessors it has not read yet, ``follow`` reads all of them.

**A truncated store.** A store that was restored from a copy, or that failed over to a replica, may have lost its newest
events, and may give their offsets to other events. A position that a client was sent must never name another event.
So a node that has seen more than the store begins a new epoch in it, and clients with positions of the old epoch
reload. There are two signs. If the store ends before this node's head, it is truncated. If it was unavailable for a
while, it may have been truncated and then extended; so the newest event in memory is compared with the store's event at
that offset.

**Doubts.** Whenever an append, ``follow`` or ``watch_lag`` finds the store unavailable, the end of the store must be
compared again. ``_doubts`` counts these occasions, and ``_doubts_settled`` is the count up to which a comparison has
settled them. A flag would not do: the comparison awaits the store, and a doubt that is raised meanwhile must remain.
While there are doubts, events that are read are not taken, because they may be those of a store that has replaced the
one that was compared.

**Lag.** ``follow`` may hang without an error: a half-open connection, a notification that is never sent. ``watch_lag``
therefore reads the store's bounds on its own, sets ``clock`` by them, and measures how long this node takes to reach
their head.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from operator import attrgetter
from typing import Final, NamedTuple

import structlog
import trio

from airy_trio.log.current import CurrentState
from airy_trio.log.options import LogOptions
from airy_trio.log.store import (
    Bounds,
    EventStore,
    NewEvent,
    Position,
    PositionExpired,
    StaleAppend,
    StateChange,
    StoredEvent,
    StoreUnavailable,
    is_all,
)
from airy_trio.log.tail import Latencies, StoreClock, Tail, View
from airy_trio.retry import Outage

READ_EVENTS_MAX: Final = 1000
READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""One page of events, in events and in bytes of their bodies."""
OWN_APPEND_S: Final = 0.1
"""How long ``follow`` waits for an append of this node to return, before it reads the events from the store."""
LAG_EVERY_S: Final = 1.0
"""Between two reads of the store's bounds, which measure the lag of ``follow`` and set ``clock``."""
OWN_APPENDS_MAX: Final = 4096
"""The number of own appends with an exact time of their changes. Older ones are forgotten."""

logger = structlog.get_logger(__name__)


class _Append(NamedTuple):
    """An append of this node: the offsets of its first and last event, and the time (Trio's) of its oldest change."""

    first: int
    last: int
    changed_at: float


class EventLog:
    """The store and its tail. Call ``open`` first, then run ``follow`` as a task for as long as the log is used."""

    def __init__(self, store: EventStore, options: LogOptions) -> None:
        self.store = store
        self.retain_s = options.retain_s
        """How long the store retains an event."""
        self.retain_durables_s = options.retain_durables_s
        """How long the store retains the position of a durable subscription that is not used."""
        self.clock = StoreClock()
        self.tail = Tail(events_max=options.tail_events, bytes_max=options.tail_bytes)
        """The newest events. ``wait_grown`` reports the views of those that attach to it."""
        self._head: Position | None = None
        self._doubts = self._doubts_settled = 0
        self._reading = trio.Lock()  # a task that has read the bounds of an epoch must not act on them after its end
        self._append_ended: trio.Event | None = None
        self._grown: set[View] = set()
        self._any_grown = trio.Event()
        self._kept = frozenset(options.keep_current)
        self._missing, self._filling = self._kept, frozenset[str]()
        self.state_behind = 0
        """Events of the store that are not in its current state yet, as ``watch_lag`` has found."""
        self._own_appends: deque[_Append] = deque(maxlen=OWN_APPENDS_MAX)  # in the order of their events
        self.appending = Latencies()
        """How long the store takes for an append."""
        self._outage = Outage(logger, "event store unavailable", "event store available again")
        # A head of the store that this node has not reached yet, and when it was asked for. It is replaced only once it
        # is reached: the newest head would never be reached while other nodes append.
        self._goal: tuple[Position, float] | None = None
        self._goal_asked_at: float | None = None  # if the store is being asked for its head now

    @property
    def head(self) -> Position:
        """The newest position that this node has."""
        if self._head is None:
            raise RuntimeError("open() comes first")
        return self._head

    @property
    def epoch(self) -> str:
        """The epoch of the head."""
        return self.head.epoch

    @property
    def away(self) -> str | None:
        """Why the store is unavailable, in words; None if it is available."""
        return self._outage.reason

    @property
    def away_s(self) -> float:
        """Seconds since the store became unavailable; 0 if it is available."""
        return 0.0 if self._outage.since is None else trio.current_time() - self._outage.since

    @property
    def follow_lag_s(self) -> float:
        """Seconds for which the store has had events that this node lacks, or has not answered whether it has any.

        0 if this node has them all. Measured by ``watch_lag``, at most ``LAG_EVERY_S`` late.
        """
        since = self._goal_asked_at
        if self._goal is not None and not self._has_reached(self._goal[0]):
            since = self._goal[1]
        return 0.0 if since is None else trio.current_time() - since

    @property
    def state_whole(self) -> dict[str, bool]:
        """Whether the current state has each kept type completely, as ``watch_lag`` has found. See ``CurrentState``."""
        return {type_: type_ not in self._missing for type_ in self._kept}

    @property
    def state_filling(self) -> dict[str, bool]:
        """Whether a backfill of each kept type has begun and not ended, from the same."""
        return {type_: type_ in self._filling for type_ in self._kept}

    def statistics(self) -> dict[str, int]:
        """Return what the tail holds, ``events``, ``bytes`` of bodies and ``views``, and the ``head``'s offset."""
        return {**self.tail.statistics(), "head": self.head.offset}

    async def open(self) -> None:
        """Read the store's bounds and its newest events. Raises ``StoreUnavailable``."""
        async with self._reading:
            await self._start(await self.bounds())
            await self._read_on()

    async def append(  # noqa: PLR0913 - those of ``EventStore.append``, and one
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        changed_at: float | None = None,
        state: StateChange | None = None,
    ) -> Position:
        """Append after ``expected`` with the resume point, wake the readers, and return the new head.

        ``changed_at``: when the oldest of the changes was made, in Trio's time. Latencies are measured from it, on
        other nodes by the age that each event carries. That age does not include the time that the store waits before
        it stamps the append.

        The writer passes the head that it believes in, because this node's own ``head`` follows other writers and would
        let an append pass that the store must reject. Raises what ``EventStore.append`` raises.
        """
        begun_at = trio.current_time()
        if changed_at is not None:
            age_ms = max(0, round((begun_at - changed_at) * 1000))
            # Half the cost of `_replace`: 1.5 ms for 5000 events, next to 15 ms of CPU time for their append.
            events = [NewEvent._make((*event[:-1], age_ms)) for event in events]
        ended = self._append_ended = trio.Event()
        try:
            stored = await self.store.append(expected, events, resume_point, replaces=replaces, state=state)
            self.appending.observe(trio.current_time() - begun_at)
            self._take(expected.epoch, stored, changed_at)
        except StoreUnavailable:
            self._doubts += 1
            raise
        finally:
            ended.set()
        # Let the task that serves readers run before the writer starts its next batch: clients wait for this event.
        # Trio runs the tasks of one pass in random order, so after one checkpoint that task has run, or runs later in
        # the same pass; after two it has run. Waiting for the task itself would be no better: while it serves many
        # clients, the next batch would wait for all of them. Shielded, because the append has happened.
        for _ in range(2):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return expected.at(expected.offset + len(stored))

    async def begin_epoch(self, expected: Position, resume_point: str) -> Position:
        """Delete all events and start a new epoch, because the history of the database was lost. Return its head.

        Raises what ``EventStore.begin_epoch`` raises.
        """
        async with self._reading:
            await self._start(await self.store.begin_epoch(expected, resume_point))
            return self.head

    async def follow(self) -> None:
        """Read what other nodes append, until cancelled. Retries while the store is unavailable; logs once each way."""
        while True:
            try:
                if self.away is not None:
                    await self.catch_up()
                    self._outage.end()
                head = self.head
                await self.store.wait(head)
                if self._append_ended is not None:  # perhaps this node's own append: then nothing has to be read
                    with trio.move_on_after(OWN_APPEND_S):
                        await self._append_ended.wait()
                if self.head == head:
                    await self._read_next()
            except StoreUnavailable as error:
                self._doubts += 1
                await trio.sleep(self._outage.begin(str(error)))

    async def watch_lag(self) -> None:
        """Measure ``follow_lag_s``, and set ``clock``, until cancelled."""
        while True:
            await trio.sleep(LAG_EVERY_S)
            if self.away is not None:
                continue
            asked_at = self._goal_asked_at = trio.current_time()
            try:
                bounds = await self.bounds()
            except StoreUnavailable:
                self._doubts += 1  # `follow` may be waiting, and must not continue as if it had missed nothing
                continue
            finally:
                self._goal_asked_at = None
            head = bounds.head
            state = CurrentState.of(bounds, head)
            self._missing, self._filling = state.missing(self._kept), state.filling
            self.state_behind = head.offset - state.until.offset
            if self._goal is None or self._has_reached(self._goal[0]):
                self._goal = head, asked_at
            elif self._goal[0].epoch != head.epoch:  # the old goal can never be reached; the lag continues
                self._goal = head, self._goal[1]

    async def catch_up(self) -> None:
        """Read up to the store's head, into a new epoch if there is one. Raises ``StoreUnavailable``."""
        async with self._reading:
            while True:
                await self._compare()
                await self._read_on()
                if not self._doubtful:
                    return

    async def bounds(self) -> Bounds:
        """Read the store's bounds, and set ``clock`` by them. Raises ``StoreUnavailable``."""
        bounds = await self.store.bounds()
        self.clock.update(bounds)
        return bounds

    async def wait_grown(self) -> frozenset[View]:
        """Return the views with readers that have grown, or lost their past, since the last call. For one consumer."""
        await self._any_grown.wait()
        self._any_grown = trio.Event()
        grown, self._grown = frozenset(self._grown), set()
        return grown

    def changed_at(self, event: StoredEvent) -> float:
        """Return when the change behind an event was made, in Trio's time; if that is unknown, when it was appended."""
        index = bisect_left(self._own_appends, event.offset, key=attrgetter("last"))
        if index < len(self._own_appends) and self._own_appends[index].first <= event.offset:
            return self._own_appends[index].changed_at
        return self.clock.changed_at(event)

    def _has_reached(self, head: Position) -> bool:
        return head.epoch == self.epoch and head <= self.head

    @property
    def _doubtful(self) -> bool:
        """Whether the store was unavailable since its end was last compared with this node's newest event."""
        return self._doubts != self._doubts_settled

    async def _read_next(self) -> None:
        """Read what was appended after the head: one query, if nothing but an append has happened; else ``catch_up``.

        Every event of another node waits for this before it reaches a client.
        """
        async with self._reading:
            if not self._doubtful:
                head = self.head
                with suppress(PositionExpired):
                    events = await self.store.read(head, READ_EVENTS_MAX, bytes_max=READ_BYTES_MAX)
                    if not self._doubtful:
                        self._take(head.epoch, events)
                        # If there is no event although ``wait`` has returned, the store may be truncated, which only
                        # its bounds show.
                        if events and is_all(events, READ_EVENTS_MAX, READ_BYTES_MAX):
                            return
        await self.catch_up()

    async def _read_on(self) -> None:
        """Read page after page, up to the store's head."""
        while True:
            after = self.head
            try:
                events = await self.store.read(after, READ_EVENTS_MAX, bytes_max=READ_BYTES_MAX)
            except PositionExpired:  # the events that this node lacks were trimmed, or an epoch has just begun
                await self._start(await self.bounds())
                continue
            if self._doubtful:
                return
            self._take(after.epoch, events)
            if is_all(events, READ_EVENTS_MAX, READ_BYTES_MAX):
                return

    async def _compare(self) -> None:
        """Settle doubts: begin an epoch if the store is truncated. Raises ``StoreUnavailable``.

        The caller then calls ``_read_on``, which follows the store into a new epoch.
        """
        # Read all three before asking the store. If this node appends while it waits, the new event must not be the one
        # that is compared.
        known, newest, doubts = self.head, self.tail.newest if self._doubtful else None, self._doubts
        bounds = await self.bounds()
        while bounds.epoch == known.epoch and await self._is_truncated(bounds, known, newest):
            logger.error(
                "the event store has lost events that clients were sent", known=str(known), found=str(bounds.head)
            )
            try:
                bounds = await self.store.begin_epoch(bounds.head, await self.store.resume_point())
            except StaleAppend:  # another node has begun an epoch, or has appended to what is left
                bounds = await self.store.bounds()
        self._doubts_settled = doubts
        if bounds.epoch != self.epoch and known.offset:  # no client can have missed an event of an epoch without events
            logger.warning("new epoch", epoch=bounds.epoch, was=self.epoch)

    async def _is_truncated(self, bounds: Bounds, known: Position, newest: StoredEvent | None) -> bool:
        """Return whether the store has lost events up to ``known``, which is of the epoch of its ``bounds``.

        ``newest``: the event at ``known`` if it is in memory and the store may have replaced it by another.
        """
        if bounds.last < known.offset:
            return True
        if newest is None or newest.offset < bounds.first:
            return False
        try:
            stored = await self.store.read(known.at(newest.offset - 1), 1)
        except PositionExpired:  # it was trimmed just now, or an epoch began, which the next read reports
            return False
        return list(stored) != [newest]

    async def _start(self, bounds: Bounds) -> None:
        """Fill the tail with the newest events, however many are retained before them."""
        newest = await self._read_newest(bounds)
        offset = newest[0].offset - 1 if newest else bounds.last
        self._head = Position(bounds.epoch, offset)
        self._own_appends.clear()
        self._report(self.tail.start_after(offset))
        self._take(bounds.epoch, newest)

    async def _read_newest(self, bounds: Bounds) -> list[StoredEvent]:
        """Read backwards from the store's end, until a tail is full. Return the events in order.

        Pages are bounded in bytes too. The result is shorter if something is trimmed or an epoch begins meanwhile; the
        caller's next read finds that.
        """
        events: list[StoredEvent] = []  # the newest first
        size, offset, count = 0, bounds.last, READ_EVENTS_MAX
        while offset >= bounds.first and len(events) < self.tail.events_max and size < self.tail.bytes_max:
            count = min(count, offset + 1 - bounds.first)
            page = []
            with suppress(PositionExpired):
                page = list(await self.store.read(bounds.head.at(offset - count), count, bytes_max=READ_BYTES_MAX))
            if len(page) < count:
                if is_all(page, count, READ_BYTES_MAX):
                    break
                count = max(1, len(page) // 2)  # it ends before the events that are read already: read fewer at once
                continue
            for event in reversed(page):
                events.append(event)
                size += len(event.body)
            offset -= count
            count = min(2 * count, READ_EVENTS_MAX)
        return events[: self.tail.events_max][::-1]

    def _take(self, epoch: str, events: Sequence[StoredEvent], changed_at: float | None = None) -> None:
        """Add events to the tail, unless there are events before them that this node has not read."""
        if epoch != self.epoch or not events or events[0].offset > self.head.offset + 1:
            return
        if changed_at is not None:
            self._own_appends.append(_Append(events[0].offset, events[-1].offset, changed_at))
        self._report(self.tail.extend(events))
        self._head = self.head.at(self.tail.last)

    def _report(self, views: AbstractSet[View]) -> None:
        """Let ``wait_grown`` return these views, if there are any."""
        if views:
            self._grown.update(views)
            self._any_grown.set()
