"""A page with ``@stomp/stompjs``, configured as in Airy's inbox, and a proxy that can cut connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import trio
from attrs import define, field

from airy_trio.admin.server import Answer, PageRequest, Pages
from tests.clients.client_processes import FOLDER

HOST = "127.0.0.1"
LIBRARY = FOLDER / "node_modules" / "@stomp" / "stompjs" / "bundles" / "stomp.umd.min.js"
PAGE = """<!doctype html>
<title>inbox</title>
<script src="/stomp.js"></script>
<script>
window.seen = [];
window.connects = 0;
window.closes = 0;
const client = new StompJs.Client({
  brokerURL: "%s",
  reconnectDelay: 2000,
  onConnect: () => {
    window.connects += 1;
    client.subscribe("/events", ({ headers, body }) => window.seen.push([headers["message-id"], body]));
  },
  onWebSocketClose: () => { window.closes += 1; },
});
client.activate();
</script>
"""


def inbox(url: str) -> Pages:
    """Return the page, which connects to ``url``, and its library."""

    def page(_request: PageRequest) -> Answer:
        return Answer(HTTPStatus.OK, (PAGE % url).encode(), {"content-type": "text/html"})

    def library(_request: PageRequest) -> Answer:
        return Answer(HTTPStatus.OK, LIBRARY.read_bytes(), {"content-type": "text/javascript"})

    return Pages({"/": page, "/stomp.js": library})


@define
class Network:
    """A TCP proxy. ``cut`` resets open connections and refuses new ones until ``mend``.

    ``connections``: the number of forwarded connections. ``bytes_max``: the next connection, and no other, is reset
    after this many bytes to the client.
    """

    port: int
    target: int = 0
    connections: int = 0
    bytes_max: int | None = None
    _open: set[trio.SocketStream] = field(factory=set)
    _cut: bool = False

    async def cut(self) -> None:
        self._cut = True
        for stream in tuple(self._open):
            await trio.aclose_forcefully(stream)

    def mend(self) -> None:
        self._cut = False

    async def forward(self, client: trio.SocketStream) -> None:
        if self._cut:
            await trio.aclose_forcefully(client)
            return
        try:
            server = await trio.open_tcp_stream(HOST, self.target)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        self.connections += 1
        self._open |= {client, server}
        bytes_max, self.bytes_max = self.bytes_max, None
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, client, server)
            nursery.start_soon(_copy, server, client, bytes_max)
        self._open -= {client, server}


async def _copy(source: trio.SocketStream, target: trio.SocketStream, bytes_max: int | None = None) -> None:
    try:
        async for data in source:
            await target.send_all(data[:bytes_max])
            if bytes_max is not None:
                bytes_max -= min(len(data), bytes_max)
                if not bytes_max:
                    break
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one end is closed, so close the other one too
    await trio.aclose_forcefully(target)
    await trio.aclose_forcefully(source)


@asynccontextmanager
async def network() -> AsyncIterator[Network]:
    """Run a proxy until the block ends. The caller sets its ``target``."""
    async with trio.open_nursery() as nursery:
        made = Network(0)
        listeners = await nursery.start(trio.serve_tcp, made.forward, 0)
        made.port = listeners[0].socket.getsockname()[1]
        yield made
        nursery.cancel_scope.cancel()
