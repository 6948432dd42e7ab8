"""Headers of a frame: repeated ones, and receipts."""

import pytest

from airy_trio.stomp.frames import Frame


def test_an_empty_value_is_a_value() -> None:
    assert Frame("SUBSCRIBE", (("id", ""),)).get("id") == ""


@pytest.mark.parametrize("command", ["SUBSCRIBE", "SEND", "DISCONNECT", "FOO"])
def test_a_frame_can_ask_for_a_receipt(command: str) -> None:
    assert Frame(command, (("receipt", "r-1"),)).receipt == "r-1"
    assert Frame(command).receipt is None


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
def test_connect_cannot_ask_for_a_receipt(command: str) -> None:
    assert Frame(command, (("receipt", "r-1"),)).receipt is None
