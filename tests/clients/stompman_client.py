"""stompman over WebSocket (STOMP 1.2 only); it reconnects and subscribes again by itself. Arguments: ``program``.

It asks for a receipt of its SUBSCRIBE: without that it loses what arrives before it has noted its own subscription.
What it keeps to itself, CONNECTED, heart-beats and the receipt of DISCONNECT, is told by the connection below it.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator
from ssl import SSLContext
from typing import Literal, Self

import stompman
import websockets
from stompman.connection_ws import WebSocketConnection
from stompman.frames import (
    AnyClientFrame,
    AnyServerFrame,
    ConnectedFrame,
    DisconnectFrame,
    HeartbeatFrame,
    ReceiptFrame,
)

from tests.clients.program import Arguments, Printer, tell

RECEIPT_TIMEOUT_S = 10.0
CONNECT_ATTEMPTS_MAX = 20
"""Its own default is 3, which is over before a busy machine has started a server again."""


class TellingConnection(WebSocketConnection):
    """Tells of the frames that stompman handles without a word."""

    disconnect_receipt = ""

    @classmethod
    async def connect(
        cls,
        *,
        host: str,
        port: int,
        timeout: int,  # noqa: ASYNC109 - the same
        read_max_chunk_size: int,
        ssl: Literal[True] | SSLContext | None,
        ws_uri_path: str | None = None,
    ) -> Self | None:
        """Do as it does, but over TLS where that is asked for: it says ws:// even then, which websockets refuses."""
        if ssl is None:
            return await super().connect(
                host=host,
                port=port,
                timeout=timeout,
                read_max_chunk_size=read_max_chunk_size,
                ssl=None,
                ws_uri_path=ws_uri_path,
            )
        url = f"wss://{host}:{port}/{(ws_uri_path or '').strip('/')}"
        websocket = await asyncio.wait_for(websockets.connect(url, ssl=ssl, max_size=read_max_chunk_size), timeout)
        return cls(websocket=websocket, read_max_chunk_size=read_max_chunk_size, ssl=ssl)

    async def write_frame(self, frame: AnyClientFrame) -> None:
        if isinstance(frame, DisconnectFrame):
            self.disconnect_receipt = frame.headers["receipt"]
        await super().write_frame(frame)

    async def read_frames(self) -> AsyncGenerator[AnyServerFrame, None]:
        async for frame in super().read_frames():
            match frame:
                case ConnectedFrame():
                    tell("connected", headers=frame.headers)
                case HeartbeatFrame():
                    tell("heart-beat")
                case ReceiptFrame() if frame.headers["receipt-id"] == self.disconnect_receipt:
                    tell("disconnected")
                case _:
                    pass
            yield frame


async def main(arguments: Arguments) -> None:
    """Print messages until there were enough, or SIGTERM."""
    done = asyncio.Event()
    printer = Printer(arguments, done.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)

    async def on_message(frame: stompman.MessageFrame) -> None:  # noqa: ASYNC124 - stompman awaits it
        printer.print(frame.body.decode(), {name: str(value) for name, value in frame.headers.items()})

    server = stompman.ConnectionParameters(arguments.host, arguments.port, "", arguments.token, arguments.path)
    client = stompman.Client(
        servers=[server],
        connection_class=TellingConnection,
        ssl=arguments.tls,
        connect_retry_attempts=CONNECT_ATTEMPTS_MAX,
        heartbeat=stompman.Heartbeat(arguments.heartbeat_ms, arguments.heartbeat_ms),
        on_error_frame=lambda frame: tell("error", headers=frame.headers, body=frame.body.decode()),
        max_concurrent_handlers=None,
    )
    async with client:
        subscription = await client.subscribe(
            "/events",
            on_message,
            ack="auto",
            headers=arguments.subscribe_headers,
            on_suppressed_exception=lambda error, _frame: tell("failed", reason=repr(error)),
            receipt_timeout=RECEIPT_TIMEOUT_S,
        )
        await done.wait()
        await subscription.unsubscribe()


if __name__ == "__main__":
    asyncio.run(main(Arguments.given()))
