"""Limits of connections over real sockets: those beyond a limit are rejected, and ended ones no longer count."""

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.retry import LOG_EVERY_S
from airy_trio.sessions import listener
from airy_trio.sessions.heartbeats import UNANSWERED_MAX_S
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, Rejected, StompClient, connect
from airy_trio.websocket.admission import Admission, AdmissionOptions
from airy_trio.websocket.request import RequestRefusedError
from tests.sessions.serving import HOST, Server, serving
from tests.websocket.test_request import head


@asynccontextmanager
async def limited(
    *, total: int = 20_000, per_address: int = 200, proxies: tuple[str, ...] = ()
) -> AsyncGenerator[Server]:
    options = ListenerOptions(
        port=0, connections_max=total, connections_per_address_max=per_address, trusted_proxies=list(proxies)
    )
    with trio.fail_after(20):
        async with serving(options=options) as server:
            yield server


async def dial_from(server: Server, address: str) -> StompClient:
    """Connect a client from its own address on this machine."""
    stream = await trio.open_tcp_stream(HOST, server.port, local_address=address)
    client = StompClient(stream)
    try:
        await client.upgrade()
        await client.connect()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return client


async def answer_to(server: Server, request: bytes) -> bytes:
    async with await trio.open_tcp_stream(HOST, server.port) as stream:
        await stream.send_all(request)
        answer = b""
        async for data in stream:
            answer += data
    return answer


def forwarded(*values: str) -> bytes:
    return head(*(f"X-Forwarded-For: {value}" for value in values))


async def test_beyond_the_total_is_503_until_a_connection_ends() -> None:
    async with limited(total=2) as server:
        async with await server.dial(), await server.dial():
            with capture_logs() as logs, pytest.raises(Rejected) as rejected:
                await server.dial()
            assert rejected.value.status == 503
            assert b"\r\nRetry-After: 5\r\n" in await answer_to(server, head())
            assert (len(server.sessions.clients), server.sessions.admission.connections) == (2, 2)
            assert server.sessions.admission.turned_away["connections_max"] == 2
        assert [line["event"] for line in logs] == ["connections turned away"]
        assert logs[0]["setting"] == "listener.connections_max"
        await server.ended()
        async with await server.dial():
            assert server.sessions.admission.connections == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives every machine the addresses 127.0.0.0/8")
async def test_address_beyond_its_limit_alone_gets_503() -> None:
    async with limited(per_address=2) as server, AsyncExitStack() as clients:
        for _ in range(2):
            await clients.enter_async_context(await dial_from(server, "127.0.0.2"))
        with pytest.raises(Rejected) as rejected:
            await dial_from(server, "127.0.0.2")
        assert rejected.value.status == 503
        async with await dial_from(server, "127.0.0.3"):
            assert (server.sessions.admission.connections, len(server.sessions.admission.by_address)) == (3, 2)
            assert server.sessions.admission.turned_away["connections_per_address_max"] == 1


@pytest.mark.slow
async def test_subscriptions_are_counted_by_address() -> None:
    options = ListenerOptions(port=0, subscriptions_per_address_max=3)
    async with serving(options=options) as server, AsyncExitStack() as clients:
        with trio.fail_after(20), capture_logs() as logs:
            first, second = [await clients.enter_async_context(await server.dial()) for _ in range(2)]
            for client, name in ((first, "a"), (first, "b"), (second, "a")):
                assert (await client.subscribe(subscription=name)).command == "RECEIPT"
            error = await second.subscribe(subscription="b")
            assert (error.command, error.get("message")) == ("ERROR", "429-too-many-subscriptions")
            with pytest.raises(Closed) as closed:
                await second.receive()
            assert closed.value.code == 1013
            assert b"subscriptions_per_address_max" not in error.body
            third = await clients.enter_async_context(await server.dial())
            while len(server.sessions.clients) > 2:  # noqa: ASYNC110 - only then its place is free
                await trio.lowlevel.checkpoint()
            assert (await third.subscribe(subscription="a")).command == "RECEIPT"
            await first.send(Frame("UNSUBSCRIBE", (("id", "b"), ("receipt", "r"))))
            assert (await first.receive()).command == "RECEIPT"
            assert (await third.subscribe(subscription="b")).command == "RECEIPT"
            assert (await third.subscribe(subscription="c")).command == "ERROR"
    reasons = [line["reason"] for line in logs if line.get("error") == "429-too-many-subscriptions"]
    assert set(reasons) == {"listener.subscriptions_per_address_max is reached"}


@pytest.mark.parametrize("limit, allowed", [(0, 20), (5, 5)])
def test_default_subscriptions_of_an_address_are_ten_per_connection(limit: int, allowed: int) -> None:
    options = AdmissionOptions(connections_per_address_max=2, subscriptions_per_address_max=limit)
    admission = Admission(options)
    one, other = (admission.arrive("192.0.2.1", loopback=False) for _ in range(2))
    assert sum(one.subscribe() for _ in range(30)) == allowed
    assert not other.subscribe()
    one.leave()
    assert other.subscribe()


async def test_vanished_client_is_no_longer_counted(autojump_clock: MockClock) -> None:
    options = ListenerOptions(port=0, connections_per_address_max=1)
    async with serving(options=options) as server, await server.dial():  # it reads nothing, and answers no PING
        await trio.sleep(UNANSWERED_MAX_S / 2)
        with pytest.raises(Rejected):
            await server.dial()
        await trio.sleep(UNANSWERED_MAX_S)
        async with await server.dial() as newcomer:
            assert (await newcomer.subscribe()).command == "RECEIPT"


async def test_direct_client_beyond_the_limit_costs_no_session() -> None:
    async with (
        limited(per_address=1) as server,
        await server.dial(),
        await trio.open_tcp_stream(HOST, server.port) as stream,
    ):
        await stream.send_all(head())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 503 ")
        assert len(server.sessions.clients) == 1


async def test_rejections_at_one_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "REJECTIONS_MAX", 1)
    async with limited(total=1) as server, await server.dial():
        async with await trio.open_tcp_stream(HOST, server.port) as first:
            await first.send_all(head())
            assert (await first.receive_some()).startswith(b"HTTP/1.1 503 ")
            async with await trio.open_tcp_stream(HOST, server.port) as second:
                with pytest.raises(trio.BrokenResourceError):
                    await second.receive_some()
        assert server.sessions.admission.turned_away["connections_max"] == 2


async def test_rejected_client_that_stays_is_cut() -> None:
    async with limited(total=1) as server, await server.dial(), await trio.open_tcp_stream(HOST, server.port) as stays:
        await stays.send_all(head())
        assert (await stays.receive_some()).startswith(b"HTTP/1.1 503 ")
        with trio.fail_after(5):
            while len(server.connections.child_tasks) > 2:  # noqa: ASYNC110 - the session and its reader stay
                await trio.sleep(0.01)


@pytest.mark.slow
async def test_rejected_client_that_requests_nothing_is_cut() -> None:
    async with limited(total=1) as server, await server.dial(), await trio.open_tcp_stream(HOST, server.port) as silent:
        with pytest.raises(trio.BrokenResourceError):
            await silent.receive_some()


async def test_behind_a_proxy_clients_are_counted_by_their_own_addresses() -> None:
    async with limited(per_address=1, proxies=(HOST,)) as server, AsyncExitStack() as streams:
        expected: Mapping[bytes, bytes] = {
            forwarded("192.0.2.1"): b"101",
            forwarded("192.0.2.2"): b"101",
            forwarded("192.0.2.7, 192.0.2.1"): b"503",  # what a client claims to the left counts for nothing
            forwarded("192.0.2.1", "127.0.0.1"): b"503",
            forwarded("2001:db8::1"): b"101",
            forwarded("2001:db8::2"): b"503",  # of the same 64 bits
            forwarded("::ffff:192.0.2.2"): b"503",
            head(): b"101",  # the proxy itself, without a forwarded address
            forwarded("unknown"): b"503",
        }
        for request, status in expected.items():
            stream = await streams.enter_async_context(await trio.open_tcp_stream(HOST, server.port))
            await stream.send_all(request)
            assert (await stream.receive_some()).split(b" ")[1] == status, request
        assert server.sessions.admission.turned_away["connections_per_address_max"] == 5


async def test_only_a_trusted_proxy_can_forward_an_address() -> None:
    async with limited(per_address=1) as server, await trio.open_tcp_stream(HOST, server.port) as stream:
        await stream.send_all(forwarded("192.0.2.1"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        assert (await answer_to(server, forwarded("192.0.2.2"))).startswith(b"HTTP/1.1 503 ")


async def test_the_log_names_the_client_behind_the_proxy() -> None:
    async with limited(proxies=(HOST,)) as server:
        with capture_logs() as logs:
            async with await trio.open_tcp_stream(HOST, server.port) as stream:
                await stream.send_all(forwarded("192.0.2.1"))
                await stream.receive_some()
            await server.ended()
            with trio.fail_after(5):
                while not logs:  # noqa: ASYNC110 - a log has no event for this
                    await trio.lowlevel.checkpoint()
    assert [(line["event"], line["address"]) for line in logs] == [("connection closed", "192.0.2.1")]


async def test_the_log_names_the_refused_origin_and_its_setting() -> None:
    async with limited() as server:
        with capture_logs() as logs:
            answer = await answer_to(server, head("Origin: http://other.example"))
            await server.ended()
    assert b"other.example" not in answer
    (line,) = [line for line in logs if line["event"] == "connection closed"]
    assert line["refused"] == "403: This origin is not allowed."
    assert "'http://other.example'" in line["reason"]
    assert "listener.allowed_origins" in line["reason"]


@pytest.mark.parametrize("name", ["Origin", "Host", "no Host"])
async def test_distinct_headers_share_one_line_of_the_log(name: str) -> None:
    values = [f"http://{number}.example" if name == "Origin" else f"{number}.example" for number in range(50)]
    async with limited() as server:
        with capture_logs() as logs:
            for value in values:
                request = head(f"Origin: {value}") if name == "Origin" else head(changed={"Host": value})
                await answer_to(server, request if name != "no Host" else head(changed={"Host": f"/{value}"}))
            await server.ended()
        sampled = server.sessions.services.sampled_log._samples  # noqa: SLF001 - its size is not public
        assert len(sampled) == 1
    closed = [line for line in logs if line["event"] == "connection closed"]
    assert len(closed) == len(values)
    assert [line["log_level"] for line in closed if line["log_level"] != "debug"] == ["info"]
    assert len({line["refused"] for line in closed}) == 1
    assert all(value in line["reason"] for value, line in zip(values, closed, strict=True))


@pytest.mark.parametrize(
    "request_, status",
    [
        (head(changed={"Host": "attacker.example"}), 403),
        (head("Origin: http://attacker.example"), 403),
        (head("Origin: null"), 403),
        (head("Origin: http://localhost:8080"), 101),
    ],
)
async def test_host_and_origin_are_checked_before_the_upgrade(request_: bytes, status: int) -> None:
    async with limited() as server, await trio.open_tcp_stream(HOST, server.port) as stream:
        await stream.send_all(request_)
        assert (await stream.receive_some()).startswith(f"HTTP/1.1 {status} ".encode())
        assert server.sessions.services.requests_refused[403] == (status == 403)


async def test_refused_client_is_no_longer_counted() -> None:
    async with limited(total=1) as server:
        for _ in range(3):
            assert (await answer_to(server, head(changed={"Host": "attacker.example"}))).startswith(b"HTTP/1.1 403 ")
            await server.ended()
        async with await connect(HOST, server.port):
            pass
        await server.ended()
        assert server.sessions.admission.connections == 0
        assert len(server.sessions.admission.by_address) == 0


def test_flood_is_logged_once_per_interval(autojump_clock: MockClock) -> None:
    async def flood() -> None:
        admission = Admission(AdmissionOptions(connections_max=1))
        admission.arrive("192.0.2.1", loopback=False)
        for _ in range(100):
            with pytest.raises(RequestRefusedError):
                admission.arrive("192.0.2.2", loopback=False)
        await trio.sleep(LOG_EVERY_S)
        with pytest.raises(RequestRefusedError):
            admission.arrive("192.0.2.2", loopback=False)

    with capture_logs() as logs:
        trio.run(flood, clock=autojump_clock)
    assert [line["count"] for line in logs] == [1, 100]
