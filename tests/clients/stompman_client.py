"""stompman over WebSocket, as a program: the same arguments and the same lines as ``stompjs.mjs``.

    python stompman_client.py URL [LAST-EVENT-ID] [COUNT]

stompman speaks STOMP 1.2 only. It asks for a receipt of its SUBSCRIBE: without that it loses what arrives before it
has noted its own subscription.
"""

import asyncio
import json
import signal
import sys
from typing import Any, TextIO
from urllib.parse import urlsplit

import stompman
from stompman.connection_ws import WebSocketConnection

RECEIPT_TIMEOUT_S = 10.0


def write(stream: TextIO, line: dict[str, Any]) -> None:
    stream.write(json.dumps(line) + "\n")
    stream.flush()


async def main(url: str, last_event_id: str = "", count: str = "0") -> None:
    """Print messages until there were ``count``, or SIGTERM."""
    target = urlsplit(url)
    expected = int(count)
    received = 0
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)

    async def on_message(frame: stompman.MessageFrame) -> None:  # noqa: ASYNC124 (stompman awaits it)
        nonlocal received
        if done.is_set():
            return
        received += 1
        write(sys.stdout, {"body": frame.body.decode(), "headers": frame.headers})
        if received == expected:
            done.set()

    client = stompman.Client(
        servers=[stompman.ConnectionParameters(target.hostname or "", target.port or 80, "", "", target.path)],
        connection_class=WebSocketConnection,
        heartbeat=stompman.Heartbeat(10_000, 10_000),
        on_error_frame=lambda frame: write(
            sys.stderr, {"event": "error", "headers": frame.headers, "body": frame.body.decode()}
        ),
        max_concurrent_handlers=None,
    )
    async with client:
        subscription = await client.subscribe(
            "/events",
            on_message,
            ack="auto",
            headers={"last-event-id": last_event_id} if last_event_id else {},
            on_suppressed_exception=lambda error, _frame: write(sys.stderr, {"event": "failed", "reason": repr(error)}),
            receipt_timeout=RECEIPT_TIMEOUT_S,
        )
        write(sys.stderr, {"event": "connected"})
        await done.wait()
        await subscription.unsubscribe()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
