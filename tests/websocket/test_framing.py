"""WebSocket frames as the server writes them, read by another implementation."""

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from airy_trio.websocket.framing import HEART_BEAT, close_frame, text_message


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
