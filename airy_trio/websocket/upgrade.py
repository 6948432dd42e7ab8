"""The HTTP upgrade: which request becomes a WebSocket, and what the others are told; nothing of STOMP frames.

Wire contract, section 1. trio-websocket answers malformed upgrades with 400 (another WebSocket version: 426) and
never reports a request then, so the wait for one ends when the wire says that nothing more can come.
"""

from typing import Final, cast

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from airy_trio.websocket.tasks import Tasks
from airy_trio.websocket.wire import RECEIVE_BYTES_MAX, Wire

SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
"""The newest first."""
MESSAGE_QUEUE_SIZE: Final = 1


async def upgrade(tasks: Tasks, wire: Wire, *, path: str, message_bytes_max: int) -> WebSocketConnection | None:
    """Wait for the request and answer it; None where it did not become a WebSocket."""
    with wire.upgrading:
        request = await wrap_server_stream(
            cast("trio.Nursery", tasks),  # of a nursery it uses start_soon, no more
            wire,
            message_queue_size=MESSAGE_QUEUE_SIZE,
            max_message_size=message_bytes_max,
            receive_buffer_size=RECEIVE_BYTES_MAX,
        )
        try:
            return await _answer(request, path)
        except ConnectionClosed:
            return None
    return None


async def _answer(request: WebSocketRequest, path: str) -> WebSocketConnection | None:
    if request.path.partition("?")[0] != path:
        await request.reject(404, extra_headers=[(b"Content-Type", b"text/plain")], body=b"There is nothing here.\n")
        return None
    offered = request.proposed_subprotocols
    subprotocol = next((known for known in SUBPROTOCOLS if known in offered), None)
    return await request.accept(subprotocol=subprotocol)
