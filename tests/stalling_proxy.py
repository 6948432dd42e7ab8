"""A TCP proxy in front of a database. It can stop forwarding octets while every connection stays open."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
import trio
from attrs import define, field

HOST = "127.0.0.1"
RECEIVE_BYTES_MAX = 65536


def _set() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@define
class StallingProxy:
    """A running proxy. ``url``: that of the database through the proxy."""

    url: str
    _flowing: trio.Event = field(factory=_set)

    def stall(self) -> None:
        """Stop forwarding. New connections are accepted and receive nothing."""
        self._flowing = trio.Event()

    def flow(self) -> None:
        """Forward again, first the octets that arrived meanwhile."""
        self._flowing.set()

    async def forward(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(RECEIVE_BYTES_MAX):
                await self._flowing.wait()
                await target.send_all(data)
            await self._flowing.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(target)


@asynccontextmanager
async def stalling(url: str) -> AsyncIterator[StallingProxy]:
    """Run a proxy in front of the database at a URL until the block ends."""
    parsed = sa.make_url(url)
    assert parsed.port is not None
    behind = parsed.port
    proxy = StallingProxy("")

    async def serve(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream(HOST, behind) as server, trio.open_nursery() as nursery:
            nursery.start_soon(proxy.forward, client, server)
            nursery.start_soon(proxy.forward, server, client)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        await nursery.start(trio.serve_listeners, serve, [listener])
        proxy.url = parsed.set(port=listener.socket.getsockname()[1]).render_as_string(hide_password=False)
        yield proxy
        nursery.cancel_scope.cancel()
