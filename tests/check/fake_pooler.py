"""A proxy that imitates a pooler: it reports a different server process from the one that answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import sqlalchemy as sa
import trio

HOST = "127.0.0.1"
KEY_DATA = b"K\x00\x00\x00\x0c"
"""The beginning of the message BackendKeyData: its type and length. The process id and a secret follow."""


def disguised(data: bytes | bytearray) -> bytes | bytearray:
    """Return the server's bytes with another process id."""
    before, found, after = data.partition(KEY_DATA)
    return before + found + (b"\x00\x00\x00\x01" + after[4:] if found else b"")


async def _forward(source: trio.SocketStream, target: trio.SocketStream, *, disguise: bool) -> None:
    try:
        async for data in source:
            await target.send_all(disguised(data) if disguise else data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(target)


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[str]:
    """Run a proxy in front of a Postgres; yield its URL."""
    parsed = sa.make_url(url)
    assert parsed.port is not None

    async def serve(port: int, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(HOST, port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(partial(_forward, client, server, disguise=False))
            nursery.start_soon(partial(_forward, server, client, disguise=True))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, partial(serve, parsed.port), 0)
        port = listeners[0].socket.getsockname()[1]
        yield parsed.set(port=port).render_as_string(hide_password=False)
        nursery.cancel_scope.cancel()
