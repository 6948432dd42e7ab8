"""stompman over WebSocket (STOMP 1.2 only). It reconnects and subscribes again by itself. Arguments: ``program``.

It requests a receipt for its SUBSCRIBE; otherwise it loses messages that arrive before it has registered the
subscription. It does not expose CONNECTED, heart-beats and the receipt of DISCONNECT, so the underlying connection
reports them.
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

from tests.clients.program import Arguments, Printer, report

RECEIPT_TIMEOUT_S = 10.0
CONNECT_ATTEMPTS_MAX = 20
"""With the default of 3, a client gives up before a busy machine has restarted a server."""


class ReportingConnection(WebSocketConnection):
    """Reports the frames that stompman handles silently."""

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
        """Connect like the base class, but to wss:// over TLS: the base class uses ws://, which websockets refuses."""
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
                    report("connected", headers=frame.headers)
                case HeartbeatFrame():
                    report("heart-beat")
                case ReceiptFrame() if frame.headers["receipt-id"] == self.disconnect_receipt:
                    report("disconnected")
                case _:
                    pass
            yield frame


async def main(arguments: Arguments) -> None:
    """Print messages until the last one or SIGTERM."""
    done = asyncio.Event()
    printer = Printer(arguments, done.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)

    async def on_message(frame: stompman.MessageFrame) -> None:  # noqa: ASYNC124 - stompman awaits it
        printer.print(frame.body.decode(), {name: str(value) for name, value in frame.headers.items()})

    server = stompman.ConnectionParameters(arguments.host, arguments.port, "", arguments.token, arguments.path)
    client = stompman.Client(
        servers=[server],
        connection_class=ReportingConnection,
        ssl=arguments.tls,
        connect_retry_attempts=CONNECT_ATTEMPTS_MAX,
        heartbeat=stompman.Heartbeat(arguments.heartbeat_ms, arguments.heartbeat_ms),
        on_error_frame=lambda frame: report("error", headers=frame.headers, body=frame.body.decode()),
        max_concurrent_handlers=None,
    )
    async with client:
        subscription = await client.subscribe(
            "/events",
            on_message,
            ack="auto",
            headers=arguments.subscribe_headers,
            on_suppressed_exception=lambda error, _frame: report("failed", reason=repr(error)),
            receipt_timeout=RECEIPT_TIMEOUT_S,
        )
        await done.wait()
        await subscription.unsubscribe()


if __name__ == "__main__":
    asyncio.run(main(Arguments.given()))
