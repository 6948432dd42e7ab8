"""A cursor into an event store for somebody who reads over the servers' shoulders: what comes next, or that it is gone.

It reads the store alone and changes nothing. Where what follows the cursor is gone it says so with the verdict of the
wire contract ("Positions and resuming"), and goes on with the oldest event that is kept.
"""

from collections.abc import Sequence
from typing import Final, Literal

from attrs import frozen

from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position
from airy_trio.log.store import Bounds, EventStore, PositionExpired, StoredEvent

READ_EVENTS_MAX: Final = 200
READ_BYTES_MAX: Final = 1024 * 1024


@frozen
class Reset:
    """What followed the cursor is gone: it stands at ``position`` now."""

    verdict: Literal["reset-expired", "reset-epoch"]
    position: Position


class Reader:
    """The events of one destination after a position. ``position`` is where it stands."""

    def __init__(self, store: EventStore, destination: Destination, position: Position) -> None:
        self._store = store
        self._destination = destination
        self.position = position

    async def next(self) -> Sequence[StoredEvent] | Reset:
        """Wait for the next events, at least one, in order; or tell that they are gone.

        Cancellable; where it raises ``StoreUnavailable`` it stands where it stood, and can be asked again.
        """
        while True:
            bounds = await self._store.bounds()
            if gone := self._gone(bounds):
                self.position = gone.position
                return gone
            if bounds.head == self.position:
                await self._store.wait(self.position)
                continue
            try:
                found = await self._store.read(
                    self.position, READ_EVENTS_MAX, self._destination, bytes_max=READ_BYTES_MAX
                )
            except PositionExpired:  # just now: the bounds tell how
                continue
            self.position = self.position.at(found[-1].offset if found else bounds.last)
            if found:
                return found

    def _gone(self, bounds: Bounds) -> Reset | None:
        if self.position.epoch != bounds.epoch or self.position.offset > bounds.last:
            return Reset("reset-epoch", bounds.floor)
        if self.position < bounds.floor:
            return Reset("reset-expired", bounds.floor)
        return None
