"""Sessions over streams in memory, on an autojump clock: their answers, and how each of them ends.

``test_wire_contract`` has the checklist of the wire contract.
"""

from collections.abc import AsyncGenerator
from typing import NoReturn

import pytest
import trio
import trio.testing
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from airy_trio.delivery import disconnects
from airy_trio.delivery.fanout import WATCH_EVERY_S
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import Bounds, StoreUnavailable
from airy_trio.retry import LOG_EVERY_S
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.sessions.session import CHECK_STORE_EVERY_S, CLOSE_TIMEOUT_S, LINGER_S
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient
from tests.memory_transport import StreamTransport
from tests.sessions.serving import Server, open_log, serving

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


async def test_a_client_that_closes_is_answered(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    await plugged.client.close()
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1000
    await plugged.client.stream.aclose()
    assert await plugged.ending.wait() is disconnects.GONE
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


async def test_a_client_that_takes_nothing_is_aborted(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected(trio.testing.lockstep_stream_pair)
    await plugged.client.subscribe()
    begun_at = trio.current_time()
    await server.append(1, 1)
    assert await plugged.ending.wait() is disconnects.TOO_SLOW
    assert plugged.ending.at - begun_at == pytest.approx(OPTIONS.send_timeout_s, abs=0.1)
    await server.ended()


async def test_shutdown_disconnects_all_clients_in_the_drain_time(server: Server, autojump_clock: MockClock) -> None:
    plugged = [await server.plug_connected() for _ in range(20)]
    await server.plug_connected(trio.testing.lockstep_stream_pair)  # this one never reads again
    received: list[float] = []

    async def receive_until_disconnected(client: StompClient) -> None:
        error, code = await error_and_close(client)
        assert (error.get("message"), code) == ("503-shutting-down", 1012)
        received.append(trio.current_time())
        await client.stream.aclose()

    async with trio.open_nursery() as nursery:
        for one in plugged:
            nursery.start_soon(receive_until_disconnected, one.client)
        begun_at = trio.current_time()
        await server.sessions.disconnect_all(0.1)
    assert len(received) == 20
    assert received == sorted(received)
    assert received[-1] - begun_at <= 0.1
    assert trio.current_time() - begun_at <= 0.1 + CLOSE_TIMEOUT_S + 0.01
    await server.ended()


async def test_new_clients_are_disconnected_during_shutdown(server: Server, autojump_clock: MockClock) -> None:
    await server.sessions.disconnect_all(0)
    plugged = server.plug()
    assert await plugged.ending.wait() is disconnects.SHUTTING_DOWN


class AskedLog(EventLog):
    """Counts how often it is asked for the length of an outage."""

    asked = 0

    @property
    def away_s(self) -> float:
        self.asked += 1
        return super().away_s


async def test_a_short_away_max_s_does_not_check_the_store_more_often(autojump_clock: MockClock) -> None:
    log, options = AskedLog(MemoryStore(), LogOptions(store="memory")), evolve(OPTIONS, away_max_s=0.001)
    await log.open()
    async with serving(log, options, listen=False) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.sessions.leave_unread_store, 0)
        await trio.sleep(10 * CHECK_STORE_EVERY_S)
        nursery.cancel_scope.cancel()
    assert 9 <= log.asked <= 10


async def test_an_unanswered_close_is_aborted_in_time(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    begun_at = trio.current_time()
    await plugged.client.send(Frame("DISCONNECT"))
    assert await plugged.ending.wait() is disconnects.DONE
    assert plugged.ending.at - begun_at <= CLOSE_TIMEOUT_S + LINGER_S
    await server.ended()


async def test_stream_ends_only_after_the_close_frame_of_the_client(server: Server, autojump_clock: MockClock) -> None:
    """A client that finds the stream ended before it has answered may report a broken connection."""
    plugged = await server.plug_connected()
    stream = plugged.client.stream
    await plugged.client.send(Frame("DISCONNECT"))
    assert (await stream.receive_some()).startswith(b"\x88")
    with trio.move_on_after(CLOSE_TIMEOUT_S / 2) as waiting:
        await stream.receive_some()
    assert waiting.cancelled_caught
    await stream.send_all(Connection(ConnectionType.CLIENT).send(CloseConnection(code=1000)))
    assert not await stream.receive_some()


async def test_disconnect_ends_the_subscriptions_before_its_receipt(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(trio.testing.lockstep_stream_pair)).client
    await client.subscribe()
    await client.send(Frame("DISCONNECT", (("receipt", "bye"),)))
    await trio.testing.wait_all_tasks_blocked()
    assert server.sessions.subscriptions == 0  # although the client has not read the RECEIPT
    await server.append(1, 1)
    assert (await client.receive()).get("receipt-id") == "bye"
    with pytest.raises(Closed):
        await client.receive()


@pytest.mark.parametrize("before", [0, 1, 100])
async def test_disconnect_and_immediate_close_get_a_close_frame(
    before: int, server: Server, autojump_clock: MockClock
) -> None:
    plugged = await server.plug_connected()
    websocket = Connection(ConnectionType.CLIENT)
    sent = b"".join(websocket.send(TextMessage(data=text)) for text in ["\n"] * before + ["DISCONNECT\n\n\0"])
    await plugged.client.stream.send_all(sent + websocket.send(CloseConnection(code=1000)))
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    assert closed.value.code == 1000
    await plugged.client.stream.aclose()
    assert await plugged.ending.wait() in (disconnects.DONE, disconnects.GONE)
    assert plugged.ending.at < CLOSE_TIMEOUT_S
    await server.ended()


async def test_a_ping_during_the_close_handshake_is_harmless(server: Server, autojump_clock: MockClock) -> None:
    plugged = await server.plug_connected()
    await plugged.client.send_text("NONSENSE\n\n\0")
    await trio.testing.wait_all_tasks_blocked()  # the Close frame is on its way and has not been read
    await plugged.client.ping()
    await trio.testing.wait_all_tasks_blocked()
    error, code = await error_and_close(plugged.client)
    assert (error.get("message"), code) == ("400-unknown-command", 1002)
    await plugged.client.stream.aclose()
    await plugged.ending.wait()
    assert plugged.ending.at < 0.5


async def test_a_new_epoch_disconnects_and_resets_clients(server: Server, autojump_clock: MockClock) -> None:
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


async def test_a_client_behind_the_retention_is_disconnected(autojump_clock: MockClock) -> None:
    log = await open_log(options=LogOptions(store="memory", tail_events=10))
    async with serving(log, OPTIONS, listen=False) as server:
        client = (await server.plug_connected()).client
        await client.subscribe(headers=[("ack", "client"), ("prefetch-count", "1")])
        await server.append(1, 30)
        first = await client.receive()
        await log.store.trim(age_s=3600, keep=5, limit=1000, unused_s=10**6)
        await server.append(31, 60)
        await log.store.trim(age_s=3600, keep=5, limit=1000, unused_s=10**6)
        await client.acknowledge(first)
        try:
            while (answer := await client.receive()).command == "MESSAGE":
                await client.acknowledge(answer)
        finally:
            assert answer.get("message") == "410-position-expired"


class BrokenStore(MemoryStore):
    """A store whose ``bounds``, which ``replay:all`` needs, has a bug."""

    async def bounds(self) -> NoReturn:
        raise RuntimeError("bug")


async def test_a_failure_in_one_session_ends_only_that_session(
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


async def test_a_connection_is_logged_without_its_input(server: Server, autojump_clock: MockClock) -> None:
    await trio.sleep(100)  # so that a time of the clock differs from a time since the connection began
    with capture_logs() as logs:
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
    assert [(line.pop("event"), line.pop("log_level"), line) for line in logs] == [
        ("connection opened", "debug", {"session": session, "address": "127.0.0.1", "user": None}),
        (
            "connection closed",
            "info",
            {
                "session": session, "address": "127.0.0.1", "user": None, "disconnect": "forbidden",
                "error": "403-send-not-allowed", "refused": None, "reason": None, "lasted_s": pytest.approx(5, abs=2),
            },
        ),
    ]  # fmt: skip


async def test_a_connection_aborted_at_shutdown_is_logged_as_closed(server: Server, autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    with capture_logs() as logs:
        async with trio.open_nursery() as connections:
            connections.start_soon(server.sessions.serve, StreamTransport(ours), server.slot())
            await trio.testing.wait_all_tasks_blocked()
            connections.cancel_scope.cancel()
    assert [line["event"] for line in logs] == ["connection closed"]
    await theirs.aclose()


async def test_connections_that_end_before_connect_do_not_flood_the_log(
    server: Server, autojump_clock: MockClock
) -> None:
    async def connect_and_leave(times: int) -> None:
        for _ in range(times):
            plugged = server.plug()
            await plugged.client.stream.send_all(b"G")
            await trio.aclose_forcefully(plugged.client.stream)
            await plugged.ending.wait()

    with capture_logs() as logs:
        await connect_and_leave(100)
        refused = server.plug()
        await refused.client.stream.send_all(b"GET /nowhere HTTP/1.1\r\n\r\n")
        await refused.ending.wait()
        for frame in Frame("CONNECT", (("accept-version", "9"),)), Frame("SUBSCRIBE"), Frame("SUBSCRIBE"):  # two faults
            wrong = server.plug()
            await wrong.client.upgrade()
            await wrong.client.send(frame)
            await wrong.ending.wait()
        await trio.sleep(LOG_EVERY_S)
        await connect_and_leave(2)
    lines = [line for line in logs if line["log_level"] != "debug"]
    assert [(line["event"], line["disconnect"], line["not_logged"]) for line in lines] == [
        ("connection closed", "gone", 0),
        ("connection closed", "refused", 0),
        ("connection closed", "protocol error", 0),
        ("connection closed", "protocol error", 0),
        ("connection closed", "gone", 99),
    ]
    assert len(logs) == 106


async def test_only_client_faults_are_counted_by_token(server: Server, autojump_clock: MockClock) -> None:
    plugged = [await server.plug_connected() for _ in range(3)]
    for wrong in plugged[:2]:
        await wrong.client.send(Frame("NONSENSE"))
        await wrong.ending.wait()
    await server.sessions.disconnect_all(1)
    ended = {name: count for name, count in server.sessions.disconnects.items() if count}
    assert ended == {"protocol error": 2, "shutting down": 1}
    assert {token: count for token, count in server.sessions.client_faults.items() if count} == {
        "400-unknown-command": 2
    }


async def test_a_client_with_unsent_events_is_behind(server: Server, autojump_clock: MockClock) -> None:
    client = (await server.plug_connected(trio.testing.lockstep_stream_pair)).client
    await client.subscribe()
    await trio.testing.wait_all_tasks_blocked()
    assert server.sessions.behind == 0
    await server.append(1, 1)
    await trio.testing.wait_all_tasks_blocked()
    assert server.sessions.behind == 1  # the cursor has moved; the client has not read the bytes
    await client.receive()
    await client.subscribe(subscription="1", headers=[("replay", "all")])
    await client.receive()
    await server.append(2, 400, size=1000)
    await trio.testing.wait_all_tasks_blocked()
    assert (len(server.sessions.clients), server.sessions.subscriptions, server.sessions.behind) == (1, 2, 1)
    for _ in range(2 * 399):
        await client.receive()
    await trio.testing.wait_all_tasks_blocked()
    assert (server.sessions.behind, server.sessions.services.batches.deliveries) == (0, 800)
    assert 800_000 < server.sessions.services.batches.bytes < 1_000_000


class WatchedTransport(StreamTransport):
    aborted = False

    async def abort(self) -> None:
        self.aborted = True
        await super().abort()


async def test_a_blocked_client_is_disconnected_when_its_events_are_trimmed(autojump_clock: MockClock) -> None:
    log = await open_log(options=LogOptions(store="memory", tail_events=10))
    async with serving(log, evolve(OPTIONS, send_timeout_s=1000), listen=False) as server:
        ours, theirs = trio.testing.lockstep_stream_pair()
        transport, client = WatchedTransport(ours), StompClient(theirs)
        ending = server.start(transport)
        await client.upgrade()
        await client.connect()
        await client.subscribe()
        for first in (1, 2, 32):  # the first one has been sent, and the client does not read it
            await server.append(first, max(1, first + 28))
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(100)
        assert ending.reason is None, "as long as everything is retained it may be slow"
        begun_at = trio.current_time()
        await log.store.trim(age_s=3600, keep=5, limit=1000, unused_s=10**6)
        assert await ending.wait() is disconnects.POSITION_EXPIRED
        assert ending.at - begun_at <= WATCH_EVERY_S + CLOSE_TIMEOUT_S + LINGER_S
        assert transport.aborted
        assert (
            server.sessions.disconnects["position expired"],
            server.sessions.client_faults["410-position-expired"],
        ) == (1, 1)
        await server.ended()


class AwayStore(MemoryStore):
    """A store that is unavailable: it raises, or does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.mood = "there"

    async def bounds(self) -> Bounds:
        if self.mood == "silent":
            await trio.sleep_forever()
        if self.mood == "away":
            raise StoreUnavailable("away")
        return await super().bounds()


@pytest.mark.parametrize("heart_beats", [0, 5])
@pytest.mark.parametrize("mood", ["away", "silent"])
async def test_leaving_during_a_waiting_subscribe_is_noticed_at_once(
    mood: str, heart_beats: int, autojump_clock: MockClock
) -> None:
    store = AwayStore()
    log = await open_log(store)
    async with serving(log, OPTIONS, listen=False) as server:
        plugged = await server.plug_connected()
        store.mood = mood
        await plugged.client.send(Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("replay", "all"))))
        for _ in range(heart_beats if mood == "away" else min(heart_beats, 1)):
            await trio.sleep(5)
            await plugged.client.send_text("\n")
        await trio.sleep(100)
        assert plugged.ending.reason is None
        begun_at = trio.current_time()
        await plugged.client.stream.aclose()
        assert await plugged.ending.wait() is disconnects.GONE
        assert plugged.ending.at - begun_at < 0.1
        await server.ended()


async def test_messages_during_a_waiting_subscribe_are_handled_after_it(autojump_clock: MockClock) -> None:
    store = AwayStore()
    log = await open_log(store)
    async with serving(log, OPTIONS, listen=False) as server:
        client = (await server.plug_connected()).client
        store.mood = "away"
        for number in range(20):
            headers = (("id", str(number)), ("destination", "/events"), ("replay", "all"), ("receipt", str(number)))
            await client.send(Frame("SUBSCRIBE" if number < 10 else "UNSUBSCRIBE", headers))
        await trio.sleep(100)
        store.mood = "there"
        assert [(await client.receive()).get("receipt-id") for _ in range(20)] == [str(number) for number in range(20)]
