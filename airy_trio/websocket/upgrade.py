"""The HTTP upgrade: which request becomes a WebSocket, and what the others are told; nothing of STOMP frames.

Wire contract, section 1. trio-websocket answers malformed upgrades with 400 (another WebSocket version: 426) and
never reports a request then, so the wait for one ends when the wire says that nothing more can come.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVarTuple, cast

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from airy_trio.websocket.tasks import Tasks
from airy_trio.websocket.wire import RECEIVE_BYTES_MAX, Wire

SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
"""The newest first."""
MESSAGE_QUEUE_SIZE: Final = 1
_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

Arguments = TypeVarTuple("Arguments")


async def upgrade(tasks: Tasks, wire: Wire, *, path: str, message_bytes_max: int) -> WebSocketConnection | None:
    """Wait for the request and answer it; None where it did not become a WebSocket."""
    reader = _Reader(tasks, wire)
    with wire.upgrading:
        request = await wrap_server_stream(
            cast("trio.Nursery", reader),  # of a nursery it uses start_soon, no more
            wire,
            message_queue_size=MESSAGE_QUEUE_SIZE,
            max_message_size=message_bytes_max,
            receive_buffer_size=RECEIVE_BYTES_MAX,
        )
        try:
            ws = await _answer(request, path)
        except ConnectionClosed:
            return None
        reader.upgraded = ws is not None
        return ws
    return None


async def _answer(request: WebSocketRequest, path: str) -> WebSocketConnection | None:
    if request.path.partition("?")[0] != path:
        await request.reject(404, extra_headers=[(b"Content-Type", b"text/plain")], body=b"There is nothing here.\n")
        return None
    offered = request.proposed_subprotocols
    subprotocol = next((known for known in SUBPROTOCOLS if known in offered), None)
    return await request.accept(subprotocol=subprotocol)


class _Reader:
    """Starts trio-websocket's reader, and answers the requests over whose header values it breaks."""

    def __init__(self, tasks: Tasks, wire: Wire) -> None:
        self.upgraded = False
        self._tasks = tasks
        self._wire = wire

    def start_soon(self, function: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        self._tasks.start_soon(self._run, function, arguments)

    async def _run(self, function: Callable[[*Arguments], Awaitable[object]], arguments: tuple[*Arguments]) -> None:
        try:
            await function(*arguments)
        except UnicodeError:  # wsproto decodes Host as IDNA, and lists as ASCII
            if self.upgraded:
                raise
            await self._wire.write(_BAD_REQUEST)
            self._wire.upgrading.cancel()
