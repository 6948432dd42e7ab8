"""A WebSocket client for tests, over any Trio stream: it reads only when asked, and answers only PING and Close.

Refuses to know what the messages say.
"""

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
