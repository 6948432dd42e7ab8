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
from operator import attrgetter
from typing import Final

import trio
from attrs import evolve, frozen

from airy_trio.events.destinations import Destination
from airy_trio.log.store import EventStore, Position, PositionExpired, StateAt, StoredEvent, is_all
from airy_trio.log.tail import Tail

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
_OFFSET = attrgetter("offset")


class Gate:
    """A semaphore whose places go to the addresses in turn, and within an address to the read that waits longest.

    A thousand reads of one address delay a read of another address by one of them.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._queues: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()  # the first address is served next

    def statistics(self) -> dict[str, int]:
        """Return how many tasks are ``waiting`` for a place, and how many places are ``free``."""
        return {"waiting": sum(map(len, self._queues.values())), "free": self._free}

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
    left out. ``types``: the types of the events from the log; None: all. ``announced``: the client is notified of the
    end (``state:complete``).
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


@frozen
class _Newest:
    """The newest event of one destination up to a position, without its body; None if there is none."""

    upto: Position
    event: StoredEvent | None


class Reads:
    """The events of single destinations, from a store, from memory and from what earlier reads have found.

    Within an epoch nothing is added below the head, so what is remembered stays true until the epoch ends.
    """

    def __init__(
        self, store: EventStore, tail: Tail, events_max: int = PAGE_EVENTS_MAX, bytes_max: int = PAGE_BYTES_MAX
    ) -> None:
        self._store, self._tail = store, tail
        self._events_max, self._bytes_max = events_max, bytes_max
        self._pages: deque[Page] = deque(maxlen=PAGES_MAX)
        # Both are LRU caches: the destination that was used last is the last.
        self._known: OrderedDict[Destination, Page] = OrderedDict()
        self._newest: OrderedDict[Destination, _Newest] = OrderedDict()
        self.state_pages = 0
        """Pages of current states that were read from the store."""

    def page(
        self, after: Position, head: Position, destination: Destination, replay: Replay | None = None
    ) -> Page | None:
        """Return the next page after a position of the ``head``'s epoch if the store need not be read; else None.

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
                return page if after.epoch == head.epoch else None
        if replay is None or replay.announced or after.epoch != head.epoch:
            return None
        recent = self._read_tail(after, replay.until, destination)
        if recent is not None:
            found = tuple(event for event in recent.events if not self._tail.has_newer(event))
            recent = evolve(recent, events=found, replay=replay)
            self._pages.append(recent)
        return recent

    async def read(
        self, after: Position, head: Position, destination: Destination, replay: Replay | None = None
    ) -> Page:
        """Return the next page after a position, at most up to ``head``. Raises what ``EventStore.read`` raises.

        ``head``: a position that the store has reached. ``replay``: return a page of this replay instead of the log.
        """
        page = self.page(after, head, destination, replay)
        if page is None:
            if replay is None:
                page = await self._read(after, head, destination)
            else:
                page = await self._read_replay(after, destination, replay)
            self._pages.append(page)
        return page

    async def _read_replay(self, after: Position, destination: Destination, replay: Replay) -> Page:
        """Read the next page of a replay, in parts: a part is what one read of the state or of the window returns.

        If the end is announced, one event more than the page has is read. Only then is it known whether the last event
        of the page is the last one of the replay. A part may have fewer than two events, so this may take several.

        If the end is not announced, the page is one part, even if all of its events are left out. A read of many parts
        would hold its place in the gate for a long time, and would begin again whenever the store is unavailable for
        one of them.
        """
        found: list[StoredEvent] = []
        at = after
        while at.offset < replay.until.offset:
            if replay.state is not None and at.offset < replay.since:
                part, at = await self._read_state(at, destination, replay.state, replay.since)
            else:
                part, at = await self._read_recent(at, destination, replay)
            found += part
            await trio.lowlevel.checkpoint()  # a read of the tail has none
            if len(found) > 1 or not replay.announced:
                break
        upto = at.offset
        if replay.announced and (upto < replay.until.offset or len(found) > self._events_max):
            del found[min(self._events_max, len(found) - 1) :]
            upto = found[-1].offset
        return Page(destination, after, upto, tuple(found), replay)

    async def _read_state(
        self, after: Position, destination: Destination, state: StateAt, upto: int
    ) -> tuple[Sequence[StoredEvent], Position]:
        """Return the next events of a current state up to an offset, and the position up to which none is missing."""
        self.state_pages += 1
        limit, until = self._events_max + 1, evolve(state, until=after.at(upto))
        found = await self._store.current(until, after, limit, destination, bytes_max=self._bytes_max)
        return found, after.at(upto if is_all(found, limit, self._bytes_max) else found[-1].offset)

    async def _read_recent(
        self, after: Position, destination: Destination, replay: Replay
    ) -> tuple[Sequence[StoredEvent], Position]:
        """Return the next events of a recent window and of the state, and the position up to which none is missing."""
        page = self._read_tail(after, replay.until, destination) or await self._read(after, replay.until, destination)
        wanted = [event for event in page.events if replay.types is None or event.type in replay.types]
        found = [event for event in wanted if not self._tail.has_newer(event)]
        reached = after.at(page.upto)
        # The state's events in this range are in the log as well, so they are among those of the page, and no more than
        # these. If no event of the page was left out because of its type, the state has none here.
        if replay.state is not None and len(wanted) < len(page.events):
            self.state_pages += 1
            state = evolve(replay.state, until=reached)
            # Sorted by offset, the first field. No offset occurs twice: the state has kept types only, and the window
            # has the others.
            found = sorted([*found, *await self._store.current(state, after, len(page.events), destination)])
        return found, reached

    def _read_tail(self, after: Position, until: Position, destination: Destination) -> Page | None:
        """Return the next page from the tail; None if the tail may lack an event of it."""
        view = self._tail.find(destination)
        if view is None or after.offset < view.evicted:
            return None
        found = self._tail.after(view, after.offset, events_max=self._events_max, bytes_max=self._bytes_max)
        events = tuple(event for event in found if event.offset <= until.offset)
        ends = len(events) < len(found) or not events or events[-1].offset >= view.last
        return Page(destination, after, until.offset if ends else events[-1].offset, events)

    async def _read(self, after: Position, head: Position, destination: Destination) -> Page:
        if after.epoch != head.epoch:
            raise PositionExpired(f"{after} is of an epoch that has ended")
        known = self._known.get(destination)
        if known is None or not known.covers(after):
            known = Page(destination, after, after.offset)
        else:
            self._known.move_to_end(destination)
        # If ``head`` is the end of a replay, an earlier read may have found events after it.
        found = tuple(event for event in known.events_after(after.offset) if event.offset <= head.offset)
        upto = min(known.upto, head.offset)
        left, bytes_left = self._events_max - len(found), self._bytes_max - _size(found)
        if upto < head.offset and left > 0 and bytes_left > 0:
            stored = await self._store.read(after.at(upto), left, destination, bytes_max=bytes_left)
            # Other nodes' events that this node has not read yet are left out. If the store loses them, this node does
            # not notice that, so no client may have them and no page may retain them.
            new = [event for event in stored if event.offset <= head.offset]
            found = (*found, *new)
            if len(new) < len(stored) or is_all(stored, left, bytes_left):
                upto = head.offset
                self._remember(Page(destination, known.after, upto, (*known.events, *new)))
            elif new:
                upto = new[-1].offset
        return Page(destination, after, upto, found)

    async def newest(self, head: Position, destination: Destination) -> StoredEvent | None:
        """Return the newest event of a destination, without its body; None if there is none.

        Only the first call for a destination makes a store without an index scan its log from the end. Later calls scan
        what was appended since. A remembered event may have been trimmed. Raises what ``EventStore.newest`` does.

        ``head``: a position that the store has reached.
        """
        known = self._newest.get(destination)
        if known is None or await self._has_grown(known.upto, head, destination):
            found = await self._store.newest(head, destination)
            known = _Newest(head, None if found is None else found._replace(body=b""))
        elif known.upto < head:
            known = _Newest(head, known.event)
        # Another read may have stored a newer result meanwhile. The older one is true as well, and only makes the next
        # check read a little more.
        self._newest[destination] = known
        self._newest.move_to_end(destination)
        if len(self._newest) > REMEMBERED_MAX:
            self._newest.popitem(last=False)
        return known.event

    async def _has_grown(self, after: Position, head: Position, destination: Destination) -> bool:
        """Return whether a destination has an event after a position, or may have because the position is gone."""
        if after.epoch != head.epoch:
            return True
        try:
            return after < head and bool(await self._store.read(after, 1, destination, bytes_max=1))
        except PositionExpired:
            return True

    def _remember(self, known: Page) -> None:
        destination, former = known.destination, self._known.get(known.destination)
        if former is not None and former.covers(known.after) and former.upto >= known.upto:
            return  # meanwhile another client's read has found more
        if len(known.events) > REMEMBERED_EVENTS_MAX or _size(known.events) > REMEMBERED_BYTES_MAX:
            # Remember only that no event follows the last one.
            known = Page(destination, known.after.at(known.events[-1].offset), known.upto)
        self._known[destination] = known
        self._known.move_to_end(destination)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)


def _size(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body) for event in events)
