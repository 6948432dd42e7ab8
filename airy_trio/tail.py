"""``airy-trio tail``: events in the terminal as they happen, read from the store, whether a server runs or not.

A store that is away is waited for, as the server does: at the start for ``connect_timeout_s``, later for ever.

A cursor into an event store for somebody who reads over the servers' shoulders: what comes next, or that it is gone.

It reads the store alone and changes nothing. Where what follows the cursor is gone it says so with the verdict of the
wire contract ("Positions and resuming"), and goes on with the oldest event that is kept.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal, Protocol

import trio
from attrs import frozen

from airy_trio.app.build import opened_store, wait_until_available
from airy_trio.errors import StartError, single_error
from airy_trio.events.destinations import EVERYTHING, Destination
from airy_trio.log.position import Position
from airy_trio.log.store import Bounds, EventStore, PositionExpired, StoredEvent, StoreUnavailable
from airy_trio.settings import Settings
from airy_trio.terminal import line

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


__all__ = ["Output", "TailOptions", "tail"]

PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 1.0
RESETS: Final = {
    "reset-expired": "what followed the position has been trimmed",
    "reset-epoch": "the position is of another history of this log: clients of the server must reload",
}


class Output(Protocol):
    """Where lines go."""

    def write(self, text: str) -> bool:
        """Write a line; False where nobody reads any more."""
        ...

    def note(self, text: str) -> None:
        """Tell a person something that is no event."""
        ...


@frozen(kw_only=True)
class TailOptions:
    """What to show, and how.

    ``since``: begin after this position; ``everything``: with the oldest event that is kept; neither: with the next.
    ``as_json``: a JSON object for each event. ``events_max``: end after so many.
    """

    destination: Destination = EVERYTHING
    since: Position | None = None
    everything: bool = False
    as_json: bool = False
    events_max: int | None = None


async def tail(settings: Settings, options: TailOptions, output: Output) -> None:
    """Write a line for each event, until cancelled, until nobody reads, or until there were enough.

    Raises ``StartError`` where there is no store to read.
    """
    if settings.log.store == "memory":
        raise StartError(['log.store: "memory" is inside the server, where nobody else can read it'])
    try:
        async with opened_store(settings, create=False) as opened:
            bounds = await wait_until_available(opened.store.bounds, settings.database, "log.url")
            begin = options.since or (bounds.floor if options.everything else bounds.head)
            reader = Reader(opened.store, options.destination, begin)
            output.note(f"reading {opened.words} after {reader.position}")
            await _Tail(opened.store, reader, output, as_json=options.as_json).run(options.events_max)
    except BaseExceptionGroup as group:  # some stores have tasks of their own
        raise single_error(group) from None


class _Tail:
    def __init__(self, store: EventStore, reader: Reader, output: Output, *, as_json: bool) -> None:
        self._store = store
        self._reader = reader
        self._output = output
        self._as_json = as_json

    async def run(self, events_max: int | None) -> None:
        shown = 0
        while events_max is None or shown < events_max:
            try:
                found = await self._reader.next()
            except StoreUnavailable as error:
                if await self._answers():  # only the connection was lost on which it tells what is new
                    continue
                self._output.note(f"the event store is away, and waited for: {error}")
                await self._wait_for_store()
                self._output.note("the event store is back")
                continue
            if isinstance(found, Reset):
                if not self._tell_reset(found):
                    return
                continue
            for event in found if events_max is None else found[: events_max - shown]:
                if not self._output.write(self._line(event)):
                    return
                shown += 1

    async def _answers(self) -> bool:
        try:
            await self._store.bounds()
        except StoreUnavailable:
            return False
        return True

    async def _wait_for_store(self) -> Bounds:
        pause_s = PAUSE_FIRST_S
        while True:
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            try:
                return await self._store.bounds()
            except StoreUnavailable:
                continue

    def _tell_reset(self, reset: Reset) -> bool:
        self._output.note(f"{reset.verdict}: {RESETS[reset.verdict]}; goes on after {reset.position}")
        if self._as_json:
            return self._output.write(f'{{"position":"{reset.position}","resume":"{reset.verdict}"}}')
        return True

    def _line(self, event: StoredEvent) -> str:
        position = self._reader.position.at(event.offset)
        at = datetime.fromtimestamp(event.appended_at_ms / 1000, UTC)
        if not self._as_json:
            return line(str(position), event.body, at)
        time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        truncated = ',"truncated":true' if event.truncated else ""
        return f'{{"position":"{position}","recorded_at":"{time}"{truncated},{event.body[1:].decode()}'
