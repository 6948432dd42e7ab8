"""CONNECTED, RECEIPT and ERROR, in every version and before one is agreed."""

import pytest

from airy_trio.stomp.connection import Connection
from airy_trio.stomp.errors import LocalProtocolError
from airy_trio.stomp.frames import Version
from tests.stomp.dialogue import opened, options, read


def test_receipt_escapes_its_id_as_the_version_does() -> None:
    assert opened(Version.V1_2).receipt("a:b\r") == b"RECEIPT\nreceipt-id:a\\cb\\r\n\n\0"
    assert opened(Version.V1_0).receipt("a:b") == b"RECEIPT\nreceipt-id:a:b\n\n\0"


def test_receipt_has_our_headers_after_the_id() -> None:
    headers = [("position", "k7f3q9-12"), ("resume", "live")]
    frame = read(opened(Version.V1_1).receipt("r", headers), Version.V1_1)
    assert frame.headers == (("receipt-id", "r"), *headers)


def test_error_has_message_type_length_and_prose() -> None:
    frame = read(opened().error("400-x", "Wörter.", "r:1", [("version", "1.2")]))
    assert frame.command == "ERROR"
    assert frame.headers == (
        ("message", "400-x"),
        ("content-type", "text/plain"),
        ("content-length", "8"),
        ("version", "1.2"),
        ("receipt-id", "r:1"),
    )
    assert frame.body.decode() == "Wörter."


def test_error_before_a_version_is_agreed_does_not_escape() -> None:
    assert b"\nreceipt-id:a\\c\n" in Connection(options(), "s-1").error("400-x", "x", "a\\c")


def test_header_values_that_some_client_cannot_read_are_rejected() -> None:
    with pytest.raises(LocalProtocolError):
        opened().error("400 x", "x")
    with pytest.raises(LocalProtocolError):
        opened().error("400-x", "x", headers=[("version", "1.0, 1.1")])
    with pytest.raises(LocalProtocolError):
        opened().receipt("r", [("position", "")])
