"""Sessions over streams in memory, on a clock of their own: what is answered, and how each one ends."""

from collections.abc import AsyncGenerator
from typing import NoReturn

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.log.eventlog import LogOptions
from airy_trio.log.memory import MemoryStore
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, Rejected, StompClient
from airy_trio.websocket import farewells
from airy_trio.websocket.listener import ListenerOptions
from airy_trio.websocket.session import GOODBYE_S, LINGER_S
from tests.websocket.serving import Server, open_log, serving

OPTIONS = ListenerOptions(port=0, heartbeat_ms=30_000, connect_timeout_s=10, send_timeout_s=10)


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    async with serving(options=OPTIONS, listen=False) as server:
        yield server


async def error_and_close(client: StompClient) -> tuple[Frame, int | None]:
    error = await client.receive()
    assert error.command == "ERROR"
    assert error.get("content-type") == "text/plain"
    assert error.body
    with pytest.raises(Closed) as closed:
        await client.receive()
    return error, closed.value.code


async def test_events_come_after_the_receipt_in_order(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    plugged = await server.plug_connected()
    receipt = await plugged.client.subscribe(subscription="s", headers=[("replay", "all")])
    await server.append(3, 4)
    messages = [await plugged.client.receive() for _ in range(4)]
    assert receipt.headers == (("receipt-id", "r1"), ("position", f"{server.log.epoch}-0"), ("resume", "live"))
    assert [m.get("message-id") for m in messages] == [f"{server.log.epoch}-{n}" for n in (1, 2, 3, 4)]
    assert messages[0].headers == (
        ("destination", "/events"),
        ("subscription", "s"),
        ("message-id", f"{server.log.epoch}-1"),
        ("content-type", "application/json"),
        ("content-length", str(len(messages[0].body))),
    )


async def test_connect_and_subscribe_in_one_message_are_both_answered(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    await plugged.client.send_text(
        "CONNECT\naccept-version:1.2\n\n\0\n\nSUBSCRIBE\nid:0\ndestination:/events\nreceipt:r\n\n\0"
    )
    assert (await plugged.client.receive()).command == "CONNECTED"
    assert (await plugged.client.receive()).command == "RECEIPT"


async def test_a_frame_may_be_cut_over_binary_and_text_messages(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    await plugged.client.send_bytes(b"CONNE")
    await plugged.client.send_text("CT\naccept-version:1.")
    await plugged.client.send_bytes(b"2\n\n\0")
    assert (await plugged.client.receive()).command == "CONNECTED"


async def test_two_subscriptions_to_one_destination_have_a_cursor_each(
    server: Server, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    client = (await server.plug_connected()).client
    await client.subscribe(subscription="a", headers=[("replay", "none")])
    await client.subscribe(subscription="b", headers=[("replay", "all")])
    await server.append(2, 2)
    got = {((m := await client.receive()).get("subscription"), m.get("message-id")) for _ in range(3)}
    epoch = server.log.epoch
    assert got == {("a", f"{epoch}-2"), ("b", f"{epoch}-1"), ("b", f"{epoch}-2")}


async def test_nothing_comes_after_the_receipt_of_unsubscribe(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe()
    await server.append(1, 1)
    assert (await client.receive()).command == "MESSAGE"
    await client.send(Frame("UNSUBSCRIBE", (("id", "0"), ("receipt", "gone"))))
    assert (await client.receive()).get("receipt-id") == "gone"
    await server.append(2, 2)
    assert (await client.disconnect()).code == 1000
    await server.ended()


async def test_a_full_window_waits_for_an_ack_and_is_no_stall(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", "client-individual"), ("prefetch-count", "1")])
    await server.append(1, 2)
    first = await client.receive()
    assert first.get("ack") == f"1.{server.log.epoch}-1"
    with trio.move_on_after(OPTIONS.send_timeout_s * 5) as window_is_full:
        await client.receive()
    assert window_is_full.cancelled_caught
    await client.acknowledge(first)
    assert (await client.receive()).get("message-id") == f"{server.log.epoch}-2"


async def test_cumulative_acks_cover_what_came_before(server: Server, autojump_clock: MockClock) -> None:
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
    statistics = server.sessions.statistics()
    assert (statistics["acks_ignored"], statistics["nacks"]) == (5, 1)


async def test_acks_of_a_transaction_count_at_commit(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    await client.subscribe(headers=[("ack", "client-individual"), ("prefetch-count", "1")])
    await server.append(1, 2)
    first = await client.receive()
    await client.send(Frame("BEGIN", (("transaction", "t"),)))
    await client.acknowledge(first, headers=[("transaction", "t"), ("receipt", "inside")])
    assert (await client.receive()).get("receipt-id") == "inside"
    await client.send(Frame("COMMIT", (("transaction", "t"), ("receipt", "committed"))))
    assert {(await client.receive()).command for _ in range(2)} == {"RECEIPT", "MESSAGE"}


@pytest.mark.parametrize(
    "frame, token, code",
    [
        (Frame("SEND", (("destination", "/events"), ("receipt", "r"))), "403-send-not-allowed", 4403),
        (
            Frame("SUBSCRIBE", (("id", "0"), ("destination", "/nowhere"), ("receipt", "r"))),
            "404-unknown-destination",
            4404,
        ),
        (
            Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("durable", "d"), ("receipt", "r"))),
            "403-durable-needs-auth",
            4403,
        ),
        (Frame("NONSENSE", (("receipt", "r"),)), "400-unknown-command", 1002),
        (Frame("CONNECT", (("accept-version", "1.2"),)), "400-already-connected", 1002),
    ],
)
async def test_a_fault_is_told_with_its_receipt_then_closed(
    server: Server, frame: Frame, token: str, code: int, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.subscribe(subscription="other")
    await server.append(1, 1)
    await plugged.client.receive()
    await plugged.client.send(frame)
    error, closed = await error_and_close(plugged.client)
    assert (error.get("message"), closed) == (token, code)
    assert error.get("receipt-id") == (None if frame.command == "CONNECT" else "r")
    await server.ended()


async def test_what_came_before_a_fault_in_the_same_message_takes_effect(
    server: Server, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected()).client
    await client.send_text("SUBSCRIBE\nid:0\ndestination:/events\nreceipt:first\n\n\0SEND\ndestination:/x\n\n\0")
    assert (await client.receive()).get("receipt-id") == "first"
    error, code = await error_and_close(client)
    assert (error.get("message"), code) == ("403-send-not-allowed", 4403)


async def test_too_many_subscriptions(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    for number in range(OPTIONS.subscriptions_max):
        await client.subscribe(subscription=str(number))
    answer = await client.subscribe(subscription="one more")
    assert answer.get("message") == "429-too-many-subscriptions"
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1013


async def test_a_frame_that_is_too_large(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected()).client
    half = "x" * (OPTIONS.frame_bytes_max // 2)
    await client.send_text("UNSUBSCRIBE\nid:0\n\n" + half)
    await client.send_text(half)
    error, code = await error_and_close(client)
    assert (error.get("message"), code) == ("413-frame-too-large", 1009)


async def test_a_websocket_message_over_the_limit_is_closed_without_an_error_frame(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.send_text("x" * (OPTIONS.frame_bytes_max + 1))
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1009
    assert (await plugged.ending.wait()).name == farewells.TOO_LARGE.name


async def test_a_breach_of_the_websocket_protocol_is_closed_with_its_code(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.stream.send_all(b"\x83\x80abcd")  # opcode 3 does not exist
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1002
    assert (await plugged.ending.wait()).name == farewells.PROTOCOL_ERROR.name


async def test_no_common_version_names_ours(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    answer = await plugged.client.connect(accept_version="3.0")
    assert answer.command == "ERROR"
    assert "1.2" in (answer.get("version") or "")
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1002


async def test_disconnect_is_receipted_then_all_later_frames_are_ignored(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    await plugged.client.subscribe()
    await plugged.client.send(Frame("DISCONNECT", (("receipt", "bye"),)))
    await plugged.client.send(Frame("UNSUBSCRIBE", (("id", "0"), ("receipt", "never"))))
    assert (await plugged.client.receive()).get("receipt-id") == "bye"
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1000
    assert await plugged.ending.wait() is farewells.DONE


async def test_a_client_that_closes_is_answered(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    await plugged.client.close()
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1000
    await plugged.client.stream.aclose()
    assert await plugged.ending.wait() is farewells.GONE
    await server.ended()


async def test_a_client_that_vanishes_leaves_nothing_behind(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    await plugged.client.subscribe()
    await plugged.client.stream.aclose()
    assert await plugged.ending.wait() is farewells.GONE
    await server.ended()


async def test_no_connect_in_time(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    await plugged.client.upgrade()
    error, code = await error_and_close(plugged.client)
    assert (error.get("message"), code) == ("408-connect-timeout", 4408)
    assert trio.current_time() == pytest.approx(OPTIONS.connect_timeout_s)


async def test_the_deadline_of_connect_does_not_end_a_session_that_connected(
    server: Server, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected()).client
    await trio.sleep(OPTIONS.connect_timeout_s * 10)
    assert (await client.subscribe()).command == "RECEIPT"


@pytest.mark.parametrize("what", [b"", b"\x16\x03\x01junk\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"])
async def test_what_never_becomes_an_upgrade_ends_at_once(
    server: Server, what: bytes, autojump_clock: MockClock
) -> None:
    plugged = server.plug()
    if what:
        await plugged.client.stream.send_all(what)
        answer = await plugged.client.stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 400 ")
    await plugged.client.stream.aclose()
    assert await plugged.ending.wait() is farewells.GONE
    assert plugged.ending.at < 1
    await server.ended()


async def test_an_upgrade_that_never_comes_ends_with_the_connect_timeout(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = server.plug()
    await plugged.client.stream.send_all(b"GET /ws.communication HTTP/1.1\r\n")
    await plugged.ending.wait()
    assert plugged.ending.at == pytest.approx(OPTIONS.connect_timeout_s)


async def test_another_path_is_not_found(server: Server, autojump_clock: MockClock) -> None:
    plugged = server.plug()
    with pytest.raises(Rejected) as rejected:
        await plugged.client.upgrade(path="/ws.communication/")
    assert rejected.value.status == 404
    await plugged.client.stream.aclose()
    await server.ended()


@pytest.mark.parametrize(
    "offered, chosen",
    [
        (("v10.stomp", "v11.stomp", "v12.stomp"), "v12.stomp"),
        (("v10.stomp", "v11.stomp"), "v11.stomp"),
        (("graphql-ws", "v10.stomp"), "v10.stomp"),
        (("graphql-ws",), None),
        ((), None),
    ],
)
async def test_the_highest_subprotocol_that_is_known_is_echoed(
    server: Server, offered: tuple[str, ...], chosen: str | None, autojump_clock: MockClock
) -> None:
    client = server.plug().client
    await client.upgrade(path="/ws.communication?x=1", subprotocols=offered)
    assert client.subprotocol == chosen
    assert (await client.connect()).command == "CONNECTED"


async def test_a_heart_beat_is_one_lf_and_only_where_nothing_else_was_written(
    server: Server, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(headers=[("heart-beat", "0,30000")])).client
    await client.subscribe()
    await trio.sleep(20)
    await server.append(1, 1)
    assert (await client.receive_text()).startswith("MESSAGE")
    heard_at = []
    for _ in range(2):
        assert await client.receive_text() == "\n"
        heard_at.append(trio.current_time())
    assert heard_at == pytest.approx([50, 80], abs=0.2)


@pytest.mark.parametrize("version, wish", [("1.2", "0,0"), ("1.2", None), ("1.0", "30000,30000")])
async def test_who_asked_for_no_heart_beats_gets_none_and_may_be_silent(
    server: Server, version: str, wish: str | None, autojump_clock: MockClock
) -> None:
    client = (await server.plug_connected(version=version, headers=[("heart-beat", wish)] if wish else ())).client
    with trio.move_on_after(3600) as quiet:
        await client.receive_text()
    assert quiet.cancelled_caught


async def test_a_silent_client_is_sent_away_after_two_and_a_half_intervals(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected(headers=[("heart-beat", "30000,0")])
    await trio.sleep(60)
    await plugged.client.send_text("\n")
    error, code = await error_and_close(plugged.client)
    assert (error.get("message"), code) == ("408-heart-beat-missed", 4408)
    assert trio.current_time() == pytest.approx(60 + 75, abs=0.3)
    await server.ended()


@pytest.mark.parametrize("alive", ["text", "ping"])
async def test_any_byte_of_the_client_counts(server: Server, alive: str, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(headers=[("heart-beat", "30000,0")])).client
    for _ in range(10):
        await trio.sleep(60)
        await (client.send_text("\n") if alive == "text" else client.ping())
    assert (await client.subscribe()).command == "RECEIPT"


async def test_a_client_that_takes_nothing_is_cut(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected(trio.testing.lockstep_stream_pair)
    await plugged.client.subscribe()
    begun_at = trio.current_time()
    await server.append(1, 1)
    assert await plugged.ending.wait() is farewells.TOO_SLOW
    assert plugged.ending.at - begun_at == pytest.approx(OPTIONS.send_timeout_s, abs=0.1)
    await server.ended()


async def test_shutdown_tells_everybody_within_the_drain_time(server: Server, autojump_clock: MockClock) -> None:
    plugged = [await server.plug_connected() for _ in range(20)]
    await server.plug_connected(trio.testing.lockstep_stream_pair)  # this one never reads again
    told: list[float] = []

    async def hear(client: StompClient) -> None:
        error, code = await error_and_close(client)
        assert (error.get("message"), code) == ("503-shutting-down", 1012)
        told.append(trio.current_time())
        await client.stream.aclose()

    async with trio.open_nursery() as nursery:
        for one in plugged:
            nursery.start_soon(hear, one.client)
        begun_at = trio.current_time()
        await server.sessions.dismiss_all(0.1)
    assert len(told) == 20
    assert told == sorted(told)
    assert told[-1] - begun_at <= 0.1
    assert trio.current_time() - begun_at <= 0.1 + GOODBYE_S + 0.01
    await server.ended()


async def test_who_comes_during_shutdown_is_turned_away(server: Server, autojump_clock: MockClock) -> None:
    await server.sessions.dismiss_all(0)
    plugged = server.plug()
    assert await plugged.ending.wait() is farewells.SHUTTING_DOWN


async def test_a_peer_that_never_answers_the_close_is_cut_in_time(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    begun_at = trio.current_time()
    await plugged.client.send(Frame("DISCONNECT"))
    assert await plugged.ending.wait() is farewells.DONE
    assert plugged.ending.at - begun_at <= GOODBYE_S + LINGER_S
    await server.ended()


async def test_a_ping_during_the_goodbye_does_not_spoil_it(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    await plugged.client.send_text("NONSENSE\n\n\0")
    await trio.testing.wait_all_tasks_blocked()  # the Close frame is on its way, not read
    await plugged.client.ping()
    await trio.testing.wait_all_tasks_blocked()
    error, code = await error_and_close(plugged.client)
    assert (error.get("message"), code) == ("400-unknown-command", 1002)
    await plugged.client.stream.aclose()
    await plugged.ending.wait()
    assert plugged.ending.at < 0.5


async def test_a_new_epoch_sends_the_connected_away_and_resets_who_comes_back(
    server: Server, autojump_clock: MockClock
) -> None:
    await server.append(1, 3)
    client = (await server.plug_connected()).client
    receipt = await client.subscribe(headers=[("replay", "none")])
    old = receipt.get("position") or ""
    await server.log.begin_epoch(server.log.head, "point")
    error, code = await error_and_close(client)
    assert (error.get("message"), code) == ("410-position-expired", 4410)
    again = (await server.plug_connected()).client
    receipt = await again.subscribe(headers=[("last-event-id", old)])
    assert receipt.get("resume") == "reset-epoch"
    await server.append(1, 1)
    assert (await again.receive()).get("resume") == "reset-epoch"


async def test_a_client_that_falls_behind_what_is_retained_is_told(autojump_clock: MockClock) -> None:
    log = await open_log(options=LogOptions(store="memory", tail_events=10))
    async with serving(log, OPTIONS, listen=False) as server:
        client = (await server.plug_connected()).client
        await client.subscribe(headers=[("ack", "client"), ("prefetch-count", "1")])
        await server.append(1, 30)
        first = await client.receive()
        await log.store.trim(age_s=3600, keep=5, limit=1000)
        await server.append(31, 60)
        await log.store.trim(age_s=3600, keep=5, limit=1000)
        await client.acknowledge(first)
        try:
            while (answer := await client.receive()).command == "MESSAGE":
                await client.acknowledge(answer)
        finally:
            assert answer.get("message") == "410-position-expired"


class BrokenStore(MemoryStore):
    """A store with a bug in what ``replay:all`` needs."""

    async def bounds(self) -> NoReturn:
        message = "bug"
        raise RuntimeError(message)


async def test_a_failure_in_one_session_ends_that_session_only(
    server: Server, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    healthy = (await server.plug_connected()).client
    await healthy.subscribe()
    plugged = await server.plug_connected()
    monkeypatch.setattr(server.log, "store", BrokenStore())
    with capture_logs() as logs:
        answer = await plugged.client.subscribe(headers=[("replay", "all")])
    assert answer.get("message") == "500-internal"
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["session failed"]
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1011
    monkeypatch.undo()
    await server.append(1, 1)
    assert (await healthy.receive()).command == "MESSAGE"


async def test_a_connection_is_logged_as_it_opens_and_closes_and_nothing_of_what_it_said(
    server: Server, autojump_clock: MockClock
) -> None:
    with capture_logs() as said:
        plugged = server.plug()
        await plugged.client.upgrade()
        connected = await plugged.client.connect(headers=[("login", "hunter1"), ("passcode", "hunter2")])
        await plugged.client.subscribe("/events/conversation/c1")
        await server.append(1, 1)
        await plugged.client.receive()
        await trio.sleep(5)
        await plugged.client.send(Frame("SEND", (("destination", "secret"),), b"secret"))
        await plugged.ending.wait()
    session = connected.get("session")
    assert [(line.pop("event"), line.pop("log_level"), line) for line in said] == [
        ("connection opened", "info", {"session": session, "peer": None}),
        (
            "connection closed",
            "info",
            {
                "session": session, "user": None, "farewell": "forbidden", "token": "403-send-not-allowed",
                "lasted_s": pytest.approx(5, abs=2),
            },
        ),
    ]  # fmt: skip


async def test_who_is_refused_is_counted_by_token_and_who_is_sent_away_is_not(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = [await server.plug_connected() for _ in range(3)]
    for wrong in plugged[:2]:
        await wrong.client.send(Frame("NONSENSE"))
        await wrong.ending.wait()
    await server.sessions.dismiss_all(1)
    found = server.sessions.statistics()
    assert {name: count for name, count in found.items() if " " in name} == {
        "farewell protocol error": 2, "refused 400-unknown-command": 2, "farewell shutting down": 1
    }  # fmt: skip


async def test_who_has_events_still_to_be_sent_is_behind(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(trio.testing.lockstep_stream_pair)).client
    await client.subscribe()
    await trio.testing.wait_all_tasks_blocked()
    assert server.sessions.statistics()["behind"] == 0
    await server.append(1, 1)
    await trio.testing.wait_all_tasks_blocked()
    assert server.sessions.statistics()["behind"] == 1  # the cursor has moved on; the bytes have not been taken
    await client.receive()
    await client.subscribe(subscription="1", headers=[("replay", "all")])
    await client.receive()
    await server.append(2, 400, size=1000)
    await trio.testing.wait_all_tasks_blocked()
    found = server.sessions.statistics()
    assert (found["clients"], found["subscriptions"], found["behind"]) == (1, 2, 1)
    for _ in range(2 * 399):
        await client.receive()
    await trio.testing.wait_all_tasks_blocked()
    found = server.sessions.statistics()
    assert (found["behind"], found["deliveries"]) == (0, 800)
    assert 800_000 < found["bytes"] < 1_000_000
