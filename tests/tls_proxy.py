"""A proxy that speaks TLS in front of a Postgres, and splits its answers into TLS records as a test requests."""

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

RECORD_BYTES_MAX: Final = 16 * 1024
SSL_REQUEST_BYTES: Final = 8
_READY: Final = b"Z\0\0\0\5"
"""The beginning of the last message of an answer; one octet follows."""


@asynccontextmanager
async def tls_proxy(port: int, tls: ssl.SSLContext, first_bytes: int) -> AsyncGenerator[int]:
    """Run a proxy in front of this port; yield the proxy's port.

    The first record of each answer has ``first_bytes`` octets, the others have the maximum.
    """
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, partial(_forward, port, tls, first_bytes), [listener])
        yield int(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def _forward(port: int, tls: ssl.SSLContext, first_bytes: int, client: trio.SocketStream) -> None:
    request = b""
    while len(request) < SSL_REQUEST_BYTES:
        request += bytes(await client.receive_some(SSL_REQUEST_BYTES - len(request)))
    await client.send_all(b"S")
    encrypted = trio.SSLStream(client, tls, server_side=True, https_compatible=True)
    async with await trio.open_tcp_stream("127.0.0.1", port) as postgres, trio.open_nursery() as nursery:
        nursery.start_soon(_ask, encrypted, postgres)
        answer = b""
        async for octets in postgres:
            answer += octets
            if answer[-len(_READY) - 1 : -1] == _READY:
                await _answer(encrypted, answer, first_bytes)
                answer = b""
        nursery.cancel_scope.cancel()


async def _ask(encrypted: "trio.SSLStream[trio.SocketStream]", postgres: trio.SocketStream) -> None:
    async for octets in encrypted:
        await postgres.send_all(octets)
    await postgres.send_eof()


async def _answer(encrypted: "trio.SSLStream[trio.SocketStream]", answer: bytes, first_bytes: int) -> None:
    await encrypted.send_all(answer[:first_bytes])
    for begin in range(first_bytes, len(answer), RECORD_BYTES_MAX):
        await encrypted.send_all(answer[begin : begin + RECORD_BYTES_MAX])
