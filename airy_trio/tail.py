"""``airy-trio tail``: print events as they happen, read from the event store, whether or not a server runs here.

It only reads. If the events after its position are no longer retained, it reports the verdict that a client of the
server would receive ("Positions and resuming" in the wire contract) and continues with the oldest retained event. If
the store is unavailable, it retries as a server does: for ``connect_timeout_s`` at the start, and later until it ends.

``follow`` does the same from outside, as a client of a server.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import trio
from attrs import define, frozen

from airy_trio import client
from airy_trio.app.build import opened_store, wait_until_available
from airy_trio.errors import StartError
from airy_trio.events.destinations import EVERYTHING, Destination, text
from airy_trio.log.store import Bounds, EventStore, Position, PositionExpired, StoredEvent, StoreUnavailable
from airy_trio.retry import Backoff
from airy_trio.settings import Settings
from airy_trio.terminal import Stdout, line

READ_EVENTS_MAX: Final = 200
READ_BYTES_MAX: Final = 1024 * 1024
RESETS: Final = {
    "reset-expired": "the events after the position have been trimmed",
    "reset-epoch": "the position is of another epoch of this log: clients of the server must reload",
}


@frozen(kw_only=True)
class TailOptions:
    """What to print, and how.

    ``since``: begin after this position; ``everything``: with the oldest retained event; ``current``: with the current
    state, for ``follow`` only; none of these: with the next event.
    ``as_json``: a JSON object for each event. ``events_max``: end after this many events.
    """

    destination: Destination = EVERYTHING
    since: Position | None = None
    everything: bool = False
    current: bool = False
    as_json: bool = False
    events_max: int | None = None


async def tail(settings: Settings, options: TailOptions, output: Stdout) -> None:
    """Write a line for each event until cancelled, until ``events_max``, or until nothing reads the output.

    Raises ``StartError`` if there is no event store to read.
    """
    if settings.log.store == "memory":
        raise StartError(['log.store: "memory" is inside the server process and cannot be read'])
    shown, events_max = 0, options.events_max
    async with opened_store(settings, create=False) as opened:
        bounds = await wait_until_available(opened.store.bounds, settings.database, "log.url")
        begin = options.since or (bounds.floor if options.everything else bounds.head)
        reader = Reader(opened.store, options.destination, begin)
        output.note(f"reading {opened.words} after {reader.position}")
        while events_max is None or shown < events_max:
            try:
                found = await reader.next()
            except StoreUnavailable as error:
                await _wait_for(opened.store, error, output)
                continue
            if isinstance(found, TailReset):
                if not _write_reset(output, found.verdict, found.position, as_json=options.as_json):
                    return
                continue
            for event in found if events_max is None else found[: events_max - shown]:
                position = reader.position.at(event.offset)
                if not output.write(_line(position, event, as_json=options.as_json)):
                    return
                shown += 1


async def follow(url: str, token: str | None, options: TailOptions, output: Stdout) -> None:
    """Write a line for each event of a server, as ``tail`` does. Raises ``client.ClientError``."""
    shown = 0
    since = None if options.since is None else str(options.since)
    begin: client.Begin = "oldest" if options.everything else "current" if options.current else "next"
    async with client.open(url, token=token) as server:
        async for item in server.events(text(options.destination), position=since, begin=begin):
            if isinstance(item, client.Reset):
                written = _write_reset(output, item.verdict, item.position, as_json=options.as_json)
            elif isinstance(item, client.State):
                written = _write_state(output, item, as_json=options.as_json)
            elif options.as_json:
                truncated = ',"truncated":true' if item.truncated else ""
                written = output.write(f'{{"position":"{item.position}"{truncated},{item.body[1:].decode()}')
            else:
                written = output.write(line(item.position, item.body, datetime.now(UTC)))
            if isinstance(item, client.Event):
                shown += 1
                if item.completes_state and not options.as_json:
                    written = output.write("the current state is complete; changes follow")
            if not written or shown == options.events_max:
                return


def _write_reset(output: Stdout, verdict: str, position: object, *, as_json: bool) -> bool:
    output.note(f"{verdict}: {RESETS[verdict]}; continuing after {position}")
    return not as_json or output.write(f'{{"position":"{position}","resume":"{verdict}"}}')


def _write_state(output: Stdout, state: client.State, *, as_json: bool) -> bool:
    missing = f", without all of {', '.join(state.missing)}" if state.missing else ""
    if as_json:
        return output.write(f'{{"position":"{state.position}","until":"{state.until}"}}')
    return output.write(f"the current state up to {state.until}{missing}")


async def _wait_for(store: EventStore, error: StoreUnavailable, output: Stdout) -> None:
    """Wait until the store answers. Often it does at once, because only the connection for notifications was lost."""
    backoff, noted = Backoff(), False
    while True:
        try:
            await store.bounds()
            break
        except StoreUnavailable:
            if not noted:
                output.note(f"event store unavailable; retrying: {error}")
            noted = True
        await trio.sleep(backoff.next_s())
    if noted:
        output.note("event store available again")


def _line(position: Position, event: StoredEvent, *, as_json: bool) -> str:
    at = datetime.fromtimestamp(event.appended_at_ms / 1000, UTC)
    if not as_json:
        return line(str(position), event.body, at)
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    truncated = ',"truncated":true' if event.truncated else ""
    return f'{{"position":"{position}","recorded_at":"{time}"{truncated},{event.body[1:].decode()}'


@frozen
class TailReset:
    """The events after the cursor are not retained. The cursor is at ``position`` now."""

    verdict: Literal["reset-expired", "reset-epoch"]
    position: Position


@define
class Reader:
    """A cursor into an event store: the events of one destination after ``position``."""

    _store: EventStore
    _destination: Destination
    position: Position

    async def next(self) -> Sequence[StoredEvent] | TailReset:
        """Wait for the next events and return at least one, in order, or a ``TailReset`` if they are not retained.

        If it is cancelled or raises ``StoreUnavailable``, the position does not change, and it can be called again.
        """
        while True:
            bounds = await self._store.bounds()
            if reset := self._reset(bounds):
                self.position = reset.position
                return reset
            if bounds.head == self.position:
                await self._store.wait(self.position)
                continue
            try:
                found = await self._store.read(
                    self.position, READ_EVENTS_MAX, self._destination, bytes_max=READ_BYTES_MAX
                )
            except PositionExpired:  # trimmed since then: the new bounds show it
                continue
            self.position = self.position.at(found[-1].offset if found else bounds.last)
            if found:
                return found

    def _reset(self, bounds: Bounds) -> TailReset | None:
        if self.position.epoch != bounds.epoch or self.position.offset > bounds.last:
            return TailReset("reset-epoch", bounds.floor)
        if self.position < bounds.floor:
            return TailReset("reset-expired", bounds.floor)
        return None
