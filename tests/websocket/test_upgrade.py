"""The HTTP upgrade over real sockets: what becomes a WebSocket, and the answers to all other requests."""

from collections.abc import AsyncGenerator

import pytest
import trio
from structlog.testing import capture_logs

from tests.sessions.serving import HOST, Server, serving


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    async with serving() as server:
        with trio.fail_after(20):
            yield server


async def ask(server: Server, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream(HOST, server.port)
    async with stream:
        await stream.send_all(request)
        answer = b""
        while data := await stream.receive_some():
            answer += data
    return answer


UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: %b\r\n%b\r\n"
)


@pytest.mark.parametrize(
    "request_, status",
    [
        (UPGRADE % (b"/elsewhere", b"localhost", b"13", b""), b"404"),
        (UPGRADE % (b"/ws.communication", b"localhost", b"8", b""), b"426"),
        (UPGRADE % (b"/ws.communication", b"\xff.example", b"13", b""), b"400"),
        (UPGRADE % (b"/ws.communication", b"localhost", b"13", b"Sec-WebSocket-Protocol: \xfc\r\n"), b"400"),
        (b"GET /ws.communication HTTP/1.1\r\nHost: h\r\n\r\n", b"400"),
        (b"POST /ws.communication HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (b"junk\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"431"),
    ],
)
async def test_other_requests_are_refused_and_their_connection_ends(
    server: Server, request_: bytes, status: bytes
) -> None:
    with capture_logs() as logs:
        answer = await ask(server, request_)
    assert answer.split(b" ")[1] == status
    await server.ended()
    assert not [line for line in logs if line["log_level"] in {"warning", "error"}]
