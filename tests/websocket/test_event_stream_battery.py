"""Requests for event streams as hostile and broken clients write them, octet by octet, and the answers.

Every case is a connection of its own over a real socket, next to an honest reader that must get every event.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import pytest
import trio
from structlog.testing import capture_logs

from airy_trio.sessions.listener import ListenerOptions
from airy_trio.websocket.request import HEAD_BYTES_MAX, HEADERS_MAX
from tests.event_stream import EventStream, requesting
from tests.sessions.serving import HOST, Server, serving

FLOOD: Final = 200
TIMEOUT_S: Final = 30.0


def request(*headers: str, line: str = "GET /events HTTP/1.1", host: str | None = "localhost") -> bytes:
    hosts = [] if host is None else [f"Host: {host}"]
    return "\r\n".join([line, *hosts, *headers, "", ""]).encode("latin-1")


GET: Final = request()
CASES: Final = {
    # paths
    request(line="GET /event HTTP/1.1"): 404,
    request(line="GET /eventss HTTP/1.1"): 404,
    request(line="GET //events HTTP/1.1"): 404,
    request(line="GET /%65vents HTTP/1.1"): 404,
    request(line="GET /EVENTS HTTP/1.1"): 404,
    request(line="GET /events/ HTTP/1.1"): 404,
    request(line="GET /events//tag.updated HTTP/1.1"): 404,
    request(line="GET /events/../ws.communication HTTP/1.1"): 404,
    request(line="GET /events/channel/a/b HTTP/1.1"): 404,
    request(line="GET /events/channel/%00%0d%0a HTTP/1.1"): 200,
    request(line="GET /events/channel/%ff HTTP/1.1"): 404,
    request(line="GET /events#x HTTP/1.1"): 404,
    request(line=f"GET /events/channel/{'x' * 10_000} HTTP/1.1"): 414,
    request(line="GET http://localhost/events HTTP/1.1"): 400,
    request(line="GET * HTTP/1.1"): 400,
    # queries
    request(line="GET /events? HTTP/1.1"): 200,
    request(line="GET /events?a=b&&c HTTP/1.1"): 200,
    request(line=f"GET /events?last-event-id={'9' * 10_000} HTTP/1.1"): 200,
    request(line="GET /events?last-event-id=%0d%0aX:%20y HTTP/1.1"): 200,
    request(line=f"GET /events?{'&'.join('a=b' for _ in range(2000))} HTTP/1.1"): 400,
    request(line="GET /events?replay=ALL HTTP/1.1"): 400,
    # methods and versions
    request(line="HEAD /events HTTP/1.1"): 405,
    request(line="POST /events HTTP/1.1"): 405,
    request("Content-Length: 2", line="POST /events HTTP/1.1") + b"{}": 400,
    request("Content-Length: 2", line="POST /events HTTP/1.1"): 405,
    request(line="TRACE /events HTTP/1.1"): 405,
    request(line="CONNECT /events HTTP/1.1"): 405,
    request(line="OPTIONS /events HTTP/1.1"): 204,
    request(line="OPTIONS /events/nonsense HTTP/1.1"): 204,
    request("Content-Length: 2", line="OPTIONS /events HTTP/1.1"): 400,
    request(line="get /events HTTP/1.1"): 405,
    request(line="GET /events HTTP/1.0"): 400,
    request(line="GET /events HTTP/2.0"): 400,
    request(line="GET /events"): 400,
    # bodies and pipelining
    request("Content-Length: 5"): 400,
    request("Content-Length: 5") + b"hello": 400,
    request("Content-Length: -1"): 400,
    request("Content-Length: 0", "Content-Length: 5"): 400,
    request("Content-Length: 0"): 200,
    request("Transfer-Encoding: chunked"): 400,
    request("Transfer-Encoding: chunked") + b"0\r\n\r\n": 400,
    request("Transfer-Encoding: identity"): 400,
    GET + GET: 400,
    GET + b"x": 400,
    GET + request(line="GET /events?replay=all HTTP/1.1"): 400,
    # headers
    request(host=None): 400,
    request("Host: other"): 400,
    request(host="rebound.example"): 403,
    request(host=""): 400,
    request(host="localhost/x"): 400,
    request("Origin: http://attacker.example"): 403,
    request("Origin: null"): 403,
    request("Origin: "): 403,
    request("Origin: http://localhost", "Origin: http://attacker.example"): 400,
    request("Origin: http://attacker.example", line="OPTIONS /events HTTP/1.1"): 403,
    request("Origin: http://localhost"): 200,
    request("Sec-Fetch-Mode: no-cors", "Sec-Fetch-Site: cross-site"): 403,
    request("Sec-Fetch-Mode: cors"): 200,
    request("Sec-Fetch-Mode: navigate"): 200,
    request("Last-Event-ID: a", "Last-Event-ID: b"): 400,
    request("Last-Event-ID: \xe4\xff"): 200,
    request("Last-Event-ID: " + "9" * 10_000): 200,
    request("Upgrade: websocket", "Connection: Upgrade"): 200,
    request("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Connection: Upgrade, HTTP2-Settings"): 200,
    request("Connection: keep-alive", "Keep-Alive: timeout=1000"): 200,
    request("Accept: application/json"): 200,
    request("Accept-Encoding: gzip", "Range: bytes=0-1", "If-None-Match: *", "Expect: 100-continue"): 200,
    request("X: a\r\n folded"): 400,
    request("X : a"): 400,
    request("X: a\x00"): 400,
    GET.replace(b"\r\n", b"\n"): 400,
    request("Cookie: " + "x" * HEAD_BYTES_MAX): 431,
    request(*(f"X-{number}: a" for number in range(HEADERS_MAX + 1))): 431,
    request(*("X: a" for _ in range(HEADERS_MAX + 1))): 431,
}


@asynccontextmanager
async def with_bystander(options: ListenerOptions | None = None) -> AsyncGenerator[tuple[Server, EventStream]]:
    """Serve an honest reader. At the end it must get an event, and only lines of level info may have been logged."""
    with capture_logs() as logs, trio.fail_after(TIMEOUT_S):
        async with (
            serving(options=options or ListenerOptions(port=0)) as server,
            requesting(server.port, "/events?replay=none") as honest,
        ):
            await honest.subscribed()
            yield server, honest
            await server.append(1, 1)
            assert (await honest.receive()).json["n"] == 1
            while len(server.sessions.clients) > 1:  # noqa: ASYNC110 - the others end by themselves
                await trio.lowlevel.checkpoint()
            admission = server.sessions.admission
            assert (admission.connections, len(admission.by_address), admission.subscriptions.total()) == (1, 1, 1)
    assert [line for line in logs if line["log_level"] in {"warning", "error"}] == []


async def rest(stream: trio.SocketStream) -> bytes:
    """Return everything up to the end of the stream, which may be a reset."""
    found = b""
    try:
        while some := await stream.receive_some():
            found += some
    except trio.BrokenResourceError:
        pass
    return found


async def test_every_request_is_answered_as_listed() -> None:
    wrong: dict[bytes, bytes] = {}
    async with with_bystander() as (server, _):
        for sent, status in CASES.items():
            async with await trio.open_tcp_stream(HOST, server.port) as stream:
                await stream.send_all(sent)
                answer = bytes(await stream.receive_some())
                if status != 200:
                    answer += await rest(stream)
                head, _, body = answer.partition(b"\r\n\r\n")
                begins = head.startswith(b"HTTP/1.1 %d " % status) and b"\r\nConnection: close" in head
                begins &= b"\r\nCache-Control: no-store" in head  # a cache may keep even a 204 without it
                empty = status == 204 or sent.startswith(b"HEAD ")
                if not begins or bool(body) is empty or b"Content-Type" in body:
                    wrong[sent] = answer
    assert wrong == {}, list(wrong.items())


async def pipelines(stream: trio.SocketStream, begun: trio.Event) -> bytes:
    """Send a second request once the stream has begun."""
    await stream.send_all(GET)
    await begun.wait()
    answer = bytes(await stream.receive_some())
    await stream.send_all(GET)
    return answer + await rest(stream)


async def test_second_request_is_not_answered() -> None:
    begun = trio.Event()
    begun.set()
    async with with_bystander() as (server, _), await trio.open_tcp_stream(HOST, server.port) as stream:
        answer = await pipelines(stream, begun)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.count(b"event: ") == 2
        assert b'event: disconnect\ndata: {"token":"400-protocol-error"' in answer


async def endless_input(stream: trio.SocketStream) -> None:
    """Send without end after the request, and read nothing."""
    await stream.send_all(GET)
    while True:
        await stream.send_all(b"\r\n" * 4096)


async def endless_head(stream: trio.SocketStream) -> None:
    """Send headers without end."""
    await stream.send_all(GET[:-2])
    while True:
        await stream.send_all(b"X: a\r\n" * 100)


async def half_closed(stream: trio.SocketStream) -> None:
    """End the input after the request."""
    await stream.send_all(GET)
    await stream.send_eof()
    while await stream.receive_some():
        pass


async def half_a_request(stream: trio.SocketStream) -> None:
    """Send half a request, and then nothing."""
    await stream.send_all(GET[:-3])
    while await stream.receive_some():
        pass


async def dripped(stream: trio.SocketStream) -> None:
    """Send a request so slowly that the time for it passes."""
    for octet in request("X: " + "x" * 1000):
        await stream.send_all(bytes([octet]))
        await trio.sleep(0.01)


async def cut(stream: trio.SocketStream) -> None:
    """Vanish as soon as the stream has begun."""
    await stream.send_all(GET)
    await stream.receive_some()


@pytest.mark.slow
@pytest.mark.parametrize("behave", [endless_input, endless_head, half_closed, half_a_request, dripped, cut])
async def test_hostile_connections_end_and_harm_no_other(
    behave: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    async def misbehave(port: int) -> None:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            with suppress(trio.BrokenResourceError):  # the server has ended it
                await behave(stream)

    options = ListenerOptions(port=0, connect_timeout_s=0.5)
    async with with_bystander(options) as (server, _), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(misbehave, server.port)


async def test_flood_of_requests_delays_no_event() -> None:
    async def ask(port: int, sent: bytes) -> None:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            await stream.send_all(sent)
            await rest(stream)

    options = ListenerOptions(port=0, connections_per_address_max=2 * FLOOD)
    async with with_bystander(options) as (server, honest), trio.open_nursery() as nursery:
        for number in range(FLOOD):
            nursery.start_soon(ask, server.port, request(line=f"GET /events/{number} HTTP/1.1"))
        for number in range(2, 12):
            await server.append(number, number)
            assert (await honest.receive()).json["n"] == number
    assert server.sessions.admission.fair_queue.waited > 0
