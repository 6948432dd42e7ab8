"""Reads of the event store on behalf of clients: few at once, in turn by address, shared, and cached.

A client that resumes before the tail makes the store scan its log. Many such clients at once would take the store's
threads, its processors and this process' interpreter from the live events. So a read for a client waits here for one
of a few places. Following the log needs no place, nor does the current state, which one task reads for all clients.

Clients that come together, as after a restart, read the same part of the log at about the same time. So they read it
in pages, the newest pages are retained, and a position within one of them needs no read. However different the
positions of a crowd are at first, after one page they are at the end of the same page. 500 clients, each 5000 events
behind, took 23.6 s to catch up without this, and 1.3 s with it.

The scan for a destination with few events takes longest and returns least. So what it has found is remembered, and the
next client's read begins where that ended. This works for every store. An index by channel and offset would make such
scans short in the SQL stores only, and an append of 5000 events would take 1.3 times as long (Postgres 91 to 124 ms,
SQLite 91 to 118 ms, medians of five interleaved rounds).

The same holds for the newest event of a conversation, which decides whether a client may subscribe to it. A store
without an index scans its whole log for a conversation that has no events.

A client that does not resume at a position may receive a *replay* first: the current state, a recent window of the
log, or both. A replay is read in pages as well. An event of the window is left out if a newer event of the same object
is in memory; the client receives the newer one later, unless it belongs to another destination. So a store does not
have to find the newest event of every object. The alternative would be to add every event to the state, including
events of types that are not kept. That would cost a database 15 to 60 µs per event, while appending the event costs 6
to 16 µs. A client that asks for the state of one channel would then wait for a scan of all retained messages. A window
that is in memory needs no place: it must not wait for a store that does not answer.
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from operator import attrgetter
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from airy_trio.events.destinations import Destination, OfConversation
from airy_trio.log.current import CurrentState, Marks, fold
from airy_trio.log.event_log import EventLog
from airy_trio.log.store import (
    Bounds,
    Position,
    PositionExpired,
    StateAt,
    StoredEvent,
    StoreUnavailable,
    is_all,
)

READS_MAX: Final = 2
"""Reads for clients under way at once."""
PAGE_EVENTS_MAX: Final = 512
PAGE_BYTES_MAX: Final = 128 * 1024
"""One page, in events and in bytes of bodies: about two batches."""
PAGES_MAX: Final = 8
"""Retained pages, some 3 MiB: the events between the first and the last client of a crowd. 16 of them are no faster."""
REMEMBERED_MAX: Final = 1024
"""Destinations whose events are remembered (at most 4 MiB of bodies), and as many whose newest event is remembered."""
REMEMBERED_EVENTS_MAX: Final = 16
REMEMBERED_BYTES_MAX: Final = 4096
"""For each destination: the events that are remembered, and the bytes of their bodies."""
STATE_AGE_S: Final = 1.0
"""Clients that request the current state within this time get the same one; their recent windows end together."""
_OFFSET = attrgetter("offset")


class Gate:
    """A semaphore whose places go to the addresses in turn, and within an address to the read that waits longest.

    A thousand reads of one address delay a read of another address by one of them.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._queues: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()  # the first address is served next

    @asynccontextmanager
    async def place(self, address: str) -> AsyncIterator[None]:
        """Hold a place in this block. While all are taken, wait in the queue of ``address``."""
        if self._free:
            self._free -= 1
        else:
            queue = self._queues.setdefault(address, trio.lowlevel.ParkingLot())
            # Outside of the ``try``: a task that is cancelled here has no place to pass on. A task that was woken is no
            # longer cancelled in ``park``, so no place is lost.
            await queue.park()  # the task that wakes this one passes its place on, so that no other can take it
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._queues:
            address, queue = self._queues.popitem(last=False)
            woken = queue.unpark()  # none if all have been cancelled
            if queue:
                self._queues[address] = queue
            if woken:
                return
        self._free += 1


@frozen(kw_only=True)
class Replay:
    """What a subscription receives first, up to the position ``until``: a current state, a recent window, or both.

    ``state``: the current state; None if there is only a window. ``since``: if there is a state, the offset after which
    the window begins. Its events are read from the log; those that have a newer event of the same object in memory are
    left out. ``types``: the types of the events from the log; None: all. ``announced``: the last event of the replay is
    marked ``state:complete``.
    """

    until: Position
    since: int = 0
    state: StateAt | None = None
    types: frozenset[str] | None = None
    announced: bool = False


@frozen(eq=False)
class Page:
    """All events of one destination after a position and up to the offset ``upto``, or those of a replay."""

    destination: Destination
    after: Position
    upto: int
    events: tuple[StoredEvent, ...] = ()
    replay: Replay | None = None

    @property
    def completes_state(self) -> bool:
        """Return whether it is the last page of a replay with an announced end."""
        return self.replay is not None and self.replay.announced and self.upto >= self.replay.until.offset

    def covers(self, position: Position) -> bool:
        """Return whether no event is missing between a position and the end of the page."""
        return self.after.epoch == position.epoch and self.after.offset <= position.offset <= self.upto

    def events_after(self, offset: int) -> tuple[StoredEvent, ...]:
        """Return the events after an offset."""
        return self.events[bisect_right(self.events, offset, key=_OFFSET) :]


@define(eq=False)
class _StateRead:
    """A read of the current state that other clients wait for. ``fault``: why the store was unavailable."""

    ended: trio.Event = field(factory=trio.Event)
    fault: str | None = None


class Reads:
    """Reads of one event log, from its store, from memory and from what earlier reads have found.

    Within an epoch nothing is added below the head, so what is remembered stays true until the epoch ends.
    """

    def __init__(self, log: EventLog, events_max: int = PAGE_EVENTS_MAX, bytes_max: int = PAGE_BYTES_MAX) -> None:
        self.log, self._store, self._tail = log, log.store, log.tail
        self._events_max, self._bytes_max = events_max, bytes_max
        self.gate = Gate(READS_MAX)
        """Every read of the store that a client causes takes a place in it, except that of the current state, which one
        task makes for all."""
        self._pages: deque[Page] = deque(maxlen=PAGES_MAX)
        # Each event is set when its read has ended.
        self._pages_being_read: dict[tuple[Position, Destination, Replay | None], trio.Event] = {}
        # Both are LRU caches: the destination that was used last is the last.
        self._remembered: OrderedDict[Destination, Page] = OrderedDict()
        # The newest event of a destination up to a position, without its body; None if there is none.
        self._newest: OrderedDict[Destination, tuple[Position, StoredEvent | None]] = OrderedDict()
        # Both with the time when they were read, in Trio's time.
        self._state: tuple[float, CurrentState] | None = None
        self._recent_end: tuple[float, Position] | None = None
        self._state_being_read: _StateRead | None = None
        self.state_pages = 0
        """Pages of current states that were read from the store."""

    async def page(
        self, after: Position, destination: Destination, replay: Replay | None = None, *, address: str = ""
    ) -> Page:
        """Return the next events of a destination, or those of a replay, for a client at ``address``.

        Clients that ask for the same page at the same time share one read. Raises ``PositionExpired`` and
        ``StoreUnavailable``.
        """
        key = after, destination, replay
        page = self._page_at_once(after, destination, replay)
        if page is not None:
            return page
        # A client waits for the read of another one only with a place of its own: else it would wait in the other's
        # queue, and each read that fails would wake a whole crowd.
        async with self.gate.place(address):
            while (other := self._pages_being_read.get(key)) is not None:
                await other.wait()
            ended = self._pages_being_read[key] = trio.Event()
            try:
                page = self._page_at_once(after, destination, replay)
                if page is None:
                    if replay is None:
                        page = await self._read(after, self.log.head, destination)
                    else:
                        page = await self._read_replay(after, destination, replay)
                    self._pages.append(page)
            except PositionExpired:
                self._state = None  # a client that subscribes again must not get a state that has ended
                raise
            finally:
                del self._pages_being_read[key]
                ended.set()
            if after.epoch != self.log.epoch:  # a new epoch began during the read: a replay may have read events of it
                raise PositionExpired(f"{after} is of an epoch that has ended")
            return page

    async def since(self, age_s: float, *, address: str = "") -> Position:
        """Return the position after which all retained events are at most ``age_s`` old.

        If the tail does not reach back far enough, the store is queried, for a client at ``address``. Raises
        ``StoreUnavailable`` if that fails.
        """
        while True:
            position = self.since_in_tail(age_s)
            if position is not None:
                return position
            async with self.gate.place(address):
                position = await self._store.since(age_s)
            if position.epoch == self.log.epoch:
                return min(position, self.log.head)  # another node may have appended events that this one has not read
            await self.log.catch_up()

    def since_in_tail(self, age_s: float) -> Position | None:
        """Return what ``since`` returns if the tail reaches back far enough; None if the store must be asked."""
        offset = self._tail.since(self.log.clock.ms_before(age_s))
        return None if offset is None else self.log.head.at(offset)

    def recent_end(self) -> Position:
        """Return the end of a recent window: the head as of at most ``STATE_AGE_S`` ago.

        Clients that subscribe at about the same time get the same end, so that they read the same pages.
        """
        read_at, end = self._recent_end or (-inf, self.log.head)
        if trio.current_time() >= read_at + STATE_AGE_S or end.epoch != self.log.epoch:
            end = self.log.head
            self._recent_end = trio.current_time(), end
        return end

    async def current_state(self, window_s: float) -> CurrentState:
        """Return the current state as of at most ``STATE_AGE_S`` ago, and where its recent window begins.

        Clients that ask at about the same time get the same one, so that they read the same pages. Raises
        ``StoreUnavailable``.
        """
        while (state := self._fresh_state()) is None:
            if (other := self._state_being_read) is not None:
                await other.ended.wait()
                # All waiting clients fail together. Otherwise each would read in turn, and wait for the store's
                # time-out again.
                if other.fault is not None:
                    raise StoreUnavailable(other.fault)
                continue
            reading = self._state_being_read = _StateRead()
            try:
                bounds = await self._folded()
                since = self.since_in_tail(window_s) or await self._store.since(window_s)
                if bounds.epoch == since.epoch == self.log.epoch:
                    # This node may not have read the newest events yet; those are sent after the state.
                    new = CurrentState.of(bounds, min(bounds.head, self.log.head))
                    self._state = trio.current_time(), evolve(new, since=min(since.offset, new.until.offset))
                else:
                    await self.log.catch_up()
            except StoreUnavailable as error:
                reading.fault = str(error)
                raise
            finally:
                self._state_being_read = None
                reading.ended.set()
        return state

    async def channels_of(self, conversation: OfConversation, *, address: str = "") -> frozenset[str]:
        """Return the channel of a conversation's newest event; empty if there is no such event, or it has no channel.

        If the tail does not reach back far enough, the store is read, for a client at ``address``. Raises
        ``StoreUnavailable`` if that fails.
        """
        while True:
            since_ms = self.log.clock.ms_before(self.log.retain_s)
            newest = self._tail.newest_of(conversation)
            if newest is None and not self._tail.reaches_back_to(since_ms):
                async with self.gate.place(address):
                    try:
                        newest = await self._read_newest(conversation)
                    except PositionExpired:  # an epoch has begun; after this the tail is in it
                        await self.log.catch_up()
                        continue
            if newest is None or newest.channel_id is None or newest.appended_at_ms < since_ms:
                return frozenset()
            return frozenset({newest.channel_id})

    async def floor(self) -> Position:
        """Return the oldest position after which all events are retained, in the ``head``'s epoch.

        Raises ``StoreUnavailable``.
        """
        while (bounds := await self.log.bounds()).epoch != self.log.epoch:  # it has just begun
            await self.log.catch_up()
        return bounds.floor

    def _fresh_state(self) -> CurrentState | None:
        if self._state is None:
            return None
        read_at, state = self._state
        fresh = trio.current_time() < read_at + STATE_AGE_S and state.until.epoch == self.log.epoch
        return state if fresh else None

    async def _folded(self) -> Bounds:
        """Add all events that the store has now to its current state; return the bounds after that.

        Without it a client could receive the state without an object that has ended, and then an event of that object
        which was not added yet. If deletions are not sent, nothing would correct that.
        """
        bounds = await self.log.bounds()
        head, more = bounds.head, True
        while more and bounds.epoch == head.epoch and (state := bounds.state) and state.folded < head.offset:
            marks = Marks.parse(state.marks)
            more = marks is not None and await fold(self._store, state.generation, marks.kept)
            bounds = await self.log.bounds()
        return bounds

    def _page_at_once(self, after: Position, destination: Destination, replay: Replay | None) -> Page | None:
        """Return the next page if the store need not be read; else None.

        It is a retained page, or one of a recent window in memory.
        """
        # A page that ends at the position covers it too, but does not take the reader any further.
        for page in self._pages:
            if (
                page.upto > after.offset
                and page.covers(after)
                and page.destination == destination
                and page.replay == replay
            ):
                return page if after.epoch == self.log.epoch else None
        if replay is None or replay.announced or after.epoch != self.log.epoch:
            return None
        recent = self._read_tail(after, replay.until, destination)
        if recent is not None:
            events = tuple(event for event in recent.events if not self._tail.has_newer(event))
            recent = evolve(recent, events=events, replay=replay)
            self._pages.append(recent)
        return recent

    async def _read_replay(self, after: Position, destination: Destination, replay: Replay) -> Page:
        """Read the next page of a replay.

        If the end is announced, read one event beyond the page, to know whether its last event is the last of the
        replay. This may take several reads of the store. Otherwise return after one, even if every event was left out,
        so that the place in the gate is soon free, and no read is repeated if the store is unavailable for the next.
        """
        events: list[StoredEvent] = []
        at = after
        while at.offset < replay.until.offset:
            if replay.state is not None and at.offset < replay.since:
                part, at = await self._read_state(at, destination, replay.state, replay.since)
            else:
                part, at = await self._read_recent(at, destination, replay)
            events += part
            await trio.lowlevel.checkpoint()  # a read of the tail has none
            if len(events) > 1 or not replay.announced:
                break
        upto = at.offset
        if replay.announced and (upto < replay.until.offset or len(events) > self._events_max):
            del events[min(self._events_max, len(events) - 1) :]
            upto = events[-1].offset
        return Page(destination, after, upto, tuple(events), replay)

    async def _read_state(
        self, after: Position, destination: Destination, state: StateAt, upto: int
    ) -> tuple[Sequence[StoredEvent], Position]:
        """Return the next events of a current state up to an offset, and the position up to which none is missing."""
        self.state_pages += 1
        limit, until = self._events_max + 1, evolve(state, until=after.at(upto))
        events = await self._store.current(until, after, limit, destination, bytes_max=self._bytes_max)
        return events, after.at(upto if is_all(events, limit, self._bytes_max) else events[-1].offset)

    async def _read_recent(
        self, after: Position, destination: Destination, replay: Replay
    ) -> tuple[Sequence[StoredEvent], Position]:
        """Return the next events of a recent window and of the state, and the position up to which none is missing."""
        page = self._read_tail(after, replay.until, destination) or await self._read(after, replay.until, destination)
        wanted = [event for event in page.events if replay.types is None or event.type in replay.types]
        newest = [event for event in wanted if not self._tail.has_newer(event)]
        reached = after.at(page.upto)
        # The state's events in this range are in the log as well, so they are among those of the page, and no more than
        # these. If no event of the page was left out because of its type, the state has none here.
        if replay.state is not None and len(wanted) < len(page.events):
            self.state_pages += 1
            state = evolve(replay.state, until=reached)
            # Sorted by offset, the first field. No offset occurs twice: the state has kept types only, and the window
            # has the others.
            newest = sorted([*newest, *await self._store.current(state, after, len(page.events), destination)])
        return newest, reached

    def _read_tail(self, after: Position, until: Position, destination: Destination) -> Page | None:
        """Return the next page from the tail; None if the tail may lack an event of it."""
        view = self._tail.find(destination)
        if view is None or after.offset < view.evicted:
            return None
        following = self._tail.after(view, after.offset, events_max=self._events_max, bytes_max=self._bytes_max)
        events = tuple(event for event in following if event.offset <= until.offset)
        ends = len(events) < len(following) or not events or events[-1].offset >= view.last
        return Page(destination, after, until.offset if ends else events[-1].offset, events)

    async def _read(self, after: Position, until: Position, destination: Destination) -> Page:
        """Return the next page of the log, at most up to ``until``, a position that the store has reached."""
        if after.epoch != until.epoch:
            raise PositionExpired(f"{after} is of an epoch that has ended")
        remembered = self._remembered.get(destination)
        if remembered is None or not remembered.covers(after):
            remembered = Page(destination, after, after.offset)
        else:
            self._remembered.move_to_end(destination)
        # If this is the end of a replay, an earlier read may have found events after it.
        events = tuple(event for event in remembered.events_after(after.offset) if event.offset <= until.offset)
        upto = min(remembered.upto, until.offset)
        left, bytes_left = self._events_max - len(events), self._bytes_max - _size(events)
        if upto < until.offset and left > 0 and bytes_left > 0:
            stored = await self._store.read(after.at(upto), left, destination, bytes_max=bytes_left)
            # Other nodes' events that this node has not read yet are left out. If the store loses them, this node does
            # not notice that, so no client may have them and no page may retain them.
            new = [event for event in stored if event.offset <= until.offset]
            events = (*events, *new)
            if len(new) < len(stored) or is_all(stored, left, bytes_left):
                upto = until.offset
                self._remember(Page(destination, remembered.after, upto, (*remembered.events, *new)))
            elif new:
                upto = new[-1].offset
        return Page(destination, after, upto, events)

    async def _read_newest(self, destination: Destination) -> StoredEvent | None:
        """Return the newest event of a destination, without its body; None if there is none.

        Only the first call for a destination makes a store without an index scan its log from the end. Later calls scan
        what was appended since. A remembered event may have been trimmed. Raises what ``EventStore.newest`` does.
        """
        head = self.log.head
        upto, newest = self._newest.get(destination, (None, None))
        if upto is None or await self._has_grown(upto, head, destination):
            found = await self._store.newest(head, destination)
            newest = None if found is None else found._replace(body=b"")
        # Another read may have stored a newer result meanwhile. The older one is true as well, and only makes the next
        # check read a little more.
        self._newest[destination] = head, newest
        self._newest.move_to_end(destination)
        if len(self._newest) > REMEMBERED_MAX:
            self._newest.popitem(last=False)
        return newest

    async def _has_grown(self, after: Position, head: Position, destination: Destination) -> bool:
        """Return whether a destination has an event after a position, or may have because the position is gone."""
        if after.epoch != head.epoch:
            return True
        try:
            return after < head and bool(await self._store.read(after, 1, destination, bytes_max=1))
        except PositionExpired:
            return True

    def _remember(self, page: Page) -> None:
        destination, former = page.destination, self._remembered.get(page.destination)
        if former is not None and former.covers(page.after) and former.upto >= page.upto:
            return  # meanwhile another client's read has found more
        if len(page.events) > REMEMBERED_EVENTS_MAX or _size(page.events) > REMEMBERED_BYTES_MAX:
            # Remember only that no event follows the last one.
            page = Page(destination, page.after.at(page.events[-1].offset), page.upto)
        self._remembered[destination] = page
        self._remembered.move_to_end(destination)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def _size(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body) for event in events)
