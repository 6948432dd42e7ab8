"""The newest events in memory, bounded by count and bytes, with a view for each destination that they belong to.

Every destination is indexed whether somebody subscribes or not: a new subscriber then costs nothing, and an event
costs only its own destinations. Knows nothing of stores and of who reads.

A view: what the tail knows of the events of one destination.

Views of what belongs to some channels only, for readers who may read no other: nothing of it is kept for each.

Such a view holds no offsets: what it has is found in the views of its destination and of its channels, which the tail
keeps in any case. An event is compared with nobody: the views that it belongs to are found by its own channel, and
those of others cost it nothing. Readers with the same rights have one view in common.

Which views have grown since somebody asked: for one who waits for it.

The newest events: of a store, read backwards from its end, which is what a tail begins with; and of a tail.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from heapq import merge
from itertools import chain
from typing import Final

import trio
from attrs import define, field

from airy_trio.events.destinations import Destination, OfChannel, OfConversation, Within, covers, destinations_of
from airy_trio.log.store import Bounds, EventStore, PositionExpired, StoredEvent, is_all


@define(eq=False)
class View:
    """The events of one destination that the tail holds.

    ``evicted``: everything of this destination after this offset is in the tail. ``last``: the newest event of the
    destination, or ``evicted`` where the tail holds none. ``readers``: who is attached, the oldest first;
    the log never calls them.
    """

    destination: Destination
    evicted: int
    last: int
    offsets: list[int] = field(factory=list)
    readers: dict[object, None] = field(factory=dict)


SCANNED_PER_CHANNEL: Final = 4
"""So many events of the destination are rather looked at one by one than each channel is asked for its own."""


@define(eq=False)
class NarrowView(View):
    """A view of a ``Within``; ``offsets`` stays empty. ``channels``: as the destinations of the tail's views."""

    of: Destination = field(kw_only=True)
    channels: tuple[OfChannel, ...] = field(kw_only=True)


class NarrowViews:
    """All of them that have readers. ``views``: those of the tail, by destination."""

    def __init__(self) -> None:
        self._views: dict[Within, NarrowView] = {}
        self._by_channel: dict[tuple[Destination, str], dict[NarrowView, None]] = {}

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[NarrowView]:
        return iter(self._views.values())

    def get(self, destination: Within) -> NarrowView | None:
        """Give the view of a destination, if it has readers."""
        return self._views.get(destination)

    def add(self, destination: Within, evicted: int) -> NarrowView:
        """Make a view, which has readers from now on. Its ``last`` is for the caller to find."""
        of, ids = destination.destination, sorted(destination.channels)
        view = NarrowView(destination, evicted, evicted, of=of, channels=tuple(OfChannel(id_) for id_ in ids))
        self._views[destination] = view
        for id_ in ids:
            self._by_channel.setdefault((of, id_), {})[view] = None
        return view

    def forget(self, view: NarrowView) -> None:
        """Let go of a view that has no readers any more. Idempotent."""
        destination = view.destination
        if not isinstance(destination, Within) or self._views.get(destination) is not view:
            return
        del self._views[destination]
        for channel in view.channels:
            key = (view.of, channel.id)
            del self._by_channel[key][view]
            if not self._by_channel[key]:
                del self._by_channel[key]

    def of_event(self, channel_id: str | None, viewed: Iterable[View]) -> Iterator[NarrowView]:
        """The views that an event belongs to. ``viewed``: the views of its destinations."""
        if channel_id is None:
            return
        for view in viewed:
            yield from self._by_channel.get((view.destination, channel_id), ())


def candidates(
    view: NarrowView, after: int, views: Mapping[Destination, View], *, newest_first: bool = False
) -> Iterator[int]:
    """The offsets after another of all that can belong to a view, in order; what they hold decides whether it does.

    The shorter is taken of what its destination has and of what its channels have together.
    """
    lists = _lists(view, after, views)
    if newest_first:
        return merge(*(reversed(offsets) for offsets in lists), reverse=True)
    return merge(*lists)


def _lists(view: NarrowView, after: int, views: Mapping[Destination, View]) -> list[list[int]]:
    wide = views.get(view.of)
    if wide is None:
        return []
    start = bisect_right(wide.offsets, after)
    count = len(wide.offsets) - start
    if count > SCANNED_PER_CHANNEL * len(view.channels):
        grown = (own for channel in view.channels if (own := views.get(channel)) is not None and own.last > after)
        found = [own.offsets[bisect_right(own.offsets, after) :] for own in grown]
        if sum(map(len, found)) < count:
            return found
    return [wide.offsets[start:]]


class Growth:
    """Gathers views until they are waited for."""

    def __init__(self) -> None:
        self._views: set[View] = set()
        self._any = trio.Event()

    def report(self, views: AbstractSet[View]) -> None:
        """These have grown, or lost their past."""
        if views:
            self._views |= views
            self._any.set()

    async def wait(self) -> frozenset[View]:
        """Those that were reported since the last call; at least one. For one consumer."""
        await self._any.wait()
        self._any = trio.Event()
        grown, self._views = frozenset(self._views), set()
        return grown


__all__ = ["Tail", "View"]

_SLICES = 16  # evicting one by one would move the whole list for each event


class Tail:
    """A window over the newest events of one epoch. Synchronous; offsets are gapless."""

    def __init__(self, *, events_max: int, bytes_max: int) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[StoredEvent] = []
        self._viewed: list[tuple[View, ...]] = []  # the views of each event: found once, when it comes
        self._bytes = 0
        self._views: dict[Destination, View] = {}
        # The same once more, so that for most events no destination is made only to find a view by it.
        self._shared: dict[str | None, dict[str, tuple[View, ...]]] = {}  # by channel, then by type
        self._conversations: dict[str, View] = {}
        self._narrow = NarrowViews()
        self.evicted = 0
        self.evicted_at_ms: int | None = None
        """When the event at ``evicted`` was appended; None where that is not known."""

    @property
    def last(self) -> int:
        """The offset of the newest event, or ``evicted`` where there is none."""
        return self.evicted + len(self._events)

    @property
    def newest(self) -> StoredEvent | None:
        """The newest event; None where the tail holds none."""
        return self._events[-1] if self._events else None

    def statistics(self) -> dict[str, int]:
        """How much is held: ``events``, ``bytes`` of bodies, ``views``."""
        return {"events": len(self._events), "bytes": self._bytes, "views": len(self._views) + len(self._narrow)}

    def start_after(self, offset: int) -> frozenset[View]:
        """Forget all events and go on after another offset; give the views, which all lost their past."""
        self._events.clear()
        self._viewed.clear()
        self._bytes = 0
        self.evicted = offset
        self.evicted_at_ms = None
        kept = [view for view in self._views.values() if view.readers]
        self._views.clear()
        self._shared.clear()
        self._conversations.clear()
        for view in kept:
            self._know(view)
        lost = frozenset((*self._views.values(), *self._narrow))
        for view in lost:
            view.offsets.clear()
            view.evicted = view.last = offset
        return lost

    def extend(self, events: Iterable[StoredEvent]) -> set[View]:
        """Add the next events, leaving out those already here; give the views with readers that grew."""
        grown: set[View] = set()
        last, narrow = self.last, self._narrow
        for event in events:
            offset = event.offset
            if offset <= last:
                continue
            if offset != last + 1:
                message = f"event {offset} does not follow {last}"
                raise ValueError(message)
            last = offset
            self._events.append(event)
            self._bytes += len(event.body)
            viewed = self._views_of(event)
            self._viewed.append(viewed)
            for view in viewed:
                view.offsets.append(offset)
                view.last = offset
                if view.readers:
                    grown.add(view)
            if narrow:
                for view in narrow.of_event(event.channel_id, viewed):
                    view.last = offset
                    grown.add(view)
            if len(self._events) > self._events_max or self._bytes > self._bytes_max:
                self._evict()
        return grown

    def attach(self, destination: Destination, reader: object) -> View:
        """Register a reader of a destination."""
        view = self._narrow_view(destination) if isinstance(destination, Within) else self._view(destination)
        view.readers[reader] = None
        return view

    def detach(self, view: View, reader: object) -> None:
        """Take a reader away. Idempotent."""
        view.readers.pop(reader, None)
        self._forget_if_unused(view)

    def after(self, view: View, offset: int, *, events_max: int, bytes_max: int) -> Sequence[StoredEvent]:
        """The next events of a view: at most ``events_max``, and ``bytes_max`` of bodies, but at least one.

        Raises ``LookupError`` where the view has evicted something after ``offset``.
        """
        if offset < view.evicted:
            message = f"offset {offset} of {view.destination} is before the tail"
            raise LookupError(message)
        found: list[StoredEvent] = []
        size = 0
        for event in self._events_after(view, offset, events_max):
            size += len(event.body)
            if found and (size > bytes_max or len(found) == events_max):
                break
            found.append(event)
        return found

    def newest_of_each(self, view: View, *, since_ms: int, limit: int, bytes_max: int) -> Sequence[StoredEvent] | None:
        """The newest event of each object of a view, appended at ``since_ms`` or later, in order.

        Bounded as by ``EventStore.recent``. None where the tail does not reach back far enough to know.
        """
        found: dict[str, StoredEvent] = {}
        size = 0
        for event in self._newest_first(view):
            if event.appended_at_ms < since_ms or len(found) == limit or size >= bytes_max:
                return list(reversed(found.values()))
            if event.object not in found:
                found[event.object] = event
                size += len(event.body)
        full = len(found) == limit or size >= bytes_max
        complete = full or (self.evicted_at_ms is not None and self.evicted_at_ms < since_ms)
        return list(reversed(found.values())) if complete or self.evicted == 0 else None

    def _events_after(self, view: View, offset: int, events_max: int) -> Iterable[StoredEvent]:
        """The next events of a view, in order; at least ``events_max`` where there are so many."""
        if isinstance(view, NarrowView):
            found = map(self._event, candidates(view, offset, self._views))
            return (event for event in found if covers(view.destination, event))
        start = bisect_right(view.offsets, offset)
        return map(self._event, view.offsets[start : start + events_max])

    def _newest_first(self, view: View) -> Iterable[StoredEvent]:
        """All events of a view, the newest first."""
        if isinstance(view, NarrowView):
            found = map(self._event, candidates(view, view.evicted, self._views, newest_first=True))
            return (event for event in found if covers(view.destination, event))
        return map(self._event, reversed(view.offsets))

    def _narrow_view(self, destination: Within) -> View:
        view = self._narrow.get(destination)
        if view is None:
            view = self._narrow.add(destination, self.evicted)
            view.last = next((event.offset for event in self._newest_first(view)), view.evicted)
        return view

    def _event(self, offset: int) -> StoredEvent:
        return self._events[offset - self.evicted - 1]

    def _view(self, destination: Destination) -> View:
        view = self._views.get(destination)
        if view is None:
            view = View(destination, self.evicted, self.evicted)
            self._know(view)
        return view

    def _views_of(self, event: StoredEvent) -> tuple[View, ...]:
        """The view of each destination that an event belongs to."""
        conversation_id = event.conversation_id
        of_channel = self._shared.get(event.channel_id)
        if of_channel is None:
            of_channel = self._shared[event.channel_id] = {}
        shared = of_channel.get(event.type)
        if shared is None:
            alone = event._replace(conversation_id=None)
            shared = of_channel[event.type] = tuple(map(self._view, destinations_of(alone)))
        if conversation_id is None:
            return shared
        return *shared, self._conversations.get(conversation_id) or self._view(OfConversation(conversation_id))

    def _know(self, view: View) -> None:
        self._views[view.destination] = view
        if isinstance(view.destination, OfConversation):
            self._conversations[view.destination.id] = view

    def _forget(self, view: View) -> None:
        del self._views[view.destination]
        match view.destination:
            case OfConversation(id=id_):
                del self._conversations[id_]
            case OfChannel(id=id_):
                self._shared.pop(id_, None)
            case _:
                self._shared.clear()

    def _evict(self) -> None:
        count = max(1, self._events_max // _SLICES, len(self._events) - self._events_max)
        count = min(count, len(self._events) - 1)  # the newest stays, however large it is
        size = sum(len(event.body) for event in self._events[:count])
        while count < len(self._events) - 1 and self._bytes - size > self._bytes_max:
            size += len(self._events[count].body)
            count += 1
        gone = self._events[:count]
        cut = Counter(chain.from_iterable(self._viewed[:count]))
        for view, number in cut.items():
            view.evicted = view.offsets[number - 1]
            del view.offsets[:number]
            self._forget_if_unused(view)
        if self._narrow:
            for event, viewed in zip(gone, self._viewed, strict=False):
                for view in self._narrow.of_event(event.channel_id, viewed):
                    view.evicted = event.offset
        if gone:
            self.evicted = gone[-1].offset
            self.evicted_at_ms = gone[-1].appended_at_ms
        self._bytes -= size
        del self._events[:count], self._viewed[:count]

    def _forget_if_unused(self, view: View) -> None:
        if isinstance(view, NarrowView):
            if not view.readers:
                self._narrow.forget(view)
            return
        if not view.readers and not view.offsets and self._views.get(view.destination) is view:
            self._forget(view)


READ_EVENTS_MAX: Final = 1000
READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""One page, in events and in bytes of bodies."""
PAGE_EVENTS_FIRST: Final = 64


async def read_newest(store: EventStore, bounds: Bounds, *, events_max: int, bytes_max: int) -> list[StoredEvent]:
    """The newest events, as many as a tail of these bounds holds, in order; read in pages bounded by bytes too.

    Fewer where something was trimmed just now, or an epoch began: who reads on will see. Raises ``StoreUnavailable``.
    """
    found: list[StoredEvent] = []  # the newest first
    size, offset, count = 0, bounds.last, PAGE_EVENTS_FIRST
    while offset >= bounds.first and len(found) < events_max and size < bytes_max:
        count = min(count, offset + 1 - bounds.first)
        after = bounds.head.at(offset - count)
        try:
            page = await store.read(after, count, bytes_max=READ_BYTES_MAX)
        except PositionExpired:
            break
        if len(page) < count and not is_all(page, count, READ_BYTES_MAX):
            count = max(1, len(page) // 2)  # fewer, so that the page ends where the last one began
            continue
        if len(page) < count:
            break
        for event in reversed(page):
            found.append(event)
            size += len(event.body)
        offset -= count
        count = min(2 * count, READ_EVENTS_MAX)
    return found[:events_max][::-1]


def newest_in(
    tail: Tail, destination: Destination, *, since_ms: int, limit: int, bytes_max: int
) -> Sequence[StoredEvent] | None:
    """The recent window of a destination (``Tail.newest_of_each``); None where the tail does not reach back so far."""
    asking = object()
    view = tail.attach(destination, asking)
    try:
        return tail.newest_of_each(view, since_ms=since_ms, limit=limit, bytes_max=bytes_max)
    finally:
        tail.detach(view, asking)
