"""The wire contract, "Event streams": each line over streams in memory, or over sockets where admission matters."""

import time
from collections.abc import AsyncGenerator, Sequence

import pytest
import trio
import trio.testing
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.admin.endpoints import connection_page
from airy_trio.auth.users import AuthOptions
from airy_trio.delivery import disconnects
from airy_trio.delivery.client import ClientState, EncodedBatch, ReplayOptions, Subscription
from airy_trio.delivery.disconnects import DisconnectReason
from airy_trio.delivery.fanout import Batches
from airy_trio.delivery.framing import RETRY_MS_MAX, RETRY_MS_MIN
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.current import Marks
from airy_trio.log.options import LogOptions
from airy_trio.log.store import NewEvent, Position, StateChange
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.websocket.event_stream import RETRY_LATER_MS
from tests.auth.signing import SECRET, issuer
from tests.delegating_store import DelegatingStore
from tests.event_stream import HOST, EventStream, Headers, requesting
from tests.log.places import fold
from tests.sessions.serving import Server, event, open_log, serving

OPTIONS = ListenerOptions(port=0, heartbeat_ms=30_000)
TOKENS = AuthOptions(mode="tokens", tokens={"ann": "s3cret"}, cookie="airy")
SIGNER = issuer("HS256")
WEB_TOKENS = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
GRANTS = evolve(WEB_TOKENS, jwt_channels_claim="channels", jwt_destinations_claim="destinations")
ORIGIN = "https://chat.example.org"


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    async with serving(options=OPTIONS, listen=False) as server:
        yield server


async def get(server: Server, target: str = "/events", *, method: str = "GET", headers: Headers = ()) -> EventStream:
    """Request a stream over streams in memory."""
    return await EventStream(server.plug().client.stream).request(target, method=method, headers=headers)


async def offsets(stream: EventStream, count: int) -> list[int]:
    found = [await stream.receive() for _ in range(count)]
    assert {one.type for one in found} <= {"message"}
    return [int(one.id.rpartition("-")[2]) for one in found]


async def disconnected(stream: EventStream) -> str:
    """Return the token of the last event, which must come next."""
    last = await stream.receive()
    assert last.type == "disconnect"
    with pytest.raises(EOFError):
        await stream.receive()
    assert set(last.json) == {"token", "reason"}
    return str(last.json["token"])


# Line 25
async def test_response_is_a_stream_that_nothing_stores_or_buffers(server: Server, autojump_clock: MockClock) -> None:
    stream = await get(server)
    assert (stream.status, stream.headers) == (
        200,
        {
            "content-type": "text/event-stream",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "connection": "close",
        },
    )
    await stream.subscribed()
    await stream.stream.aclose()
    assert await server.endings[0].wait() is disconnects.GONE
    await server.ended()


@pytest.mark.parametrize(
    "target, expected",
    [
        ("/events", [1, 2, 3, 4]),
        ("/events/tag.updated", [4]),
        ("/events/channel/ch%2F1", [1, 3]),
        ("/events/conversation/c%C3%A4", [1]),
    ],
)
async def test_paths_are_the_destinations(
    target: str, expected: Sequence[int], server: Server, autojump_clock: MockClock
) -> None:
    stream = await get(server, target)
    await stream.subscribed()
    made = [
        event(1, conversation="cä", channel="ch/1"),
        event(2, conversation="c", channel="ch"),
        event(3, conversation="c", channel="ch/1"),
        event(4, conversation=None, channel=None, kind="tag.updated"),
    ]
    await server.log.append(server.log.head, made, "point")
    assert await offsets(stream, len(expected)) == list(expected)
    (connection,) = connection_page(server.sessions.clients, after=0, limit=10, behind=False)["connections"]
    assert connection["subscriptions"][0]["destination"].casefold() == target.casefold()


async def test_streams_have_a_path_of_their_own_or_none(autojump_clock: MockClock) -> None:
    async with serving(options=evolve(OPTIONS, sse_path="/sse"), listen=False) as server:
        await (await get(server, "/sse/tag.updated")).subscribed()
        assert (await get(server, "/events")).status == 404
        assert (await get(server, "/sse2")).status == 404
    async with serving(options=evolve(OPTIONS, sse_path=""), listen=False) as server:
        for target in ("/events", "/", "//events"):
            assert (await get(server, target)).status == 404


# Line 26
async def test_event_has_the_message_id_and_the_body_of_stomp(server: Server, autojump_clock: MockClock) -> None:
    stomp = (await server.plug_connected()).client
    await stomp.subscribe()
    stream = await get(server)
    await stream.subscribed()
    await server.append(1, 3)
    for _ in range(3):
        message, same = await stomp.receive(), await stream.receive()
        assert (same.type, same.id, same.data.encode()) == ("message", message.get("message-id"), message.body)


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
async def test_line_ends_in_a_body_become_lf(line_end: bytes, server: Server, autojump_clock: MockClock) -> None:
    body = line_end.join((b"{", b'"a": 1', b"", b"}"))
    stream = await get(server)
    await stream.subscribed()
    await server.log.append(server.log.head, [NewEvent("tag.updated", "tag:1", None, None, body)], "point")
    received = await stream.receive()
    assert (received.data, received.json) == ('{\n"a": 1\n\n}', {"a": 1})


async def test_streams_share_batches_and_stomp_has_its_own(server: Server, autojump_clock: MockClock) -> None:
    stomp = (await server.plug_connected()).client
    await stomp.subscribe(headers=[("replay", "none")])
    streams = [await get(server, "/events?replay=none") for _ in range(2)]
    for stream in streams:
        await stream.subscribed()
    await server.append(1, 1)
    await stomp.receive()
    for stream in streams:
        await stream.receive()
    one, *others = (next(iter(client.subscriptions.values())) for client in server.clients)
    assert others[0].prefix is others[1].prefix is not one.prefix
    assert server.sessions.services.batches.deliveries == 3


# Line 27
async def test_first_event_states_resume_and_position(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    head = str(server.log.head)
    stream = await get(server, "/events?replay=none")
    first = await stream.receive()
    assert (first.type, first.json, first.id) == ("subscribed", {"position": head, "resume": "live"}, head)


async def test_stream_cut_off_in_the_recent_window_resumes_there(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    first = await (await get(server)).receive()
    assert (first.id, first.json["position"]) == (str(server.log.head.at(0)), str(server.log.head.at(0)))
    stream = await get(server, headers=[("Last-Event-ID", first.id)])
    assert (await stream.subscribed())["resume"] == "resumed"
    assert await offsets(stream, 2) == [1, 2]


async def test_current_state_ends_with_an_event_for_its_end(server: Server, autojump_clock: MockClock) -> None:
    tags = frozenset({"tag.updated"})
    change = StateChange(
        generation="state0", marks=str(Marks(kept=STATE_TYPES, types=tags, whole={"tag.updated": 0})), ended=["gone"]
    )
    new = [event(1), event(2, obj="gone"), event(3)]
    await server.log.append(server.log.head, new, "point", state=change)
    await fold(server.log.store, "state0")
    stream = await get(server, "/events?replay=current")
    head = server.log.head
    assert await stream.subscribed() == {
        "position": str(head.at(0)), "resume": "live", "state": "current", "until": str(head),
    }  # fmt: skip
    assert await offsets(stream, 2) == [1, 3]
    complete = await stream.receive()
    assert (complete.type, complete.json, complete.id) == ("state", {"state": "complete"}, str(head))
    await server.append(4, 4)
    assert await offsets(stream, 1) == [4]
    again = await get(server, "/events?replay=current", headers=[("Last-Event-ID", str(head.at(1)))])
    assert await again.subscribed() == {"position": str(head.at(1)), "resume": "resumed"}
    assert await offsets(again, 3) == [2, 3, 4]


async def test_position_of_a_stream_without_events_can_be_resumed(server: Server, autojump_clock: MockClock) -> None:
    first = await (await get(server)).receive()
    await server.append(1, 2)
    stream = await get(server, headers=[("Last-Event-ID", first.id)])
    assert await stream.subscribed() == {"position": first.id, "resume": "resumed"}
    assert await offsets(stream, 2) == [1, 2]


# Line 28
@pytest.mark.parametrize(
    "target, header, expected",
    [
        ("/events", "2", ("resumed", [3, 4])),
        ("/events?last-event-id={}3", None, ("resumed", [4])),
        ("/events?last-event-id={}1", "3", ("resumed", [4])),
        ("/events?replay=none", "2", ("resumed", [3, 4])),
        ("/events?replay=all", None, ("live", [1, 2, 3, 4])),
        ("/events?replay=none", None, ("live", [])),
        ("/events?last-event-id=&other=1", None, ("live", [1, 2, 3, 4])),
        ("/events?last-event-id=nonsense", None, ("reset-epoch", [1, 2, 3, 4])),
        ("/events", "99", ("reset-epoch", [1, 2, 3, 4])),
    ],
)
async def test_where_a_stream_begins(
    target: str, header: str | None, expected: tuple[str, list[int]], server: Server, autojump_clock: MockClock
) -> None:
    await server.append(1, 4)
    epoch = f"{server.log.epoch}-"
    headers = [] if header is None else [("Last-Event-ID", epoch + header)]
    stream = await get(server, target.format(epoch), headers=headers)
    resume, numbers = expected
    assert (await stream.subscribed())["resume"] == resume
    await server.append(5, 5)
    assert await offsets(stream, len(numbers) + 1) == [*numbers, 5]


@pytest.mark.parametrize(
    "query", ["replay=some", "replay=none&replay=all", "last-event-id=%ff", "&".join(f"a{n}=" for n in range(17))]
)
async def test_unreadable_query_is_400(query: str, server: Server, autojump_clock: MockClock) -> None:
    assert (await get(server, f"/events?{query}")).status == 400


async def test_returning_streams_share_what_they_lack(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 3)
    headers = [("Last-Event-ID", f"{server.log.epoch}-1")]
    written: list[EncodedBatch] = []
    commit = Batches.commit

    def recorded(self: Batches, subscription: Subscription, batch: EncodedBatch, now: float) -> None:
        written.append(batch)
        commit(self, subscription, batch, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "commit", recorded)
        for _ in range(3):
            stream = await get(server, headers=headers)
            await stream.subscribed()
            assert await offsets(stream, 2) == [2, 3]
    assert written[0] is written[1] is written[2]


# Line 29
@pytest.mark.parametrize(
    "headers, status",
    [
        ([("Authorization", "Bearer s3cret")], 200),
        ([("Cookie", "a=b; airy=s3cret")], 200),
        ([("Authorization", "Bearer wrong"), ("Cookie", "airy=s3cret")], 401),
        ([("Cookie", "airy=s3cret; airy=s3cret")], 401),
        ([], 401),
    ],
)
async def test_credentials_are_those_of_an_upgrade(headers: Headers, status: int, autojump_clock: MockClock) -> None:
    async with serving(options=OPTIONS, auth=TOKENS, listen=False) as server:
        begun_at = trio.current_time()
        with capture_logs() as logs:
            stream = await get(server, "/events/nonsense" if status == 401 else "/events", headers=headers)
            assert stream.status == status
            if status == 401:
                assert stream.headers["www-authenticate"] == "Bearer"
                assert (await stream.body()).startswith(b"401-unauthorized: ")
                assert trio.current_time() > begun_at  # guessing is slowed down
            await stream.stream.aclose()
            await server.endings[0].wait()
        ended = [line for line in logs if line["event"] == "connection closed"]
        assert [line["user"] for line in ended] == ["ann" if status == 200 else None]
        assert "s3cret" not in str(logs)


async def test_stream_ends_with_its_token(autojump_clock: MockClock) -> None:
    async with serving(options=OPTIONS, auth=WEB_TOKENS, listen=False) as server:
        token = SIGNER.token(exp=int(time.time()) + 60)
        credentials = [("Authorization", f"Bearer {token}")]
        stream = await get(server, headers=credentials)
        await stream.subscribed()
        assert await disconnected(stream) == "401-token-expired"
        assert await server.endings[0].wait() is disconnects.TOKEN_EXPIRED
        old = [("Authorization", f"Bearer {SIGNER.token(exp=1)}")]
        again = await get(server, headers=[*old, ("Last-Event-ID", stream.parser.last_id)])
        assert (again.status, again.headers["www-authenticate"]) == (401, "Bearer")


async def test_renewed_credentials_end_a_stream(autojump_clock: MockClock) -> None:
    async with serving(options=OPTIONS, auth=TOKENS, listen=False) as server:
        stream = await get(server, headers=[("Authorization", "Bearer s3cret")])
        await stream.subscribed()
        server.sessions.renew(evolve(TOKENS, tokens={"ann": "another"}))
        assert await disconnected(stream) == "401-unauthorized"


# Line 30
@pytest.mark.parametrize("heartbeat_ms", [500, 30_000])
async def test_comment_is_sent_in_each_interval_without_events(heartbeat_ms: int, autojump_clock: MockClock) -> None:
    async with serving(options=evolve(OPTIONS, heartbeat_ms=heartbeat_ms), listen=False) as server:
        stream = await get(server)
        await stream.subscribed()
        retry_ms = stream.parser.retry
        assert retry_ms is not None
        assert RETRY_MS_MIN <= retry_ms <= RETRY_MS_MAX
        with trio.move_on_after(10.5 * heartbeat_ms / 1000):
            await stream.receive()
        assert 10 <= stream.parser.comments <= 13  # each may be up to 0.1 s early


async def test_client_that_sends_nothing_is_served_for_days(autojump_clock: MockClock) -> None:
    async with serving(options=evolve(OPTIONS, heartbeat_ms=0), listen=False) as server:
        stream = await get(server)
        await stream.subscribed()
        await trio.sleep(3 * 86_400)
        await server.append(1, 1)
        assert await offsets(stream, 1) == [1]
        assert stream.parser.comments == 0


class AwayStore(DelegatingStore):
    """A store that is unavailable for the recent window until ``back`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.back = trio.Event()

    async def since(self, age_s: float) -> Position:
        """See ``EventStore.since``."""
        await self.back.wait()
        return await super().since(age_s)


async def test_stream_begins_with_heart_beats_while_the_store_is_away(autojump_clock: MockClock) -> None:
    store = AwayStore()
    log = await open_log(store, LogOptions(store="memory", tail_events=1))
    await log.append(log.head, [event(number) for number in range(1, 4)], "point")
    async with serving(log, OPTIONS, ReplayOptions(), listen=False) as server:
        stream = EventStream(server.plug().client.stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.request)
            await trio.sleep(95)
            assert stream.status == 200
            store.back.set()
        assert (await stream.subscribed())["resume"] == "live"
        assert stream.parser.comments == 3
        assert await offsets(stream, 3) == [1, 2, 3]


# Line 31
@pytest.mark.parametrize(
    "reason, token",
    [
        (disconnects.SHUTTING_DOWN, "503-shutting-down"),
        (disconnects.POSITION_EXPIRED, "410-position-expired"),
        (disconnects.INTERNAL, "500-internal"),
        (disconnects.FORBIDDEN, "403-forbidden"),
    ],
)
async def test_last_event_has_the_reason(
    reason: DisconnectReason, token: str, server: Server, autojump_clock: MockClock
) -> None:
    stream = await get(server)
    await stream.subscribed()
    server.clients[0].disconnect(reason)
    assert await disconnected(stream) == token
    assert await server.endings[0].wait() is reason
    await server.ended()


async def test_streams_are_drained(server: Server, autojump_clock: MockClock) -> None:
    streams = [await get(server) for _ in range(5)]
    for stream in streams:
        await stream.subscribed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.sessions.disconnect_all, 10)
        assert [await disconnected(stream) for stream in streams] == ["503-shutting-down"] * 5
    assert server.sessions.disconnects["shutting down"] == 5


async def test_input_after_the_request_ends_the_stream(server: Server, autojump_clock: MockClock) -> None:
    stream = await get(server)
    await stream.subscribed()
    await stream.stream.send_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await disconnected(stream) == "400-protocol-error"
    await server.ended()
    assert server.sessions.client_faults["400-protocol-error"] == 1


# Line 32
@pytest.mark.parametrize("returning, status", [(False, 404), (True, 204)])
async def test_unknown_destination_is_404_and_204_for_a_returning_client(
    returning: bool, status: int, server: Server, autojump_clock: MockClock
) -> None:
    headers = [("Last-Event-ID", str(server.log.head))] if returning else []
    for target in ("/events/nonsense", "/events/", "/events/channel", "/events/channel/%ff"):
        stream = await get(server, target, headers=headers)
        assert stream.status == status
        body = await stream.body()
        assert body == b"" if returning else body.startswith(b"404-unknown-destination: ")
        await stream.stream.aclose()
    await server.ended()
    assert server.sessions.client_faults["404-unknown-destination"] == 4


@pytest.mark.parametrize("returning, status", [(False, 403), (True, 204)])
async def test_foreign_destination_is_403_and_204_for_a_returning_client(
    returning: bool, status: int, autojump_clock: MockClock
) -> None:
    async with serving(options=OPTIONS, auth=GRANTS, listen=False) as server:
        await server.log.append(server.log.head, [event(1, conversation="c2", channel="ch2")], "point")
        headers = [("Authorization", f"Bearer {SIGNER.token(channels=['ch1'])}")]
        headers += [("Last-Event-ID", str(server.log.head))] if returning else []
        for target in ("/events/channel/ch2", "/events/conversation/c2"):
            assert (await get(server, target, headers=headers)).status == status
        await (await get(server, "/events/channel/ch1", headers=headers)).subscribed()


async def test_refusal_that_may_be_over_soon_is_a_stream() -> None:
    """An ``EventSource`` would not reconnect after any other status."""
    options = evolve(OPTIONS, subscriptions_per_address_max=1)
    async with serving(options=options) as server:
        with trio.fail_after(20):
            async with requesting(server.port) as first:
                await first.subscribed()
                async with requesting(server.port) as second:
                    assert second.status == 200
                    assert await disconnected(second) == "429-too-many-subscriptions"
                    assert second.parser.retry == RETRY_LATER_MS
                server.sessions.admission.suspended = True
                async with requesting(server.port, headers=[("Origin", f"http://127.0.0.1:{server.port}")]) as third:
                    assert third.headers["access-control-allow-origin"] == f"http://127.0.0.1:{server.port}"
                    with pytest.raises(EOFError):
                        await third.receive()
                    assert (third.parser.comments, third.parser.retry) == (1, RETRY_LATER_MS)
            assert server.sessions.services.requests_refused[503] == 1


@pytest.mark.parametrize(
    "headers, target, status",
    [
        ([], "/events", 200),
        ([("Origin", ORIGIN)], "/events", 200),
        ([("Origin", "https://other.example")], "/events", 503),
        ([], "/events?replay=some", 503),
        ([], "/ws.communication", 503),
    ],
)
async def test_connection_beyond_a_limit_is_a_stream_that_ends_too(headers: Headers, target: str, status: int) -> None:
    options = evolve(OPTIONS, connections_max=1, allowed_origins=[ORIGIN])
    async with serving(options=options) as server:
        with trio.fail_after(20):
            async with requesting(server.port) as first:
                await first.subscribed()
                async with requesting(server.port, target, headers=headers) as second:
                    assert second.status == status
                    if status == 200:
                        assert second.headers.get("access-control-allow-origin") == dict(headers).get("Origin")
                        with pytest.raises(EOFError):
                            await second.receive()
                        assert (second.parser.comments, second.parser.retry) == (1, RETRY_LATER_MS)


async def test_request_in_pieces_beyond_a_limit_is_a_stream_too() -> None:
    """A request with a large cookie takes several packets, and the first one does not show the requested path."""
    async with serving(options=evolve(OPTIONS, connections_max=1)) as server:
        with trio.fail_after(20):
            async with requesting(server.port) as first, await trio.open_tcp_stream(HOST, server.port) as second:
                await first.subscribed()
                for piece in (b"GET /eve", b"nts HTTP/1.1\r\nHost: localhost\r\nCookie: ", b"x" * 5000, b"\r\n\r\n"):
                    await second.send_all(piece)
                    await trio.sleep(0.05)
                answer = b"".join([octets async for octets in second])
                assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")


async def test_incomplete_request_beyond_a_limit_is_refused_at_its_end() -> None:
    async with serving(options=evolve(OPTIONS, connections_max=1)) as server:
        with trio.fail_after(20):
            async with requesting(server.port) as first, await trio.open_tcp_stream(HOST, server.port) as second:
                await first.subscribed()
                await second.send_all(b"GET /eve")
                await second.send_eof()
                answer = b"".join([octets async for octets in second])
                assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


# Line 33
@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "get", "X-Y"])
async def test_only_get_reads_events(method: str, server: Server, autojump_clock: MockClock) -> None:
    stream = server.plug().client.stream
    await stream.send_all(f"{method} /events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    async for octets in stream:
        answer += octets
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, OPTIONS" in head
    assert bool(body) is (method != "HEAD")
    assert (await server.endings[0].wait()).name == disconnects.REFUSED.name


async def test_preflight_request_of_an_allowed_origin_is_answered() -> None:
    preflight = [("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "authorization")]
    async with serving(options=evolve(OPTIONS, allowed_origins=[ORIGIN]), auth=TOKENS) as server:
        with trio.fail_after(20):
            for origin, status in ((ORIGIN, 204), ("https://other.example", 403), ("null", 403)):
                headers = [("Origin", origin), *preflight]
                async with requesting(server.port, method="OPTIONS", headers=headers) as answer:
                    assert (answer.status, await answer.body() == b"") == (status, status == 204)
                    assert ("content-length" in answer.headers) is (status == 403)
                    if status == 403:
                        assert "access-control-allow-origin" not in answer.headers
                        continue
                    assert answer.headers["access-control-allow-origin"] == ORIGIN
                    assert answer.headers["access-control-allow-credentials"] == "true"
                    assert answer.headers["access-control-allow-methods"] == "GET"
                    assert "Authorization" in answer.headers["access-control-allow-headers"]
                    assert "Last-Event-ID" in answer.headers["access-control-allow-headers"]
            await server.ended()
            assert server.sessions.services.requests_refused[403] == 2


async def test_page_of_an_allowed_origin_may_read_stream_and_refusal() -> None:
    async with serving(options=evolve(OPTIONS, allowed_origins=[ORIGIN]), auth=TOKENS) as server:
        with trio.fail_after(20):
            for cookie, status in (("airy=s3cret", 200), ("airy=wrong", 401)):
                headers = [("Origin", ORIGIN), ("Cookie", cookie)]
                async with requesting(server.port, headers=headers) as answer:
                    assert answer.status == status
                    assert answer.headers["access-control-allow-origin"] == ORIGIN
                    assert answer.headers["access-control-allow-credentials"] == "true"
                    assert answer.headers["vary"] == "Origin"


async def test_longest_path_and_one_beyond(server: Server, autojump_clock: MockClock) -> None:
    longest = "/events/channel/" + "x" * (512 - len("/channel/"))
    await (await get(server, longest)).subscribed()
    assert (await get(server, longest + "x")).status == 414


async def test_slow_stream_is_a_cursor_that_catches_up() -> None:
    """Nothing is queued for it: at most one batch waits, whatever it has missed."""
    count = 400
    async with serving(options=OPTIONS) as server:
        with trio.fail_after(30):
            async with requesting(server.port) as slow, requesting(server.port) as live:
                await live.subscribed()
                for number in range(1, count + 1, 10):
                    await server.append(number, number + 9, size=20_000)
                    assert await offsets(live, 10) == list(range(number, number + 10))
                client = server.clients[0]
                (subscription,) = client.subscriptions.values()
                assert client.state is ClientState.BEHIND
                assert server.sessions.behind == 1
                assert subscription.position.offset < count
                await slow.subscribed()
                assert await offsets(slow, count) == list(range(1, count + 1))
                await server.append(count + 1, count + 1)
                assert await offsets(slow, 1) == [count + 1]


async def test_stream_that_takes_nothing_is_reset() -> None:
    async with serving(options=evolve(OPTIONS, send_timeout_s=0.2)) as server:
        with trio.fail_after(30):
            async with requesting(server.port) as slow, requesting(server.port) as live:
                number = 1
                while len(server.sessions.clients) == 2:
                    await server.append(number, number + 9, size=50_000)
                    number += 10
                    with trio.move_on_after(0.05):
                        await live.receive()
                assert server.sessions.disconnects["too slow"] == 1
                with pytest.raises(trio.BrokenResourceError):
                    await slow.body()
