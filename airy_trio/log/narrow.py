"""Views of what belongs to some channels only, for readers who may read no other: nothing of it is kept for each.

Such a view holds no offsets: what it has is found in the views of its destination and of its channels, which the tail
keeps in any case. An event is compared with nobody: the views that it belongs to are found by its own channel, and
those of others cost it nothing. Readers with the same rights have one view in common.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from typing import Final

from attrs import define, field

from airy_trio.events.destinations import Destination, OfChannel, Within
from airy_trio.log.views import View

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
