"""The port of event stores: what a place that keeps events promises.

Events are kept in one order, as encoded bodies with the few facts that delivery needs. The store assigns the
offsets, without gaps within an epoch and from 1 in a new store. With them it keeps the point at which the change feed
goes on. Independent of what an event means and of its readers. ``airy_trio.testing.event_store`` checks the promises
of any store.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from attrs import frozen

from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position


class StoreUnavailable(Unavailable):
    """The store is away and may come back; whether an append that raised this took effect is not known."""


class StoreReplaced(AiryTrioError):
    """What the store had open is gone, or something else is in its place: a server cannot go on with either."""


class StaleAppend(AiryTrioError):
    """Somebody else has appended, or begun a new epoch, since the writer last looked. Nothing was written."""


class PositionExpired(AiryTrioError):
    """Events after this position are gone: trimmed, or of an epoch that has ended."""


class NewEvent(NamedTuple):
    """An event to append. ``object`` is the identity of what it is about: the newest of an object is its state.

    A tuple, as ``StoredEvent`` is, for a bulk change makes one of each for each row: a frozen class takes eight times
    as long to make.
    """

    type: str
    object: str
    conversation_id: str | None
    channel_id: str | None
    body: bytes
    truncated: bool = False


class StoredEvent(NamedTuple):
    """An event in the log. ``appended_at_ms``: epoch milliseconds by the store's clock, never falling.

    What follows it are the fields of ``NewEvent``, in the same order.
    """

    offset: int
    appended_at_ms: int
    type: str
    object: str
    conversation_id: str | None
    channel_id: str | None
    body: bytes
    truncated: bool


def stored_after(expected: Position, events: Sequence[NewEvent], appended_at_ms: int) -> list[StoredEvent]:
    """Give new events the offsets that follow a position: what an append makes of them."""
    return [
        StoredEvent(offset, appended_at_ms, *event) for offset, event in enumerate(events, start=expected.offset + 1)
    ]


@frozen
class Holder:
    """Who holds a durable subscription: ``name``, which is one of ``owner``'s. No other holder has this ``token``."""

    owner: str
    name: str
    token: str


@frozen
class Acknowledgement:
    """The position up to which the holder of a durable subscription has acknowledged everything."""

    holder: Holder
    position: Position


def newest_of_each(newest_first: Iterable[StoredEvent]) -> Iterator[StoredEvent]:
    """Of events from the newest on, the first of each object."""
    seen: set[str] = set()
    for event in newest_first:
        if event.object not in seen:
            seen.add(event.object)
            yield event


def up_to_bytes(events: Iterable[StoredEvent], bytes_max: int | None) -> Iterator[StoredEvent]:
    """Events up to, and with, the one whose body brings the sum of the bodies to ``bytes_max``; None: all."""
    size = 0
    for event in events:
        yield event
        size += len(event.body)
        if bytes_max is not None and size >= bytes_max:
            return


def is_all(events: Sequence[StoredEvent], limit: int, bytes_max: int) -> bool:
    """Whether a read within these bounds gave everything that there was."""
    return len(events) < limit and sum(len(event.body) for event in events) < bytes_max


@frozen(kw_only=True)
class Bounds:
    """What is retained: offsets ``first`` to ``last`` of ``epoch``.

    ``first == last + 1`` where nothing is; ``last`` stays after everything is trimmed. ``now_ms``: the store's
    clock when this was read, epoch milliseconds, so that a reader can tell the age of an event by it.
    """

    epoch: str
    first: int
    last: int
    now_ms: int

    @property
    def head(self) -> Position:
        """The position of the newest event: everything up to here has been appended."""
        return Position(self.epoch, self.last)

    @property
    def floor(self) -> Position:
        """The oldest position after which everything is still there."""
        return Position(self.epoch, self.first - 1)


class EventStore(Protocol):
    """Events in order, and the resume point that belongs to them.

    Promises of all: cancellable, where what was under way may still happen, whole; ``StoreUnavailable`` where waiting
    heals; ``StoreReplaced`` where what was opened is gone; what ``read`` has shown once it shows again with the same
    offset until it is trimmed, also after a crash.
    """

    async def bounds(self) -> Bounds:
        """The epoch and what is retained of it."""
        ...

    async def append(
        self, expected: Position, events: Sequence[NewEvent], resume_point: str, *, replaces: str | None = None
    ) -> Sequence[StoredEvent]:
        """Append after ``expected``, which must be the head, and store the resume point: all or nothing.

        Offsets go on without a gap. No events and a new resume point is allowed: it moves no offset and wakes
        nobody. Raises ``StaleAppend``, with nothing written, where ``expected`` is not the head.

        ``replaces``: the resume point that the writer knows to be stored; where it is another, ``StaleAppend`` as well:
        two writers that move nothing but the resume point are told apart by it, and a later one is not put back, behind
        which changes may be forgotten already. None: it is not compared.
        """
        ...

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        """The next events after a position, in order, at most ``limit``; those of one destination if one is given.

        That may be ``Within``, what some channels have of a destination: who may read no others is served by it.
        With ``bytes_max`` they end with the event whose body brings the sum of the bodies to that many bytes: at least
        one event is given, and who gets fewer than ``limit`` with fewer bytes has all that there is (``is_all``). A
        store never holds much more than that in memory. Empty at the head and beyond. Raises ``PositionExpired`` where
        something after the position was trimmed, or the epoch is another.
        """
        ...

    async def recent(
        self,
        until: Position,
        age_s: float,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The newest event of each object among those up to ``until`` that are at most ``age_s`` old, in order.

        Age is by the store's clock. Of more than ``limit`` objects the newest; with ``bytes_max`` the oldest that is
        given is the one with which the bodies, counted from the newest on, come to that many bytes. Raises
        ``PositionExpired`` for another epoch.
        """
        ...

    async def resume_point(self) -> str | None:
        """What the last append stored; None in a new store."""
        ...

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        """Drop all events and start a new, empty epoch with this resume point, atomically.

        Offsets may begin at 1 again, or go on after the last one of the old epoch: the store chooses. The events are
        gone for all readers at once, and their number must not hold up readers and writers.

        A verb of its own because a history that was lost must be told apart from one that is empty. Fenced like an
        append: raises ``StaleAppend``, with nothing changed, if ``expected`` is not the head.
        """
        ...

    async def wait(self, after: Position) -> None:
        """Return when the head is not ``after`` any more, whoever appended. It may return for nothing.

        Raises ``StoreUnavailable`` also where a connection was lost that can be made anew at once: the store behind it
        may be a copy without the newest events, which whoever waits must look for.
        """
        ...

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        """Delete up to ``limit`` of the oldest events that are older than ``age_s`` or beyond the newest ``keep``.

        Returns how many events were deleted; fewer than ``limit`` means done. Offsets are not used again, and the
        resume point stays.

        Also forget the durable subscriptions that were not used for longer than ``unused_s``. All others keep their
        positions, even if every event was deleted: a client that returns after its events were trimmed must be able
        to learn that, and without its position it would count as new.
        """
        ...

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        """Give the position up to which all is acknowledged for a durable subscription; None where none is known.

        It may be of an epoch that has ended, or before what is retained: the caller decides what that means.
        """
        ...

    async def hold(self, holders: Sequence[Holder]) -> Sequence[Position | None]:
        """Make each the holder of its durable subscription; give for each, in order, what ``acknowledged`` would.

        Whoever held it before holds it no longer. A verb of its own because nodes share nothing but the store: two
        of them must not both acknowledge for one name, and the newest claim is to win. Many at once, because
        everybody comes back at once when a node has ended. No owner and name comes twice in one call.
        """
        ...

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Holder]:
        """Keep acknowledged positions; give the holders that hold theirs no longer, of whom nothing is kept.

        Within an epoch a position only goes forward: an earlier one is not an error and changes nothing but the time
        of its last use. A position of another epoch replaces it, and it outlives its own. Where nobody is known as
        holder (it was forgotten), this one is again. No owner and name comes twice in one call.
        """
        ...

    async def aclose(self) -> None:
        """Let go of files and connections. Idempotent."""
        ...
