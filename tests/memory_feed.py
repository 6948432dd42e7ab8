"""A change feed and a lease in memory, for tests of recorders without a database.

``MemoryChanges`` is the database, shared by the feeds and leases of several recorders. A test can write to it, make it
unavailable, give it another history, and take the lease from a holder that does not detect the loss.
"""

import trio
from attrs import define, field

from airy_trio.capture.feed import Batch, ChangedObject, Consumer, Metadata, ResumePointLost, Unreadable
from airy_trio.database import DatabaseUnavailable


@define(eq=False)
class MemoryChanges:
    """A change log. ``away``: it is unavailable. ``history``: resume points of another history are lost.

    ``origin``: the number of the change after which an empty event store starts; ``trimmed``: the number up to which
    changes were deleted; ``holder``: of the lease.
    """

    rows: list[ChangedObject] = field(factory=list)
    history: int = 1
    origin: int = 0
    trimmed: int = 0
    consumer: Consumer | None = None
    holder: object = None
    away: bool = False
    written: trio.Event = field(factory=trio.Event)

    async def reach(self) -> None:
        """Raise ``DatabaseUnavailable`` while it is away."""
        await trio.lowlevel.checkpoint()
        if self.away:
            raise DatabaseUnavailable("the database is unavailable")

    def write(self, *objects: ChangedObject) -> None:
        """Commit changes, one row of the change log for each."""
        self.rows += objects
        self.written.set()
        self.written = trio.Event()

    def restore(self, origin: int | None = None) -> None:
        """Begin another history, as a database restored from a backup does: earlier resume points are lost."""
        self.history += 1
        self.origin = len(self.rows) if origin is None else origin

    def point(self, number: int) -> str:
        """Return the resume point after a change; the first change has number 1."""
        return f"{self.history}:{number}"


class MemoryFeed:
    """``ChangeFeed`` over ``MemoryChanges``."""

    consumed = True

    def __init__(self, changes: MemoryChanges) -> None:
        self._changes = changes

    async def read(self, after: str, limit: int) -> Batch:
        await self._changes.reach()
        number = self._number(after)
        rows = self._changes.rows[number : number + limit]
        newest: dict[tuple[object, ...], ChangedObject] = {}
        for row in rows:
            newest.pop(_identity(row), None)
            newest[_identity(row)] = row
        return Batch(
            objects=tuple(newest.values()),
            resume_point=self._changes.point(number + len(rows)),
            changes=len(rows),
            more=len(rows) == limit,
        )

    async def wait(self) -> None:
        """Return also after a second without changes, so that the lease is renewed."""
        with trio.move_on_after(1):
            await self._changes.written.wait()

    async def origin(self) -> str:
        await self._changes.reach()
        return self._changes.point(self._changes.origin)

    async def restart(self) -> str:
        await self._changes.reach()
        self._changes.origin = self._changes.trimmed = len(self._changes.rows)
        return self._changes.point(self._changes.origin)

    async def identified(self, point: str) -> str:
        """Return the point as given: there is only one database."""
        await self._changes.reach()
        return point

    async def seal(self, after: str, upto: str) -> str:  # noqa: ARG002 - changes are never lost within a history
        """Return the point as given."""
        return upto

    async def settle(self, point: str) -> None:
        """There is nothing to do."""

    async def trim(self, upto: str, limit: int) -> int:
        await self._changes.reach()
        count = max(0, min(self._number(upto) - self._changes.trimmed, limit))
        self._changes.trimmed += count
        self._changes.origin = max(self._changes.origin, self._number(upto)) if count else self._changes.origin
        return count

    async def consumer(self) -> Consumer | None:
        await self._changes.reach()
        return self._changes.consumer

    async def adopt(self, consumer: Consumer) -> None:
        await self._changes.reach()
        self._changes.consumer = consumer

    def _number(self, point: str) -> int:
        history, number = map(int, point.split(":"))
        if history != self._changes.history or number < self._changes.trimmed:
            raise ResumePointLost(f"{point} is of another history, or the changes after it were trimmed")
        return number


@define(eq=False)
class MemoryLease:
    """``Lease`` on ``MemoryChanges``. ``unaware``: it never detects its loss, like a suspended process."""

    changes: MemoryChanges
    unaware: bool = False
    had: bool = False

    async def try_acquire(self) -> bool:
        await self.changes.reach()
        if self.changes.holder is None:
            self.changes.holder = self
        if self.changes.holder is self:
            self.had = True
        return self.changes.holder is self or (self.unaware and self.had)

    async def release(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.changes.holder is self:
            self.changes.holder = None


def _identity(row: ChangedObject) -> tuple[object, ...]:
    kind = type(row).__name__.removesuffix("Gone")
    match row:
        case Metadata():
            return kind, row.subject, row.identifier
        case Unreadable():
            return row.kind, *row.key
        case _:
            return kind, row.id
