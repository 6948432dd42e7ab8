"""Frames of a client, connections in a given state, and frames of the server, for the tests of stomp/."""

from typing import Any

from airy_trio.stomp.codec import Decoder, Limits
from airy_trio.stomp.connection import Connection, ConnectionOptions, ConnectionState
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.frames import Frame, Request, Version

ROOMY = Limits(frame_bytes_max=1 << 20, header_count_max=1000, header_line_bytes_max=1 << 16, command_bytes_max=1000)
VERSIONS = list(Version)


def sent(command: str, *lines: str, body: str = "") -> str:
    """Return a frame as a client sends it. The header lines are not escaped."""
    return "\n".join([command, *lines, "", body]) + "\0"


def options(**changes: Any) -> ConnectionOptions:  # noqa: ANN401 - of its fields
    return ConnectionOptions(server="airy-trio/0.1.0", **changes)


def connect_frame(version: Version, *lines: str) -> str:
    accept = [] if version is Version.V1_0 else [f"accept-version:{version.value}"]
    return sent("CONNECT", *accept, *lines)


def opened(version: Version = Version.V1_2, **changes: Any) -> Connection:  # noqa: ANN401 - of its options
    """Return a connection that has sent CONNECTED."""
    connection = Connection(options(**changes), "s-1")
    connection.receive(connect_frame(version))
    connection.connected()
    return connection


def in_state(state: ConnectionState) -> Connection:
    """Return a connection of version 1.2 in a state."""
    if state is ConnectionState.AWAITING_CONNECT:
        return Connection(options(), "s-1")
    connection = opened()
    match state:
        case ConnectionState.DISCONNECTED:
            connection.receive(sent("DISCONNECT"))
        case ConnectionState.FAILED:
            fault_of(connection, "FOO\n\n\0")
        case ConnectionState.CLOSED:
            connection.error("500-internal", "Something broke.")
        case _:
            pass
    assert connection.state is state
    return connection


def fault_of(connection: Connection, data: bytes | str) -> RemoteProtocolError:
    """Return the fault that this input must cause."""
    try:
        requests = connection.receive(data)
    except RemoteProtocolError as fault:
        return fault
    raise AssertionError(f"no fault, but {requests}")


def token_of(connection: Connection, data: bytes | str) -> str:
    """Return the token of the fault that this input must cause."""
    return fault_of(connection, data).token


def request_of(connection: Connection, data: bytes | str) -> Request:
    """Return the one request of this input."""
    (request,) = connection.receive(data)
    return request


def read(data: bytes, version: Version | None = Version.V1_2) -> Frame:
    """Decode the one frame that the server encoded."""
    (frame,) = Decoder(ROOMY, version).feed(data)
    return frame


Outcome = tuple[list[Frame], tuple[str, str, str | None] | None]


def outcome(decoder: Decoder, pieces: list[bytes]) -> Outcome:
    """Decode pieces of a stream up to its end or its fault."""
    frames: list[Frame] = []
    for piece in pieces:
        try:
            frames.extend(decoder.feed(piece))
        except RemoteProtocolError as fault:
            return frames, (fault.token, fault.prose, fault.receipt_id)
    return frames, None
