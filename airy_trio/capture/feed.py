"""The port of change feeds: what a source of changes promises to the recorder.

The recorder reads a feed like a file: after a resume point it gets a batch and the next resume point. The feed stores
no position of its own. The event store keeps the resume point in the same transaction as the events made from the
batch, so the two cannot disagree after a crash.

A batch holds changed objects with their rows as the database has them now, under our field names. The mapping of the
settings has been applied (names, constants, ``values``), but no value is converted: parsing a time or a flag may fail,
and one bad row must not fail a batch. ``events.translate`` converts values and reports rows that it cannot convert.
"""

from collections.abc import Iterator
from datetime import tzinfo
from typing import Final, Literal, NamedTuple, Protocol

from attrs import field, frozen

from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.options import between

Value = str | bytes | int | float | bool | None
"""One column's raw value. ``bytes`` is text that is not UTF-8, or a BLOB."""

Kind = Literal["messages", "metadata", "channels", "tags"]
"""Our name for a table: its key in ``[database.tables]``."""

ContentForm = Literal["auto", "text", "json"]
"""How a message's content becomes JSON.

"text" makes a JSON string of it; "json" parses it; "auto" parses it if it is an object or an array, and otherwise makes
a string of it.
"""


class Message(NamedTuple):
    """A row of the messages table.

    ``content_form`` is that of the mapping, or "json" for a column that is declared JSON. If the content is longer than
    an event may be, only its beginning is read. That beginning is still too long for an event, and its form is "text",
    because a JSON value without its end cannot be parsed.

    ``sent_at`` is epoch milliseconds (int, float or digits) or ISO text, in ``time_zone`` if the text names no zone.

    A named tuple, like all rows, because a bulk change makes one per row and a frozen class takes eight times as long
    to make.
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


class MetadataEntry(NamedTuple):
    """A row of the metadata table: one key of one (subject, identifier) pair. ``value_type`` None: all text."""

    key: Value
    value: Value
    value_type: Value
    updated_at: Value


@frozen(kw_only=True)
class Metadata:
    """All current rows of one (subject, identifier) pair, unordered; no entries after the last row was deleted.

    ``conversation_id`` and ``channel_id`` are those of the object that the metadata describes, read in the same
    snapshot, or None if there is no such row.
    """

    subject: Value
    identifier: Value
    entries: tuple[MetadataEntry, ...]
    time_zone: tzinfo
    conversation_id: Value = None
    channel_id: Value = None


class Channel(NamedTuple):
    """A row of the channels table."""

    id: Value
    source: Value
    source_channel_id: Value
    connected: Value


@frozen(kw_only=True)
class ChannelGone:
    """A channel that was deleted, with the values that its last event carries."""

    id: Value
    source: Value
    source_channel_id: Value


class Tag(NamedTuple):
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
    """An object whose row makes the database reject the query. ``kind`` is its table's name in the settings.

    ``key`` is its id, or subject and identifier. ``reason`` contains no value of the row.
    """

    kind: str
    key: tuple[Value, ...]
    reason: str


Gone = MessageGone | ChannelGone | TagGone
"""The objects that were deleted, or that the mapping's ``where`` no longer includes."""

ChangedObject = Message | Metadata | Channel | Tag | Gone | Unreadable
"""The closed union of the objects that a feed returns."""


@frozen(kw_only=True)
class Backfill:
    """A mark in the change log: a backfill of a table begins here, or has ended. ``token``: names the backfill."""

    kind: Kind
    token: str
    ended: bool


@frozen(kw_only=True)
class Batch:
    """Changed objects, ordered by the newest change of each, and the resume point after them.

    ``changes``: rows of the change log that this batch covers. If it is 0, the resume point need not be stored.
    ``more``: the batch was cut at the limit, so the next read finds changes immediately.
    ``age_s``: age of the oldest change by the database's clock, measured from when the trigger logged it, not from its
    commit. None if there is no change or the time is not known. ``backfills``: the marks among the changes, in order.
    ``continues``: this batch is a further page of the same snapshot as the previous one.
    """

    objects: tuple[ChangedObject, ...]
    resume_point: str
    changes: int
    more: bool
    age_s: float | None = None
    backfills: tuple[Backfill, ...] = ()
    continues: bool = False


@frozen
class Consumer:
    """The one event log that records a change log: its epoch, and its store described for the operator."""

    epoch: str
    store: str


POINT_FORMAT: Final = 1
"""Format of the resume points written by this version. Only a newer one can read a point with a higher number."""


class ResumePointLost(AiryTrioError):
    """The resume point belongs to another history of the database: a restored copy, another cluster.

    The changes since then cannot be determined. The event log must begin a new epoch at ``ChangeFeed.restart()``.
    """


class ResumePointTooNew(AiryTrioError):
    """A newer version wrote the resume point; guessing its meaning could lose changes."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"a newer airy-trio has written the event log (its resume point has format {found}, this version reads up "
            f"to {POINT_FORMAT}); install that version, or begin a new epoch with: airy-trio migrate --adopt-log "
            "--config FILE"
        )


class TablesChanged(Unavailable):
    """A table differs from its inspection, or was rewritten after the snapshot: rows read from it may be wrong."""

    def __init__(self, table: str) -> None:
        super().__init__(f'table "{table}" was changed while it was read')


class ChangeFeed(Protocol):
    """Changed objects after a resume point.

    Every method is cancellable, and raises ``database.DatabaseUnavailable`` for failures that a retry can cure.
    A resume point is text that only the feed interprets.

    If ``consumed``, the database keeps its changes for one event log and stores that log's name next to them. If not,
    any number of event logs may read, each from its own resume point: ``consumer`` always returns None, ``origin``
    returns the present, and ``adopt``, ``seal``, ``settle`` and ``trim`` do nothing.

    The recorder seals a resume point before it stores it, and settles it afterwards. The database then knows which
    points the event log may hold, so ``read`` notices if either side was restored to an older state. If both are in
    one database, neither can go back alone, and both methods do nothing.
    """

    consumed: bool

    async def read(self, after: str, limit: int) -> Batch:
        """Read the next changes after a resume point, at most ``limit`` rows of the change log.

        A batch exceeds ``limit`` only if no resume point can divide it.

        Nothing is skipped and nothing comes twice, in whatever order transactions commit. Objects and resume point
        belong to one snapshot of the database; each object comes once, with its rows as of that snapshot. Reading
        again after the same point is allowed and returns at least the same changes.

        Raises ``ResumePointLost`` if the point belongs to another history, and ``ResumePointTooNew``.
        """
        ...

    async def identified(self, point: str) -> str | None:
        """Return a stored point with the identity of this database, which older versions did not write.

        None: it belongs to another database or capture mode, and this server must not record into its event log.
        Raises ``ResumePointTooNew``.
        """
        ...

    async def seal(self, after: str, upto: str) -> str:
        """Make everything read up to a point durable, and return the point to store instead of ``upto``.

        ``after`` is the resume point that the event log holds. From now on ``read`` accepts these two points only, and
        no older one. If the outcome of an append is unknown, sealing again is allowed: that append may still happen,
        so its point is accepted as well.
        """
        ...

    async def settle(self, point: str) -> None:
        """Record that the event log holds a sealed point: ``read`` accepts no earlier ones. Idempotent."""
        ...

    async def wait(self) -> None:
        """Return soon after a commit, when there may be something to read. It may return without a change."""
        ...

    async def origin(self) -> str:
        """Return the resume point for an empty store: where ``migrate`` started, or what ``trim`` has reached since."""
        ...

    async def restart(self) -> str:
        """Discard the changes that are visible now and return the point after them, the start of a new epoch."""
        ...

    async def trim(self, upto: str, limit: int) -> int:
        """Delete at most ``limit`` change rows that precede a stored resume point, and return their number.

        Changes committed after ``upto`` are never touched. The application never waits for more than one such batch.
        """
        ...

    async def consumer(self) -> Consumer | None:
        """Return the event log that records these changes, as stored next to them; None before the first."""
        ...

    async def adopt(self, consumer: Consumer) -> None:
        """Name the event log that records these changes from now on."""
        ...


class Lease(Protocol):
    """The right to record. At most one process holds it; a process that dies loses it without doing anything."""

    async def try_acquire(self) -> bool:
        """Acquire the lease if it is free, without waiting. True also if this process still holds it."""
        ...

    async def release(self) -> None:
        """Release the lease. Idempotent."""
        ...


OVERLAP_S: Final = 5.0
"""Default of ``overlap_s``. It must exceed the application's longest transaction."""

CANNOT_SEE: Final = (
    "deleted rows, the old keys of changed rows, rows whose updated_at was not set or is not a time, and writes of "
    "transactions that were open for longer than overlap_s, or took their time from a clock that is behind by more"
)
"""The changes that capture by ``updated_at`` misses, for logs and reports."""


@frozen(kw_only=True)
class ChangesOptions:
    """How changes are captured (settings, ``[changes]``). ``overlap_s`` applies to ``updated_at`` only."""

    capture: Literal["triggers", "updated_at"] = "triggers"
    overlap_s: float = field(default=OVERLAP_S, validator=between(0.1, 86_400))
    batch_rows_max: int = field(default=5000, validator=between(1, 100_000))

    def contradictions(self) -> Iterator[str]:
        """Yield a line for options that contradict each other."""
        if self.capture == "triggers" and self.overlap_s != OVERLAP_S:
            yield 'overlap_s is for capture = "updated_at", but capture is "triggers"'

    @property
    def reads_only(self) -> bool:
        """Whether airy-trio has no tables or triggers of its own in the application's database."""
        return self.capture == "updated_at"
