"""The port of change feeds: what a source of changes promises to the recorder.

A feed is read like a file: after a resume point, a batch and the next resume point. It keeps no position of its
own; the event store keeps the resume point with the events that it led to.

What a feed reads: changed objects with their rows as the database holds them, under our names.

Values are raw. The mapping of the settings has been applied (names, constants, ``values``), nothing is converted:
turning text into a time or a flag may fail, and one impossible row must not fail a batch.
``events.translate`` converts.
"""

from datetime import tzinfo
from typing import Final, Literal, NamedTuple, Protocol

from attrs import field, frozen

from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.options import between, one_of

Value = str | bytes | int | float | bool | None
"""One column's raw value. ``bytes`` is text that is not UTF-8, or a BLOB."""


ContentForm = Literal["auto", "text", "json"]
"""How a message's content becomes JSON. "text": a JSON string. "json": the JSON that it is. "auto": the JSON that it is
if it is an object or an array, else a string."""


class Message(NamedTuple):
    """A row of the messages table. ``content_form``: the mapping's, or "json" for a column that is declared JSON.

    Of content that is longer than an event may be, only the beginning is read. It is still longer than an event may
    be, and its form is "text", because the rest of a JSON value is missing.
    ``sent_at`` is epoch milliseconds (int, float or digits) or ISO text, which is in ``time_zone`` if it names none.

    A tuple, for a bulk change makes one for each row: a frozen class takes eight times as long to make. First the
    fields of ``tables.FIELDS``, in that order.
    """

    id: Value
    conversation_id: Value
    channel_id: Value
    content: Value
    delivery_state: Value
    from_contact: Value
    sent_at: Value
    source: Value
    sender_id: Value
    content_form: ContentForm
    time_zone: tzinfo


@frozen(kw_only=True)
class MessageGone:
    """A message that was deleted, or that the mapping's ``where`` no longer includes."""

    id: Value
    conversation_id: Value
    channel_id: Value


@frozen(kw_only=True)
class MetadataEntry:
    """A row of the metadata table: one key of one (subject, identifier) pair. ``value_type`` None: all text."""

    key: Value
    value: Value
    value_type: Value
    updated_at: Value


@frozen(kw_only=True)
class Metadata:
    """All the rows there are now of one (subject, identifier) pair, in no order; none when the last was deleted.

    ``conversation_id`` and ``channel_id`` are those of the thing that the metadata is about, read in the same
    snapshot; None where no such row is known.
    """

    subject: Value
    identifier: Value
    entries: tuple[MetadataEntry, ...]
    time_zone: tzinfo
    conversation_id: Value = None
    channel_id: Value = None


@frozen(kw_only=True)
class Channel:
    """A row of the channels table."""

    id: Value
    source: Value
    source_channel_id: Value
    connected: Value


@frozen(kw_only=True)
class ChannelGone:
    """A channel that was deleted, with what its last event must carry."""

    id: Value
    source: Value
    source_channel_id: Value


@frozen(kw_only=True)
class Tag:
    """A row of the tags table."""

    id: Value
    name: Value
    color: Value


@frozen(kw_only=True)
class TagGone:
    """A tag that was deleted."""

    id: Value


@frozen(kw_only=True)
class Unreadable:
    """An object that the database refuses to read. ``kind`` is its table's name in the settings.

    ``key``: its id, or subject and identifier. ``reason`` contains nothing of the row.
    """

    kind: str
    key: tuple[Value, ...]
    reason: str


ChangedObject = Message | MessageGone | Metadata | Channel | ChannelGone | Tag | TagGone | Unreadable
"""The closed union of what a feed gives."""


OVERLAP_S: Final = 5.0
CANNOT_SEE: Final = (
    "deleted rows, the old keys of changed ones, rows whose updated_at was not set or is no time, what a transaction "
    "wrote that was open for longer than overlap_s"
)
"""What capture by ``updated_at`` misses."""


@frozen(kw_only=True)
class ChangesOptions:
    """How changes are captured (settings, ``[changes]``); ``overlap_s`` is of ``updated_at`` only."""

    capture: Literal["triggers", "updated_at"] = field(default="triggers", validator=one_of("triggers", "updated_at"))
    overlap_s: float = field(default=OVERLAP_S, validator=between(0.1, 86_400))
    batch_rows_max: int = field(default=5000, validator=between(1, 100_000))

    @property
    def reads_only(self) -> bool:
        """Whether nothing of ours is in the application's database."""
        return self.capture == "updated_at"


class ResumePointLost(AiryTrioError):
    """The resume point belongs to another history of the database: a restored copy, another cluster.

    What changed since cannot be known; the log must start a new epoch from ``ChangeFeed.restart()``.
    """


class TablesChanged(Unavailable):
    """A table is not as it was inspected, or was rewritten after the snapshot: what was read of it may be wrong."""

    def __init__(self, table: str) -> None:
        super().__init__(f'table "{table}" was changed while it was read')


class ResumePointTooNew(AiryTrioError):
    """A newer version wrote the resume point: going on from a guess at its meaning could lose changes."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"a newer airy-trio has written the event log (its resume point has format {found}, this version reads up "
            f"to {known}); install that version, or begin a new epoch with: airy-trio migrate --adopt-log --config FILE"
        )


@frozen(kw_only=True)
class Batch:
    """Changed objects in the order of the newest change of each, and the point after them.

    ``changes``: how many rows of the change log this covers (0: nothing happened, the point need not be stored).
    ``more``: the batch was cut at the limit, the next read will find something at once.
    ``age_s``: how long ago, by the database's clock, the oldest of these changes was logged, which is before its
    commit; None where there is none or it is not known.
    """

    objects: tuple[ChangedObject, ...]
    resume_point: str
    changes: int
    more: bool
    age_s: float | None = None


@frozen
class Consumer:
    """The one log that records a change log: its epoch, and its store in words for a person."""

    epoch: str
    store: str


class ChangeFeed(Protocol):
    """Changed objects after a resume point.

    Promises, for every method: it is cancellable, and raises ``database.DatabaseUnavailable`` where waiting heals.
    A resume point is opaque text that only the feed reads.

    ``consumed``: the changes are kept for one event log, which is named beside them. Where they are not, any number of
    logs may read them, each from its own resume point: ``consumer`` is always None, ``adopt``, ``seal``, ``settle`` and
    ``trim`` do nothing, and ``origin`` is now.

    A recorder seals a resume point before it stores it and settles it afterwards. The database then remembers which
    points an event log can hold, and ``read`` notices if either of the two was put back to an older state. If both are
    in one database, neither goes back without the other, and both verbs do nothing.
    """

    consumed: bool

    async def read(self, after: str, limit: int) -> Batch:
        """Read the next changes after a resume point, at most ``limit`` rows of the change log.

        Nothing is skipped and nothing comes twice, whatever the order in which transactions commit. Objects and
        resume point are of one snapshot of the database. Each object comes once, with its rows as they are in
        that snapshot. Reading again after the same point is allowed and gives at least the same changes.

        Raises ``ResumePointLost`` if the point is of another history, and ``ResumePointTooNew``.
        """
        ...

    async def is_foreign(self, point: str) -> bool:
        """Whether a stored resume point is of another database or way of capture: its event log must not be touched.

        False if the point does not say. Raises ``ResumePointTooNew``.
        """
        ...

    async def identified(self, point: str) -> str:
        """A stored resume point, not a foreign one, with the identity of its database: an older version wrote none.

        Raises ``ResumePointTooNew``.
        """
        ...

    async def seal(self, after: str, upto: str) -> str:
        """Make everything that was read up to a point durable; give the point to store instead of ``upto``.

        ``after``: the resume point that the event log holds. From now on ``read`` accepts these two only, and no older
        one. Sealing again after an append of unknown outcome is allowed: the point of that append, which may still
        happen, is then accepted as well.
        """
        ...

    async def settle(self, point: str) -> None:
        """Note that the event log holds a sealed point: ``read`` no longer accepts those before. Idempotent."""
        ...

    async def wait(self) -> None:
        """Return when there may be something to read, soon after a commit. It may return for nothing."""
        ...

    async def origin(self) -> str:
        """The resume point for an empty store: where ``migrate`` started, or what ``trim`` has reached since."""
        ...

    async def restart(self) -> str:
        """Forget the changes that are visible now and give the point after them: the start of a new epoch."""
        ...

    async def trim(self, upto: str, limit: int) -> int:
        """Delete at most ``limit`` change rows that lie before a stored resume point; give their number.

        What is committed after ``upto`` is never touched. The application is never made to wait for more than
        one such batch.
        """
        ...

    async def consumer(self) -> Consumer | None:
        """The log that records these changes, as kept beside them; None before the first."""
        ...

    async def adopt(self, consumer: Consumer) -> None:
        """Name the log that records these changes from now on."""
        ...


class Lease(Protocol):
    """Who may record. At most one holder at a time; a holder that dies loses it by itself."""

    async def try_acquire(self) -> bool:
        """Take the lease if nobody holds it; True also when it is ours already and still held."""
        ...

    async def release(self) -> None:
        """Give it back. Idempotent."""
        ...
