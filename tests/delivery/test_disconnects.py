"""The catalogue of disconnect reasons, compared with the table of the wire contract."""

import re
from http import HTTPStatus
from pathlib import Path

import pytest

import airy_trio
from airy_trio import websocket
from airy_trio.delivery import disconnects
from airy_trio.delivery.disconnects import CATALOGUE, CLIENT_FAULT_TOKENS, DisconnectReason, Reconnect, with_token
from airy_trio.stomp.codec import plain
from airy_trio.websocket.frames import CLOSE_REASON_BYTES_MAX
from airy_trio.websocket.request import STATUSES


def test_catalogue_equals_the_wire_contract() -> None:
    received = {(one.token, one.close_code, one.reconnect) for one in CATALOGUE}
    assert received == {
        (None, 1000, Reconnect.NO),
        ("400-protocol-error", 1002, Reconnect.NO),
        ("401-unauthorized", 4401, Reconnect.WITH_CREDENTIALS),
        ("403-forbidden", 4403, Reconnect.NO),
        ("404-unknown-destination", 4404, Reconnect.NO),
        ("408-heart-beat-missed", 4408, Reconnect.YES),
        ("408-ping-unanswered", 4408, Reconnect.YES),
        ("408-connect-timeout", 4408, Reconnect.YES),
        ("409-durable-taken", 4409, Reconnect.NO),
        ("410-position-expired", 4410, Reconnect.YES),
        ("413-frame-too-large", 1009, Reconnect.NO),
        ("429-too-many-subscriptions", 1013, Reconnect.LATER),
        ("500-internal", 1011, Reconnect.YES),
        ("503-event-store-unavailable", 1012, Reconnect.YES),
        ("503-shutting-down", 1012, Reconnect.YES),
        (None, None, Reconnect.YES),
        (None, None, Reconnect.NO),  # answered in HTTP
    }


@pytest.mark.parametrize("reason", [one for one in CATALOGUE if one.token], ids=lambda one: one.token)
def test_every_error_can_be_read_by_every_client(reason: DisconnectReason) -> None:
    assert reason.token is not None
    assert re.fullmatch(r"[0-9]{3}-[a-z-]+", plain(reason.token))
    assert reason.prose
    assert len(reason.token) <= CLOSE_REASON_BYTES_MAX


def test_a_token_selects_its_row_by_status_number() -> None:
    reason = with_token("401-token-expired", "Too old.", receipt_id="r", headers=(("a", "b"),))
    assert reason == DisconnectReason(
        "unauthorized", "401-token-expired", 4401, Reconnect.WITH_CREDENTIALS, "Too old.", "r", (("a", "b"),)
    )


def test_unknown_catalogue_number_is_a_bug() -> None:
    with pytest.raises(LookupError):
        with_token("418-teapot", "No.")


def test_every_token_of_the_source_is_in_the_catalogue() -> None:
    source = "\n".join(path.read_text() for path in Path(airy_trio.__file__).parent.glob("*/*.py"))
    assert set(re.findall(r'"(4[0-9]{2}-[a-z-]+)"', source)) == CLIENT_FAULT_TOKENS


def test_every_status_of_the_source_is_in_the_catalogue() -> None:
    source = "\n".join(path.read_text() for path in Path(websocket.__file__).parent.glob("*.py"))
    named = {HTTPStatus[name] for name in re.findall(r"HTTPStatus\.([A-Z_]+)", source)}
    assert {status for status in named if status >= HTTPStatus.BAD_REQUEST} == set(STATUSES)


def test_the_ways_of_being_silent_have_one_name() -> None:
    assert disconnects.SILENT.name == disconnects.CONNECT_TIMEOUT.name == disconnects.UNANSWERED.name
