"""The limits before CONNECT is accepted are lower than those after it."""

import pytest
import trio

from airy_trio.sessions.session import BYTES_BEFORE_CONNECT_MAX
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed
from tests.sessions.serving import HOST, serving
from tests.websocket.test_battery import BINARY, CONNECT, CONTINUATION, PING, TEXT, Peer, frame

UNSUBSCRIBE = Frame("UNSUBSCRIBE", (("id", "9"), ("receipt", "r")))


@pytest.mark.parametrize(
    "more",
    [
        (("x", "y" * 4_000),),  # the frame
        (("x", "y" * 3_100),),  # one line
        tuple((f"x{number}", "y") for number in range(40)),  # their number
    ],
    ids=["frame", "line", "headers"],
)
async def test_frame_limits_are_larger_after_connect(more: tuple[tuple[str, str], ...]) -> None:
    with trio.fail_after(20):
        async with serving() as server:
            async with await server.dial_raw() as early:
                await early.upgrade()
                assert (await early.connect(headers=more)).get("message").startswith("413-")  # type: ignore[union-attr]
                with pytest.raises(Closed) as closed:
                    await early.receive()
                assert closed.value.code == 1009
            async with await server.dial() as late:
                await late.send(Frame("UNSUBSCRIBE", (*UNSUBSCRIBE.headers, *more)))
                assert (await late.receive()).command == "RECEIPT"


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
            assert server.sessions.statistics().client_faults["413-frame-too-large"] == 1


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
