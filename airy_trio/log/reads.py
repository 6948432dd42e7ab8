"""Reads of the event store on behalf of clients: few at once, in turn by address, and cached for quiet destinations.

A client that resumes before the tail makes the store scan its log. Many such clients at once would take the store's
threads, its processors and this process' interpreter from the live events. So a read for a client waits here for one
of a few places. Following the log needs no place.

The scan for a destination with few events takes longest and returns least. So what it has found is remembered, and the
next client's read begins where that ended. This works for every store. An index by channel and offset would make such
scans short in the SQL stores only, and an append of 5000 events would take 1.3 times as long (Postgres 91 to 124 ms,
SQLite 91 to 118 ms, medians of five interleaved rounds).

The same holds for the newest event of a conversation, which decides whether a client may subscribe to it. A store
without an index scans its whole log for a conversation that has no events.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio
from attrs import frozen

from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position
from airy_trio.log.store import EventStore, PositionExpired, StoredEvent, is_all, up_to_bytes

READS_MAX: Final = 2
"""Reads for clients under way at once."""
REMEMBERED_MAX: Final = 1024
"""Destinations whose events are remembered (at most 4 MiB of bodies), and as many whose newest event is remembered."""
REMEMBERED_EVENTS_MAX: Final = 16
REMEMBERED_BYTES_MAX: Final = 4096
"""For each destination: the events that are remembered, and the bytes of their bodies."""


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


@frozen
class _Known:
    """All events of one destination after a position and up to the offset ``upto``."""

    after: Position
    upto: int
    events: tuple[StoredEvent, ...] = ()

    def covers(self, position: Position) -> bool:
        return self.after.epoch == position.epoch and self.after.offset <= position.offset <= self.upto


@frozen
class _Newest:
    """The newest event of one destination up to a position, without its body; empty if there is none."""

    upto: Position
    events: Sequence[StoredEvent]


class Reads:
    """The events of single destinations, from a store and from what earlier reads of it have found.

    Within an epoch nothing is added below the head, so what is remembered stays true until the epoch ends.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        # Both are LRU caches: the destination that was used last is the last.
        self._known: OrderedDict[Destination, _Known] = OrderedDict()
        self._newest: OrderedDict[Destination, _Newest] = OrderedDict()

    async def read(
        self, after: Position, head: Position, limit: int, destination: Destination, *, bytes_max: int
    ) -> Sequence[StoredEvent]:
        """Return what ``EventStore.read`` does, at least up to ``head``. Raises what that raises.

        ``head``: a position that the store has reached.
        """
        if after.epoch != head.epoch:
            return await self._store.read(after, limit, destination, bytes_max=bytes_max)
        known = self._known.get(destination)
        if known is None or not known.covers(after):
            known = _Known(after, after.offset)
        else:
            self._known.move_to_end(destination)
        found = [event for event in known.events if event.offset > after.offset]
        if known.upto < head.offset and is_all(found, limit, bytes_max):
            left, bytes_left = limit - len(found), bytes_max - _size(found)
            new = await self._store.read(after.at(known.upto), left, destination, bytes_max=bytes_left)
            if is_all(new, left, bytes_left):
                self._remember(destination, _Known(known.after, head.offset, (*known.events, *new)))
            found += new
        return list(up_to_bytes(found[:limit], bytes_max))

    async def newest(self, head: Position, age_s: float, destination: Destination) -> Sequence[StoredEvent]:
        """Return the newest event of a destination, without its body; empty if there is none at most ``age_s`` old.

        Only the first call for a destination makes a store without an index scan its log from the end. Later calls scan
        what was appended since. A remembered event may be older than ``age_s``, or trimmed. Raises what
        ``EventStore.recent`` does.

        ``head``: a position that the store has reached.
        """
        known = self._newest.get(destination)
        if known is None or await self._has_grown(known.upto, head, destination):
            found = await self._store.recent(head, age_s, 1, destination, bytes_max=1)
            known = _Newest(head, tuple(event._replace(body=b"") for event in found))
        elif known.upto < head:
            known = _Newest(head, known.events)
        self._newest[destination] = known
        self._newest.move_to_end(destination)
        if len(self._newest) > REMEMBERED_MAX:
            self._newest.popitem(last=False)
        return known.events

    async def _has_grown(self, after: Position, head: Position, destination: Destination) -> bool:
        """Return whether a destination has an event after a position, or may have because the position is gone."""
        if after.epoch != head.epoch:
            return True
        try:
            return after < head and bool(await self._store.read(after, 1, destination, bytes_max=1))
        except PositionExpired:
            return True

    def _remember(self, destination: Destination, known: _Known) -> None:
        former = self._known.get(destination)
        if former is not None and former.covers(known.after) and former.upto >= known.upto:
            return  # meanwhile another client's read has found more
        after, upto, events = known.after, known.upto, known.events
        if events:
            last = events[-1].offset
            upto = max(upto, last)
            if len(events) > REMEMBERED_EVENTS_MAX or _size(events) > REMEMBERED_BYTES_MAX:
                after, events = after.at(last), ()  # remember only that no event follows the last one
        self._known[destination] = _Known(after, upto, events)
        self._known.move_to_end(destination)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)


def _size(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body) for event in events)
