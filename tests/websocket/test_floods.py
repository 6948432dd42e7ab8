"""Clients with input that costs the server more than the client: endless fragments, PINGs, a message octet by octet."""

import tracemalloc

import pytest
import trio
from trio.testing import MockClock

from airy_trio.testing.client import Closed
from airy_trio.websocket.frames import BINARY, CONTINUATION, FRAGMENT_BYTES_SMALL, PING, SMALL_FRAGMENTS_MAX, TEXT
from airy_trio.websocket.stream import CONTROLS_BURST, CONTROLS_PER_S
from tests.sessions.serving import serving
from tests.websocket.test_battery import FRAME_BYTES_MAX, ask, frame

FRAMES: int = 8192


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"x", b"x" * FRAGMENT_BYTES_SMALL])
async def test_endless_fragments_are_refused_without_memory(content: bytes) -> None:
    flood = frame(CONTINUATION, content, fin=False) * FRAMES
    with trio.fail_after(30):
        async with serving() as server, await server.dial() as client, await server.dial() as other:
            await client.stream.send_all(frame(BINARY, fin=False))
            tracemalloc.start()
            try:
                with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - the server stops reading at some time
                    while True:
                        await client.stream.send_all(flood)
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak_bytes < len(flood) + 1_000_000
            await other.subscribe()
            await server.append(1, 1)
            assert (await other.receive()).command == "MESSAGE"
            disconnects = server.sessions.disconnects
            assert disconnects["too large"] == 1


async def test_flood_of_pings_is_paced(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        plugged = await server.plug_connected()
        flood = CONTROLS_BURST + 10 * CONTROLS_PER_S
        begun_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugged.client.stream.send_all, frame(PING) * flood)
            answered = 0
            while answered < 2 * flood:  # an empty PONG is two octets
                answered += len(await plugged.client.stream.receive_some())
                assert answered / 2 <= CONTROLS_BURST + CONTROLS_PER_S * (trio.current_time() - begun_at) + 1
        assert trio.current_time() - begun_at == pytest.approx(10, abs=0.1)
        await server.append(1, 1)
        assert (await plugged.client.subscribe()).command == "RECEIPT"


async def test_client_with_too_many_fragments_receives_error(autojump_clock: MockClock) -> None:
    async with serving() as server:
        plugged = await server.plug_connected()
        await plugged.client.stream.send_all(
            frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * SMALL_FRAGMENTS_MAX
        )
        error = await plugged.client.receive()
        assert (error.command, error.get("message")) == ("ERROR", "413-too-many-fragments")
        with pytest.raises(Closed) as closed:
            await plugged.client.receive()
        assert closed.value.code == 1009
        await server.ended()


@pytest.mark.slow
async def test_message_octet_by_octet_is_answered_and_costs_no_memory(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        plugged = await server.plug_connected()
        tracemalloc.start()
        try:
            for octet in frame(TEXT, ask(FRAME_BYTES_MAX // 4)):
                await plugged.client.stream.send_all(bytes([octet]))
            assert (await plugged.client.receive()).command == "RECEIPT"
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 250_000
