"""The wire contract, "STOMP, line by line", as far as it concerns octets and state.

A comment with the number of each line precedes its tests. Tests that need a clock, a socket or the log are in other
folders.
"""

import pytest

from airy_trio.stomp.codec import EOL, NUL, Limits, message_head
from airy_trio.stomp.connection import Connection, ConnectionState
from airy_trio.stomp.frames import Ack, AckMode, Acknowledge, Connect, HeartBeat, Subscribe, Unsubscribe, Version
from tests.stomp.dialogue import VERSIONS, connect_frame, fault_of, opened, options, read, request_of, sent, token_of

LATER = [Version.V1_1, Version.V1_2]


def subscription(connection: Connection, *lines: str) -> Subscribe:
    request = request_of(connection, sent("SUBSCRIBE", *lines))
    assert isinstance(request, Subscribe)
    return request


def acks(connection: Connection, *frames: str) -> tuple[Ack, ...]:
    requests = connection.receive("".join(frames))
    return tuple(ack for request in requests if isinstance(request, Acknowledge) for ack in request.acks)


# Line 1: commands, headers and line ends
@pytest.mark.parametrize("version", VERSIONS)
def test_commands_and_header_names_are_case_sensitive(version: Version) -> None:
    assert token_of(opened(version), sent("Subscribe", "destination:/events", "id:0")) == "400-unknown-command"
    assert token_of(opened(version), sent("SUBSCRIBE", "Destination:/events", "id:0")) == "400-missing-header"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("eol", ["\n", "\r\n"])
def test_lines_end_with_lf_or_crlf_in_every_version(version: Version, eol: str) -> None:
    connection = opened(version)
    frame = sent("SUBSCRIBE", "destination:/events", "id:0").replace("\n", eol)
    assert [
        type(request) for request in connection.receive(eol * 3 + frame + eol + frame.replace(":0", ":1") + eol)
    ] == [Subscribe, Subscribe]


# Line 2: frames and messages
def test_frame_may_be_split_anywhere() -> None:
    data = (connect_frame(Version.V1_2) + sent("SUBSCRIBE", "id:ä\\c\\n", "destination:/events", "receipt:r")).encode()
    whole = Connection(options(), "s-1").receive(data)
    for at in range(len(data)):
        connection = Connection(options(), "s-1")
        assert connection.receive(data[:at]) + connection.receive(data[at:]) == whole


def test_several_frames_may_share_a_message() -> None:
    data = connect_frame(Version.V1_1) + sent("SUBSCRIBE", "id:0", "destination:/events") + sent("DISCONNECT")
    assert len(Connection(options(), "s-1").receive(data)) == 3
    assert Connection(options(), "s-1").receive(data) == Connection(options(), "s-1").receive(data.encode())


# Line 3: escapes
@pytest.mark.parametrize(
    "version, expected", [(Version.V1_0, "\\n\\c\\\\"), (Version.V1_1, "\n:\\"), (Version.V1_2, "\n:\\")]
)
def test_version_decides_which_escapes_are_used(version: Version, expected: str) -> None:
    connection = opened(version)
    request = subscription(connection, "destination:/events", "id:\\n\\c\\\\")
    assert request.id == expected
    assert b"\nsubscription:\\n\\c\\\\\n" in connection.message_prefix(request)


def test_carriage_return_is_escaped_in_1_2_only() -> None:
    assert subscription(opened(Version.V1_2), "destination:/events", "id:\\r").id == "\r"
    assert token_of(opened(Version.V1_1), sent("ACK", "id:\\r")) == "400-malformed-frame"


@pytest.mark.parametrize("version", LATER)
def test_undefined_escape_is_an_error(version: Version) -> None:
    assert token_of(opened(version), sent("ACK", "id:\\t")) == "400-malformed-frame"


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
def test_connect_is_not_unescaped(command: str) -> None:
    request = request_of(Connection(options(), "s-1"), sent(command, "accept-version:1.2", "passcode:a\\cb\\t:c"))
    assert isinstance(request, Connect)
    assert request.passcode == "a\\cb\\t:c"


# Line 4: repeated headers and trimming
@pytest.mark.parametrize("version", VERSIONS)
def test_first_of_repeated_headers_counts(version: Version) -> None:
    assert subscription(opened(version), "id:first", "id:second", "destination:/events").id == "first"


@pytest.mark.parametrize("version, expected", [(Version.V1_0, "a"), (Version.V1_1, " a\t"), (Version.V1_2, " a\t")])
def test_values_are_trimmed_in_1_0_only(version: Version, expected: str) -> None:
    assert subscription(opened(version), "id: a\t", "destination:/events").id == expected


# Line 5: content-length
def test_content_length_counts_bytes_and_nul_follows() -> None:
    connection = opened()
    body = "ä\0DISCONNECT\n\n\0"
    frame = sent("ACK", "id:1.k-1", f"content-length:{len(body.encode())}", body=body)
    assert len(connection.receive(frame)) == 1
    assert connection.state is ConnectionState.OPEN
    assert token_of(connection, sent("ACK", "id:1.k-1", "content-length:1", body="ab")) == "400-malformed-frame"


def test_body_without_content_length_ends_at_nul() -> None:
    assert len(opened().receive(sent("ACK", "id:1.k-1", body="ab\n") + sent("ACK", "id:1.k-1"))) == 2


# Line 6: CONNECT
def test_connect_and_stomp_are_equivalent() -> None:
    lines = ("accept-version:1.1,1.2", "login:me", "passcode:x", "heart-beat:1000,1000")
    assert Connection(options(), "s-1").receive(sent("CONNECT", *lines)) == Connection(options(), "s-1").receive(
        sent("STOMP", *lines)
    )


def test_missing_accept_version_means_1_0() -> None:
    connection = Connection(options(), "s-1")
    connection.receive(sent("CONNECT", "login:me"))
    assert connection.version is Version.V1_0
    assert read(connection.connected()).get("version") == "1.0"


def test_no_common_version_lists_the_supported_ones() -> None:
    connection = Connection(options(), "s-1")
    fault = fault_of(connection, sent("CONNECT", "accept-version:2.0,3.1", "host:x"))
    error = read(connection.error(fault.token, fault.prose, fault.receipt_id, fault.headers), None)
    assert error.get("version") == "1.0,1.1,1.2"
    assert error.get("message") == "400-no-common-version"


def test_host_is_optional() -> None:
    assert isinstance(request_of(Connection(options(), "s-1"), sent("CONNECT", "accept-version:1.2")), Connect)


def test_second_connect_is_an_error() -> None:
    assert token_of(opened(), sent("CONNECT", "accept-version:1.2")) == "400-already-connected"


@pytest.mark.parametrize("command", ["SUBSCRIBE", "SEND", "DISCONNECT", "CONNECTED", "GET / HTTP/1.1"])
def test_frame_before_connect_is_an_error(command: str) -> None:
    assert token_of(Connection(options(), "s-1"), sent(command)) == "400-not-connected"


# Line 7: CONNECTED
@pytest.mark.parametrize("version", VERSIONS)
def test_connected_always_has_its_four_headers(version: Version) -> None:
    connection = Connection(options(), "s-1")
    connection.receive(connect_frame(version))
    assert read(connection.connected(), version).headers == (
        ("version", version.value),
        ("session", "s-1"),
        ("server", "airy-trio/0.1.0"),
        ("heart-beat", "30000,30000"),
    )


# Line 8: heart-beats
@pytest.mark.parametrize(
    "lines, outgoing_s, incoming_s",
    [
        ((), None, None),
        (("heart-beat:0,0",), None, None),
        (("heart-beat:10000,10000",), 30, 30),
        (("heart-beat:0,45000",), 45, None),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_longer_heart_beat_interval_counts(
    version: Version, lines: tuple[str, ...], outgoing_s: float | None, incoming_s: float | None
) -> None:
    request = request_of(Connection(options(), "s-1"), connect_frame(version, *lines))
    assert isinstance(request, Connect)
    agreed = HeartBeat(outgoing_s=outgoing_s, incoming_s=incoming_s)
    assert request.heartbeat == (HeartBeat() if version is Version.V1_0 else agreed)


def test_heart_beat_is_a_line_feed_and_no_request() -> None:
    assert EOL == b"\n"
    assert opened().receive("\n") == opened().receive("\r\n") == []


# Line 9: SUBSCRIBE
@pytest.mark.parametrize("version", VERSIONS)
def test_subscribe_needs_a_destination(version: Version) -> None:
    assert token_of(opened(version), sent("SUBSCRIBE", "id:0")) == "400-missing-header"


def test_subscribe_needs_an_id_from_1_1_on() -> None:
    frame = sent("SUBSCRIBE", "destination:/events")
    assert isinstance(request_of(opened(Version.V1_0), frame), Subscribe)
    for version in LATER:
        assert token_of(opened(version), frame) == "400-missing-header"


@pytest.mark.parametrize("version", VERSIONS)
def test_duplicate_id_is_an_error(version: Version) -> None:
    connection = opened(version)
    subscription(connection, "id:0", "destination:/events")
    fault = fault_of(connection, sent("SUBSCRIBE", "id:0", "destination:/other", "receipt:r"))
    assert (fault.token, fault.receipt_id) == ("400-duplicate-subscription", "r")


def test_ack_modes() -> None:
    connection = opened()
    modes = [
        subscription(connection, f"id:{number}", "destination:/events", *lines).ack
        for number, lines in enumerate([(), ("ack:auto",), ("ack:client",), ("ack:client-individual",)])
    ]
    assert modes == [AckMode.AUTO, AckMode.AUTO, AckMode.CLIENT, AckMode.CLIENT_INDIVIDUAL]
    assert token_of(connection, sent("SUBSCRIBE", "id:9", "destination:/events", "ack:no")) == "400-bad-ack-mode"


def test_subscriptions_of_a_connection_are_limited() -> None:
    connection = opened(subscriptions_max=2)
    subscription(connection, "id:0", "destination:/events")
    subscription(connection, "id:1", "destination:/events")
    frame = sent("SUBSCRIBE", "id:2", "destination:/events")
    assert token_of(connection, frame) == "429-too-many-subscriptions"


@pytest.mark.parametrize("version", VERSIONS)
def test_ids_and_destinations_have_a_largest_size(version: Version) -> None:
    most, more = "ä" * 256, "ä" * 256 + "b"
    assert subscription(opened(version), f"id:{most}", f"destination:{most}").id == most
    fault = fault_of(opened(version), sent("SUBSCRIBE", f"id:{more}", "destination:/events", "receipt:r"))
    assert (fault.token, fault.receipt_id) == ("413-id-too-large", "r")
    assert token_of(opened(version), sent("SUBSCRIBE", "id:0", f"destination:{more}")) == "413-destination-too-large"


def test_ended_subscription_makes_room() -> None:
    connection = opened(subscriptions_max=1)
    for _ in range(3):
        subscription(connection, "id:0", "destination:/events")
        connection.receive(sent("UNSUBSCRIBE", "id:0"))


# Line 10: UNSUBSCRIBE
@pytest.mark.parametrize("version", VERSIONS)
def test_unsubscribe_ignores_an_unknown_id(version: Version) -> None:
    connection = opened(version)
    subscription(connection, "id:0", "destination:/events")
    assert request_of(connection, sent("UNSUBSCRIBE", "id:0")) == Unsubscribe(numbers=(1,), receipt=None)
    assert request_of(connection, sent("UNSUBSCRIBE", "id:0", "receipt:r")) == Unsubscribe(numbers=(), receipt="r")


def test_unsubscribe_by_destination_in_1_0() -> None:
    connection = opened(Version.V1_0)
    connection.receive(
        sent("SUBSCRIBE", "destination:/events") * 2 + sent("SUBSCRIBE", "destination:/events/tag.updated")
    )
    request = request_of(connection, sent("UNSUBSCRIBE", "destination: /events"))
    assert request == Unsubscribe(numbers=(1, 2), receipt=None)


# Line 11: MESSAGE
@pytest.mark.parametrize(
    "version, lines, ack",
    [
        (Version.V1_0, b"", b""),
        (Version.V1_1, b"subscription:s\\c0\n", b""),
        (Version.V1_2, b"subscription:s\\c0\n", b"ack:1.k7f3q9-12\n"),
    ],
)
def test_message_has_its_headers_in_order(version: Version, lines: bytes, ack: bytes) -> None:
    connection = opened(version)
    given = () if version is Version.V1_0 else ("id:s\\c0",)
    request = subscription(connection, *given, "destination:/events/channel/a%20b", "ack:client")
    message = (
        connection.message_prefix(request)
        + message_head("k7f3q9-12", 2, truncated=False)
        + connection.message_ack(1, "k7f3q9-12")
        + EOL
        + b"{}"
        + NUL
    )
    assert message == (
        b"MESSAGE\ndestination:/events/channel/a%20b\n"
        + lines
        + b"message-id:k7f3q9-12\ncontent-type:application/json\ncontent-length:2\n"
        + ack
        + b"\n{}\0"
    )


# Line 12: ACK and NACK
def test_ack_in_1_2_is_by_the_ack_header() -> None:
    connection = opened()
    subscription(connection, "id:a", "destination:/events", "ack:client")
    subscription(connection, "id:b", "destination:/events", "ack:client")
    assert acks(connection, sent("ACK", "id:2.k-1"), sent("NACK", "id:1.k-1")) == (
        Ack(number=2, message_id="k-1", accepted=True),
        Ack(number=1, message_id="k-1", accepted=False),
    )


def test_ack_in_1_1_is_by_message_id_and_subscription() -> None:
    connection = opened(Version.V1_1)
    subscription(connection, "id:a", "destination:/events", "ack:client")
    subscription(connection, "id:b", "destination:/events", "ack:client")
    assert acks(connection, sent("ACK", "message-id:k-1", "subscription:b")) == (
        Ack(number=2, message_id="k-1", accepted=True),
    )


def test_ack_in_1_0_covers_every_subscription() -> None:
    connection = opened(Version.V1_0)
    subscription(connection, "destination:/events", "ack:client")
    assert acks(connection, sent("ACK", "message-id:k-1")) == (Ack(number=None, message_id="k-1", accepted=True),)


@pytest.mark.parametrize("version", VERSIONS)
def test_ack_id_has_precedence_over_message_id(version: Version) -> None:
    connection = opened(version)
    subscription(connection, "id:a", "destination:/events", "ack:client")
    expected = (Ack(number=1, message_id="k-1", accepted=True),)
    assert acks(connection, sent("ACK", "id:1.k-1", "message-id:k-2")) == expected
    assert acks(connection, sent("ACK", "message-id:1.k-1")) == expected
    assert acks(connection, sent("ACK", "message-id:k-1", "subscription:a")) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_unknown_ack_is_not_an_error(version: Version) -> None:
    connection = opened(version)
    assert acks(connection, sent("ACK", "id:99.k-1"), sent("ACK", "message-id:k-1", "subscription:none")) == (
        Ack(number=99, message_id="k-1", accepted=True),
        Ack(number=0, message_id="k-1", accepted=True),
    )
    assert connection.state is ConnectionState.OPEN


@pytest.mark.parametrize("count, prefetch", [(None, 256), ("1", 1), ("10000", 10000)])
def test_prefetch_count_is_256_by_default(count: str | None, prefetch: int) -> None:
    lines = [] if count is None else [f"prefetch-count:{count}"]
    assert subscription(opened(), "id:0", "destination:/events", "ack:client", *lines).prefetch == prefetch


@pytest.mark.parametrize("count", ["0", "10001"])
def test_prefetch_count_out_of_range_is_an_error(count: str) -> None:
    frame = sent("SUBSCRIBE", "id:0", "destination:/events", f"prefetch-count:{count}", "ack:client")
    assert token_of(opened(), frame) == "400-bad-prefetch-count"
    assert isinstance(request_of(opened(), frame.replace("ack:client", "ack:auto")), Subscribe)


def test_prefetch_counts_of_a_connection_are_bounded() -> None:
    connection = opened()
    for number in range(2):
        subscription(connection, f"id:{number}", "destination:/events", "ack:client", "prefetch-count:10000")
    subscription(connection, "id:2", "destination:/events", "prefetch-count:10000")
    frame = sent("SUBSCRIBE", "id:3", "destination:/events", "ack:client", "prefetch-count:1")
    assert token_of(connection, frame) == "400-too-much-prefetch"


def test_all_subscriptions_may_have_the_default_prefetch_count() -> None:
    connection = opened(subscriptions_max=100)
    for number in range(100):
        subscription(connection, f"id:{number}", "destination:/events", "ack:client")


# Line 13: transactions
@pytest.mark.parametrize("version", VERSIONS)
def test_acks_in_a_transaction_take_effect_at_commit(version: Version) -> None:
    connection = opened(version)
    waiting = (
        sent("BEGIN", "transaction:t"),
        sent("ACK", "id:1.k7f3q9-2", "transaction:t"),
        sent("NACK", "id:1.k7f3q9-1", "transaction:t"),
    )
    assert acks(connection, *waiting) == ()
    assert acks(connection, sent("COMMIT", "transaction:t")) == (
        Ack(number=1, message_id="k7f3q9-2", accepted=True),
        Ack(number=1, message_id="k7f3q9-1", accepted=False),
    )


def test_abort_discards_the_acks() -> None:
    connection = opened()
    acks(connection, sent("BEGIN", "transaction:t"), sent("ACK", "id:1.a", "transaction:t"))
    assert acks(connection, sent("ABORT", "transaction:t")) == ()
    assert acks(connection, sent("BEGIN", "transaction:t"), sent("COMMIT", "transaction:t")) == ()


def test_transactions_are_bounded_in_number_and_size() -> None:
    connection = opened(transactions_max=1)
    connection.receive(sent("BEGIN", "transaction:t"))
    assert token_of(connection, sent("BEGIN", "transaction:u")) == "400-too-many-transactions"
    connection = opened(transaction_acks_max=1)
    connection.receive(sent("BEGIN", "transaction:t") + sent("ACK", "id:1.a", "transaction:t"))
    assert token_of(connection, sent("ACK", "id:1.b", "transaction:t")) == "400-too-many-transaction-acks"


def test_transaction_names_have_a_largest_size() -> None:
    connection = opened()
    connection.receive(sent("BEGIN", f"transaction:{'t' * 512}"))
    assert token_of(connection, sent("BEGIN", f"transaction:{'t' * 513}")) == "413-id-too-large"


@pytest.mark.parametrize("command", ["COMMIT", "ABORT", "ACK", "NACK"])
def test_unknown_transaction_is_an_error(command: str) -> None:
    assert token_of(opened(), sent(command, "id:1.a", "transaction:t")) == "400-unknown-transaction"


def test_transaction_begun_twice_is_an_error() -> None:
    assert token_of(opened(), sent("BEGIN", "transaction:t") * 2) == "400-transaction-begun-twice"


def test_disconnect_drops_open_transactions() -> None:
    connection = opened()
    connection.receive(sent("BEGIN", "transaction:t") + sent("ACK", "id:1.a", "transaction:t") + sent("DISCONNECT"))
    assert (len(connection.transactions), connection.transactions.acks_held) == (0, 0)


# Line 14: SEND
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("lines", [(), ("transaction:t",), ("transaction:unknown",)])
def test_send_is_rejected_also_in_a_transaction(version: Version, lines: tuple[str, ...]) -> None:
    connection = opened(version)
    connection.receive(sent("BEGIN", "transaction:t"))
    fault = fault_of(connection, sent("SEND", "destination:/events", "receipt:r", *lines, body="{}"))
    assert (fault.token, fault.receipt_id) == ("403-send-not-allowed", "r")
    assert connection.state is ConnectionState.FAILED


# Line 15: receipts and DISCONNECT
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "frame",
    [
        sent("SUBSCRIBE", "id:0", "destination:/events", "receipt:r-1"),
        sent("UNSUBSCRIBE", "id:0", "receipt:r-1"),
        sent("ACK", "id:1.a", "receipt:r-1"),
        sent("ACK", "id:1.a", "transaction:t", "receipt:r-1"),
        sent("NACK", "id:1.a", "receipt:r-1"),
        sent("BEGIN", "transaction:u", "receipt:r-1"),
        sent("COMMIT", "transaction:t", "receipt:r-1"),
        sent("ABORT", "transaction:t", "receipt:r-1"),
        sent("DISCONNECT", "receipt:r-1"),
    ],
)
def test_any_frame_but_connect_may_ask_for_a_receipt(version: Version, frame: str) -> None:
    connection = opened(version)
    connection.receive(sent("BEGIN", "transaction:t"))
    request = request_of(connection, frame)
    assert not isinstance(request, Connect)
    assert request.receipt == "r-1"
    assert read(connection.receipt("r-1"), version).headers == (("receipt-id", "r-1"),)


def test_frames_after_disconnect_are_ignored() -> None:
    connection = opened()
    subscription(connection, "id:0", "destination:/events")
    connection.receive(sent("DISCONNECT", "receipt:r"))
    assert connection.receive(sent("UNSUBSCRIBE", "id:0")) == []
    assert connection.receive(sent("SEND") + "rubbish") == []
    assert connection.state is ConnectionState.DISCONNECTED


# Line 16: ERROR
@pytest.mark.parametrize("version", VERSIONS)
def test_error_has_token_type_prose_and_receipt_id(version: Version) -> None:
    connection = opened(version)
    fault = fault_of(connection, sent("FOO", "receipt:r-1"))
    error = read(connection.error(fault.token, fault.prose, fault.receipt_id, fault.headers), version)
    assert error.command == "ERROR"
    assert error.get("message") == "400-unknown-command"
    assert error.get("content-type") == "text/plain"
    assert error.get("receipt-id") == "r-1"
    assert error.body.decode() == fault.prose


def test_error_has_no_receipt_id_without_a_request() -> None:
    assert read(opened().error("500-internal", "Something broke.")).get("receipt-id") is None


# Line 17: errors and limits
@pytest.mark.parametrize("command", ["FOO", "CONNECTED", "MESSAGE", "RECEIPT", "ERROR", "send"])
def test_unknown_and_server_commands_are_errors(command: str) -> None:
    assert token_of(opened(), sent(command)) == "400-unknown-command"


@pytest.mark.parametrize("data", ["ACK\nid\n\n\0", "ACK\n:x\n\n\0", "ACK\0", b"ACK\nid:\xff\n\n\0", "\0"])
def test_malformed_frames_are_errors(data: bytes | str) -> None:
    assert token_of(opened(), data) == "400-malformed-frame"


SMALL = Limits(frame_bytes_max=100, header_count_max=3, header_line_bytes_max=20, command_bytes_max=10)
SMALLER = Limits(frame_bytes_max=60, header_count_max=2, header_line_bytes_max=19, command_bytes_max=9)


def padded(command: str, lines: list[str], size: int) -> str:
    """Return a frame of this many octets."""
    frame = sent(command, *lines)
    return frame[:-1] + "x" * (size - len(frame)) + "\0"


def limited() -> Connection:
    return Connection(options(limits=SMALL, limits_before_connect=SMALLER), "s-1")


@pytest.mark.parametrize(
    "allowed, refused, token",
    [
        (sent("A" * 9), sent("A" * 10), "413-command-too-large"),
        (sent("STOMP", "a:" + "x" * 17), sent("STOMP", "a:" + "x" * 18), "413-header-too-large"),
        (sent("STOMP", *["a:b"] * 2), sent("STOMP", *["a:b"] * 3), "413-too-many-headers"),
        (padded("STOMP", [], 60), padded("STOMP", [], 61), "413-frame-too-large"),
    ],
)
def test_limits_are_smaller_before_connect(allowed: str, refused: str, token: str) -> None:
    if allowed.startswith("STOMP"):
        assert isinstance(request_of(limited(), allowed), Connect)
    else:
        assert token_of(limited(), allowed) == "400-not-connected"
    assert token_of(limited(), refused) == token


@pytest.mark.parametrize(
    "allowed, refused, token",
    [
        (sent("A" * 10), sent("A" * 11), "413-command-too-large"),
        (sent("ACK", "id:" + "x" * 17), sent("ACK", "id:" + "x" * 18), "413-header-too-large"),
        (sent("ACK", "id:1", *["a:b"] * 2), sent("ACK", "id:1", *["a:b"] * 3), "413-too-many-headers"),
        (padded("ACK", ["id:1"], 100), padded("ACK", ["id:1"], 101), "413-frame-too-large"),
    ],
)
def test_limits_are_larger_after_connect(allowed: str, refused: str, token: str) -> None:
    connect = sent("CONNECT", "accept-version:1.2")
    if allowed.startswith("ACK"):
        assert isinstance(limited().receive(connect + allowed)[1], Acknowledge)
    else:
        assert token_of(limited(), connect + allowed) == "400-unknown-command"
    assert token_of(limited(), connect + refused) == token
    connection = limited()
    connection.receive(connect)
    assert token_of(connection, refused) == token
