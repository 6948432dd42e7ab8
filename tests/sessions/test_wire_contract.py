"""The wire contract, "STOMP, line by line", as far as it needs a socket, a clock or the log.

Lines 1, 3, 4 and 5 concern bytes alone, and are tested in ``tests/stomp``.
"""

from collections.abc import AsyncGenerator, Sequence

import pytest
import trio
import trio.testing
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.auth.users import AuthOptions
from airy_trio.delivery import disconnects
from airy_trio.delivery.client import ReplayOptions
from airy_trio.log import reads
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient
from airy_trio.websocket.frames import close_frame
from tests.auth.signing import SECRET, issuer
from tests.delivery.kept import keep
from tests.delivery.messages import Reader
from tests.delivery.rig import rigged
from tests.memory_transport import MemoryTransport, StreamTransport
from tests.sessions.serving import Plugged, Server, event, open_log, serving

OPTIONS = ListenerOptions(port=0, heartbeat_ms=30_000, connect_timeout_s=10, send_timeout_s=10)
ALL_TYPES = "message.updated tag.updated channel.updated"
VERSIONS = ["1.0", "1.1", "1.2"]
ACK_MODES = ["auto", "client", "client-individual"]
QUIET_S = OPTIONS.send_timeout_s * 5
"""A time at which no event arrives any more, because a stalled client is disconnected earlier."""


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    async with serving(options=OPTIONS, listen=False) as server:
        yield server


async def error_and_code(client: StompClient) -> tuple[Frame, int | None]:
    """Return the ERROR that must come next, and the code of the Close frame that must follow it."""
    error = await client.receive()
    assert error.command == "ERROR"
    with pytest.raises(Closed) as closed:
        await client.receive()
    return error, closed.value.code


async def arrivals(client: StompClient) -> list[Frame]:
    """Return the frames that arrive until none does for a while."""
    found = []
    while True:
        with trio.move_on_after(QUIET_S) as quiet:
            found.append(await client.receive())
        if quiet.cancelled_caught:
            return found


def offsets(frames: Sequence[Frame]) -> list[int]:
    """Return the offsets of MESSAGE frames."""
    assert {frame.command for frame in frames} <= {"MESSAGE"}
    return [int((frame.get("message-id") or "").rpartition("-")[2]) for frame in frames]


# Line 2
async def test_frame_may_be_cut_anywhere(server: Server, autojump_clock: MockClock) -> None:
    client = server.plug().client
    await client.upgrade()
    connect = "CONNECT\naccept-version:1.2\n\n\0"
    for octet in (connect + "SUBSCRIBE\nid:ä\\c\ndestination:/events\nreceipt:r\n\n\0").encode():
        await client.send_bytes(bytes([octet]))
    assert (await client.receive_text()).startswith("CONNECTED\n")
    assert (await client.receive_text()).startswith("RECEIPT\nreceipt-id:r\n")
    await server.append(1, 1)
    assert "\nsubscription:ä\\c\n" in await client.receive_text()


async def test_frame_may_be_cut_over_binary_and_text_messages(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    await plugged.client.send_bytes(b"CONNE")
    await plugged.client.send_text("CT\naccept-version:1.")
    await plugged.client.send_bytes(b"2\n\n\0")
    assert (await plugged.client.receive()).command == "CONNECTED"


async def test_several_frames_may_share_a_message_and_each_is_answered(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    await plugged.client.send_text(
        "CONNECT\naccept-version:1.2\n\n\0\n\nSUBSCRIBE\nid:0\ndestination:/events\nreceipt:r\n\n\0"
    )
    assert (await plugged.client.receive()).command == "CONNECTED"
    assert (await plugged.client.receive()).command == "RECEIPT"


# Line 6
async def test_no_common_version_is_answered_with_the_supported_ones(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    await plugged.client.send(Frame("CONNECT", (("accept-version", "3.0"),)))
    error, code = await error_and_code(plugged.client)
    assert (error.get("message"), error.get("version"), code) == ("400-no-common-version", "1.0,1.1,1.2", 1002)


async def test_any_frame_before_connect_ends_the_session(server: Server, autojump_clock: MockClock) -> None:
    client = server.plug().client
    await client.upgrade()
    await client.send(Frame("SUBSCRIBE", (("destination", "/events"), ("id", "0"))))
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("400-not-connected", 1002)


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
async def test_second_connect_ends_the_session(server: Server, command: str, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.send(Frame(command, (("accept-version", "1.2"),)))
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("400-already-connected", 1002)


async def test_missing_connect_times_out(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    error, code = await error_and_code(plugged.client)
    assert (error.get("message"), code) == ("408-connect-timeout", 4408)
    assert trio.current_time() == pytest.approx(OPTIONS.connect_timeout_s)


# Line 7
@pytest.mark.parametrize("heart_beat", ["", "heart-beat:0,0\n", "heart-beat:1000,60000\n"])
async def test_connected_always_carries_its_four_headers(
    server: Server, heart_beat: str, autojump_clock: MockClock
) -> None:
    client = server.plug().client
    await client.upgrade()
    await client.send_text(f"CONNECT\naccept-version:1.2\n{heart_beat}\n\0")
    lines = (await client.receive_text()).split("\n")
    session = lines[2].removeprefix("session:")
    assert session.isalnum()
    assert lines == [
        "CONNECTED",
        "version:1.2",
        f"session:{session}",
        "server:airy-trio/test",
        "heart-beat:30000,30000",
        "",
        "\0",
    ]


# Line 8
async def test_heart_beat_is_one_lf_written_only_on_idle_connections(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(headers=[("heart-beat", "0,30000")])).client
    await client.subscribe()
    await trio.sleep(20)
    await server.append(1, 1)
    assert (await client.receive_text()).startswith("MESSAGE")
    received_at = []
    for _ in range(2):
        assert await client.receive_text() == "\n"
        received_at.append(trio.current_time())
    assert received_at == pytest.approx([50, 80], abs=0.2)


async def test_pong_counts_as_written(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(headers=[("heart-beat", "0,30000")])).client
    await trio.sleep(20)
    await client.ping()
    assert await client.receive_text() == "\n"
    assert trio.current_time() == pytest.approx(50, abs=0.2)


async def test_receipt_counts_as_written(autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport(), heart_beat="0,30000") as rig:
        await trio.sleep(20)
        await rig.request("UNSUBSCRIBE", ("id", "0"), ("receipt", "r"))
        await trio.sleep(29)
        assert [frame.command for frame in rig.read()] == ["CONNECTED", "RECEIPT"]
        assert rig.heart_beats == 0
        await trio.sleep(2)
        assert rig.read() == []
        assert rig.heart_beats == 1


@pytest.mark.parametrize("wanted_ms, interval_s", [(1000, 30), (30_000, 30), (45_000, 45)])
async def test_server_heart_beats_use_the_longer_of_both_intervals(
    server: Server, wanted_ms: int, interval_s: float, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(headers=[("heart-beat", f"0,{wanted_ms}")])).client
    received_at = []
    for _ in range(3):
        assert await client.receive_text() == "\n"
        received_at.append(trio.current_time())
    assert received_at == pytest.approx([interval_s, 2 * interval_s, 3 * interval_s], abs=0.5)


@pytest.mark.parametrize("version, wish", [("1.2", "0,0"), ("1.2", None), ("1.0", "30000,30000")])
async def test_without_heart_beats_a_client_may_be_silent(
    server: Server, version: str, wish: str | None, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(version=version, headers=[("heart-beat", wish)] if wish else ())).client
    with trio.move_on_after(3600) as quiet:
        await client.receive_text()
    assert quiet.cancelled_caught


@pytest.mark.parametrize("promised_ms, interval_s", [(1000, 30), (30_000, 30), (40_000, 40)])
async def test_silent_client_is_disconnected_after_2_5_intervals(
    server: Server, promised_ms: int, interval_s: float, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected(headers=[("heart-beat", f"{promised_ms},0")])
    silence_s = 2.5 * interval_s
    await trio.sleep(silence_s - 1)
    await plugged.client.send_text("\n")
    error, code = await error_and_code(plugged.client)
    assert (error.get("message"), code) == ("408-heart-beat-missed", 4408)
    assert trio.current_time() == pytest.approx(silence_s - 1 + silence_s, abs=0.3)
    await server.ended()


@pytest.mark.parametrize("alive", ["text", "ping"])
async def test_any_byte_of_the_client_counts(server: Server, alive: str, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(headers=[("heart-beat", "30000,0")])).client
    for _ in range(10):
        await trio.sleep(60)
        await (client.send_text("\n") if alive == "text" else client.ping())
    assert (await client.subscribe()).command == "RECEIPT"


# Line 9
async def test_subscriptions_are_limited_for_each_connection(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    for number in range(OPTIONS.subscriptions_max):
        assert (await client.subscribe(subscription=str(number))).command == "RECEIPT"
    other = (await server.plug_connected()).client
    assert (await other.subscribe()).command == "RECEIPT"
    with capture_logs() as logs:
        await client.send(Frame("SUBSCRIBE", (("id", "one more"), ("destination", "/events"))))
        error, code = await error_and_code(client)
        await server.endings[0].wait()
    assert (error.get("message"), code) == ("429-too-many-subscriptions", 1013)
    assert [line["reason"] for line in logs] == ["listener.subscriptions_max is reached"]
    assert b"subscriptions_max" not in error.body


async def test_too_long_destination_ends_the_session(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    headers = (("id", "0"), ("destination", "/events/channel/".ljust(513, "x")))
    await client.send(Frame("SUBSCRIBE", headers))
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("413-destination-too-large", 1009)


# Line 10
async def test_nothing_follows_the_receipt_of_unsubscribe(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe()
    await server.append(1, 1)
    assert (await client.receive()).command == "MESSAGE"
    await client.send(Frame("UNSUBSCRIBE", (("id", "0"), ("receipt", "gone"))))
    assert (await client.receive()).get("receipt-id") == "gone"
    await server.append(2, 2)
    assert await arrivals(client) == []


@pytest.mark.parametrize("taken", [0, 90, 210])
@pytest.mark.parametrize("subscriptions", [("ended", "kept"), ("kept", "ended")])
async def test_unsubscribing_drops_the_backlog_of_that_subscription_only(
    server: Server, subscriptions: tuple[str, str], taken: int, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(trio.testing.lockstep_stream_pair)).client
    for subscription in subscriptions:
        await client.subscribe(subscription=subscription)
    await server.append(1, 400, size=1000)
    frames = [await client.receive() for _ in range(taken)]
    await trio.testing.wait_all_tasks_blocked()  # the client reads nothing more, so most events are still to be sent
    await client.send(Frame("UNSUBSCRIBE", (("id", "ended"), ("receipt", "gone"))))
    frames += await arrivals(client)
    at = [frame.command for frame in frames].index("RECEIPT")
    ended = [frame for frame in frames if frame.get("subscription") == "ended"]
    kept = [frame for frame in frames if frame.get("subscription") == "kept"]
    assert [frame for frame in frames[at:] if frame in ended] == []
    assert offsets(ended) == list(range(1, len(ended) + 1))
    assert len(ended) < 400
    assert offsets(kept) == list(range(1, 401))


async def test_unsubscribe_of_an_unknown_id_is_ignored(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe()
    await client.send(Frame("UNSUBSCRIBE", (("id", "unknown"), ("receipt", "r"))))
    assert (await client.receive()).get("receipt-id") == "r"
    await server.append(1, 1)
    assert offsets(await arrivals(client)) == [1]


async def test_unsubscribe_by_destination_in_1_0(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(version="1.0")).client
    await client.send_text("SUBSCRIBE\ndestination:/events\nreceipt:r\n\n\0")
    assert (await client.receive()).get("receipt-id") == "r"
    await client.send_text("UNSUBSCRIBE\ndestination:/events\nreceipt:gone\n\n\0")
    assert (await client.receive()).get("receipt-id") == "gone"
    await server.append(1, 1)
    assert await arrivals(client) == []


# Line 11
@pytest.mark.parametrize(
    "version, given, ack",
    [
        ("1.0", "", "auto"),
        ("1.0", "id:s 0\\c\n", "client"),
        ("1.1", "id:s 0\\c\n", "client-individual"),
        *(("1.2", "id:s 0\\c\n", ack) for ack in ACK_MODES),
    ],
)
async def test_message_headers_and_their_order(
    server: Server, version: str, given: str, ack: str, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(version=version)).client
    await client.send_text(f"SUBSCRIBE\n{given}destination:/events/channel/a%20%c3%a4\nack:{ack}\nreceipt:r\n\n\0")
    assert (await client.receive()).get("receipt-id") == "r"
    body = '{"n": "ä"}'
    new = [event(1, channel="a ä")._replace(body=body.encode())]
    await server.log.append(server.log.head, new, "point")
    position = f"{server.log.epoch}-1"
    assert await client.receive_text() == (
        "MESSAGE\n"
        "destination:/events/channel/a%20%c3%a4\n"
        + given.replace("id:", "subscription:")
        + f"message-id:{position}\n"
        + "content-type:application/json\n"
        + f"content-length:{len(body.encode())}\n"
        + (f"ack:1.{position}\n" if version == "1.2" and ack != "auto" else "")
        + f"\n{body}\0"
    )


# Line 12
@pytest.mark.parametrize("ack", ["client", "client-individual"])
@pytest.mark.parametrize("wish, window", [(None, 256), ("1", 1), ("3", 3)])
async def test_no_more_than_the_prefetch_count_is_in_flight(
    server: Server, wish: str | None, window: int, ack: str, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", ack), *([("prefetch-count", wish)] if wish else [])])
    await server.append(1, 300)
    first = await arrivals(client)
    assert offsets(first) == list(range(1, window + 1))
    await client.acknowledge(first[-1])
    freed = window if ack == "client" else 1
    assert offsets(await arrivals(client)) == list(range(window + 1, min(window + freed, 300) + 1))


async def test_full_window_is_not_a_stall(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", "client-individual"), ("prefetch-count", "1")])
    await server.append(1, 2)
    first = await client.receive()
    assert first.get("ack") == f"1.{server.log.epoch}-1"
    with trio.move_on_after(QUIET_S) as window_is_full:
        await client.receive()
    assert window_is_full.cancelled_caught
    await client.acknowledge(first)
    assert (await client.receive()).get("message-id") == f"{server.log.epoch}-2"


async def test_prefetch_count_is_ignored_with_auto(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", "auto"), ("prefetch-count", "1")])
    await server.append(1, 300)
    assert offsets(await arrivals(client)) == list(range(1, 301))


async def test_prefetch_count_that_is_no_number_ends_the_session(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    headers = (("id", "0"), ("destination", "/events"), ("ack", "client"), ("prefetch-count", "many"))
    await client.send(Frame("SUBSCRIBE", headers))
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("400-bad-prefetch-count", 1002)


@pytest.mark.parametrize(
    "command, version, freed",
    [("ACK", "1.0", {"a", "b"}), ("ACK", "1.1", {"b"}), ("ACK", "1.2", {"b"}), ("NACK", "1.2", {"b"})],
)
async def test_ack_concerns_one_subscription_or_all_in_1_0(
    server: Server, command: str, version: str, freed: set[str], autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(version=version)).client
    for subscription in ("a", "b"):
        headers = [("ack", "client-individual"), ("prefetch-count", "1")]
        await client.subscribe(subscription=subscription, headers=headers)
    await server.append(1, 2)
    first = {message.get("subscription"): message for message in await arrivals(client)}
    assert set(first) == {"a", "b"}
    assert offsets(list(first.values())) == [1, 1]
    position = first["b"].get("message-id") or ""
    names = {
        "1.0": [("message-id", position)],
        "1.1": [("message-id", position), ("subscription", "b")],
        "1.2": [("id", f"2.{position}")],
    }
    await client.send(Frame(command, tuple(names[version])))
    second = await arrivals(client)
    assert {message.get("subscription") for message in second} == freed
    assert offsets(second) == [2] * len(freed)


async def test_cumulative_acks_cover_earlier_messages(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", "client"), ("prefetch-count", "2")])
    await server.append(1, 4)
    _, second = await client.receive(), await client.receive()
    await client.acknowledge(second)
    assert [(await client.receive()).body, (await client.receive()).body] == [
        b'{"n": 3, "pad": ""}',
        b'{"n": 4, "pad": ""}',
    ]


async def test_unknown_and_repeated_acks_are_ignored_and_counted(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    client = plugged.client
    await client.subscribe(headers=[("ack", "client")])
    await server.append(1, 1)
    message = await client.receive()
    for wrong in ("9.nothing", "1.nothing", f"1.{server.log.epoch}-77", f"7.{server.log.epoch}-1"):
        await client.send(Frame("ACK", (("id", wrong),)))
    await client.acknowledge(message, command="NACK")
    await client.acknowledge(message, headers=[("receipt", "done")])
    assert (await client.receive()).get("receipt-id") == "done"
    await client.disconnect()
    await plugged.ending.wait()
    assert (server.sessions.services.acks_ignored, server.sessions.services.nacks) == (5, 1)


# Line 13
@pytest.mark.parametrize("command, freed", [("COMMIT", [2]), ("ABORT", [])])
async def test_acks_of_a_transaction_count_at_commit(
    server: Server, command: str, freed: list[int], autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", "client-individual"), ("prefetch-count", "1")])
    await server.append(1, 2)
    first = await client.receive()
    await client.send(Frame("BEGIN", (("transaction", "t"),)))
    await client.acknowledge(first, headers=[("transaction", "t"), ("receipt", "inside")])
    assert [frame.get("receipt-id") for frame in await arrivals(client)] == ["inside"]
    await client.send(Frame(command, (("transaction", "t"), ("receipt", "ended"))))
    frames = await arrivals(client)
    assert [frame.get("receipt-id") for frame in frames if frame.command == "RECEIPT"] == ["ended"]
    assert offsets([frame for frame in frames if frame.command != "RECEIPT"]) == freed


# Line 14
@pytest.mark.parametrize("transaction", [False, True])
async def test_send_is_refused_and_reaches_no_client(
    server: Server, *, transaction: bool, autojump_clock: MockClock
) -> None:
    other = (await server.plug_connected()).client
    await other.subscribe()
    client = (await server.plug_connected()).client
    lines = "destination:/events\nreceipt:r\n"
    if transaction:
        await client.send_text("BEGIN\ntransaction:t\n\n\0")
        lines += "transaction:t\n"
    await client.send_text(f"SEND\n{lines}\n{{}}\0")
    error, code = await error_and_code(client)
    assert (error.get("message"), error.get("receipt-id"), code) == ("403-send-not-allowed", "r", 4403)
    assert await arrivals(other) == []


# Line 15
@pytest.mark.parametrize("version", VERSIONS)
async def test_receipt_follows_the_effect_of_its_frame(server: Server, version: str, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(version=version)).client
    await client.subscribe(headers=[("ack", "client-individual"), ("prefetch-count", "1"), ("replay", "none")])
    assert server.sessions.subscriptions == 1
    await server.append(1, 1)
    message = await client.receive()
    assert offsets([message]) == [1]
    await client.acknowledge(message, headers=[("receipt", "acknowledged")])
    assert (await client.receive()).get("receipt-id") == "acknowledged"
    await server.append(2, 2)
    assert offsets(await arrivals(client)) == [2]
    await client.send(Frame("UNSUBSCRIBE", (("id", "0"), ("receipt", "gone"))))
    assert (await client.receive()).get("receipt-id") == "gone"
    assert server.sessions.subscriptions == 0


async def test_receipts_for_any_frame_come_in_order(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    lines = ["id:0", "destination:/events", "transaction:t"]
    commands = ["SUBSCRIBE", "BEGIN", "ACK", "NACK", "COMMIT", "BEGIN", "ABORT", "UNSUBSCRIBE", "DISCONNECT"]
    for number, command in enumerate(commands):
        await client.send_text("\n".join([command, *lines, f"receipt:{number}", "", "\0"]))
    received = [await client.receive() for _ in commands]
    assert {frame.command for frame in received} == {"RECEIPT"}
    assert [frame.get("receipt-id") for frame in received] == [str(number) for number in range(len(commands))]


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
async def test_connect_gets_no_receipt(server: Server, command: str, autojump_clock: MockClock) -> None:
    client = server.plug().client
    await client.upgrade()
    await client.send(Frame(command, (("accept-version", "1.2"), ("receipt", "r"))))
    connected = await arrivals(client)
    assert [frame.command for frame in connected] == ["CONNECTED"]
    assert connected[0].get("receipt-id") is None
    await client.send(Frame(command, (("accept-version", "1.2"), ("receipt", "r"))))
    error, _ = await error_and_code(client)
    assert error.get("receipt-id") is None


@pytest.mark.parametrize("joined", [False, True])
async def test_frames_after_disconnect_are_ignored_before_close_1000(
    server: Server, *, joined: bool, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.subscribe()
    texts = ["DISCONNECT\nreceipt:bye\n\n\0", "UNSUBSCRIBE\nid:0\nreceipt:never\n\n\0", "rubbish"]
    for text in ["".join(texts)] if joined else texts:
        await plugged.client.send_text(text)
    await trio.testing.wait_all_tasks_blocked()
    await server.append(1, 1)
    bye = await plugged.client.receive()
    assert (bye.command, bye.headers) == ("RECEIPT", (("receipt-id", "bye"),))
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1000
    assert await plugged.ending.wait() is disconnects.DONE
    await server.ended()


async def test_no_backlog_follows_the_receipt_of_disconnect(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(trio.testing.lockstep_stream_pair)).client
    await client.subscribe()
    await server.append(1, 400, size=1000)
    await trio.testing.wait_all_tasks_blocked()
    await client.send(Frame("DISCONNECT", (("receipt", "bye"),)))
    messages = []
    while (frame := await client.receive()).command == "MESSAGE":
        messages.append(frame)
    assert frame.get("receipt-id") == "bye"
    assert 0 < len(messages) < 400
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1000


async def test_disconnect_without_receipt_is_only_closed(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.send(Frame("DISCONNECT"))
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1000


# Line 16
@pytest.mark.parametrize(
    "frame, receipt, token, code",
    [
        (Frame("SEND", (("destination", "/events"),)), "r", "403-send-not-allowed", 4403),
        (Frame("SUBSCRIBE", (("id", "0"), ("destination", "/nowhere"))), "r", "404-unknown-destination", 4404),
        (
            Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("durable", "d"))),
            "r",
            "403-durable-needs-auth",
            4403,
        ),
        (Frame("SUBSCRIBE", (("id", "0"), ("destination", "/nowhere"))), None, "404-unknown-destination", 4404),
        (Frame("NONSENSE"), None, "400-unknown-command", 1002),
    ],
)
async def test_error_has_its_headers_and_is_the_last_frame(
    server: Server, frame: Frame, token: str, code: int, *, receipt: str | None, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.subscribe(subscription="other")
    await server.append(1, 1)
    await plugged.client.receive()
    requested = () if receipt is None else (("receipt", receipt),)
    await plugged.client.send(evolve(frame, headers=(*frame.headers, *requested)))
    await trio.testing.wait_all_tasks_blocked()  # the ERROR is on its way
    assert server.sessions.subscriptions == 0
    await server.append(2, 2)
    error, closed = await error_and_code(plugged.client)
    assert (error.get("message"), closed) == (token, code)
    assert error.get("content-type") == "text/plain"
    assert error.get("content-length") == str(len(error.body))
    assert error.get("receipt-id") == receipt
    assert error.body.decode().endswith(".")
    await server.ended()


async def test_frames_before_the_fault_take_effect(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.send_text("SUBSCRIBE\nid:0\ndestination:/events\nreceipt:first\n\n\0SEND\ndestination:/x\n\n\0")
    assert (await client.receive()).get("receipt-id") == "first"
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("403-send-not-allowed", 4403)


class FullTransport(StreamTransport):
    """A transport that is full, like a socket whose peer does not read, from ``fill`` until ``make_room``."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.aborted = False
        self.written: list[bytes] = []
        self._room = trio.Event()
        self._room.set()

    def fill(self) -> None:
        self._room = trio.Event()

    def make_room(self) -> None:
        self._room.set()

    def push(self, data: bytes) -> None:
        super().push(data)
        self.written.append(data)

    async def drain(self) -> None:
        await self._room.wait()
        await super().drain()

    async def abort(self) -> None:
        self.aborted = True
        await super().abort()


async def filled(server: Server) -> tuple[Plugged, FullTransport]:
    """Connect a client that takes nothing of the last event and then sends an unknown command."""
    ours, theirs = trio.testing.memory_stream_pair()
    transport = FullTransport(ours)
    plugged = Plugged(StompClient(theirs), server.start(transport))
    await plugged.client.upgrade()
    await plugged.client.connect(accept_version="1.2")
    await plugged.client.subscribe()
    transport.fill()
    await server.append(1, 100, size=1000)
    await trio.testing.wait_all_tasks_blocked()
    assert transport.pending
    await plugged.client.send(Frame("NONSENSE", (("receipt", "r"),)))
    return plugged, transport


async def test_socket_full_for_a_second_is_reset(server: Server, autojump_clock: MockClock) -> None:
    plugged, transport = await filled(server)
    begun_at = trio.current_time()
    assert (await plugged.ending.wait()).name == disconnects.PROTOCOL_ERROR.name
    assert plugged.ending.at - begun_at == pytest.approx(1, abs=0.1)
    assert transport.aborted
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code is None
    await server.ended()


async def test_error_is_flushed_once_there_is_room(server: Server, autojump_clock: MockClock) -> None:
    plugged, transport = await filled(server)
    await trio.sleep(0.9)
    transport.make_room()
    messages = []
    while (frame := await plugged.client.receive()).command == "MESSAGE":
        messages.append(frame)
    assert messages, "pending data leaves first"
    assert frame.get("message") == "400-unknown-command"
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1002
    await plugged.client.stream.aclose()
    await plugged.ending.wait()
    assert not transport.aborted
    (error,) = Reader().feed(transport.written[-2])
    assert error.startswith(b"ERROR\n")
    assert transport.written[-1] == close_frame(1002, "400-unknown-command")


def padded(command: str, size: int) -> str:
    """Return a frame of this many bytes."""
    head = f"{command}\nid:0\naccept-version:1.2\nreceipt:r\n\n"
    return head + "x" * (size - len(head) - 1) + "\0"


# Line 17
async def test_unknown_and_server_commands_are_400_and_1002(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.send(Frame("MESSAGE"))
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("400-unknown-command", 1002)


async def test_malformed_frames_are_400_and_1002(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.send_bytes(b"ACK\nid:\xff\n\n\0")
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("400-malformed-frame", 1002)


@pytest.mark.parametrize(
    "text, token",
    [
        ("A" * 33 + "\n\n\0", "413-command-too-large"),
        ("ACK\nid:" + "x" * 8190 + "\n\n\0", "413-header-too-large"),
        ("ACK\n" + "a:b\n" * 65 + "\n\0", "413-too-many-headers"),
    ],
)
async def test_frame_beyond_a_limit_is_413_and_1009(
    server: Server, text: str, token: str, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected()).client
    await client.send_text(text)
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == (token, 1009)


@pytest.mark.parametrize(
    "text, token",
    [
        ("A" * 17 + "\n\n\0", "413-command-too-large"),
        ("CONNECT\na:" + "x" * 3071 + "\n\n\0", "413-header-too-large"),
        ("CONNECT\n" + "a:b\n" * 33 + "\n\0", "413-too-many-headers"),
        (padded("CONNECT", 4097), "413-frame-too-large"),
    ],
)
async def test_limits_are_smaller_before_connect(
    server: Server, text: str, token: str, autojump_clock: MockClock
) -> None:
    client = server.plug().client
    await client.upgrade()
    await client.send_text(text)
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == (token, 1009)


async def test_larger_limits_hold_after_connect(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    for text in (
        "ACK\nid:" + "x" * 3071 + "\nreceipt:r\n\n\0",
        "ACK\nid:1\nreceipt:r\n" + "a:b\n" * 33 + "\n\0",
        padded("UNSUBSCRIBE", 4097),
        padded("UNSUBSCRIBE", OPTIONS.frame_bytes_max),
    ):
        await client.send_text(text)
        assert (await client.receive()).get("receipt-id") == "r"


async def test_oversized_frame_in_several_messages_is_413_and_1009(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    half = "x" * (OPTIONS.frame_bytes_max // 2)
    await client.send_text("UNSUBSCRIBE\nid:0\n\n" + half)
    await client.send_text(half)
    error, code = await error_and_code(client)
    assert (error.get("message"), code) == ("413-frame-too-large", 1009)


async def test_oversized_websocket_message_is_closed_with_1009_without_error(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.send_text("x" * (OPTIONS.frame_bytes_max + 1))
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1009
    assert (await plugged.ending.wait()).name == disconnects.TOO_LARGE.name


# Line 18
async def test_destination_not_granted_is_refused(autojump_clock: MockClock) -> None:
    auth = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
    headers = [("passcode", issuer("HS256").token(airy_channels=["ch2"]))]
    async with serving(options=OPTIONS, auth=auth, listen=False) as server:
        await server.append(1, 1)  # of channel ch1, in conversation c1
        for destination in ("/events/channel/ch1", "/events/conversation/c1"):
            client = (await server.plug_connected(headers=headers)).client
            await client.send(Frame("SUBSCRIBE", (("id", "0"), ("destination", destination))))
            error, code = await error_and_code(client)
            assert (error.get("message"), code) == ("403-destination", 4403)


async def test_empty_conversation_is_accepted(autojump_clock: MockClock) -> None:
    auth = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
    headers = [("passcode", issuer("HS256").token(airy_channels=["ch2"]))]
    async with serving(options=OPTIONS, auth=auth, listen=False) as server:
        client = (await server.plug_connected(headers=headers)).client
        assert (await client.subscribe("/events/conversation/c1")).command == "RECEIPT"
        new = [event(1, channel="ch1"), event(2, channel=None), event(3, channel="ch2")]
        await server.log.append(server.log.head, new, "point")
        assert offsets(await arrivals(client)) == [3]


async def stated(
    server: Server, names: str, *, ended: str = "", whole: str = ALL_TYPES, generation: str = "g1"
) -> None:
    """Append an event for each letter, as the state of the object of that name."""
    await keep(server.log, [*names], ended=[*ended], types=ALL_TYPES, whole=whole, generation=generation)


async def subscribed(server: Server, *headers: tuple[str, str]) -> tuple[StompClient, Frame]:
    client = (await server.plug_connected()).client
    return client, await client.subscribe("/events", headers=headers)


CURRENT = ("replay", "current")


# Line 19
async def test_current_state_is_the_newest_of_each_object_then_everything(
    server: Server, autojump_clock: MockClock
) -> None:
    await stated(server, "abcab")
    await stated(server, "", ended="c")
    client, receipt = await subscribed(server, CURRENT)
    await stated(server, "aa")
    assert offsets(await arrivals(client)) == [4, 5, 6, 7]
    assert (receipt.get("position"), receipt.get("until")) == (str(server.log.head.at(0)), str(server.log.head.at(5)))


async def test_no_event_of_the_state_comes_twice(server: Server, autojump_clock: MockClock) -> None:
    await stated(server, "abc")
    client, _ = await subscribed(server, CURRENT, ("ack", "client"), ("prefetch-count", "1"))
    frames = [await client.receive()]
    await stated(server, "bc")
    await client.acknowledge(frames[0])
    for _ in range(2):
        frames.append(await client.receive())
        await client.acknowledge(frames[-1])
    found = offsets([*frames, *await arrivals(client)])
    assert found == sorted(set(found))
    assert len(found) == 4


# Line 20
@pytest.mark.parametrize("whole, missing", [(ALL_TYPES, None), ("tag.updated", "channel.updated,message.updated")])
async def test_receipt_names_types_that_are_missing(
    server: Server, whole: str, missing: str | None, autojump_clock: MockClock
) -> None:
    await stated(server, "ab", whole=whole)
    client, receipt = await subscribed(server, CURRENT)
    assert receipt.get("state") == ("current" if missing is None else "partial")
    assert receipt.get("state-missing") == missing
    assert offsets(await arrivals(client)) == [1, 2]


# Line 21
async def test_last_message_of_the_state_completes_it(server: Server, autojump_clock: MockClock) -> None:
    await stated(server, "abc")
    client, _ = await subscribed(server, CURRENT)
    await stated(server, "d")
    frames = await arrivals(client)
    assert [frame.get("state") for frame in frames] == [None, None, "complete", None]


async def test_empty_state_is_complete_at_once(server: Server, autojump_clock: MockClock) -> None:
    await stated(server, "a")
    await stated(server, "", ended="a")
    client, receipt = await subscribed(server, CURRENT)
    assert receipt.get("position") == receipt.get("until")
    assert receipt.get("state") == "current"
    await stated(server, "b")
    assert [frame.get("state") for frame in await arrivals(client)] == [None]


# Line 22
async def test_position_and_current_state_go_together(server: Server, autojump_clock: MockClock) -> None:
    await stated(server, "aba")
    client, receipt = await subscribed(server, CURRENT, ("last-event-id", str(server.log.head.at(1))))
    assert [receipt.get(name) for name in ("resume", "state", "until")] == ["resumed", None, None]
    assert offsets(await arrivals(client)) == [2, 3]
    client, receipt = await subscribed(server, CURRENT, ("last-event-id", "zzzzzz-1"))
    assert [receipt.get(name) for name in ("resume", "state")] == ["reset-epoch", "current"]
    frames = await arrivals(client)
    assert offsets(frames) == [2, 3]
    assert frames[0].get("resume") == "reset-epoch"


@pytest.mark.parametrize("replay, found", [("none", []), ("all", [1, 2, 3]), ("recent", [2, 3])])
async def test_replay_decides_after_a_reset(
    server: Server, replay: str, found: list[int], autojump_clock: MockClock
) -> None:
    await stated(server, "aba")
    client, receipt = await subscribed(server, ("replay", replay), ("last-event-id", "zzzzzz-1"))
    assert receipt.get("resume") == "reset-epoch"
    assert offsets(await arrivals(client)) == found


# Line 23
async def test_state_that_ends_while_it_is_sent_is_410(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads.Reads.__init__, "__defaults__", (1, 1000))
    async with serving(options=OPTIONS, listen=False) as other:
        await stated(other, "abcd")
        client, _ = await subscribed(other, CURRENT, ("ack", "client"), ("prefetch-count", "1"))
        frame = await client.receive()
        await stated(other, "e", generation="g2")
        while frame.command == "MESSAGE":
            await client.acknowledge(frame)
            frame = await client.receive()
        assert frame.get("message") == "410-position-expired"


# Line 24
@pytest.mark.parametrize(
    "events_max, found, state", [(0, [1, 3, 4], None), (3, [3, 4], "partial"), (4, [1, 3, 4], None)]
)
async def test_recent_window_is_the_newest_event_of_each_object_or_partial(
    events_max: int, found: list[int], state: str | None, autojump_clock: MockClock
) -> None:
    async with serving(options=OPTIONS, listen=False, replay=ReplayOptions(events_max=events_max)) as server:
        await stated(server, "abcb")
        client, receipt = await subscribed(server)
        assert receipt.get("state") == state
        assert offsets(await arrivals(client)) == found
