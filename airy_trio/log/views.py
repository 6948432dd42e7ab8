"""A view: what the tail knows of the events of one destination."""

from attrs import define, field

from airy_trio.events.destinations import Destination


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
