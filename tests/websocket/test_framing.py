"""WebSocket frames as the server writes them, read by another implementation."""

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from airy_trio.websocket.stream import HEART_BEAT, close_frame, ends_with_close, text_message


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
def test_a_close_frame_carries_code_and_as_much_reason_as_fits(length: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(close_frame(4410, "r" * length))
    assert list(client.events()) == [CloseConnection(code=4410, reason="r" * min(length, 123))]


@pytest.mark.parametrize("reason", ["", "going away", "r" * 123])
@pytest.mark.parametrize("before", ["", "x", "\x88" * 500])
def test_close_frame_at_the_end_is_recognised(before: str, reason: str) -> None:
    client = Connection(ConnectionType.CLIENT)
    data = client.send(TextMessage(data=before)) + client.send(CloseConnection(code=1000, reason=reason))
    assert ends_with_close(data)
    assert not ends_with_close(data[:-1])


def test_close_frame_without_a_code_is_recognised() -> None:
    assert ends_with_close(b"\x88\x80\0\0\0\0")


def test_message_is_not_a_close_frame() -> None:
    client = Connection(ConnectionType.CLIENT)
    assert not ends_with_close(client.send(TextMessage(data="\n")))
    assert not ends_with_close(b"")
