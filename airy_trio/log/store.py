"""The port of event stores: the promises of each verb. Published as ``airy_trio.stores``.

An event store contains events in one order, as encoded bodies with the few facts that delivery needs. It assigns the
offsets, without gaps within an epoch and from 1 in a new store. Together with the events it stores the resume point, at
which the change feed continues. It need not know what an event means or who reads it. The suite in
``airy_trio.testing.event_store`` checks these promises for any store.
"""

import re
import secrets
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import total_ordering
from typing import NamedTuple, Protocol, Self

from attrs import field, frozen

from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.events.destinations import Destination

EPOCH_LENGTH = 6
OFFSET_DIGITS_MAX = 18  # so that an offset fits into a signed 64-bit column
AGE_S_MAX = 1e12  # no event is as old; the settings allow ages whose milliseconds fit into no column
_ALPHABET = string.ascii_lowercase + string.digits
_PATTERN = re.compile(rf"([a-z0-9]{{{EPOCH_LENGTH}}})-(0|[1-9][0-9]{{0,{OFFSET_DIGITS_MAX - 1}}})")


class ForeignEpochError(ValueError):
    """Two positions of different epochs were compared. They have no order."""


def new_epoch() -> str:
    """Return a name for a new epoch: six random characters of [a-z0-9]."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(EPOCH_LENGTH))


@total_ordering
@frozen(order=False)  # attrs would order positions of two epochs by the names of their epochs
class Position:
    """A place in the log: the event with this offset or, for a cursor, the place just after it.

    Offset 0 is before the first event. Positions of one epoch are ordered; comparing those of two epochs raises
    ``ForeignEpochError``, a ``ValueError``.
    """

    epoch: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse ``EPOCH-OFFSET``. Return None if the text is no position, because a client may send any text."""
        match = _PATTERN.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    def at(self, offset: int) -> "Position":
        """Return the position with another offset of the same epoch."""
        return Position(self.epoch, offset)

    def __lt__(self, other: "Position") -> bool:
        if self.epoch != other.epoch:
            raise ForeignEpochError(f"{self} and {other} are of different epochs")
        return self.offset < other.offset


class StoreUnavailable(Unavailable):
    """The store cannot be reached now. An append that raised this may have taken effect or not."""


class StoreReplaced(AiryTrioError):
    """The place that the store had opened is gone, or was replaced by another one. The server ends.

    Its next start opens the place that is there then.
    """


class StaleAppend(AiryTrioError):
    """Another writer has appended or begun an epoch since this writer read the head. Nothing was written."""


class PositionExpired(AiryTrioError):
    """Events after this position are gone: they were trimmed, or their epoch has ended."""


class NewEvent(NamedTuple):
    """An event to append. ``object`` identifies its subject: the newest event of an object is the object's state.

    ``truncated``: the body is a placeholder for one that was too large. ``age_ms``: milliseconds from the change to the
    append; None if unknown. Readers on other nodes measure the latency of deliveries by it. It is an age instead of a
    time, because the application's database and the store have different clocks.

    A store returns any text and any octets unchanged, and distinguishes None from the empty text.
    """

    # A tuple, because a bulk change makes one of these and one StoredEvent for each row, and a frozen class takes eight
    # times as long to make.

    type: str
    object: str
    conversation_id: str | None
    channel_id: str | None
    body: bytes
    truncated: bool = False
    age_ms: int | None = None


class StoredEvent(NamedTuple):
    """An event in the log. The fields of ``NewEvent`` follow, in the same order.

    ``appended_at_ms``: milliseconds since 1970 by the store's clock; never less than that of the event before.
    """

    offset: int
    appended_at_ms: int
    type: str
    object: str
    conversation_id: str | None
    channel_id: str | None
    body: bytes
    truncated: bool
    age_ms: int | None = None


def stored_after(expected: Position, events: Sequence[NewEvent], appended_at_ms: int) -> list[StoredEvent]:
    """Return new events as an append stores them: with the offsets that follow a position, and their time."""
    return [
        StoredEvent(offset, appended_at_ms, *event) for offset, event in enumerate(events, start=expected.offset + 1)
    ]


@frozen
class Claim:
    """A claim of the durable subscription ``name`` of the user ``owner``. No other claim has the same ``token``."""

    owner: str
    name: str
    token: str


@frozen
class Acknowledgement:
    """The position up to which the client of this claim has acknowledged all events."""

    claim: Claim
    position: Position


def up_to_bytes(events: Iterable[StoredEvent], bytes_max: int | None) -> Iterator[StoredEvent]:
    """Yield events up to and including the one whose body brings the sum of the bodies to ``bytes_max``; None: all."""
    size = 0
    for event in events:
        yield event
        size += len(event.body)
        if bytes_max is not None and size >= bytes_max:
            return


def is_all(events: Sequence[StoredEvent], limit: int, bytes_max: int) -> bool:
    """Return whether a read with this ``limit`` and ``bytes_max`` returned all events that existed."""
    return len(events) < limit and sum(len(event.body) for event in events) < bytes_max


def milliseconds(age_s: float) -> int:
    """Return an age, which may have any length, in milliseconds that fit into a signed 64-bit column."""
    return int(min(age_s, AGE_S_MAX) * 1000)


@frozen
class StoredState:
    """The stored current state, as the recorder described it (``log.current``).

    ``generation``: the name of this state. ``marks``: text that belongs to it and that only the recorder interprets.
    ``folded``: the offset up to which it has the events of the log.
    """

    generation: str
    marks: str
    folded: int


@frozen
class StateAt:
    """The current state of one generation as far as it is read: up to the position ``until``."""

    generation: str
    until: Position


@frozen(kw_only=True)
class StateChange:
    """What an append changes in the current state; ``EventStore.fold`` adds the events to it later.

    ``generation``, ``marks``: see ``StoredState``; they replace the stored ones. A new generation begins empty, at the
    head before this append; the name of a former one is never used again.
    ``ended``: objects that no longer exist. Their events up to the new head are not part of the state.
    ``swept``: for each type an offset. Its events up to there leave the state, also those that are not folded yet.
    ``folds``: whether any event of this append belongs in the state. If False, and the state was folded up to the
    previous head, it now counts as folded up to the new head.
    """

    generation: str
    marks: str = ""
    ended: Collection[str] = ()
    swept: Mapping[str, int] = field(factory=dict)
    folds: bool = True


@frozen(kw_only=True)
class Bounds:
    """The retained events: offsets ``first`` to ``last`` of ``epoch``.

    ``first == last + 1`` if there are none; trimming all events does not change ``last``. ``now_ms``: the store's clock
    at this read, in milliseconds since 1970, from which a reader computes the age of an event. ``state``: the current
    state; None if there is none, or if a writer without support for it has appended last.
    """

    epoch: str
    first: int
    last: int
    now_ms: int
    state: StoredState | None = None

    @property
    def head(self) -> Position:
        """The position of the newest event that was appended, retained or not."""
        return Position(self.epoch, self.last)

    @property
    def floor(self) -> Position:
        """The oldest position after which all events are retained."""
        return Position(self.epoch, self.first - 1)


class EventStore(Protocol):
    """Events in order, and the resume point that belongs to them.

    Every verb can be cancelled; its effect may then still happen, but completely or not at all. Every verb raises
    ``StoreUnavailable`` if a retry may help. An event that ``read`` has returned once has its offset until it is
    trimmed, also after a crash.

    *Time-outs*: callers set none. Each verb except ``wait`` has its own, and raises ``StoreUnavailable`` when it
    expires. A store never repeats a write whose outcome it does not know, because the caller must learn that: it reads
    and decides.

    *Reads are not older than appends*: ``bounds``, ``read`` and ``resume_point`` never answer from before an append
    that has returned, or whose events were read, in any process. So a replica that lags cannot serve them: a node that
    sees the head go back concludes that the store has lost events, begins a new epoch, and thereby deletes the log.

    *A lost or replaced place*: if the store finds that what it had opened is gone, or that another place has taken its
    name, every verb raises ``StoreReplaced``. If it cannot distinguish the two, as a server that was emptied, the place
    has a new epoch, like a new store. A place that lost only its newest events keeps its epoch; the nodes notice that.

    *The clock* is one for all processes: that of the store's server, or of the machine if the store is a file.
    """

    async def bounds(self) -> Bounds:
        """Return the current epoch, and the bounds of its retained events."""
        ...

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        """Append events after ``expected`` and store the resume point, atomically; return the events as stored.

        One append has up to ``[changes] batch_rows_max`` events (5000 by default) and about 4 MiB of bodies, or more if
        a single change makes more. It should take less than a second.

        Offsets continue without a gap. Without events only the resume point is stored: the head does not move, and
        ``wait`` need not return. Raises ``StaleAppend``, with nothing written, if ``expected`` is not the head.

        ``replaces``: the resume point that the writer believes to be stored; None: do not compare. If another one is
        stored, ``StaleAppend`` is raised as well. Without this comparison, two writers that append no events would not
        notice each other: the later one could store an older resume point, whose changes may already be trimmed.

        ``state``: changes the current state in the same step. Without it the stored state no longer belongs to the
        head, and ``Bounds.state`` is None until an append has one again.
        """
        ...

    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        """Add the next events of the log to the current state, about ``limit`` of them; return whether more is left.

        Of the objects of ``types`` the newest event replaces the one before. The recorder calls this in the background,
        so that an append need not wait for it, and any process calls it before it reads the state for a client.
        Concurrent calls add each event exactly once. In a store with one writer, a call should block appends for a few
        milliseconds only, however large the events are. Also deletes what the store has noted of objects that have
        ended, if it is no longer needed. Returns False, with nothing changed, if ``Bounds.state`` is None or of another
        generation.
        """
        ...

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return the next events after a position, in order, at most ``limit``; of one destination if one is given.

        The destination may be ``Within``, for a client that may read some channels only. With ``bytes_max`` the result
        ends with the event whose body brings the sum of the bodies to that many bytes. It therefore has at least one
        event if any exists, and a result that reaches neither bound has all of them (``is_all``). A store never has
        much more than ``bytes_max`` in memory for a read. At the head and beyond, the result is empty. Raises
        ``PositionExpired`` if an event after the position was trimmed, or if the position is of another epoch.
        """
        ...

    async def current(
        self,
        state: StateAt,
        after: Position,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return the next events of the current state after a position, in order. The limits are as for ``read``.

        For each object the current state has its newest event up to ``StoredState.folded``, unless the object has ended
        since or was swept. Trimming does not change it. Events after ``state.until`` are not returned: a reader finds
        them in the log. Raises ``PositionExpired`` for another epoch, and if ``Bounds.state`` is None, of another
        generation, or folded less far than ``state.until``, as after a crash that has undone a fold.
        """
        ...

    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        """Return the newest retained event of a destination up to a position; None if there is none.

        Raises ``PositionExpired`` for another epoch.
        """
        ...

    async def since(self, age_s: float) -> Position:
        """Return the position after which all retained events are at most ``age_s`` old, by the store's clock.

        Ages, here and in ``trim``, may have any length.
        """
        ...

    async def resume_point(self) -> str | None:
        """Return the resume point that was stored last; None in a new store."""
        ...

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        """Delete all events and start a new, empty epoch with this resume point, atomically; return its bounds.

        The store chooses whether offsets begin at 1 again or continue after those of the old epoch. The events
        disappear for all readers at once, and however many there are, readers and writers must not wait for their
        deletion.

        An epoch has a name because a lost history must differ from an empty one: clients with a position of the old
        epoch must reload. Raises ``StaleAppend``, with nothing changed, if ``expected`` is not the head.
        """
        ...

    async def wait(self, after: Position) -> None:
        """Return when the head is no longer ``after``, whichever process appended. It may return without a change.

        Only one task of a process waits at a time.

        Raises ``StoreUnavailable`` also if a connection was lost that can be reopened at once: the new connection may
        lead to a copy without the newest events, and the caller must check that.
        """
        ...

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        """Delete up to ``limit`` of the oldest events that are older than ``age_s`` or beyond the newest ``keep``.

        Returns the number of deleted events; fewer than ``limit`` means done. Their offsets are never used again, and
        the resume point stays the same. Events after ``StoredState.folded`` stay, because the state needs them.

        Also deletes the durable subscriptions that were not used for longer than ``unused_s``; a claim is a use, and
        so is an acknowledgement that is not rejected, but ``acknowledged`` is none. All others retain their
        positions, even if every event was deleted: a client that returns after its events were trimmed must learn that,
        and without its position it would count as new.
        """
        ...

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        """Return the position up to which a durable subscription has acknowledged all events; None if there is none.

        It may be of an epoch that has ended, or before the retained events; the caller handles both.
        """
        ...

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        """Store each claim in place of the former one; return for each, in order, what ``acknowledged`` would.

        The newest claim of a durable subscription is the only one that may acknowledge for it: nodes share nothing but
        the store, and two of them must not both acknowledge for one name. A call may contain thousands of claims,
        because all clients of a node reconnect when it ends. Each claim alone is atomic: a call that fails or is
        cancelled may have stored some of them. No owner and name appears twice in one call.
        """
        ...

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        """Store acknowledged positions; return the claims that another one has replaced. Theirs are not stored.

        Within an epoch a position only goes forward: an earlier one is no error and only renews the time of the last
        use. A position of another epoch replaces the stored one. Positions outlive their epoch. If the subscription was
        deleted, so that it has no claim, this claim is stored again. Each acknowledgement alone is atomic, as for
        ``claim``. No owner and name appears twice in one call.
        """
        ...


OpenEventStore = Callable[[str], AbstractAsyncContextManager[EventStore]]
"""Opens the store at ``[log] url``, which may be empty, for the length of a block, and closes it at the end.

It raises an ``AiryTrioError`` that does not show the URL if the URL has a fault. It does not connect: the verbs connect
and raise ``StoreUnavailable``, which the server retries, at its start too. It may run a nursery around the block; then
errors of the block leave it in an exception group. Each process calls it once, and calls no verb after the block.
"""
