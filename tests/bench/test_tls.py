"""The client of the TLS benchmark: it counts messages, and detects faults."""

import socket
from collections.abc import Generator

import pytest

from bench.processes import MeasuringFailedError
from bench.tls import Reader


@pytest.fixture
def ends() -> Generator[tuple[Reader, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        yield Reader(ours), theirs


def message(number: int) -> bytes:
    return b"MESSAGE\ndestination:/events\nsubscription:0\nmessage-id:k7f3q9-%d\n\n%s\0" % (number, b"x" * 300)


def test_reader_counts_messages_split_anywhere(ends: tuple[Reader, socket.socket]) -> None:
    reader, theirs = ends
    data = b"".join(map(message, range(1, 13)))
    for start in range(0, len(data), 7):
        theirs.sendall(data[start : start + 7])
        reader.read()
    assert (reader.first, reader.last) == (1, 12)


@pytest.mark.parametrize("number", [2, 4])
def test_a_duplicate_or_a_gap_is_a_failure(ends: tuple[Reader, socket.socket], number: int) -> None:
    reader, theirs = ends
    theirs.sendall(message(1) + message(2) + message(number))
    with pytest.raises(MeasuringFailedError, match=f"event {number} came after 2"):
        reader.read()


def test_the_end_is_a_failure(ends: tuple[Reader, socket.socket]) -> None:
    reader, theirs = ends
    theirs.close()
    with pytest.raises(MeasuringFailedError, match="closed"):
        reader.read()
