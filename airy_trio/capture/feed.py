"""The port of change feeds: what a source of changes promises to the recorder.

A feed is read like a file: after a resume point, a batch and the next resume point. It keeps no position of its
own; the event store keeps the resume point with the events that it led to.
"""

from typing import Final, Literal, Protocol

from attrs import field, frozen

from airy_trio.changes.rows import ChangedObject
from airy_trio.errors import AiryTrioError, Unavailable
from airy_trio.options import between, one_of

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
