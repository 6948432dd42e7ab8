"""A STOMP client over WebSocket, for tests.

``connect(host, port)`` returns a ``StompClient`` after CONNECTED: ``subscribe``, ``receive`` the next frame,
``acknowledge``, ``disconnect``. It works over any Trio stream and starts no task. It reads only in ``receive``, so a
test decides how slow the client is, and answers only the PING and Close of WebSocket. It checks that the server keeps
its promises about messages: each is text, unfragmented, and has one STOMP frame or one LF.
"""

import ssl
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    TextMessage,
)
from wsproto.events import Request as UpgradeRequest
from wsproto.utilities import LocalProtocolError

from airy_trio.stomp.codec import Decoder, Limits, encode
from airy_trio.stomp.frames import Frame, Version

PATH: Final = "/ws.communication"
SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
RECEIVE_BYTES_MAX: Final = 65_536
_LIMITS: Final = Limits(
    frame_bytes_max=2**24, header_count_max=1000, header_line_bytes_max=2**20, command_bytes_max=1000
)
"""Larger than anything that a server sends."""

Headers = Iterable[tuple[str, str]]


class Rejected(Exception):
    """The server did not upgrade the connection. ``status`` is that of its HTTP response."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body!r}")
        self.status = status
        self.body = body


class Closed(Exception):
    """The connection has ended. ``code`` is that of the server's Close frame; None if there was none."""

    def __init__(self, code: int | None, reason: str | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class BrokenPromiseError(AssertionError):
    """The server sent something that it promises not to send."""


class WebSocketClient:
    """A WebSocket client. It owns the stream. ``subprotocol``: the one that the server has chosen, or None."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.subprotocol: str | None = None
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._events: deque[Event] = deque()
        self._closed: Closed | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await trio.aclose_forcefully(self.stream)

    async def upgrade(
        self,
        host: str = "localhost",
        path: str = PATH,
        *,
        subprotocols: Iterable[str] = SUBPROTOCOLS,
        headers: Headers = (),
    ) -> None:
        """Upgrade the connection. Raises ``Rejected``, or ``Closed`` if the stream ends instead."""
        more = [(name.encode(), value.encode()) for name, value in headers]
        request = UpgradeRequest(host=host, target=path, subprotocols=list(subprotocols), extra_headers=more)
        await self.stream.send_all(self._websocket.send(request))
        match await self._next_event():
            case AcceptConnection() as accepted:
                self.subprotocol = accepted.subprotocol
            case RejectConnection() as rejected:
                raise Rejected(rejected.status_code, await self._rejection_body() if rejected.has_body else b"")
            case event:
                raise BrokenPromiseError(event)

    async def send_text(self, text: str) -> None:
        """Send a text message. Raises ``Closed`` after the server's Close frame was read, like the other methods."""
        await self._write(TextMessage(data=text))

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        await self._write(BytesMessage(data=data))

    async def ping(self) -> None:
        """Send a WebSocket PING. The answer is ignored."""
        await self._write(Ping())

    async def close(self, code: int = 1000) -> None:
        """Send a Close frame. When the server answers, ``receive`` raises ``Closed``."""
        await self._write(CloseConnection(code=code))

    async def receive_text(self) -> str:
        """Return the next message, which may be a heart-beat. Raises ``Closed``, ``BrokenPromiseError``."""
        parts: list[str] = []
        while True:
            event = await self._next_event()
            match event:
                case TextMessage():  # wsproto returns the parts of a message as the stream delivers them
                    parts.append(event.data)
                    if event.message_finished:
                        return "".join(parts)
                case Ping():
                    await self.stream.send_all(self._websocket.send(event.response()))
                case Pong():
                    pass
                case _:
                    raise BrokenPromiseError(event)

    async def _write(self, event: Event) -> None:
        try:
            data = self._websocket.send(event)
        except LocalProtocolError:
            if self._closed is None:
                raise
            raise self._closed from None
        await self.stream.send_all(data)

    async def _next_event(self) -> Event:
        while not self._events:
            if self._closed is not None:
                raise self._closed
            await self._read()
        return self._events.popleft()

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some(RECEIVE_BYTES_MAX)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self._closed = Closed(None)
            return
        self._websocket.receive_data(bytes(data))
        for event in self._websocket.events():
            if not isinstance(event, CloseConnection):
                self._events.append(event)
                continue
            self._closed = Closed(event.code, event.reason)
            if self._websocket.state is ConnectionState.REMOTE_CLOSING:
                with suppress(trio.BrokenResourceError):  # the server may not have waited for the answer
                    await self.stream.send_all(self._websocket.send(event.response()))

    async def _rejection_body(self) -> bytes:
        body = b""
        while True:
            event = await self._next_event()
            if not isinstance(event, RejectData):
                raise BrokenPromiseError(event)
            body += event.data
            if event.body_finished:
                return body


class StompClient(WebSocketClient):
    """A STOMP client. ``version`` is set after CONNECTED; ``heart_beats`` counts received heart-beats."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.version: Version | None = None
        self.heart_beats = 0
        self._decoder = Decoder(_LIMITS)
        self._receipts = 0

    async def connect(self, *, accept_version: str = "1.0,1.1,1.2", headers: Headers = ()) -> Frame:
        """Send CONNECT and return the answer, CONNECTED or ERROR. An empty ``accept_version`` is not sent."""
        versions = (("accept-version", accept_version),) if accept_version else ()
        await self.send(Frame("CONNECT", (*versions, *headers)))
        answer = await self.receive()
        if answer.command == "CONNECTED":
            self.version = self._decoder.version = Version(answer.get("version"))
        return answer

    async def subscribe(self, destination: str = "/events", *, subscription: str = "0", headers: Headers = ()) -> Frame:
        """Subscribe and return the next frame: RECEIPT or ERROR, unless other subscriptions receive something first."""
        own = (("id", subscription), ("destination", destination), ("receipt", self._receipt_id()))
        await self.send(Frame("SUBSCRIBE", (*own, *headers)))
        return await self.receive()

    async def acknowledge(self, message: Frame, *, command: str = "ACK", headers: Headers = ()) -> None:
        """Send ACK (or NACK) for a MESSAGE, with the headers of the negotiated version."""
        ack = message.get("ack")
        if ack is not None:
            await self.send(Frame(command, (("id", ack), *headers)))
        else:
            names = ("message-id", "subscription")
            own = tuple((name, value) for name in names if (value := message.get(name)) is not None)
            await self.send(Frame(command, (*own, *headers)))

    async def disconnect(self) -> Closed:
        """Send DISCONNECT, read until the server's Close, and return it."""
        await self.send(Frame("DISCONNECT", (("receipt", self._receipt_id()),)))
        try:
            while True:
                await self.receive()
        except Closed as closed:
            return closed

    async def send(self, frame: Frame) -> None:
        """Send a frame as one text message."""
        await self.send_text(encode(frame, self.version).decode())

    async def receive(self) -> Frame:
        """Return the next frame; heart-beats are counted and skipped. Raises ``Closed``, ``BrokenPromiseError``."""
        while True:
            text = await self.receive_text()
            if text == "\n":
                self.heart_beats += 1
                continue
            frames = list(self._decoder.feed(text.encode()))
            if len(frames) != 1 or self._decoder.held_bytes:
                raise BrokenPromiseError(text)
            return frames[0]

    def _receipt_id(self) -> str:
        self._receipts += 1
        return f"r{self._receipts}"


async def connect(  # noqa: PLR0913 - all that a client may set
    host: str,
    port: int,
    path: str = PATH,
    *,
    subprotocols: Iterable[str] = SUBPROTOCOLS,
    headers: Headers = (),
    tls: ssl.SSLContext | None = None,
) -> StompClient:
    """Open a connection, up to CONNECTED. The client is a context manager that closes the stream.

    ``tls``: the certificates to trust, if the server uses TLS. Raises ``OSError``, ``Rejected``, and ``Closed`` if
    CONNECT is refused.
    """
    if tls is None:
        client = StompClient(await trio.open_tcp_stream(host, port))
    else:
        client = StompClient(await trio.open_ssl_over_tcp_stream(host, port, ssl_context=tls))
    try:
        await client.upgrade(host, path, subprotocols=subprotocols)
        answer = await client.connect(headers=headers)
    except BaseException:
        await trio.aclose_forcefully(client.stream)
        raise
    if answer.command != "CONNECTED":
        await trio.aclose_forcefully(client.stream)
        raise Closed(None, answer.get("message"))
    return client
