"""The newest events in memory, a view of them for each destination, and how old they are. Synchronous.

The tail is a window over the newest events of one epoch, bounded in events and in bytes of bodies. Offsets have no
gaps, so the event with offset ``n`` is at index ``n - evicted - 1``.

**Views.** For every destination that a retained event belongs to, the tail keeps a view: the ascending offsets of the
destination's events. Views exist whether or not a client subscribes. A subscription therefore scans nothing, reading
after a cursor is one bisection, and an event costs only its own destinations: everything, its type, its channel and
its conversation. A view without readers and without events is forgotten, or each conversation would leave one behind.

**What a view has lost.** ``Tail.evicted`` is the offset of the newest evicted event. A view has an ``evicted`` of its
own: the newest evicted event *of its destination*. On a quiet destination that is far older, and a cursor at or after
it can be served from memory however many other events were evicted. Only a view that is made later begins with the
tail's ``evicted``, because the evicted events are no longer there to be looked up.

**Narrow views.** A client that may read some channels only reads a ``Within``: a destination limited to these channels.
Every user may have another set of channels, so an index for each set would multiply the memory and the work for each
event. A narrow view therefore has no offsets. It is read from the view of its destination, or from those of its
channels if they have fewer events (``_candidates``). Only its ``last`` and ``evicted`` are maintained, because the
fan-out compares them with cursors; for that an event finds the narrow views that it belongs to by its own channel. It
costs nothing for readers of other channels, however many there are. Readers with the same rights share one view.

**Newest events.** For each object with an event in memory, the tail holds the offset of the newest one. A recent window
compares its events with these offsets, including events that are read from the store, and leaves out those that a newer
one has replaced. Maintaining the offsets costs 0.2 µs per event.

**Ages.** The latency of an event counts from the change behind it. Three clocks are involved: the application's
database, which made the change; the event store, which stamps each event with its own time and stores the age that the
change had then; and this node, which delivers. A node that records knows when it learned of each change. All others
compute the time from the stamp and the age, by what they know of the store's clock (``StoreClock``).
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain
from operator import attrgetter
from typing import Final

import trio
from attrs import define, field

from airy_trio.events.destinations import Destination, OfChannel, OfConversation, Within, covers, destinations_of
from airy_trio.log.store import Bounds, StoredEvent, milliseconds

SLICES: Final = 16
"""At least a sixteenth of ``events_max`` is evicted at once: each eviction moves the whole list."""
SCANNED_PER_CHANNEL: Final = 4
"""A narrow view scans this many events of its destination for each of its channels; beyond that its channels' own."""
COMPARED_MAX: Final = 256
"""A window with this many events is not searched for repeated objects; it is treated as if it had some."""
LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""The inclusive upper bounds of all buckets but the last, which has none. Fixed, so that processes can be added up."""
_APPENDED_AT: Final = attrgetter("appended_at_ms")


@define(eq=False)
class View:
    """The events of one destination that the tail holds.

    ``offsets``: ascending; empty for a narrow view (``Within``). ``evicted``: all later events of the destination are
    in the tail. ``last``: the newest event of the destination, or ``evicted`` if the tail has none. ``readers``: in the
    order in which they attached; the tail never calls them.
    """

    destination: Destination
    evicted: int
    last: int
    offsets: list[int] = field(factory=list)
    readers: dict[object, None] = field(factory=dict)


class Tail:
    """A window over the newest events of one epoch."""

    def __init__(self, *, events_max: int, bytes_max: int) -> None:
        self.events_max = events_max
        self.bytes_max = bytes_max
        self._events: list[StoredEvent] = []
        self._newest: dict[str, int] = {}  # the offset of the newest event of each object
        self._bytes = 0
        self._views: dict[Destination, View] = {}
        # Indexes of the same views, for look-ups without making a destination: the views that do not depend on the
        # conversation by channel and type, those of conversations, and those of channels.
        self._shared: dict[str | None, dict[str, tuple[View, ...]]] = {}
        self._conversations: dict[str, View] = {}
        self._channels: dict[str, View] = {}
        # An index of the narrow views, by their wider destination and each of their channels.
        self._narrow: dict[tuple[Destination, str], dict[View, None]] = {}
        self.evicted = 0
        self.evicted_at_ms: int | None = None
        """When the event at ``evicted`` was appended; None if that is not known."""

    @property
    def last(self) -> int:
        """The offset of the newest event, or ``evicted`` if there is none."""
        return self.evicted + len(self._events)

    @property
    def newest(self) -> StoredEvent | None:
        """The newest event, if there is one."""
        return self._events[-1] if self._events else None

    def statistics(self) -> dict[str, int]:
        """Return the number of ``events``, ``bytes`` of their bodies, and ``views``."""
        return {"events": len(self._events), "bytes": self._bytes, "views": len(self._views)}

    def start_after(self, offset: int) -> frozenset[View]:
        """Drop all events and continue after another offset. Return the views with readers: each has lost its past."""
        self._events.clear()
        self._newest.clear()
        self._bytes = 0
        self.evicted = offset
        self.evicted_at_ms = None
        kept = [view for view in self._views.values() if view.readers]
        self._views.clear()
        self._shared.clear()
        self._conversations.clear()
        self._channels.clear()
        self._narrow.clear()
        for view in kept:
            self._register(view)
            view.offsets.clear()
            view.evicted = view.last = offset
        return frozenset(kept)

    def extend(self, events: Iterable[StoredEvent]) -> set[View]:
        """Add the next events and skip those that are here. Return the views with readers that have grown.

        Raises ``ValueError`` at a gap: the store has broken its promise.
        """
        grown: set[View] = set()
        last, narrow, newest = self.last, self._narrow, self._newest
        for event in events:
            offset = event.offset
            if offset <= last:
                continue
            if offset != last + 1:
                raise ValueError(f"event {offset} does not follow {last}")
            last = offset
            self._events.append(event)
            newest[event.object] = offset
            self._bytes += len(event.body)
            viewed = self._views_of(event)
            for view in viewed:
                view.offsets.append(offset)
                view.last = offset
                if view.readers:
                    grown.add(view)
            if narrow:
                for view in self._narrow_views_of(event, viewed):
                    view.last = offset
                    grown.add(view)
            # In the loop, so that the limits hold however many events are added at once.
            if len(self._events) > self.events_max or self._bytes > self.bytes_max:
                self._evict()
        return grown

    def attach(self, destination: Destination, reader: object) -> View:
        """Register a reader of a destination."""
        view = self._view(destination)
        view.readers[reader] = None
        return view

    def detach(self, view: View, reader: object) -> None:
        """Remove a reader. Idempotent."""
        view.readers.pop(reader, None)
        self._forget_if_unused(view)

    def after(self, view: View, offset: int, *, events_max: int, bytes_max: int) -> Sequence[StoredEvent]:
        """Return the next events of a view: at most ``events_max``, and ``bytes_max`` of bodies, but at least one.

        Raises ``LookupError`` if the view has lost an event after ``offset``.
        """
        if offset < view.evicted:
            raise LookupError(f"offset {offset} of {view.destination} is before the tail")
        events: list[StoredEvent] = []
        size = 0
        for event in self._events_after(view, offset, events_max):
            size += len(event.body)
            if events and (size > bytes_max or len(events) == events_max):
                break
            events.append(event)
        return events

    def find(self, destination: Destination) -> View | None:
        """Return the view of a destination, if there is one."""
        return self._views.get(destination)

    def has_newer(self, event: StoredEvent) -> bool:
        """Return whether a newer event of the same object is in the tail."""
        return self._newest.get(event.object, 0) > event.offset

    def may_have_newer(self, view: View, offset: int) -> bool:
        """Return whether an event of a view after an offset may have a newer one of its object."""
        try:
            events = self.after(view, offset, events_max=COMPARED_MAX, bytes_max=self.bytes_max)
        except LookupError:
            return True
        return len(events) == COMPARED_MAX or any(map(self.has_newer, events))

    def since(self, since_ms: int) -> int | None:
        """Return the offset after which all events were appended at ``since_ms`` or later.

        None if the tail does not reach back far enough to know.
        """
        # Times never fall. So if the tail has an older event, all events before the tail are older too.
        older = bisect_left(self._events, since_ms, key=_APPENDED_AT)
        return self.evicted + older if older or self.reaches_back_to(since_ms) else None

    def newest_of(self, conversation: OfConversation) -> StoredEvent | None:
        """Return the newest event of a conversation in the tail."""
        view = self._views.get(conversation)
        return self._event(view.offsets[-1]) if view is not None and view.offsets else None

    def reaches_back_to(self, since_ms: int) -> bool:
        """Return whether the tail is known to hold all events that were appended at ``since_ms`` or later."""
        # If ``evicted`` is 0, no event of this epoch was before the tail. Otherwise the time of the last event before
        # the tail counts, which is unknown if the tail was filled from the end of the store.
        return self.evicted == 0 or (self.evicted_at_ms is not None and self.evicted_at_ms < since_ms)

    def _events_after(self, view: View, offset: int, events_max: int) -> Iterable[StoredEvent]:
        """Return the next events of a view, in order: at least ``events_max``, if there are that many.

        The caller cuts.
        """
        if isinstance(view.destination, Within):
            events = map(self._event, merge(*self._candidates(view.destination, offset)))
            return (event for event in events if covers(view.destination, event))
        start = bisect_right(view.offsets, offset)
        return map(self._event, view.offsets[start : start + events_max])

    def _candidates(self, narrow: Within, after: int) -> list[list[int]]:
        """Return ascending lists of offsets that together contain all events of a narrow view after an offset.

        They contain other events as well, which the caller filters: either all of its wider destination, or all of its
        channels, whichever are fewer.
        """
        wide = self._views.get(narrow.destination)
        if wide is None:
            return []
        start = bisect_right(wide.offsets, after)
        count = len(wide.offsets) - start
        if count > SCANNED_PER_CHANNEL * len(narrow.channels):
            # An event has one channel, so no offset is in two of these lists.
            of_channels = map(self._channels.get, narrow.channels)
            grown = (own for own in of_channels if own and own.last > after)
            by_channel = [own.offsets[bisect_right(own.offsets, after) :] for own in grown]
            if sum(map(len, by_channel)) < count:
                return by_channel
        return [wide.offsets[start:]]

    def _event(self, offset: int) -> StoredEvent:
        return self._events[offset - self.evicted - 1]

    def _views_of(self, event: StoredEvent) -> tuple[View, ...]:
        """Return the view of each destination that an event belongs to, narrow ones excepted."""
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

    def _narrow_views_of(self, event: StoredEvent, viewed: Iterable[View]) -> Iterator[View]:
        """Yield the narrow views that an event belongs to. ``viewed``: what ``_views_of`` returned."""
        if event.channel_id is not None:
            for view in viewed:
                yield from self._narrow.get((view.destination, event.channel_id), ())

    def _view(self, destination: Destination) -> View:
        view = self._views.get(destination)
        if view is None:
            view = View(destination, self.evicted, self.evicted)
            if isinstance(destination, Within):
                candidates = map(reversed, self._candidates(destination, self.evicted))
                newest_first = map(self._event, merge(*candidates, reverse=True))
                view.last = next((event.offset for event in newest_first if covers(destination, event)), self.evicted)
            self._register(view)
        return view

    def _register(self, view: View) -> None:
        self._views[view.destination] = view
        match view.destination:
            case OfConversation(id=id_):
                self._conversations[id_] = view
            case OfChannel(id=id_):
                self._channels[id_] = view
            case Within(destination=wide, channels=channels):
                for id_ in channels:
                    self._narrow.setdefault((wide, id_), {})[view] = None
            case _:
                pass

    def _forget_if_unused(self, view: View) -> None:
        """Forget a view without readers and events, unless another one has taken its place already."""
        if view.readers or view.offsets or self._views.get(view.destination) is not view:
            return
        del self._views[view.destination]
        match view.destination:
            case OfConversation(id=id_):
                del self._conversations[id_]
            case Within(destination=wide, channels=channels):
                for id_ in channels:
                    del self._narrow[wide, id_][view]
                    if not self._narrow[wide, id_]:
                        del self._narrow[wide, id_]
            case OfChannel(id=id_):
                del self._channels[id_]
                self._shared.pop(id_, None)
            case _:  # every channel's index may refer to it
                self._shared.clear()

    def _evict(self) -> None:
        """Evict a slice of the oldest events, and more until the rest fits. The newest stays, however large it is."""
        count = max(1, self.events_max // SLICES, len(self._events) - self.events_max)
        count = min(count, len(self._events) - 1)
        size = sum(len(event.body) for event in self._events[:count])
        while count < len(self._events) - 1 and self._bytes - size > self.bytes_max:
            size += len(self._events[count].body)
            count += 1
        if not count:
            return
        gone = self._events[:count]
        viewed = list(map(self._views_of, gone))
        for event in gone:
            if self._newest[event.object] == event.offset:
                del self._newest[event.object]
        cut = Counter(chain.from_iterable(viewed))
        for view, number in cut.items():
            # Events are evicted in their order, so those of a view are its first offsets.
            view.evicted = view.offsets[number - 1]
            del view.offsets[:number]
            self._forget_if_unused(view)
        if self._narrow:
            for event, views in zip(gone, viewed, strict=True):
                # The events ascend, so the last assignment to a view is its newest evicted event.
                for view in self._narrow_views_of(event, views):
                    view.evicted = event.offset
        self.evicted = gone[-1].offset
        self.evicted_at_ms = gone[-1].appended_at_ms
        self._bytes -= size
        del self._events[:count]


class StoreClock:
    """The event store's clock, as of the newest ``Bounds``. It then advances with Trio's, which cannot be set."""

    def __init__(self) -> None:
        self._skew_ms = 0.0

    def update(self, bounds: Bounds) -> None:
        """Set the clock by bounds that were read just now."""
        self._skew_ms = bounds.now_ms - trio.current_time() * 1000

    def ms_before(self, age_s: float) -> int:
        """Return the store's time ``age_s`` seconds ago, in milliseconds since 1970."""
        return int(trio.current_time() * 1000 + self._skew_ms) - milliseconds(age_s)

    def changed_at(self, event: StoredEvent) -> float:
        """Return when an event's change was made, in Trio's time; if its age is unknown, when it was appended."""
        return (event.appended_at_ms - (event.age_ms or 0) - self._skew_ms) / 1000


class Latencies:
    """Counts of durations since the start. ``total_s``: their sum, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.total_s = 0.0

    @property
    def counts(self) -> Sequence[int]:
        """The number of durations in each bucket, not cumulative: one more than there are ``LATENCY_BUCKETS_S``."""
        return tuple(self._counts)

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count a duration. A negative one, which only a clock that was set back yields, counts as 0."""
        duration_s = max(0.0, duration_s)
        self._counts[bisect_left(LATENCY_BUCKETS_S, duration_s)] += times
        self.total_s += duration_s * times
