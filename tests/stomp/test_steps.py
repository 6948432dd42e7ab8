"""Each allowed frame: its request, or the fault in its headers."""

import re

import pytest

from airy_trio.stomp import connection
from airy_trio.stomp.connection import Connection
from airy_trio.stomp.errors import NO_COMMON_VERSION, RemoteProtocolError
from airy_trio.stomp.frames import (
    NO_SUBSCRIPTION,
    Ack,
    AckMode,
    Acknowledge,
    Frame,
    Subscribe,
    Version,
)
from tests.stomp.dialogue import VERSIONS, options


def session(version: Version | None = Version.V1_2, **changes: int) -> Connection:
    ours = Connection(options(**changes), "s-1")
    ours.version = version
    return ours


def frame(command: str, **headers: str) -> Frame:
    """Return a frame; ``_`` in a name is written as ``-``."""
    return Frame(command, tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def subscribed(ours: Connection, **headers: str) -> Subscribe:
    return connection.subscribe(ours, frame("SUBSCRIBE", **{"destination": "/events", "id": "0", **headers}))


def acks_of(ours: Connection, command: str = "ACK", **headers: str) -> Ack:
    (ack,) = connection.acknowledge(ours, frame(command, **headers)).acks
    return ack


@pytest.mark.parametrize(
    "accepted, version",
    [
        ({}, Version.V1_0),
        ({"accept_version": "1.0"}, Version.V1_0),
        ({"accept_version": "1.0,1.1,2.0"}, Version.V1_1),
        ({"accept_version": "1.2,1.1,1.0"}, Version.V1_2),
        ({"accept_version": " 1.1 ,\t1.0"}, Version.V1_1),
    ],
)
def test_the_highest_common_version_is_agreed(accepted: dict[str, str], version: Version) -> None:
    ours = session(None)
    assert connection.connect(ours, frame("CONNECT", **accepted)).version is version
    assert ours.version is version


@pytest.mark.parametrize("accepted", ["", "2.0", "1", "1.20", "1.1;1.2", "v1.2"])
def test_no_common_version_lists_the_supported_ones(accepted: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        connection.connect(session(None), frame("CONNECT", accept_version=accepted))
    assert caught.value.token == "400-no-common-version"
    assert caught.value.headers == (("version", "1.0,1.1,1.2"),)


def test_the_prose_names_the_versions_that_the_header_names() -> None:
    assert re.findall(r"[0-9]\.[0-9]", NO_COMMON_VERSION.prose) == connection.VERSIONS.split(",")


def test_malformed_heart_beat_header_is_a_fault() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        connection.connect(session(None), frame("CONNECT", accept_version="1.2", heart_beat="soon,often"))
    assert caught.value.token == "400-bad-heart-beat"


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_credentials_are_not_changed(name: str) -> None:
    headers = {"accept_version": "1.2", "login": " a", "passcode": "b\\c", name: "Bearer x"}
    request = connection.connect(session(None), frame("CONNECT", **headers))
    assert (request.login, request.passcode, request.authorization) == (" a", "b\\c", "Bearer x")


def test_a_client_of_1_0_may_pad_its_credentials() -> None:
    request = connection.connect(session(None), frame("CONNECT", login=" a ", passcode="\tb"))
    assert (request.login, request.passcode) == ("a", "b")


def test_secrets_do_not_show() -> None:
    request = connection.connect(session(None), frame("CONNECT", passcode="hush", authorization="hush"))
    assert "hush" not in repr(request)


def test_subscribe_has_all_headers() -> None:
    headers = {"ack": "client", "prefetch-count": "7", "last-event-id": "k7f3q9-1", "replay": "all", "durable": "d"}
    assert subscribed(session(), receipt="r", **headers) == Subscribe(
        number=1,
        id="0",
        destination="/events",
        ack=AckMode.CLIENT,
        prefetch=7,
        last_event_id="k7f3q9-1",
        replay="all",
        durable="d",
        receipt="r",
    )


@pytest.mark.parametrize(
    "headers, token",
    [
        ({"ack": "Client"}, "400-bad-ack-mode"),
        ({"ack": ""}, "400-bad-ack-mode"),
        ({"replay": "some"}, "400-bad-replay"),
        ({"replay": ""}, "400-bad-replay"),
        *(
            ({"ack": "client", "prefetch-count": value}, "400-bad-prefetch-count")
            for value in ("0", "10001", "-1", "", "x", "1.0", " 1", "9" * 19, "9" * 5000)
        ),
    ],
)
def test_a_bad_header_of_subscribe_opens_nothing(headers: dict[str, str], token: str) -> None:
    ours = session()
    with pytest.raises(RemoteProtocolError) as caught:
        subscribed(ours, **headers)
    assert caught.value.token == token
    assert len(ours.subscriptions) == 0


@pytest.mark.parametrize("value, prefetch", [("1", 1), ("10000", 10000), ("0010", 10)])
def test_prefetch_counts_within_the_limits(value: str, prefetch: int) -> None:
    assert subscribed(session(), ack="client-individual", prefetch_count=value).prefetch == prefetch


@pytest.mark.parametrize("version", [Version.V1_1, Version.V1_2])
def test_destination_does_not_unsubscribe_from_1_1_on(version: Version) -> None:
    ours = session(version)
    subscribed(ours)
    with pytest.raises(RemoteProtocolError) as caught:
        connection.unsubscribe(ours, frame("UNSUBSCRIBE", destination="/events"))
    assert caught.value.token == "400-missing-header"


ACKS: list[tuple[dict[str, str], int | None, str]] = [
    ({"id": "7.k-1"}, 7, "k-1"),
    ({"message_id": "7.k-1"}, 7, "k-1"),
    ({"message_id": "k-1", "subscription": "mine"}, 1, "k-1"),
    ({"id": "k-1", "subscription": "mine"}, 1, "k-1"),
    ({"message_id": "k-1", "subscription": "unknown"}, NO_SUBSCRIPTION, "k-1"),
    ({"message_id": "k-1"}, None, "k-1"),
    ({"id": "k-1"}, None, "k-1"),
    ({"id": "1.a", "message_id": "2.b", "subscription": "mine"}, 1, "a"),
    ({"id": "0.k-1"}, None, "0.k-1"),
    ({"id": "07.k-1"}, None, "07.k-1"),
    ({"id": "7."}, None, "7."),
    ({"id": ""}, None, ""),
    ({"id": "9" * 5000 + ".k-1"}, None, "9" * 5000 + ".k-1"),
    ({"id": "1.a.b"}, 1, "a.b"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("headers, number, message_id", ACKS)
def test_message_of_an_ack(version: Version, headers: dict[str, str], number: int | None, message_id: str) -> None:
    ours = session(version)
    subscribed(ours, id="mine", ack="client")
    assert acks_of(ours, **headers) == Ack(number=number, message_id=message_id, accepted=True)


@pytest.mark.parametrize(
    "step, given, token",
    [
        (connection.subscribe, {"id": "1"}, "400-missing-header"),
        (connection.subscribe, {"destination": "/events"}, "400-missing-header"),
        (connection.unsubscribe, {}, "400-missing-header"),
        (connection.acknowledge, {"subscription": "0"}, "400-missing-header"),
        (connection.acknowledge, {"id": "1.k-1", "transaction": "t"}, "400-unknown-transaction"),
        (connection.begin, {}, "400-missing-header"),
        (connection.commit, {}, "400-missing-header"),
        (connection.abort, {}, "400-missing-header"),
        (connection.commit, {"transaction": "t"}, "400-unknown-transaction"),
        (connection.abort, {"transaction": "t"}, "400-unknown-transaction"),
    ],
)
def test_missing_header_is_a_fault(step: connection.Step, given: dict[str, str], token: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        step(session(), frame("ANY", **given))
    assert caught.value.token == token


def test_abort_drops_acknowledgements() -> None:
    ours = session()
    connection.begin(ours, frame("BEGIN", transaction="t"))
    connection.acknowledge(ours, frame("ACK", id="1.a", transaction="t"))
    assert connection.abort(ours, frame("ABORT", transaction="t", receipt="r")) == Acknowledge(acks=(), receipt="r")
    assert ours.transactions.acks_held == 0
