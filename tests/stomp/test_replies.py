"""CONNECTED, RECEIPT and ERROR, in every version and before one is agreed."""

import pytest

from airy_trio.stomp import connection
from airy_trio.stomp.errors import LocalProtocolError
from airy_trio.stomp.frames import Version
from tests.stomp.dialogue import VERSIONS, options, read


@pytest.mark.parametrize("version", VERSIONS)
def test_connected_has_its_four_headers_in_every_version(version: Version) -> None:
    frame = read(connection.connected(options(heartbeat_ms=5), "s-1", version), version)
    assert frame.command == "CONNECTED"
    assert frame.headers == (
        ("version", version.value),
        ("session", "s-1"),
        ("server", "airy-trio/0.1.0"),
        ("heart-beat", "5,5"),
    )


def test_a_receipt_echoes_its_id_by_the_rules_of_the_version() -> None:
    assert connection.receipt(Version.V1_2, "a:b\r", []) == b"RECEIPT\nreceipt-id:a\\cb\\r\n\n\0"
    assert connection.receipt(Version.V1_0, "a:b", []) == b"RECEIPT\nreceipt-id:a:b\n\n\0"


def test_a_receipt_carries_our_headers_after_the_id() -> None:
    headers = [("position", "k7f3q9-12"), ("resume", "live")]
    frame = read(connection.receipt(Version.V1_1, "r", headers), Version.V1_1)
    assert frame.headers == (("receipt-id", "r"), *headers)


def test_an_error_has_message_type_length_and_prose() -> None:
    frame = read(connection.error(Version.V1_2, "400-x", "Wörter.", "r:1", [("version", "1.2")]))
    assert frame.command == "ERROR"
    assert frame.headers == (
        ("message", "400-x"),
        ("content-type", "text/plain"),
        ("content-length", "8"),
        ("version", "1.2"),
        ("receipt-id", "r:1"),
    )
    assert frame.body.decode() == "Wörter."


def test_an_error_before_a_version_is_agreed_echoes_as_it_is() -> None:
    assert b"\nreceipt-id:a\\c\n" in connection.error(None, "400-x", "x", "a\\c", [])


def test_what_some_client_cannot_read_is_not_written() -> None:
    with pytest.raises(LocalProtocolError):
        connection.error(Version.V1_2, "400 x", "x", None, [])
    with pytest.raises(LocalProtocolError):
        connection.error(Version.V1_2, "400-x", "x", None, [("version", "1.0, 1.1")])
    with pytest.raises(LocalProtocolError):
        connection.receipt(Version.V1_2, "r", [("position", "")])
