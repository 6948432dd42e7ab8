"""WebSocket frames: another implementation reads the server's, and clients' frames are read as it reads them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage
from wsproto.frame_protocol import CloseReason, FrameProtocol, ParseFailed

from airy_trio.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FRAGMENT_BYTES_SMALL,
    HEART_BEAT,
    MESSAGES,
    PING,
    SMALL_FRAGMENTS_MAX,
    TEXT,
    TOO_LARGE,
    FrameError,
    FrameReader,
    TooManyFragmentsError,
    close_frame,
    ends_with_close,
    text_message,
)
from tests.websocket.test_battery import CASES, FRAME_BYTES_MAX, close, frame, texts_in_pieces

Found = list[tuple[int, bytes] | int]
BAD_GATEWAY = (1014).to_bytes(2)
"""Messages and control frames; at the end the code of the Close frame if they are not valid."""
LARGE = b"x" * FRAGMENT_BYTES_SMALL
HEAD_BYTES_MAX = 14


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_another_implementation_reads_a_message_of_any_size(size: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(text_message(b"x" * size))
    assert list(client.events()) == [TextMessage(data="x" * size, frame_finished=True, message_finished=True)]


def test_a_heart_beat_is_one_lf() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(HEART_BEAT)
    assert [event.data for event in client.events() if isinstance(event, TextMessage)] == ["\n"]


@pytest.mark.parametrize("length", [0, 10, 123, 124])
def test_close_frame_carries_code_and_truncated_reason(length: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(close_frame(4410, "r" * length))
    assert list(client.events()) == [CloseConnection(code=4410, reason="r" * min(length, 123))]


@pytest.mark.parametrize("reason", ["", "going away", "r" * 123])
@pytest.mark.parametrize("before", ["", "x", "\x88" * 500])
def test_close_frame_at_the_end_is_recognised(before: str, reason: str) -> None:
    # With a random key, the masked text would look like a Close frame once in some thousand runs.
    data = frame(TEXT, before.encode()) + close(1000, reason.encode())
    assert ends_with_close(data)
    assert not ends_with_close(data[:-1])


def test_close_frame_without_a_code_is_recognised() -> None:
    assert ends_with_close(b"\x88\x80\0\0\0\0")


def test_message_is_not_a_close_frame() -> None:
    client = Connection(ConnectionType.CLIENT)
    assert not ends_with_close(client.send(TextMessage(data="\n")))
    assert not ends_with_close(b"")


def read(parts: Iterable[bytes], message_bytes_max: int = FRAME_BYTES_MAX) -> Found:
    reader, found = FrameReader(message_bytes_max), Found()
    try:
        for part in parts:
            reader.feed(part)
            while (one := reader.next()) is not None:
                found.append(one)
    except FrameError as error:
        found.append(error.code)
    return found


def without_1014(found: Found) -> Found:
    """Replace the close code that wsproto lacks because it was registered later than the others."""
    return [1002 if isinstance(one, tuple) and one[0] == CLOSE and one[1][:2] == BAD_GATEWAY else one for one in found]


def read_by_wsproto(parts: Iterable[bytes]) -> Found:
    reader, found, message = FrameProtocol(client=False, extensions=[]), Found(), b""
    try:
        for part in parts:
            reader.receive_bytes(part)
            for one in reader.received_frames():
                payload = one.payload
                if isinstance(payload, tuple):
                    code, reason = payload
                    content = b"" if code == CloseReason.NO_STATUS_RCVD else code.to_bytes(2) + reason.encode()
                    found.append((CLOSE, content))
                    continue
                octets = payload.encode() if isinstance(payload, str) else bytes(payload)
                if one.opcode in MESSAGES:
                    message += octets
                    if one.frame_finished and one.message_finished:
                        found.append((int(one.opcode), message))
                        message = b""
                else:
                    found.append((int(one.opcode), octets))
    except ParseFailed as error:
        found.append(int(error.code))
    return found


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({min(edge, len(data)) for edge in at}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


def test_every_case_is_read_as_wsproto_reads_it() -> None:
    cases = [case for case in [*CASES, *texts_in_pieces()] if case.code != TOO_LARGE]  # wsproto has no limit
    assert len(cases) > 1000
    assert [case.name for case in cases if without_1014(read(case.sent)) != read_by_wsproto(case.sent)] == []


def test_texts_in_pieces_end_as_listed() -> None:
    ends = {case.name: read(case.sent)[-1] for case in texts_in_pieces()}
    codes = {name: end if isinstance(end, int) else int.from_bytes(end[1][:2]) for name, end in ends.items()}
    assert codes == {case.name: case.code for case in texts_in_pieces()}


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame of a client that may violate anything, or nothing."""
    length = draw(st.none() | st.sampled_from([b"\x7e\0\x05", b"\x7f" + bytes(7) + b"\x05", b"\x7f\x80" + bytes(7)]))
    return frame(
        draw(st.sampled_from([CONTINUATION, CONTINUATION, TEXT, BINARY, CLOSE, PING, 10, 3])),
        draw(st.binary(max_size=130) | st.text(max_size=130).map(str.encode)),
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0] * 9 + [1])),
        mask=draw(st.sampled_from([b"\1\2\3\4"] * 9 + [None])),
        length=length,
    )


@given(
    data=st.lists(frames(), max_size=6).map(b"".join) | st.binary(max_size=100),
    at=st.lists(st.integers(0, 800), max_size=20),
)
def test_any_input_cut_anywhere_is_read_as_wsproto_reads_it(data: bytes, at: Sequence[int]) -> None:
    found = read(cut(data, at))
    assert found == read(cut(data, range(len(data))))
    if TOO_LARGE not in found:  # wsproto has no limit
        whole = [data, bytes(HEAD_BYTES_MAX)]  # wsproto judges a head when it is complete
        assert without_1014(read(whole)) == read_by_wsproto(whole)


def test_message_at_the_limit_and_one_beyond() -> None:
    assert read([frame(BINARY, b"x" * 5)], 5) == [(BINARY, b"xxxxx")]
    assert read([frame(BINARY, b"x" * 6)], 5) == [TOO_LARGE]
    parts = [frame(BINARY, b"xxx", fin=False), frame(PING, b"123456"), frame(CONTINUATION, b"xx")]
    assert read(parts, 5) == [(PING, b"123456"), (BINARY, b"xxxxx")]
    assert read([parts[0], frame(CONTINUATION, b"xxx")[:7]], 5) == [TOO_LARGE], "by the header alone"


@pytest.mark.parametrize("content", [b"", LARGE[1:]])
def test_small_fragments_at_the_limit_and_one_beyond(content: bytes) -> None:
    reader = FrameReader(FRAME_BYTES_MAX)
    reader.feed(frame(BINARY, LARGE, fin=False) + frame(CONTINUATION, content, fin=False) * SMALL_FRAGMENTS_MAX)
    assert reader.next() is None
    reader.feed(frame(CONTINUATION, LARGE, fin=False) * 1000 + frame(PING) * 1000)
    for _ in range(1000):
        assert reader.next() == (PING, b"")
    reader.feed(frame(CONTINUATION, content, fin=False))
    with pytest.raises(TooManyFragmentsError, match=r"^a message has more than 256 small fragments$"):
        reader.next()


def test_end_of_a_message_resets_the_count_of_fragments() -> None:
    message = (
        frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * (SMALL_FRAGMENTS_MAX - 1) + frame(CONTINUATION)
    )
    assert read([message * 3 + frame(BINARY) * 1000]) == [(BINARY, b"")] * 1003


def test_nothing_is_read_after_a_close_frame() -> None:
    reader = FrameReader(FRAME_BYTES_MAX)
    reader.feed(frame(CLOSE, b"\x03\xe8") + b"rubbish")
    assert (reader.next(), reader.next(), reader.closed) == ((CLOSE, b"\x03\xe8"), None, True)
    assert reader.unread == b"rubbish"
