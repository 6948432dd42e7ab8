"""A STOMP client over WebSocket for tests: it reads only when asked, so that a test decides how slow it is.

It speaks over any Trio stream, starts no task, answers nothing by itself but WebSocket's PING and Close, and checks
what the server promises of its messages: text, unfragmented, one STOMP frame or one LF in each.

A WebSocket client for tests, over any Trio stream: it reads only when asked, and answers only PING and Close.

Refuses to know what the messages say.
"""

import ssl
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

import trio
from wsproto import ConnectionType, WSConnection
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

from airy_trio.stomp.decoder import Decoder, Limits
from airy_trio.stomp.encoder import encode
from airy_trio.stomp.frames import Frame, Version

PATH: Final = "/ws.communication"
SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
RECEIVE_BYTES_MAX: Final = 65_536

Headers = Iterable[tuple[str, str]]


class Rejected(Exception):
    """The server did not upgrade. ``status``: of HTTP."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body!r}")
        self.status = status
        self.body = body


class Closed(Exception):
    """The connection has ended. ``code``: of the server's Close frame; None where the stream ended without one."""

    def __init__(self, code: int | None, reason: str | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class BrokenPromiseError(AssertionError):
    """The server wrote something that it promises never to write."""


class WebSocketClient:
    """A client over a stream that it owns. ``subprotocol``: the one that the server has chosen, if any."""

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
        """Do the upgrade. Raises ``Rejected``, or ``Closed`` where the stream ends instead."""
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
        """Send any text message."""
        await self.stream.send_all(self._websocket.send(TextMessage(data=text)))

    async def send_bytes(self, data: bytes) -> None:
        """Send any binary message."""
        await self.stream.send_all(self._websocket.send(BytesMessage(data=data)))

    async def ping(self) -> None:
        """Send a WebSocket PING; the answer is passed over when it comes."""
        await self.stream.send_all(self._websocket.send(Ping()))

    async def close(self, code: int = 1000) -> None:
        """Send a Close frame. The server's answer comes as ``Closed`` from ``receive``."""
        await self.stream.send_all(self._websocket.send(CloseConnection(code=code)))

    async def receive_text(self) -> str:
        """Give the next message, heart-beats too. Raises ``Closed``, ``BrokenPromiseError``."""
        parts: list[str] = []
        while True:
            event = await self._next_event()
            match event:
                case TextMessage():  # wsproto cuts a message where the stream cut it
                    parts.append(event.data)
                    if event.message_finished:
                        return "".join(parts)
                case Ping():
                    await self.stream.send_all(self._websocket.send(event.response()))
                case Pong():
                    pass
                case _:
                    raise BrokenPromiseError(event)

    async def _next_event(self) -> Event:
        while not self._events:
            if self._closed is not None:
                raise self._closed
            await self._read()
        event = self._events.popleft()
        if isinstance(event, CloseConnection):
            self._closed = Closed(event.code, event.reason)
            raise self._closed
        return event

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
            self._events.append(event)
            if isinstance(event, CloseConnection) and self._websocket.state.name == "REMOTE_CLOSING":
                await self._answer_close(event)

    async def _answer_close(self, event: CloseConnection) -> None:
        try:
            await self.stream.send_all(self._websocket.send(event.response()))
        except trio.BrokenResourceError:
            self._closed = Closed(event.code, event.reason)

    async def _rejection_body(self) -> bytes:
        body = b""
        while True:
            event = await self._next_event()
            if not isinstance(event, RejectData):
                raise BrokenPromiseError(event)
            body += event.data
            if event.body_finished:
                return body


__all__ = [
    "PATH",
    "SUBPROTOCOLS",
    "BrokenPromiseError",
    "Closed",
    "Headers",
    "Rejected",
    "StompClient",
    "connect",
]

_LIMITS: Final = Limits(
    frame_bytes_max=2**24, header_count_max=1000, header_line_bytes_max=2**20, command_bytes_max=1000
)


class StompClient(WebSocketClient):
    """A client over a stream that it owns. ``version`` holds from CONNECTED on; ``heart_beats`` counts those read."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.version: Version | None = None
        self.heart_beats = 0
        self._decoder = Decoder(_LIMITS)
        self._receipts = 0

    async def connect(self, *, accept_version: str = "1.0,1.1,1.2", headers: Headers = ()) -> Frame:
        """Send CONNECT and give the answer, CONNECTED or ERROR. An empty ``accept_version`` is left out."""
        versions = (("accept-version", accept_version),) if accept_version else ()
        await self.send(Frame("CONNECT", (*versions, *headers)))
        answer = await self.receive()
        if answer.command == "CONNECTED":
            self.version = self._decoder.version = Version(answer.get("version"))
        return answer

    async def subscribe(self, destination: str = "/events", *, subscription: str = "0", headers: Headers = ()) -> Frame:
        """Subscribe and give the RECEIPT (or an ERROR); frames of other subscriptions may not come meanwhile."""
        own = (("id", subscription), ("destination", destination), ("receipt", self._receipt_id()))
        await self.send(Frame("SUBSCRIBE", (*own, *headers)))
        return await self.receive()

    async def acknowledge(self, message: Frame, *, command: str = "ACK", headers: Headers = ()) -> None:
        """Send ACK (or NACK) of a MESSAGE in the way of the version."""
        ack = message.get("ack")
        if ack is not None:
            await self.send(Frame(command, (("id", ack), *headers)))
        else:
            names = ("message-id", "subscription")
            told = tuple((name, value) for name in names if (value := message.get(name)) is not None)
            await self.send(Frame(command, (*told, *headers)))

    async def disconnect(self) -> Closed:
        """Send DISCONNECT, read up to the server's Close, and give that."""
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
        """Give the next frame, past heart-beats. Raises ``Closed``, ``BrokenPromiseError``."""
        while True:
            text = await self.receive_text()
            if text == "\n":
                self.heart_beats += 1
                continue
            frames = list(self._decoder.feed(text.encode()))
            if len(frames) != 1 or self._decoder.statistics().held_bytes:
                raise BrokenPromiseError(text)
            return frames[0]

    def _receipt_id(self) -> str:
        self._receipts += 1
        return f"r{self._receipts}"


async def connect(  # noqa: PLR0913 - what a client may bring along
    host: str,
    port: int,
    path: str = PATH,
    *,
    subprotocols: Iterable[str] = SUBPROTOCOLS,
    headers: Headers = (),
    tls: ssl.SSLContext | None = None,
) -> StompClient:
    """Open a connection up to CONNECTED; the client is a context manager, which closes the stream.

    ``tls``: whom to trust, where the server speaks TLS.
    Raises ``OSError``, ``Rejected``, and ``Closed`` where CONNECT is refused.
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
