"""The HTTP upgrade over real sockets: what becomes a WebSocket, and what the rest is told."""

from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.testing.client import Closed, StompClient
from airy_trio.testing.outlet import MemoryOutlet
from airy_trio.websocket import farewells
from airy_trio.websocket.outlet import StreamOutlet
from airy_trio.websocket.subscriptions import Client
from airy_trio.websocket.tasks import Tasks
from airy_trio.websocket.upgrade import _Reader
from airy_trio.websocket.wire import Wire
from tests.websocket.serving import HOST, Server, serving


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
        (UPGRADE % (b"/elsewhere", b"h", b"13", b""), b"404"),
        (UPGRADE % (b"/ws.communication", b"h", b"8", b""), b"426"),
        (UPGRADE % (b"/ws.communication", b"\xff.example", b"13", b""), b"400"),
        (UPGRADE % (b"/ws.communication", b"h", b"13", b"Sec-WebSocket-Protocol: \xfc\r\n"), b"400"),
        (b"GET /ws.communication HTTP/1.1\r\nHost: h\r\n\r\n", b"400"),
        (b"POST /ws.communication HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (b"junk\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_upgrade_of_ours_is_told_so_and_ends(server: Server, request_: bytes, status: bytes) -> None:
    with capture_logs() as logs:
        answer = await ask(server, request_)
    assert answer.split(b" ")[1] == status
    await server.ended()
    assert not [line for line in logs if line["log_level"] in {"warning", "error"}]


class UnreadableOutlet(StreamOutlet):
    """What comes after the first message breaks over its characters, as wsproto may before the upgrade."""

    unreadable = False

    async def receive_some(self, bytes_max: int) -> bytes:
        data = await super().receive_some(bytes_max)
        if self.unreadable:
            data.decode("ascii")
        return data


async def test_no_http_is_written_into_a_websocket(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        ours, theirs = trio.testing.memory_stream_pair()
        outlet, client = UnreadableOutlet(ours), StompClient(theirs)
        server.start(outlet)
        await client.upgrade()
        await client.connect()
        outlet.unreadable = True
        with capture_logs():
            await client.send_text("\n")  # masked, and its first octet is not ASCII
            error = await client.receive()
        assert error.get("message") == "500-internal"
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 1011


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_reader_that_fails_is_answered_in_http_only_before_the_upgrade(
    autojump_clock: MockClock, *, upgraded: bool
) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        b"\xff".decode("ascii")

    outlet = MemoryOutlet()
    client = Client(Connection(ConnectionOptions(session="s1", server="airy-trio/test")))
    with capture_logs():
        async with trio.open_nursery() as nursery:
            reader = _Reader(Tasks(nursery, client), Wire(outlet, send_timeout_s=10))
            reader.upgraded = upgraded
            reader.start_soon(fail)
    assert outlet.take()[:12] == (b"" if upgraded else b"HTTP/1.1 400")
    assert client.farewell is (farewells.INTERNAL if upgraded else None)
