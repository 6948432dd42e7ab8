"""The HTTP upgrade: which request becomes a WebSocket, and what the others are told; nothing of STOMP frames.

Wire contract, "The connection". The request is read and judged here (``request``, ``admission``), before
trio-websocket sees anything: it does not tell Host, answers what it cannot read in its own way, and keeps all headers
in memory for as long as the connection lasts. It is given a request with nothing in it but what the handshake needs.
"""

from http import HTTPStatus
from typing import Final, cast

import trio
from attrs import frozen
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from airy_trio.websocket.admission import Visitor
from airy_trio.websocket.request import RefusedError, Request, Upgrade, read_head, upgrade_in
from airy_trio.websocket.tasks import Tasks
from airy_trio.websocket.wire import RECEIVE_BYTES_MAX, Wire

SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
"""The newest first."""
MESSAGE_QUEUE_SIZE: Final = 1
_HANDSHAKE: Final = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
)


@frozen
class Upgraded:
    """A WebSocket, and the request that has become one, with the credentials that it may hold."""

    ws: WebSocketConnection
    request: Request


async def upgrade(
    tasks: Tasks, wire: Wire, visitor: Visitor | None, *, path: str, message_bytes_max: int
) -> Upgraded | None:
    """Wait for the request and answer it; None where the peer left before it was whole.

    ``visitor``: who is asked whether the request may come in; None: everybody may. Raises ``RefusedError`` where the
    request did not become a WebSocket and that was told.
    """
    asked = await _asked(wire, visitor, path)
    if asked is None:
        return None
    if isinstance(asked, RefusedError):
        await wire.write(asked.answer)
        raise asked
    request, wanted = asked
    ws = await _handshake(tasks, wire, wanted.key, wanted.subprotocols, message_bytes_max)
    return None if ws is None else Upgraded(ws, request)


async def _asked(wire: Wire, visitor: Visitor | None, path: str) -> tuple[Request, Upgrade] | RefusedError | None:
    """What is asked for, or why that is refused; None where the peer left."""
    try:
        request = await _request(wire)
        return None if request is None else (request, _judged(request, visitor, path))
    except RefusedError as refused:
        return refused


def _judged(request: Request, visitor: Visitor | None, path: str) -> Upgrade:
    if request.path != path:
        raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
    asked = upgrade_in(request)
    if visitor is not None:
        visitor.examine(request, asked)
    return asked


async def _request(wire: Wire) -> Request | None:
    """Read the head of a request; None at the end of the stream. Raises ``RefusedError``."""
    data = bytearray()
    while True:
        some = await wire.receive_some(RECEIVE_BYTES_MAX)
        if not some:
            return None
        seen = len(data)
        data += some
        request = read_head(data, seen)
        if request is not None:
            return request


async def _handshake(
    tasks: Tasks, wire: Wire, key: str, offered: tuple[str, ...], message_bytes_max: int
) -> WebSocketConnection | None:
    subprotocol = next((known for known in SUBPROTOCOLS if known in offered), None)
    chosen = "" if subprotocol is None else f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    wire.put_back(f"{_HANDSHAKE}Sec-WebSocket-Key: {key}\r\n{chosen}\r\n".encode("ascii"))
    asking = await wrap_server_stream(
        cast("trio.Nursery", tasks),  # of a nursery it uses start_soon, no more
        wire,
        message_queue_size=MESSAGE_QUEUE_SIZE,
        max_message_size=message_bytes_max,
        receive_buffer_size=RECEIVE_BYTES_MAX,
    )
    try:
        return await asking.accept(subprotocol=subprotocol)
    except ConnectionClosed:
        return None
