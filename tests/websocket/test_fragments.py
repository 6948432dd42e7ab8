"""Messages in many pieces: counted as wsproto makes them, however the stream is cut, and bounded."""

import itertools
import tracemalloc
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from airy_trio.testing.client import Closed
from airy_trio.websocket.stream import CONTROLS_BURST, CONTROLS_PER_S, PIECES_MAX, SMALL_MAX, SMALL_OCTETS, Fragments
from tests.sessions.serving import serving

KEY = b"\x01\x02\x03\x04"
CONTINUATION, BINARY, PING = 0, 2, 9
PIECE = b"x" * SMALL_OCTETS


def frame(opcode: int, content: bytes = b"", *, fin: bool = False) -> bytes:
    """A masked frame, as a client writes it."""
    size = len(content)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    masked = bytes(octet ^ KEY[at % 4] for at, octet in enumerate(content))
    return bytes([(0x80 if fin else 0) | opcode, 0x80 | length[0]]) + length[1:] + KEY + masked


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({min(edge, len(data)) for edge in at}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def begun() -> Fragments:
    """Fragments after the first frame of a message that does not end."""
    fragments = Fragments()
    assert fragments.feed(frame(BINARY))
    return fragments


def test_pieces_at_the_limit_and_one_beyond() -> None:
    fragments = begun()
    assert fragments.feed(frame(CONTINUATION, PIECE) * (PIECES_MAX - 1))
    assert not fragments.feed(frame(CONTINUATION, PIECE))


@pytest.mark.parametrize("content", [b"", PIECE[1:]])
def test_small_pieces_at_the_limit_and_one_beyond(content: bytes) -> None:
    fragments = begun()
    assert fragments.feed(frame(CONTINUATION, PIECE) + frame(CONTINUATION, content) * (SMALL_MAX - 1))
    assert fragments.feed(frame(CONTINUATION, PIECE) * SMALL_MAX)
    assert not fragments.feed(frame(CONTINUATION, content))


def test_end_of_a_message_resets_the_count() -> None:
    fragments = Fragments()
    small = frame(BINARY) + frame(CONTINUATION) * (SMALL_MAX - 1)
    message = small + frame(CONTINUATION, PIECE) * (PIECES_MAX - SMALL_MAX) + frame(CONTINUATION, fin=True)
    assert fragments.feed(message * 3 + frame(BINARY, fin=True) * 2 * PIECES_MAX)


def test_control_frames_are_not_pieces() -> None:
    fragments = begun()
    assert fragments.feed(frame(PING, b"ping", fin=True) * 2 * PIECES_MAX)
    assert fragments.feed((frame(CONTINUATION) + frame(PING, fin=True)) * (SMALL_MAX - 1))
    assert not fragments.feed(frame(CONTINUATION))


def test_frame_octet_by_octet_has_as_many_pieces() -> None:
    fragments = Fragments()
    data = frame(BINARY, b"x" * (PIECES_MAX + 1))
    assert [fragments.feed(data[at : at + 1]) for at in range(len(data))].index(False) == len(data) - 1


@given(
    frames=st.lists(
        st.tuples(st.integers(0, 300) | st.just(70_000), st.sampled_from(["more", "last", "ping"])),
        max_size=SMALL_MAX // 2,
    ),
    cuts=st.lists(st.integers(0, 100_000)),
)
def test_pieces_match_wsproto(frames: Sequence[tuple[int, str]], cuts: Sequence[int]) -> None:
    data, opcode = bytearray(), BINARY
    for size, kind in frames:
        if kind == "ping":
            data += frame(PING, b"x" * min(size, 125), fin=True)
        else:
            data += frame(opcode, b"x" * size, fin=kind == "last")
            opcode = BINARY if kind == "last" else CONTINUATION
    fragments, server, pieces = Fragments(), Connection(ConnectionType.SERVER), 0
    for part in cut(bytes(data), cuts):
        assert fragments.feed(part)
        server.receive_data(part)
        for event in server.events():
            if isinstance(event, BytesMessage):
                pieces = 0 if event.message_finished else pieces + 1
    missing = PIECES_MAX - pieces
    assert fragments.feed(frame(CONTINUATION if pieces else BINARY, PIECE))
    assert fragments.feed(frame(CONTINUATION, PIECE) * (missing - 1))
    assert not fragments.feed(frame(CONTINUATION, PIECE))


@pytest.mark.parametrize("content", [b"", b"x", PIECE])
async def test_endless_fragments_are_refused_without_memory(content: bytes) -> None:
    flood = frame(CONTINUATION, content) * (2 * PIECES_MAX)
    with trio.fail_after(30):
        async with serving() as server, await server.dial() as client, await server.dial() as other:
            await client.stream.send_all(frame(BINARY))
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
            assert server.sessions.statistics().client_faults["413-too-many-fragments"] == 1


async def test_flood_of_pings_is_paced(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        plugged = await server.plug_connected()
        flood = CONTROLS_BURST + 10 * CONTROLS_PER_S
        begun_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugged.client.stream.send_all, frame(PING, fin=True) * flood)
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
        await plugged.client.stream.send_all(frame(BINARY) + frame(CONTINUATION) * SMALL_MAX)
        error = await plugged.client.receive()
        assert (error.command, error.get("message")) == ("ERROR", "413-too-many-fragments")
        with pytest.raises(Closed) as closed:
            await plugged.client.receive()
        assert closed.value.code == 1009
        await server.ended()
