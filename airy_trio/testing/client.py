"""A STOMP client over WebSocket for tests: it reads only when asked, so that a test decides how slow it is.

It speaks over any Trio stream, starts no task, answers nothing by itself but WebSocket's PING and Close, and checks
what the server promises of its messages: text, unfragmented, one STOMP frame or one LF in each.
"""

import ssl
from collections.abc import Iterable
from typing import Final

import trio

from airy_trio.stomp.decoder import Decoder
from airy_trio.stomp.encoder import encode
from airy_trio.stomp.frames import Frame, Version
from airy_trio.stomp.limits import Limits
from airy_trio.testing.websocket import (
    PATH,
    SUBPROTOCOLS,
    BrokenPromiseError,
    Closed,
    Headers,
    Rejected,
    WebSocketClient,
)

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
