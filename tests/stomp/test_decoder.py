"""The decoder: same frames and same fault however the input is cut, in linear time and bounded memory."""

import sys
import tracemalloc
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airy_trio.stomp import codec
from airy_trio.stomp.codec import Decoder, Limits, encode
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.frames import Frame, Version
from tests.stomp.dialogue import ROOMY, VERSIONS, Outcome, outcome

TIGHT = Limits(frame_bytes_max=40, header_count_max=3, header_line_bytes_max=16, command_bytes_max=9)
AGREED = [None, *VERSIONS]


def decoded(data: bytes, version: Version | None = Version.V1_2, limits: Limits = ROOMY) -> list[Frame]:
    return list(Decoder(limits, version).feed(data))


def fault(data: bytes, version: Version | None = Version.V1_2, limits: Limits = ROOMY) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        decoded(data, version, limits)
    return caught.value


# Streams that look like STOMP: complete frames, their pieces, noise, and any octets.
LINES = [b"SEND\n", b"MESSAGE\r\n", b"CONNECT\n", b"a:b\n", b"receipt:r\\c1\n", b"content-length:3\n", b"a:\\r\n"]
OCTETS = [
    b"content-length:99\r\n",
    b"\n",
    b"\r\n",
    b"\0",
    b"\r",
    b"\n\n\0",
    b"x\0y",
    b"\\",
    b"\\n",
    b":",
    b"\xc3\xa4",
    b"\xc3",
]
PIECES = st.sampled_from(LINES + OCTETS)
WHOLE = st.builds(
    lambda command, body: encode(
        Frame(command, (("id", "ü:1"), ("content-length", str(len(body)))), body), Version.V1_2
    ),
    st.sampled_from(["SEND", "ACK"]),
    st.binary(max_size=4),
)
STREAMS = st.lists(st.one_of(PIECES, WHOLE, st.binary(max_size=20)), max_size=12).map(b"".join)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(c % (len(stream) + 1) for c in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(at)]


@given(
    stream=STREAMS,
    cuts=st.lists(st.integers(0, 1000), max_size=10),
    version=st.sampled_from(AGREED),
    limits=st.sampled_from([ROOMY, TIGHT]),
)
@example(stream=b"\r\n\rSEND\n\n\0", cuts=[1, 2, 3], version=Version.V1_2, limits=ROOMY)
@example(stream="äääää\n\n\0".encode(), cuts=[], version=Version.V1_2, limits=TIGHT)
@example(stream=b"SEND\na:b\na:b\na:b\na:b\n\n\0", cuts=[], version=None, limits=TIGHT)
@example(stream=b"SEND\nid:\xc3\xa4\\c\r\n\r\n\0", cuts=[9, 11, 12, 13], version=Version.V1_2, limits=ROOMY)
def test_cut_positions_do_not_change_frames_or_fault(
    stream: bytes, cuts: list[int], version: Version | None, limits: Limits
) -> None:
    whole: Outcome = outcome(Decoder(limits, version), [stream])
    assert outcome(Decoder(limits, version), cut(stream, cuts)) == whole
    assert outcome(Decoder(limits, version), [stream[i : i + 1] for i in range(len(stream))]) == whole


@given(stream=STREAMS, size=st.integers(1, 50), version=st.sampled_from(AGREED))
def test_any_input_is_bounded_and_raises_only_faults(stream: bytes, size: int, version: Version | None) -> None:
    decoder = Decoder(TIGHT, version)
    for at in range(0, len(stream), size):
        try:
            frames = list(decoder.feed(stream[at : at + size]))
        except RemoteProtocolError:
            return
        assert decoder.held_bytes <= TIGHT.frame_bytes_max
        for frame in frames:
            assert len(frame.body) <= TIGHT.frame_bytes_max
            assert len(frame.headers) <= TIGHT.header_count_max


ADVERSARIES = {
    "one long header line": (b"SEND\na:", b"b"),
    "a body without end": (b"SEND\n\n", b"b"),
    "a body of known length": (b"SEND\ncontent-length:60000\n\n", b"b"),
    "line ends only": (b"", b"\n"),
    "long line ends only": (b"", b"\r\n"),
    "small frames": (b"", b"A\n\n\0"),
    "many headers": (b"SEND\n", b"a:b\n"),
    "many escapes": (b"SEND\na:", b"\\n"),
}


def lines_run(piece_bytes: int, stream: bytes) -> tuple[int, Decoder]:
    """Decode a stream in pieces and count the executed lines of the decoder."""
    limits = Limits(
        frame_bytes_max=1 << 20, header_count_max=1 << 20, header_line_bytes_max=1 << 20, command_bytes_max=99
    )
    decoder = Decoder(limits, Version.V1_2)
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:  # noqa: ANN401 - the type that sys.settrace asks for
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == codec.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        outcome(decoder, [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)])
    finally:
        sys.settrace(before)
    return count, decoder


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_work_is_linear_in_the_input(name: str, piece_bytes: int) -> None:
    start, repeated = ADVERSARIES[name]
    small, _ = lines_run(piece_bytes, start + repeated * 20)
    large, decoder = lines_run(piece_bytes, start + repeated * 200)
    assert 0 < decoder.searched_bytes <= len(start + repeated * 200)
    assert large <= 10 * small + 100


def test_only_octets_of_an_incomplete_frame_are_held() -> None:
    decoder = Decoder(ROOMY, Version.V1_2)
    assert len(list(decoder.feed(b"A\n\n\0B\n\n\0C\n"))) == 2
    assert decoder.held_bytes == 2
    assert len(list(decoder.feed(b"\n\0\n"))) == 1
    assert decoder.held_bytes == 0


def test_frame_is_decoded_on_demand() -> None:
    decoder = Decoder(TIGHT, None)
    frames = decoder.feed(b"CONNECT\n\n\0SEND\na:\\c\nlong:" + b"x" * 20 + b"\n\n\0")
    assert next(frames).command == "CONNECT"
    decoder.version, decoder.limits = Version.V1_2, ROOMY
    assert next(frames).headers == (("a", ":"), ("long", "x" * 20))


def test_frame_not_requested_is_returned_by_the_next_call() -> None:
    decoder = Decoder(ROOMY)
    assert next(decoder.feed(b"A\n\n\0B\n\n\0")).command == "A"
    assert [frame.command for frame in decoder.feed(b"")] == ["B"]


def test_frames_before_a_fault_are_returned() -> None:
    expected = ([Frame("A")], ("400-malformed-frame", "A header line is not of the form NAME:VALUE.", None))
    assert outcome(Decoder(ROOMY), [b"A\n\n\0bad\nline\n\n\0"]) == expected


def test_clear_drops_fed_octets() -> None:
    decoder = Decoder(ROOMY)
    assert list(decoder.feed(b"SEND\na:b\nc")) == []
    decoder.clear()
    assert list(decoder.feed(b"ACK\n\n\0")) == [Frame("ACK")]


@pytest.mark.parametrize("version", AGREED)
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
def test_both_line_ends_in_every_version(version: Version | None, eol: bytes) -> None:
    data = eol.join([b"", b"", b"SEND", b"a:b", b"", b"body\r\n\0", b"", b"ACK", b"", b"\0", b""])
    assert decoded(data, version) == [Frame("SEND", (("a", "b"),), b"body\r\n"), Frame("ACK")]


@pytest.mark.parametrize("version", AGREED)
@pytest.mark.parametrize("data", [b"SE\rND\n\n\0", b"SEND\na:b\rc\n\n\0", b"SEND\na:b\r\r\n\n\0", b"\rSEND\n\n\0"])
def test_a_bare_carriage_return_is_malformed(version: Version | None, data: bytes) -> None:
    assert "carriage return" in fault(data, version).prose


@pytest.mark.parametrize("data", [b"SEND\0", b"SEND\na:b\n\0", b"SEND\na:\0b\n\n\0", b"\0"])
def test_a_nul_in_the_head_is_malformed_at_once(data: bytes) -> None:
    assert "blank line" in fault(data).prose


@pytest.mark.parametrize("line", [b"a", b":", b":b", b" "])
def test_a_header_needs_a_name_and_a_colon(line: bytes) -> None:
    assert "NAME:VALUE" in fault(b"SEND\n" + line + b"\n\n\0").prose


def test_a_header_is_cut_at_its_first_colon() -> None:
    assert decoded(b"SEND\nhost:localhost:8080\nempty:\n\n\0")[0].headers == (("host", "localhost:8080"), ("empty", ""))


@pytest.mark.parametrize("data", [b"S\xff\n\n\0", b"SEND\na:\xc3\n\n\0", b"SEND\n\xed\xa0\x80:b\n\n\0"])
def test_a_head_that_is_not_utf_8_is_malformed(data: bytes) -> None:
    assert "UTF-8" in fault(data).prose


def test_a_body_may_be_any_octets() -> None:
    assert decoded(b"SEND\ncontent-length:4\n\n\xff\0\0\n\0")[0].body == b"\xff\0\0\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_names_are_unescaped_too(version: Version) -> None:
    expected = "a\\cb" if version is Version.V1_0 else "a:b"
    assert decoded(b"SEND\na\\cb:x\n\n\0", version)[0].headers == ((expected, "x"),)


@pytest.mark.parametrize("length", [b"5", b"05", b"000000000000000000000000000005"])
def test_body_has_the_length_of_content_length(length: bytes) -> None:
    data = b"SEND\ncontent-length:" + length + b"\n\n\0bod\0\0"
    assert decoded(data)[0].body == b"\0bod\0"


@pytest.mark.parametrize("length", ["", "-1", "+1", "1.0", "0x1", "a", " 5", "5 ", "٣", "1_0"])
def test_length_that_is_not_a_number_is_malformed(length: str) -> None:
    assert "content-length" in fault(f"SEND\ncontent-length:{length}\n\n\0".encode()).prose


@pytest.mark.parametrize("length", [b"1048576", b"1" + b"0" * 18, b"1" + b"0" * 19, b"9" * 5000])
def test_too_large_length_is_refused_before_the_body(length: bytes) -> None:
    assert fault(b"SEND\ncontent-length:" + length + b"\n\n").token == "413-frame-too-large"


@pytest.mark.parametrize("body", [b"abcd\0", b"abcx"])
def test_nul_must_follow_the_body(body: bytes) -> None:
    assert "NUL" in fault(b"SEND\ncontent-length:3\n\n" + body).prose


@pytest.mark.parametrize(
    "name, token, data",
    [
        ("command_bytes_max", "413-command-too-large", b"%s\n\n\0"),
        ("header_line_bytes_max", "413-header-too-large", b"SEND\na:%s\n\n\0"),
        ("frame_bytes_max", "413-frame-too-large", b"SEND\n\n%s\0"),
        ("frame_bytes_max", "413-frame-too-large", b"SEND\na:%s\n\n\0"),
        ("frame_bytes_max", "413-frame-too-large", b"%s\n\n\0"),
        ("frame_bytes_max", "413-frame-too-large", b"SEND\ncontent-length:14\n\n%s\0"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_octets_at_the_limit_and_one_beyond(name: str, token: str, data: bytes, whole: bool) -> None:
    filled = data % (b"x" * 14)
    counted = {
        "command_bytes_max": filled.index(b"\n"),
        "header_line_bytes_max": len(b"a:" + b"x" * 14),
        "frame_bytes_max": len(filled),
    }[name]
    pieces = [filled] if whole else [filled[i : i + 1] for i in range(len(filled))]
    allowed, refused = (
        outcome(Decoder(Limits(**{**LIMITS, name: limit}), Version.V1_2), pieces) for limit in (counted, counted - 1)
    )
    assert allowed[1] is None
    assert len(allowed[0]) == 1
    assert refused[1] is not None
    assert refused[1][0] == token


LIMITS = {"frame_bytes_max": 1000, "header_count_max": 1000, "header_line_bytes_max": 1000, "command_bytes_max": 1000}


def test_frame_with_too_long_content_length_is_refused_at_once() -> None:
    limits = Limits(**{**LIMITS, "frame_bytes_max": 10})
    assert decoded(b"SEND\n\n" + b"x" * 3, limits=limits) == []
    assert fault(b"SEND\n\n" + b"x" * 4, limits=limits).token == "413-frame-too-large"


def test_line_within_its_limit_may_exceed_the_frame() -> None:
    limits = Limits(**{**LIMITS, "frame_bytes_max": 10, "header_line_bytes_max": 5})
    assert fault(b"SEND\na:bcd", limits=limits).token == "413-frame-too-large"


def test_head_of_many_short_lines_is_not_split_into_all_of_them() -> None:
    head = b"SEND\n" + b"a:\n" * 300_000
    decoder = Decoder(Limits(**{**LIMITS, "frame_bytes_max": 10**6, "header_count_max": 10}), Version.V1_2)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="header"):
            list(decoder.feed(head + b"\n\0"))
        assert tracemalloc.get_traced_memory()[1] < 6 * len(head)
    finally:
        tracemalloc.stop()


def test_header_count_at_the_limit_and_one_beyond() -> None:
    data = b"SEND\na:b\na:b\nc:d\n\n\0"
    assert len(decoded(data, limits=Limits(**{**LIMITS, "header_count_max": 3}))) == 1
    assert fault(data, limits=Limits(**{**LIMITS, "header_count_max": 2})).token == "413-too-many-headers"


def test_line_ends_between_frames_count_for_no_limit() -> None:
    decoder = Decoder(TIGHT, Version.V1_2)
    assert list(decoder.feed(b"\n" * 1000 + b"A\n\n\0" + b"\r\n" * 1000)) == [Frame("A")]
    assert decoder.held_bytes == 0


def test_fault_has_the_receipt_read_before_it() -> None:
    assert fault(b"SEND\nreceipt:r\\c1\nreceipt:r2\nbad\n\n\0").receipt_id == "r:1"
    assert fault(b"SEND\nbad\nreceipt:r1\n\n\0").receipt_id is None
    assert fault(b"SEND\nreceipt:r1\ncontent-length:1\n\nabc").receipt_id == "r1"
    assert fault(b"CONNECT\nreceipt:r1\nbad\n\n\0").receipt_id is None
