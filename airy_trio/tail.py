"""``airy-trio tail``: print events as they happen, read from the event store, whether or not a server runs here.

It only reads. If the events after its position are no longer retained, it reports the verdict that a client of the
server would receive ("Positions and resuming" in the wire contract) and continues with the oldest retained event. If
the store is unavailable, it retries as a server does: for ``connect_timeout_s`` at the start, and later until it ends.

``follow`` does the same from outside, as a client of a server.
"""

import json
from datetime import UTC, datetime
from typing import Final

from attrs import define, frozen

from airy_trio import client
from airy_trio.app.build import opened_store, wait_until_available
from airy_trio.errors import StartError
from airy_trio.events.destinations import EVERYTHING, Destination, text
from airy_trio.log.store import EventStore, Position, PositionExpired, StoreUnavailable
from airy_trio.retry import until_available
from airy_trio.settings import Settings
from airy_trio.terminal import Stdout, line

READ_EVENTS_MAX: Final = 200
READ_BYTES_MAX: Final = 1024 * 1024
RESETS: Final = {
    "reset-expired": "the events after the position have been trimmed",
    "reset-epoch": "the position is not one of this log: clients of the server must reload",
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
    async with opened_store(settings, create=False) as store:
        bounds = await wait_until_available(store.bounds, settings.database, "log.url")
        position = options.since or (bounds.floor if options.everything else bounds.head)
        output.note(f"reading {settings.log_words} after {position}")
        await write_events(store, position, options, output)


async def write_events(store: EventStore, position: Position, options: TailOptions, output: Stdout) -> None:
    """Write a line for each event after a position. Returns after ``events_max``, or if nothing reads the output."""
    printer, continues = _Printer(output, options), True
    while continues:
        try:
            bounds = await store.bounds()
            is_foreign = position.epoch != bounds.epoch or position.offset > bounds.last
            if is_foreign or position < bounds.floor:
                position = bounds.floor
                verdict: client.Verdict = "reset-epoch" if is_foreign else "reset-expired"
                continues = printer.reset(client.Reset(verdict=verdict, position=str(position)))
            elif position == bounds.head:
                await store.wait(position)
            else:
                found = await store.read(position, READ_EVENTS_MAX, options.destination, bytes_max=READ_BYTES_MAX)
                position = position.at(found[-1].offset if found else bounds.last)
                for event in found:
                    at = datetime.fromtimestamp(event.appended_at_ms / 1000, UTC)
                    place = position.at(event.offset)
                    continues = continues and printer.event(place, event.body, at, truncated=event.truncated)
        except PositionExpired:  # trimmed since then: the new bounds show it
            continue
        except StoreUnavailable as error:
            await _wait_for(store, error, output)


async def follow(url: str, token: str | None, options: TailOptions, output: Stdout) -> None:
    """Write a line for each event of a server, as ``tail`` does. Raises ``client.ClientError``."""
    printer = _Printer(output, options)
    since = None if options.since is None else str(options.since)
    begin: client.Begin = "oldest" if options.everything else "current" if options.current else "next"
    async with client.open(url, token=token) as server:
        async for item in server.events(text(options.destination), position=since, begin=begin):
            if isinstance(item, client.Reset):
                continues = printer.reset(item)
            elif isinstance(item, client.State):
                continues = printer.state(item)
            else:
                continues = printer.event(item.position, item.body, None, truncated=item.truncated)
                if item.completes_state and not options.as_json:
                    output.write("the current state ends here; changes follow")
            if not continues:
                return


@define
class _Printer:
    """Writes what a reader or a client received.

    Each method returns False if no more is to be written: after ``events_max`` events, or if nothing reads the output.
    """

    _output: Stdout
    _options: TailOptions
    _events: int = 0

    def event(self, position: object, body: bytes, at: datetime | None, *, truncated: bool) -> bool:
        """Write a line for people, or JSON: the body, with the position at its beginning.

        ``at``: when the event was recorded; None for a client, which does not receive it.
        """
        self._events += 1
        if self._options.as_json:
            recorded = "" if at is None else f',"recorded_at":"{at.isoformat(timespec="milliseconds")[:-6]}Z"'
            cut = ',"truncated":true' if truncated else ""
            written = self._output.write(f'{{"position":"{position}"{recorded}{cut},{body[1:].decode()}')
        else:
            written = self._output.write(line(str(position), body, at or datetime.now(UTC)))
        return written and self._events != self._options.events_max

    def reset(self, reset: client.Reset) -> bool:
        """Write that events are missing."""
        self._output.note(f"{reset.verdict}: {RESETS[reset.verdict]}; continuing after {reset.position}")
        as_json = f'{{"position":"{reset.position}","resume":"{reset.verdict}"}}'
        return not self._options.as_json or self._output.write(as_json)

    def state(self, state: client.State) -> bool:
        """Write that the current state follows."""
        missing = f", without all of {', '.join(state.missing)}" if state.missing else ""
        if self._options.as_json:
            as_json = {"position": state.position, "until": state.until, "missing": state.missing}
            return self._output.write(json.dumps(as_json, separators=(",", ":")))
        return self._output.write(f"the current state up to {state.until}{missing}")


async def _wait_for(store: EventStore, error: StoreUnavailable, output: Stdout) -> None:
    """Wait until the store answers. Often it does at once, because only the connection for notifications was lost."""
    try:
        await store.bounds()
    except StoreUnavailable:
        output.note(f"event store unavailable; retrying: {error}")
        await until_available(store.bounds)
        output.note("event store available again")
