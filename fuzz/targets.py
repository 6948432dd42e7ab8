"""The fuzz targets: each takes octets, and raises if a promise that holds for every input is broken.

They are independent of the fuzzer: ``run.py`` passes them to atheris, and the tests call them with a few inputs.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import assert_never

from airy_trio.stomp import errors
from airy_trio.stomp.codec import EOL, NUL, Decoder, Limits, encode, message_head
from airy_trio.stomp.connection import Connection, ConnectionOptions, ConnectionState
from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import Acknowledge, Connect, Disconnect, Frame, Request, Subscribe, Unsubscribe, Version
from airy_trio.websocket.frames import CLOSE, MESSAGES, FrameError, FrameReader

ROOMY = Limits(frame_bytes_max=1 << 24, header_count_max=10_000, header_line_bytes_max=1 << 20, command_bytes_max=1000)
TIGHT = Limits(frame_bytes_max=64, header_count_max=3, header_line_bytes_max=24, command_bytes_max=12)
OPTIONS = ConnectionOptions(
    server="airy-trio/fuzz",
    limits=Limits(frame_bytes_max=512, header_count_max=8, header_line_bytes_max=64),
    limits_before_connect=Limits(
        frame_bytes_max=256, header_count_max=8, header_line_bytes_max=64, command_bytes_max=16
    ),
    subscriptions_max=3,
    transactions_max=2,
    transaction_acks_max=4,
)
VERSIONS = (None, *Version)
PIECES_MAX = 8
MESSAGE_BYTES_MAX = 64
FAULTS = frozenset(fault for fault in vars(errors).values() if isinstance(fault, errors.Fault))

DICTIONARY = (
    *(b"CONNECT", b"STOMP", b"SUBSCRIBE", b"UNSUBSCRIBE", b"ACK", b"NACK", b"BEGIN", b"COMMIT", b"ABORT"),
    *(
        b"DISCONNECT",
        b"SEND",
        b"MESSAGE",
        b"\n\n\0",
        b"\r\n\r\n\0",
        b"\\n",
        b"\\r",
        b"\\c",
        b"\\\\",
        b"\\t",
        b"\xc3\xa5",
    ),
    *(b"content-length:", b"accept-version:1.2", b"accept-version:1.1", b"heart-beat:500,500", b"receipt:r", b"id:0"),
    *(b"destination:/events", b"ack:client", b"ack:client-individual", b"prefetch-count:1", b"transaction:t"),
    *(b"message-id:k7f3q9-1", b"id:1.k7f3q9-1", b"subscription:0", b"replay:all", b"durable:d", b"passcode:p"),
)
"""Pieces from which the fuzzer may assemble inputs."""

_CONNECT = b"CONNECT\naccept-version:1.2\nheart-beat:500,500\n\n\0"
SEEDS = (
    b"\3\0\n\r\n" + _CONNECT + b"\r\n\nSUBSCRIBE\nid:0\ndestination:/events\nack:client\nreceipt:r\n\n\0",
    b"\3\1" + _CONNECT + b"SUBSCRIBE\nid:0\ndestination:/events\nack:client\n\n\0ACK\nid:1.k7f3q9-1\n\n\0",
    b"\2\0" + b"\r\nSTOMP\r\naccept-version:1.1\r\n\r\n\0SUBSCRIBE\r\nid:a\\cb\r\ndestination:/events\r\n\r\n\0",
    b"\1\1" + b"CONNECT\n\n\0SUBSCRIBE\ndestination:/events\n\n\0UNSUBSCRIBE\ndestination:/events\nreceipt:u\n\n\0",
    b"\3\2" + _CONNECT + b"BEGIN\ntransaction:t\n\n\0ACK\nid:1.x-1\ntransaction:t\n\n\0COMMIT\ntransaction:t\n\n\0",
    b"\3\3" + _CONNECT + b"NACK\nid:0\ncontent-length:3\n\na\0b\0DISCONNECT\nreceipt:d\n\n\0SEND\n\n\0",
    b"\3\5" + _CONNECT + b"SEND\ndestination:/events\nreceipt:s\n\n\0SUBSCRIBE\n\n\0",
    b"\0\4" + b"\x01\x82\1\2\3\4\xcb\xb8\x89\x80\1\2\3\4\x80\x81\1\2\3\4x\x88\x82\1\2\3\4\2\xea",  # frames
    b"\0\4" + b"NACK\nid:0\ncontent-length:35\n\n" + b"x" * 35 + b"\0",  # one more than TIGHT allows
)
"""The first inputs: one octet for the version, one for the cuts, then the stream."""

Outcome = tuple[list[Frame], tuple[str, str, str | None] | None]


def check_decoder(data: bytes) -> None:
    """Check that any stream, cut anywhere, gives the same frames and fault, in linear time and bounded memory.

    Each frame is the same after encoding and decoding.
    """
    version, seed, stream = _split_input(data)
    for limits in (ROOMY, TIGHT):
        whole = _decoded(Decoder(limits, version), [stream])
        assert _decoded(Decoder(limits, version), list(_cut(stream, seed))) == whole
    for frame in _decoded(Decoder(ROOMY, version), [stream])[0]:
        _check_identity(frame, version)


def check_connection(data: bytes) -> None:
    """Check that any stream, cut anywhere, gives the same requests, one answer each, and that a fault is final."""
    _, seed, stream = _split_input(data)
    assert requests_of(list(_cut(stream, seed))) == requests_of([stream])


def check_frames(data: bytes) -> None:
    """Check that any stream, cut anywhere, gives the same WebSocket frames and fault.

    The first octets only choose the cuts.
    """
    _, seed, stream = _split_input(data)
    whole = _frames_of([stream])
    assert _frames_of(list(_cut(stream, seed))) == whole
    frames, _ = whole
    assert all(len(content) <= (MESSAGE_BYTES_MAX if opcode in MESSAGES else 125) for opcode, content in frames)
    assert all(opcode != CLOSE for opcode, _ in frames[:-1]), "nothing follows a Close frame"


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "decoder": check_decoder,
    "connection": check_connection,
    "frames": check_frames,
}


def _frames_of(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], int | None]:
    """Read the frames of a client; the second value is the code of the Close frame after a fault."""
    reader, frames = FrameReader(MESSAGE_BYTES_MAX), list[tuple[int, bytes]]()
    try:
        for piece in pieces:
            reader.feed(piece)
            while (found := reader.next()) is not None:
                frames.append(found)
    except FrameError as fault:
        return frames, fault.code
    return frames, None


def _split_input(data: bytes) -> tuple[Version | None, int, bytes]:
    head = data[:2].ljust(2, b"\0")
    return VERSIONS[head[0] % len(VERSIONS)], head[1], data[2:]


def _cut(stream: bytes, seed: int) -> Iterator[bytes]:
    """Cut a stream into pieces: seed 0 into single octets, another seed at places that it decides."""
    if seed == 0:
        yield from (stream[at : at + 1] for at in range(len(stream)))
        return
    choice = random.Random(seed)  # noqa: S311 - the same places for the same seed
    places = sorted(choice.randint(0, len(stream)) for _ in range(choice.randint(1, PIECES_MAX)))
    yield from (stream[start:end] for start, end in pairwise([0, *places, len(stream)]))


def _decoded(decoder: Decoder, pieces: list[bytes]) -> Outcome:
    frames: list[Frame] = []
    fed_bytes = 0
    for piece in pieces:
        try:
            frames.extend(decoder.feed(piece))
        except RemoteProtocolError as fault:
            return frames, _error_of(fault)
        for frame in frames:
            _check_size(frame, decoder.limits)
        fed_bytes += len(piece)
        assert decoder.searched_bytes <= fed_bytes
        assert decoder.held_bytes <= decoder.limits.frame_bytes_max
    return frames, None


def _error_of(fault: RemoteProtocolError) -> tuple[str, str, str | None]:
    """Return the ERROR for a fault, which must be in the catalogue."""
    assert (fault.token, fault.prose) in FAULTS
    return fault.token, fault.prose, fault.receipt_id


def _check_size(frame: Frame, limits: Limits) -> None:
    """Assert that the least size of a frame on the wire is within the limits.

    Line ends, escapes and space around values may have made the frame longer on the wire.
    """
    lines = [len(f"{name}:{value}".encode()) for name, value in frame.headers]
    assert len(frame.command) <= limits.command_bytes_max
    assert len(lines) <= limits.header_count_max
    assert max(lines, default=0) <= limits.header_line_bytes_max
    head = len(f"{frame.command}\n".encode()) + sum(line + 1 for line in lines) + 1
    assert head + len(frame.body) + 1 <= limits.frame_bytes_max


def _check_identity(frame: Frame, version: Version | None) -> None:
    try:
        written = encode(frame, version)
    except LocalProtocolError:
        return  # the decoder accepts a command or header that we would not write
    assert list(Decoder(ROOMY, version).feed(written)) == [frame]


def requests_of(pieces: list[bytes]) -> list[object]:
    """Return the requests that a connection reads from a stream, and the fault if there is one."""
    connection = Connection(OPTIONS, "s-1")
    found: list[object] = []
    for piece in pieces:
        try:
            requests, fault = connection.receive(piece), None
        except RemoteProtocolError as error:
            requests, fault = error.fulfilled, error
        for request in requests:
            found.append(request)
            _answer(connection, request)
        if fault is not None:
            found.append(_error_of(fault))
            _end(connection, fault)
            return found
        _check_bounds(connection)
    return found


def _answer(connection: Connection, request: Request) -> None:
    match request:
        case Connect(version=version):
            assert connection.state is not ConnectionState.AWAITING_CONNECT
            assert connection.version is version
            assert _read(connection, connection.connected()).command == "CONNECTED"
            return
        case Subscribe(number=number, destination=destination):
            message = connection.message_prefix(request) + message_head("k7f3q9-1", 2, truncated=False)
            message += connection.message_ack(number, "k7f3q9-1") + EOL + b"{}" + NUL
            frame = _read(connection, message)
            assert frame.get("destination") == destination
            assert frame.get("subscription") == request.id
        case Disconnect():
            assert connection.state is ConnectionState.DISCONNECTED
        case Unsubscribe() | Acknowledge():
            pass
        case _:
            assert_never(request)
    if request.receipt is not None:
        assert _read(connection, connection.receipt(request.receipt)).get("receipt-id") == request.receipt


def _end(connection: Connection, fault: RemoteProtocolError) -> None:
    """Report the fault, and assert that nothing is read afterwards."""
    assert connection.state is ConnectionState.FAILED
    assert connection.receive(b"CONNECT\n\n\0") == []
    error = _read(connection, connection.error(fault.token, fault.prose, fault.receipt_id, fault.headers))
    assert (error.command, error.get("message"), error.body.decode()) == ("ERROR", fault.token, fault.prose)
    assert error.get("receipt-id") == fault.receipt_id
    assert connection.receive(b"CONNECT\n\n\0") == []
    assert connection.held_bytes == 0


def _check_bounds(connection: Connection) -> None:
    transactions = connection.transactions
    assert len(connection.subscriptions) <= OPTIONS.subscriptions_max
    assert len(transactions) <= OPTIONS.transactions_max
    assert transactions.acks_held <= OPTIONS.transaction_acks_max
    assert connection.held_bytes <= OPTIONS.limits.frame_bytes_max
    if connection.state is ConnectionState.DISCONNECTED:
        assert connection.held_bytes == len(transactions) == 0


def _read(connection: Connection, octets: bytes) -> Frame:
    """Decode the written octets as a client does, and assert that they are exactly one frame."""
    decoder = Decoder(ROOMY, connection.version)
    [frame] = decoder.feed(octets)
    assert decoder.held_bytes == 0
    return frame
