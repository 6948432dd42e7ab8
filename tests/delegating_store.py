"""An event store in memory for tests that change one operation.

The operations with many arguments pass them on as one value. A test store overrides ``on_append``, ``on_read`` or
``on_current``, so it need not repeat the signature. The override calls the same method of ``super()``, with the value
unchanged or with a field replaced (``attrs.evolve``).
"""

from collections.abc import Sequence

from attrs import frozen

from airy_trio.events.destinations import Destination
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import NewEvent, Position, StateAt, StateChange, StoredEvent


@frozen
class Append:
    """The arguments of ``EventStore.append``."""

    expected: Position
    events: Sequence[NewEvent]
    resume_point: str
    replaces: str | None = None
    state: StateChange | None = None


@frozen
class Read:
    """The arguments of ``EventStore.read``."""

    after: Position
    limit: int
    destination: Destination | None = None
    bytes_max: int | None = None


@frozen
class Current:
    """The arguments of ``EventStore.current``."""

    state: StateAt
    after: Position
    limit: int
    destination: Destination | None = None
    bytes_max: int | None = None


class DelegatingStore(MemoryStore):
    """A ``MemoryStore`` whose operations with many arguments can be overridden by methods with one argument."""

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.append``."""
        return await self.on_append(Append(expected, events, resume_point, replaces, state))

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.read``."""
        return await self.on_read(Read(after, limit, destination, bytes_max))

    async def current(
        self,
        state: StateAt,
        after: Position,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        """See ``EventStore.current``."""
        return await self.on_current(Current(state, after, limit, destination, bytes_max))

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        """Append to the memory."""
        return await super().append(
            call.expected, call.events, call.resume_point, replaces=call.replaces, state=call.state
        )

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        """Read from the memory."""
        return await super().read(call.after, call.limit, call.destination, bytes_max=call.bytes_max)

    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        """Read the current state from the memory."""
        return await super().current(call.state, call.after, call.limit, call.destination, bytes_max=call.bytes_max)
