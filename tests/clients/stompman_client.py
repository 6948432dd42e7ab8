"""stompman over WebSocket (STOMP 1.2 only); it reconnects and subscribes again by itself. Arguments: ``program``.

It asks for a receipt of its SUBSCRIBE: without that it loses what arrives before it has noted its own subscription.
What it keeps to itself, CONNECTED, heart-beats and the receipt of DISCONNECT, is told by the connection below it.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator

import stompman
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

    async def on_message(frame: stompman.MessageFrame) -> None:  # noqa: ASYNC124 (stompman awaits it)
        printer.print(frame.body.decode(), {name: str(value) for name, value in frame.headers.items()})

    server = stompman.ConnectionParameters(arguments.host, arguments.port, "", arguments.token, arguments.path)
    client = stompman.Client(
        servers=[server],
        connection_class=TellingConnection,
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
