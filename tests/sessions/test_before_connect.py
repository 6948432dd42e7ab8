"""The limits before CONNECT is accepted are lower than those after it."""

import pytest
import trio

from airy_trio.sessions.session import BYTES_BEFORE_CONNECT_MAX
from tests.sessions.serving import HOST, serving
from tests.websocket.test_battery import BINARY, CONNECT, CONTINUATION, PING, TEXT, Peer, frame

MANY = (BYTES_BEFORE_CONNECT_MAX // len(frame(PING, b"x" * 100))) * [frame(PING, b"x" * 100)]
FLOODS = {
    "one message": [frame(TEXT, b"\n" * BYTES_BEFORE_CONNECT_MAX)],
    "unfinished fragments": [
        frame(BINARY, b"\n" * 4000, fin=False),
        *[frame(CONTINUATION, b"\n" * 4000, fin=False)] * 2,
    ],
    "line ends": [frame(TEXT, b"\n" * 100)] * 90,
    "pings": [*MANY, frame(PING, b"x" * 100)],
}


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS)
async def test_reads_before_connect_are_limited(flood: str) -> None:
    with trio.fail_after(20):
        async with serving() as server, await trio.open_tcp_stream(HOST, server.port) as stream:
            peer = Peer(stream)
            await peer.upgrade()
            for piece in FLOODS[flood]:
                await stream.send_all(piece)
            answers, payload = await peer.until_close()
            assert answers[-1] == "ERROR"
            assert int.from_bytes(payload[:2]) == 1009
            await server.ended()
            assert server.sessions.client_faults["413-frame-too-large"] == 1


async def test_the_read_limit_ends_with_connect() -> None:
    with trio.fail_after(20):
        async with serving() as server, await trio.open_tcp_stream(HOST, server.port) as stream:
            peer = Peer(stream)
            await peer.upgrade()
            connect = frame(TEXT, CONNECT)
            noise = frame(TEXT, b"\n" * (BYTES_BEFORE_CONNECT_MAX - len(connect) - 8))
            assert len(noise) + len(connect) == BYTES_BEFORE_CONNECT_MAX
            await stream.send_all(noise + connect)
            assert (await peer.next())[1].startswith(b"CONNECTED")
            for _ in range(4):
                await stream.send_all(frame(TEXT, b"\n" * BYTES_BEFORE_CONNECT_MAX))
            await stream.send_all(frame(PING, b"p"))
            assert (await peer.next())[1] == b"p"
