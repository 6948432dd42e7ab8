"""Servers for the client: real ones on loopback, a proxy that cuts connections, and scripted ones with bad answers."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import trio
import trio_websocket
from attrs import define, field

from airy_trio.client import Event, Events, Reset, State
from airy_trio.log.store import NewEvent
from tests.sessions.serving import HOST, Server

TIMEOUT_S = 1000.0
"""In the time of the autojump clock."""
CONNECTED = "CONNECTED\nversion:1.2\nsession:s\nserver:canned/1\nheart-beat:0,0\n\n\0"
RECEIPT = "RECEIPT\nreceipt-id:0\nposition:abcdef-5\nresume:live\n\n\0"
Answer = Callable[[str, trio_websocket.WebSocketConnection], Awaitable[None]]


def tag(number: int, *, size: int = 0) -> NewEvent:
    """Return an event about tag ``tN``. ``size``: bytes of padding."""
    body = f'{{"type":"tag.updated","payload":{{"id":"t{number}","pad":"{"x" * size}"}}}}'
    return NewEvent(
        type="tag.updated", object=f"tag:t{number}", conversation_id=None, channel_id=None, body=body.encode()
    )


async def append(server: Server, first: int, last: int, *, size: int = 0) -> None:
    """Append the events about some tags, each in a transaction of its own."""
    for number in range(first, last + 1):
        await server.log.append(server.log.head, [tag(number, size=size)], f"point {number}")


def url_of(server: Server) -> str:
    return f"ws://{HOST}:{server.port}"


def number_of(item: Event | Reset | State) -> int:
    """Return the number of a tag."""
    assert isinstance(item, Event), item
    return int(item.payload["id"].removeprefix("t"))


async def take(events: Events, count: int) -> list[int]:
    """Return the numbers of the next events."""
    with trio.fail_after(TIMEOUT_S):  # noqa: ASYNC100 - the checkpoint is in the comprehension
        return [number_of(await anext(events)) for _ in range(count)]


@define(eq=False)
class Cutter:
    """A TCP proxy that ends its first ``cuts`` connections after a random number of bytes from the server.

    ``target``: the port of the server. ``connections``: the number of connections so far.
    """

    chance: Random
    target: int
    cuts: int = 0
    bytes_max: int = 0
    port: int = 0
    connections: int = 0
    _streams: set[trio.SocketStream] = field(factory=set)

    async def cut(self) -> None:
        """End all connections."""
        for stream in tuple(self._streams):
            await trio.aclose_forcefully(stream)

    async def serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        budget: float = float("inf")
        if self.connections <= self.cuts:
            budget = self.chance.randint(0, self.bytes_max)
        try:
            server = await trio.open_tcp_stream(HOST, self.target)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        self._streams |= {client, server}
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, client, server, float("inf"), nursery.cancel_scope)
            nursery.start_soon(self._forward, server, client, budget, nursery.cancel_scope)
        self._streams -= {client, server}

    async def _forward(
        self, source: trio.SocketStream, target: trio.SocketStream, budget: float, scope: trio.CancelScope
    ) -> None:
        try:
            while budget > 0 and (data := await source.receive_some(min(65536, int(min(budget, 1e6))))):
                budget -= len(data)
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def cutting(target: int, chance: Random, *, cuts: int = 0, bytes_max: int = 0) -> AsyncGenerator[Cutter]:
    """Run a proxy for a block."""
    cutter = Cutter(chance, target, cuts, bytes_max)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        await nursery.start(trio.serve_listeners, cutter.serve, [listener])
        cutter.port = listener.socket.getsockname()[1]
        yield cutter
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncGenerator[str]:
    """Run a WebSocket server that calls ``answer`` with each message; yield its URL."""

    async def serve(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept()
        try:
            while True:
                await answer(str(await socket.get_message()), socket)
        except trio_websocket.ConnectionClosed:
            return

    async with trio.open_nursery() as nursery:
        run = partial(trio_websocket.serve_websocket, serve, HOST, 0, ssl_context=None)
        server = await nursery.start(run)
        yield f"ws://{HOST}:{server.port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw(*answers: bytes) -> AsyncGenerator[str]:
    """Run a TCP server that sends one answer to each connection, the last one to all others; yield its URL."""
    left = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(left.pop(0) if len(left) > 1 else left[0])

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield f"ws://{HOST}:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
