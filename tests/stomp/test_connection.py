"""The state machine: every frame in every state, the content of a fault, and what may be written when."""

from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.stomp import errors
from airy_trio.stomp.connection import OTHERWISE, TRANSITIONS, Connection, ConnectionState
from airy_trio.stomp.errors import Fault, LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import (
    Ack,
    AckMode,
    Acknowledge,
    Connect,
    Disconnect,
    Request,
    Subscribe,
    Unsubscribe,
    Version,
)
from tests.stomp.dialogue import (
    VERSIONS,
    connect_frame,
    fault_of,
    in_state,
    opened,
    options,
    read,
    request_of,
    sent,
    token_of,
)

# A valid frame of each command. COMMIT and ABORT name the transaction that `prepared` opens.
FRAMES = {
    "CONNECT": sent("CONNECT", "accept-version:1.2"),
    "STOMP": sent("STOMP", "accept-version:1.2"),
    "SUBSCRIBE": sent("SUBSCRIBE", "id:0", "destination:/events"),
    "UNSUBSCRIBE": sent("UNSUBSCRIBE", "id:0"),
    "ACK": sent("ACK", "id:1.k-1"),
    "NACK": sent("NACK", "id:1.k-1"),
    "BEGIN": sent("BEGIN", "transaction:new"),
    "COMMIT": sent("COMMIT", "transaction:open"),
    "ABORT": sent("ABORT", "transaction:open"),
    "DISCONNECT": sent("DISCONNECT"),
    "SEND": sent("SEND", "destination:/events", body="{}"),
    # commands of servers, and unknown ones
    "CONNECTED": sent("CONNECTED", "version:1.2"),
    "MESSAGE": sent("MESSAGE", "destination:/events", "message-id:k-1", "subscription:0"),
    "RECEIPT": sent("RECEIPT", "receipt-id:r"),
    "ERROR": sent("ERROR", "message:400-x"),
    "subscribe": sent("subscribe", "id:0", "destination:/events"),
    "FOO": sent("FOO"),
}

# The table of the module once more, with every cell.
EXPECTED: dict[ConnectionState, dict[str, tuple[type, ConnectionState] | Fault]] = {
    ConnectionState.AWAITING_CONNECT: {
        "CONNECT": (Connect, ConnectionState.OPEN),
        "STOMP": (Connect, ConnectionState.OPEN),
        **dict.fromkeys(FRAMES.keys() - {"CONNECT", "STOMP"}, errors.NOT_CONNECTED),
    },
    ConnectionState.OPEN: {
        "SUBSCRIBE": (Subscribe, ConnectionState.OPEN),
        "UNSUBSCRIBE": (Unsubscribe, ConnectionState.OPEN),
        "ACK": (Acknowledge, ConnectionState.OPEN),
        "NACK": (Acknowledge, ConnectionState.OPEN),
        "BEGIN": (Acknowledge, ConnectionState.OPEN),
        "COMMIT": (Acknowledge, ConnectionState.OPEN),
        "ABORT": (Acknowledge, ConnectionState.OPEN),
        "DISCONNECT": (Disconnect, ConnectionState.DISCONNECTED),
        "CONNECT": errors.ALREADY_CONNECTED,
        "STOMP": errors.ALREADY_CONNECTED,
        "SEND": errors.SEND_NOT_ALLOWED,
        **dict.fromkeys(["CONNECTED", "MESSAGE", "RECEIPT", "ERROR", "subscribe", "FOO"], errors.UNKNOWN_COMMAND),
    },
}


def prepared(state: ConnectionState) -> Connection:
    connection = in_state(state)
    if state is ConnectionState.OPEN:
        connection.receive(sent("BEGIN", "transaction:open"))
    return connection


@pytest.mark.parametrize("command", FRAMES)
@pytest.mark.parametrize("state", ConnectionState)
def test_every_frame_in_every_state(state: ConnectionState, command: str) -> None:
    connection = prepared(state)
    frame = FRAMES[command]
    if state not in EXPECTED:
        assert connection.receive(frame) == []
        assert connection.state is state
        return
    expected = EXPECTED[state][command]
    if isinstance(expected, Fault):
        fault = fault_of(connection, frame)
        assert Fault(fault.token, fault.prose) == expected
        assert connection.state is ConnectionState.FAILED
    else:
        kind, then = expected
        assert type(request_of(connection, frame)) is kind
        assert connection.state is then


def test_every_cell_of_the_table_is_expected() -> None:
    for state, row in TRANSITIONS.items():
        assert row.keys() <= EXPECTED[state].keys()
    assert TRANSITIONS.keys() == OTHERWISE.keys() == EXPECTED.keys()


SUBSCRIBED = Subscribe(
    number=1,
    id="0",
    destination="/events",
    ack=AckMode.CLIENT,
    prefetch=1,
    last_event_id=None,
    replay=None,
    durable=None,
    receipt=None,
)


@pytest.mark.parametrize("state", [ConnectionState.DISCONNECTED, ConnectionState.FAILED, ConnectionState.CLOSED])
def test_ignored_input_is_not_decoded(state: ConnectionState) -> None:
    connection = in_state(state)
    assert connection.receive(b"\xff\0\0 no frame" + b"x" * 200_000) == []
    assert connection.held_bytes == 0


def test_input_after_disconnect_is_ignored() -> None:
    connection = opened()
    requests = connection.receive(sent("DISCONNECT", "receipt:r") + sent("UNSUBSCRIBE") + "rubbish\0")
    assert requests == [Disconnect(receipt="r")]
    assert connection.held_bytes == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_frame_after_connect_uses_the_agreed_version(version: Version) -> None:
    connection = Connection(options(), "s-1")
    _, request = connection.receive(connect_frame(version) + sent("SUBSCRIBE", "id: a\\cb", "destination:/events"))
    expected = {Version.V1_0: "a\\cb", Version.V1_1: " a:b", Version.V1_2: " a:b"}
    assert isinstance(request, Subscribe)
    assert request.id == expected[version]


def test_requests_before_a_fault_are_answered() -> None:
    connection = Connection(options(), "s-1")
    fault = fault_of(connection, connect_frame(Version.V1_2) + FRAMES["SUBSCRIBE"] + sent("SEND", "receipt:s"))
    assert [type(request) for request in fault.fulfilled] == [Connect, Subscribe]
    assert (fault.token, fault.receipt_id) == ("403-send-not-allowed", "s")
    assert read(connection.connected()).command == "CONNECTED"
    assert read(connection.receipt("x")).command == "RECEIPT"
    assert connection.message_prefix(SUBSCRIBED)
    assert read(connection.error(fault.token, fault.prose, fault.receipt_id)).get("receipt-id") == "s"
    assert connection.state is ConnectionState.CLOSED


def test_fault_has_only_requests_of_the_same_input() -> None:
    connection = opened()
    connection.receive(FRAMES["SUBSCRIBE"])
    assert fault_of(connection, FRAMES["SEND"]).fulfilled == []


@pytest.mark.parametrize("version", VERSIONS)
def test_fault_in_a_header_has_the_receipt(version: Version) -> None:
    fault = fault_of(opened(version), sent("SUBSCRIBE", "receipt:r:1"))
    assert (fault.token, fault.receipt_id) == ("400-missing-header", "r:1")


def test_fault_before_connect_has_the_receipt_unescaped() -> None:
    connection = Connection(options(), "s-1")
    fault = fault_of(connection, sent("SUBSCRIBE", "receipt:a\\cb"))
    assert b"receipt-id:a\\cb\n" in connection.error(fault.token, fault.prose, fault.receipt_id)


def test_a_fault_drops_open_transactions() -> None:
    connection = prepared(ConnectionState.OPEN)
    fault_of(connection, FRAMES["SEND"])
    assert len(connection.transactions) == 0


def test_subscription_ended_in_the_same_input_can_be_answered() -> None:
    connection = opened()
    request, _ = connection.receive(
        sent("SUBSCRIBE", "id:0", "destination:/events", "ack:client") + sent("UNSUBSCRIBE", "id:0")
    )
    assert isinstance(request, Subscribe)
    assert connection.message_prefix(request) == b"MESSAGE\ndestination:/events\nsubscription:0\n"
    assert connection.message_ack(1, "k-1") == b"ack:1.k-1\n"


WRITES: dict[str, Callable[[Connection], bytes]] = {
    "connected": lambda connection: connection.connected(),
    "receipt": lambda connection: connection.receipt("r"),
    "error": lambda connection: connection.error("500-internal", "Something broke."),
    "message_prefix": lambda connection: connection.message_prefix(SUBSCRIBED),
    "message_ack": lambda connection: connection.message_ack(1, "k-1"),
}
ALLOWED = {
    "nothing was read": {"error"},
    "CONNECT was read": {"connected", "error"},
    "CONNECTED was sent": {"receipt", "error", "message_prefix", "message_ack"},
    "ERROR was sent": set[str](),
}


def at_the_time(when: str) -> Connection:
    connection = Connection(options(), "s-1")
    if when == "nothing was read":
        return connection
    connection.receive(connect_frame(Version.V1_2) + sent("SUBSCRIBE", "id:0", "destination:/events", "ack:client"))
    if when == "CONNECT was read":
        return connection
    connection.connected()
    if when == "ERROR was sent":
        connection.error("500-internal", "Something broke.")
    return connection


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("when", ALLOWED)
def test_only_allowed_frames_may_be_written_in_each_state(when: str, write: str) -> None:
    connection = at_the_time(when)
    if write in ALLOWED[when]:
        assert WRITES[write](connection)
    else:
        with pytest.raises(LocalProtocolError):
            WRITES[write](connection)


def test_the_receipt_of_disconnect_may_be_written() -> None:
    connection = opened()
    (request,) = connection.receive(sent("DISCONNECT", "receipt:r"))
    assert request == Disconnect(receipt="r")
    assert read(connection.receipt("r")).headers == (("receipt-id", "r"),)


@pytest.mark.parametrize("ack", ["client", "client-individual"])
def test_value_of_the_ack_header_can_be_acknowledged(ack: str) -> None:
    connection = opened()
    connection.receive(sent("SUBSCRIBE", "id:0", "destination:/events", f"ack:{ack}"))
    value = connection.message_ack(1, "k7f3q9-12").decode().removeprefix("ack:").rstrip("\n")
    assert request_of(connection, sent("ACK", f"id:{value}")) == Acknowledge(
        acks=(Ack(number=1, message_id="k7f3q9-12", accepted=True),), receipt=None
    )


def test_text_and_octets_are_read_alike() -> None:
    frame = sent("SUBSCRIBE", "id:ä", "destination:/events")
    assert opened().receive(frame) == opened().receive(frame.encode())


def test_half_a_surrogate_pair_is_malformed() -> None:
    assert token_of(opened(), "SUBSCRIBE\nid:\ud800\n\n\0") == "400-malformed-frame"


def test_line_ends_are_not_requests() -> None:
    connection = opened()
    assert connection.receive("\n") == connection.receive("\r\n") == connection.receive("") == []
    assert connection.state is ConnectionState.OPEN


# Any frames in any order: the result is always one that the docstring of the module lists.
HEADERS = st.sampled_from(
    [
        *("id:0", "id:1", "id:1.k-1", "message-id:k-1", "subscription:0", "destination:/events", "destination:"),
        *("ack:client", "ack:auto", "ack:x", "prefetch-count:1", "prefetch-count:0", "replay:all", "replay:x"),
        *("transaction:t", "transaction:u", "receipt:r", "receipt:\\c", "accept-version:1.2", "accept-version:1.0"),
        *("accept-version:9", "heart-beat:1,1", "heart-beat:x", "content-length:2", "bad", "x:\\q", "login:me"),
    ]
)
ANY_FRAME = st.builds(
    lambda command, headers, body: sent(command, *headers, body=body),
    st.sampled_from([*FRAMES, *["SUBSCRIBE", "BEGIN", "ACK", "COMMIT"] * 3]),
    st.lists(HEADERS, max_size=5),
    st.sampled_from(["", "", "{}"]),
)


def answer(connection: Connection, requests: list[Request]) -> None:
    """Answer as a server does; every answer can be written."""
    for request in requests:
        assert isinstance(request, get_args(Request))
        match request:
            case Connect():
                assert read(connection.connected()).command == "CONNECTED"
            case Subscribe():
                assert connection.message_prefix(request).startswith(b"MESSAGE\n")
                connection.message_ack(request.number, "k-1")
            case _:
                pass
        if not isinstance(request, Connect) and request.receipt is not None:
            frame = read(connection.receipt(request.receipt), connection.version)
            assert frame.get("receipt-id") == request.receipt


def end(connection: Connection, fault: RemoteProtocolError) -> None:
    """Answer a fault as a server does. After that all input is ignored."""
    assert connection.state is ConnectionState.FAILED
    answer(connection, fault.fulfilled)
    error = connection.error(fault.token, fault.prose, fault.receipt_id, fault.headers)
    assert read(error, connection.version).get("message") == fault.token
    assert connection.receive(connect_frame(Version.V1_2)) == []
    assert connection.state.name == "CLOSED"


@given(
    version=st.sampled_from([*VERSIONS, None]),
    inputs=st.lists(st.lists(st.one_of(ANY_FRAME, st.text(max_size=8)), max_size=4).map("".join), max_size=8),
)
def test_any_frames_have_a_defined_answer(version: Version | None, inputs: list[str]) -> None:
    limits = {"subscriptions_max": 2, "transactions_max": 1, "transaction_acks_max": 2}
    connection = Connection(options(**limits), "s-1") if version is None else opened(version, **limits)
    for data in inputs:
        before = connection.state
        try:
            requests = connection.receive(data)
        except RemoteProtocolError as fault:
            assert before in TRANSITIONS
            end(connection, fault)
            return
        answer(connection, requests)
        assert len(connection.subscriptions) <= 2
        assert len(connection.transactions) <= 1
        assert connection.transactions.acks_held <= 2
        assert connection.state is (
            ConnectionState.DISCONNECTED
            if before is ConnectionState.DISCONNECTED or any(isinstance(request, Disconnect) for request in requests)
            else before
            if connection.version is None
            else ConnectionState.OPEN
        )
    assert read(connection.error("503-shutting-down", "Goodbye."), connection.version).command == "ERROR"
