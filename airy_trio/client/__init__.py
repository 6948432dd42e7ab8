"""A client for Trio programs: the events of a server, once and in order, across lost connections.

::

    async with client.open("wss://chat.example.org", token="...") as inbox:
        async for event in inbox.events("/events", position=client.FilePosition("position")):
            match event:
                case client.Event():
                    handle(event.type, event.payload)
                case client.Reset():
                    reload()

A lost connection is opened again, and the events continue after the last one that the loop has received. If the server
cannot continue there, the loop receives a ``Reset`` in place of an event. With ``begin="current"`` it receives a
``State`` instead, at the beginning too, and then the newest event of each object: there is nothing to reload.

An item counts as handled when the loop asks for the next one; then its position is saved. A program that ends earlier
receives the item again when it is started again: at least once across a crash. The same applies to the item at which
a loop ends by ``break`` or an exception.

Flow control: one event waits for the loop; at most two messages and 64 KiB of further bytes wait behind it. While the
loop is busy nothing more is read, TCP slows the server down, and heart-beats are still sent. If the server gives up
waiting (``send_timeout_s``), the next connection continues after the last event that the loop has received.

Errors, all raised by the loop::

    AiryTrioError
    └── ClientError      the events cannot continue
        ├── Refused      the server does not accept this client, and the same attempt would fail again
        └── BadAnswer    the peer is not a server of STOMP 1.2 with positions, or its certificate is not valid
"""

import inspect
import json
import logging
import os
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, Protocol

import trio
from attrs import evolve, field, frozen

from airy_trio.client.connection import BadAnswer, ClientError, Lost, Refused, ServerAddress, connected, tasks
from airy_trio.delivery.disconnects import Reconnect
from airy_trio.log.store import Position
from airy_trio.retry import Backoff
from airy_trio.stomp.frames import Frame

__all__ = [
    "BadAnswer",
    "ClientError",
    "Event",
    "Events",
    "FilePosition",
    "Follower",
    "PositionStore",
    "Refused",
    "Reset",
    "State",
    "Token",
    "open",
]

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
"""The pause before an attempt is random, between 0 and a bound that doubles from ``RETRY_FIRST_S`` to ``RETRY_MAX_S``.
A connection that has received an event, or has lasted for ``STEADY_S``, sets the bound back to ``RETRY_FIRST_S``."""
STEADY_S: Final = 10.0
LATER_S: Final = 15.0
"""Added to the pause if a limit of the server is reached and the server does not say how long to wait."""
TOKEN_TRIES_MAX: Final = 3
"""How many tokens of a function may be rejected in a row."""
_UNREADABLE: Final = Position("000000", 0)
"""In place of a saved text that is no position: the server answers with ``reset-epoch``, which the loop receives."""

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns one and may be async."""

Verdict = Literal["reset-expired", "reset-epoch"]
Begin = Literal["next", "oldest", "current"]
_REPLAYS: Final[Mapping[Begin, str]] = {"next": "none", "oldest": "all", "current": "current"}

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Event:
    """The current state of one object (wire contract, "Events").

    ``position``: EPOCH-OFFSET. ``truncated``: the body was too large, so the payload has ``{"truncated": true}`` in
    place of ``content`` or ``metadata``. ``completes_state``: the current state is complete with this event. ``body``:
    the JSON text with ``type`` and ``payload``, in UTF-8.
    """

    type: str
    payload: dict[str, Any]
    position: str
    truncated: bool
    completes_state: bool = False
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class Reset:
    """Events are missing: reload what is derived from them. The events after ``position`` follow.

    ``verdict``: ``reset-expired`` (the next events are no longer retained), or ``reset-epoch`` (the position is of
    another log, or not a position). After a reset the client requests no recent window, because what is
    reloaded now contains its events.
    """

    verdict: Verdict
    position: str


@frozen(kw_only=True)
class State:
    """The current state follows: discard what you have and start from its events. Only with ``begin="current"``.

    ``until``: the position at which the state ends; equal to ``position`` if it is empty. ``missing``: the types that
    the server does not have completely; empty if the state is complete.

    If your program stores its data, discard them and store ``position`` in one transaction. Otherwise, after a crash
    between the two, another server may continue at the former position, and the discarded objects do not come again.
    """

    position: str
    until: str
    missing: tuple[str, ...]


class PositionStore(Protocol):
    """Where the position of one destination is stored. The loop raises what these methods raise."""

    async def load(self) -> str | None:
        """Return the text that was saved last, or None. Called once for each ``events``."""
        ...

    async def save(self, position: str) -> None:
        """Store a position in place of the former one. Called after each item, and again with it if cancelled."""
        ...


class FilePosition:
    """A position in a file, which is replaced atomically after each item, in a thread.

    It is not synced to the disk: after a power failure it may be an older position, whose events are received again.
    The folder must exist. Only one loop may use a file at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    async def load(self) -> str | None:
        """Return the text of the file, or None if there is no file. Raises ``OSError``, ``UnicodeError``."""
        try:
            return await trio.Path(self._path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    async def save(self, position: str) -> None:
        """Replace the file. Raises ``OSError``. A cancellation takes effect after the file was replaced."""
        await trio.to_thread.run_sync(self._replace, position)

    def _replace(self, position: str) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(f"{position}\n", encoding="utf-8")
        new.replace(self._path)


class _Loop:
    """What a loop and its connection share: the items between them, and where they are.

    ``fault``: for the loop to raise at the end of the items; None: the client or the events were closed.
    """

    def __init__(self, destination: str, store: PositionStore | str | None, replay: str) -> None:
        self._destination = destination
        self._store = store
        self._replay = replay
        self._until: Position | None = None  # the end of the current state while it is being received
        # Without a buffer: when `send` returns, the loop has the item. So a lost connection loses only items after
        # `_position`, and the next SUBSCRIBE requests those again.
        self._sending, self.items = trio.open_memory_channel[Event | Reset | State](0)
        self._scope = trio.CancelScope()
        self._position: Position | None = None  # of the last item that the loop has received
        self.fault: Exception | None = None

    async def save(self, position: str) -> None:
        """Save a position, if there is a store."""
        if not isinstance(self._store, str | None):
            await self._store.save(position)

    def end(self, fault: Exception | None) -> None:
        """End the items and close the connection, without waiting."""
        self.fault = self.fault or fault
        self._scope.cancel()
        self._sending.close()

    async def run(self, connect: "Callable[[_Loop], Awaitable[NoReturn]]") -> None:
        """Send items, until ``connect`` raises or the end."""
        with self._scope, self._sending:
            try:
                saved = self._store if isinstance(self._store, str | None) else await self._store.load()
                self._position = None if saved is None else Position.parse(saved.strip()) or _UNREADABLE
                await connect(self)
            except Exception as fault:  # noqa: BLE001 - also of the position store and of the function for the token
                self.fault = self.fault or fault

    def subscribe(self) -> Frame:
        """Return the SUBSCRIBE that continues after the last item."""
        headers = [("id", "0"), ("destination", self._destination), ("receipt", "0")]
        if self._position is not None:
            headers.append(("last-event-id", str(self._position)))
        # After a reset only the state is requested. Without it the loop reloads, and that includes the window.
        wanted = self._position is None or self._replay == "current"
        return Frame("SUBSCRIBE", (*headers, ("replay", self._replay if wanted else "none")))

    async def subscribed(self, receipt: Frame) -> None:
        """Take the server's verdict on the position. Raises ``BadAnswer``."""
        position, verdict = _position(receipt.get("position")), receipt.get("resume")
        match verdict:
            case "resumed":
                return
            case "live" | "reset-expired" | "reset-epoch" if self._replay == "current":
                until, missing = _position(receipt.get("until")), receipt.get("state-missing")
                self._until = until if until != position else None
                types = () if missing is None else tuple(missing.split(","))
                await self._sending.send(State(position=str(position), until=str(until), missing=types))
            case "live":  # known from here on: also a program that ends before the first event can resume
                await self.save(str(position))
            case "reset-expired" | "reset-epoch":
                await self._sending.send(Reset(verdict=verdict, position=str(position)))
            case _:
                raise BadAnswer(f"the server does not say where the subscription begins: resume={verdict!r}")
        self._position = position

    async def deliver(self, message: Frame) -> None:
        """Wait until the loop takes the event of a MESSAGE. Raises ``BadAnswer``."""
        event = _event(message)
        position, before, until = _position(event.position), self._position, self._until
        if before is not None and before.epoch == position.epoch and position <= before:
            return  # of the recent window, which servers of earlier versions send after a reset
        # If the connection was lost within the state, the next one resumes in the log, which marks no event (wire
        # contract, line 22). Then the event at the end of the state completes it, or the first one after that.
        if until is not None and (message.get("state") == "complete" or position.offset >= until.offset):
            event = evolve(event, completes_state=True)
        await self._sending.send(event)
        self._position = position  # not earlier: an event that the loop has not taken must be sent again
        if event.completes_state:
            self._until = None


class Events(AsyncIterator[Event | Reset | State]):
    """The events of one destination, from ``Follower.events``. An async iterator for one task, without an end.

    It may be cancelled at any time and then used again: nothing is lost or repeated.
    """

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._unsaved: str | None = None

    async def __anext__(self) -> Event | Reset | State:
        """Save the position of the item before, and return the next item.

        Raises ``ClientError``; ``trio.ClosedResourceError`` after ``aclose`` and after the end of the client; and what
        the position store and the function for the token raise.
        """
        # Reset only after the save: if this call is cancelled meanwhile, the next one saves the position again.
        if self._unsaved is not None:
            await self._loop.save(self._unsaved)
            self._unsaved = None
        try:
            item = await self._loop.items.receive()
        except trio.EndOfChannel:
            raise self._loop.fault or trio.ClosedResourceError from None
        self._unsaved = item.position
        return item

    async def aclose(self) -> None:
        """Close the connection. Idempotent. The position of the last item is not saved."""
        self._loop.end(None)
        await trio.lowlevel.checkpoint()


class Follower:
    """A client of one server, from ``open``. It has a connection while a loop over ``events`` runs."""

    def __init__(self, loops: trio.MemorySendChannel[_Loop]) -> None:
        self._loops = loops
        self._loop: _Loop | None = None

    def events(
        self, destination: str = "/events", *, position: PositionStore | str | None = None, begin: Begin = "next"
    ) -> Events:
        """Return the events of a destination, for ``async for``.

        ``position``: a store for the position, or the position to begin after; without a store it is in memory and ends
        with the loop. A position belongs to one destination. ``begin``: if no position is known yet, with the
        ``next`` event, with the ``oldest`` retained one, or with the ``current`` state.

        A client has one loop at a time: the loop over earlier ``events`` raises ``ClientError``. Raises
        ``ValueError`` for any other ``begin``, and ``trio.ClosedResourceError`` after the end of the client.
        """
        if begin not in _REPLAYS:
            raise ValueError(f"begin is {begin!r}; allowed: {', '.join(map(repr, _REPLAYS))}")
        loop = _Loop(destination, position, _REPLAYS[begin])
        # First, because it raises after the end of the client, whose last loop must not get this fault.
        self._loops.send_nowait(loop)
        self._end(ClientError("events() was called again on this client; open another client for a second loop"))
        self._loop = loop
        return Events(loop)

    def close(self) -> None:
        """End the loop, and allow no other. Idempotent. ``open`` does it at the end of its block."""
        self._loops.close()
        self._end(None)

    def _end(self, fault: Exception | None) -> None:
        if self._loop is not None:
            self._loop.end(fault)


class _Connector:
    """Keeps a connection open for one loop after another."""

    def __init__(self, address: ServerAddress, token: Token | None) -> None:
        self._address = address
        self._token = token
        self._rejected_tokens = 0
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        self._lost = False

    @trio.lowlevel.enable_ki_protection  # Ctrl-C is the program's: it must not end this task instead
    async def run(self, loops: trio.MemoryReceiveChannel[_Loop]) -> None:
        """Serve loops. Runs until cancelled."""
        async for loop in loops:
            await loop.run(self._connect)

    async def _connect(self, loop: _Loop) -> NoReturn:
        """Open one connection after another. Raises ``ClientError``."""
        while True:
            try:
                await self._converse(loop)
            except Refused as refused:
                least_s, reason = self._wait_s(refused), str(refused)
            except Lost as lost:
                least_s, reason = 0.0, str(lost)
            level = logging.DEBUG if self._lost else logging.WARNING
            logger.log(level, "no connection to %s; retrying: %s", self._address.host_header, reason)
            self._lost = True
            await trio.sleep(least_s + random.uniform(0, self._backoff.next_s()))  # noqa: S311 - jitter

    async def _converse(self, loop: _Loop) -> NoReturn:
        """Run one connection. Raises ``Lost``, ``ClientError``."""
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        if token is not None and any(character in token for character in "\0\r\n"):
            raise ClientError("the token contains a line end or NUL; if it is read from a file, strip it")
        async with connected(self._address, token) as connection:
            self._rejected_tokens = 0
            await connection.send(loop.subscribe())
            await loop.subscribed(await connection.receive("RECEIPT"))
            if self._lost:
                logger.info("connected to %s", self._address.host_header)
                self._lost = False
            steady_at = trio.current_time() + STEADY_S
            try:
                while True:
                    message = await connection.receive("MESSAGE")
                    # Not at CONNECTED: if a server accepts each connection and then ends it, the pauses must keep
                    # growing.
                    self._backoff.reset()
                    await loop.deliver(message)
            finally:
                if trio.current_time() >= steady_at:  # a quiet destination may have no event for days
                    self._backoff.reset()

    def _wait_s(self, refused: Refused) -> float:
        """Return the least pause before the next attempt. Raises ``refused`` if no attempt can succeed."""
        match refused.reconnect:
            case Reconnect.YES:
                least_s = 0.0
            case Reconnect.LATER:
                least_s = LATER_S
            case Reconnect.WITH_CREDENTIALS if callable(self._token) and self._rejected_tokens + 1 < TOKEN_TRIES_MAX:
                self._rejected_tokens += 1
                least_s = 0.0
            case _:
                self._rejected_tokens = 0
                raise refused
        return least_s if refused.wait_s is None else refused.wait_s


@asynccontextmanager
async def open(  # noqa: A001 - of this module, as in `gzip.open`
    url: str, *, token: Token | None = None, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Follower]:
    """Open a client for a block. It connects when ``Follower.events`` is called, and reconnects until the block ends.

    ``url``: ``ws://HOST[:PORT][/PATH]`` or ``wss:``, in ASCII; without a path, the default path is used.
    ``token``: sent with CONNECT as a Bearer token; a function is called once for each connection, so it can renew the
    token when the server has rejected the former one or ended its session (401). A token with a line end or NUL is a
    ``ClientError``. ``tls``: the certificates to trust for ``wss:``; None: those of the system.

    The pauses between attempts are the constants of this module; the limits of a connection those of
    ``airy_trio.client.connection``. The first failed attempt in a row is logged as a warning, by the standard library's
    ``logging``. Raises ``ValueError`` for any other URL. What the block raises is not wrapped in a group. Resource
    handling: the socket is closed with the block, without a DISCONNECT.
    """
    connector = _Connector(ServerAddress.parse(url, tls), token)
    sending, receiving = trio.open_memory_channel[_Loop](float("inf"))
    client = Follower(sending)
    try:
        async with tasks() as nursery:
            nursery.start_soon(connector.run, receiving)
            yield client
    finally:
        client.close()


def _position(text: str | None) -> Position:
    position = None if text is None else Position.parse(text)
    if position is None:
        raise BadAnswer(f"the server sent no position: {text!r}")
    return position


def _event(message: Frame) -> Event:
    try:
        match json.loads(message.body):
            case {"type": str(type_), "payload": dict(payload)}:
                return Event(
                    type=type_,
                    payload=payload,
                    position=message.get("message-id") or "",
                    truncated=message.get("truncated") == "true",
                    body=message.body,
                )
            case _:
                text = "a MESSAGE is not an event"
    except (ValueError, RecursionError):
        text = "a MESSAGE is not JSON, or nested too deep"
    raise BadAnswer(text)
