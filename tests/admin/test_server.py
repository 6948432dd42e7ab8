"""The admin port over real sockets, with peers that are slow, broken or too many."""

import base64
import gc
import re
import socket
import sys
import time
from contextlib import AsyncExitStack, ExitStack, closing
from http import HTTPStatus

import h11
import httpx2
import pytest
import trio
import trio.testing
from attrs import define
from structlog.testing import capture_logs

from airy_trio import app
from airy_trio.admin import server
from airy_trio.admin.endpoints import starting_pages
from airy_trio.admin.readiness import Condition
from airy_trio.admin.server import (
    CONNECTIONS_MAX,
    HEAD_BYTES_MAX,
    AdminOptions,
    Answer,
    HttpConnection,
    PageRequest,
    Pages,
    open_listeners,
)
from airy_trio.errors import StartError
from airy_trio.testing.client import connect
from tests.admin.serving import HOST, TIMEOUT_S, Port, admin, free_port, serving, serving_all
from tests.application import Application
from tests.drill.attacks import reset_at_close
from tests.living import freed_without_the_collector

LARGE_BYTES = 32 * 1024 * 1024
"""Larger than the socket buffers of both sides."""


def pages(**not_ready: str) -> Pages:
    """Return the admin pages of a server with some parts that are not ready."""
    conditions = {"store": Condition(well=True, reason="fine")}
    conditions |= {name: Condition(well=False, reason=reason) for name, reason in not_ready.items()}
    return Pages({**starting_pages(lambda: conditions).pages, "/metrics": small})


def small(_request: PageRequest) -> Answer:
    return Answer(HTTPStatus.OK, b"x")


def large(_request: PageRequest) -> Answer:
    return Answer(HTTPStatus.OK, b"x" * LARGE_BYTES)


def failing(_request: PageRequest) -> Answer:
    raise LookupError("a page that is broken")


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
PAGE_S = 0.02
BROKEN = Pages({"/large": large, "/failing": failing})


async def test_probes_and_unknown_pages_are_answered() -> None:
    async with serving(pages(feed="no database")) as port:
        alive = await port.get("/livez")
        assert (alive.status_code, alive.json()) == (200, {"alive": True})
        ready = await port.get("/readyz")
        assert ready.status_code == 503
        assert ready.headers["content-type"] == "application/json"
        assert ready.headers["cache-control"] == "no-store"
        assert "server" not in ready.headers
        assert ready.json() == {
            "ready": False,
            "store": {"well": True, "reason": "fine"},
            "feed": {"well": False, "reason": "no database"},
        }
        assert (await port.get("/livez/")).status_code == 200
        assert (await port.get("/nothing")).status_code == 404
    async with serving(pages()) as port:
        assert (await port.ready()) == (200, {"ready": True, "store": {"well": True, "reason": "fine"}})


async def test_port_0_opens_no_port(sqlite_application: Application) -> None:
    assert await open_listeners(AdminOptions(port=0)) == []
    async with (
        serving_all(sqlite_application.migrate(admin(0))) as (address, _),
        await connect(address.host, address.port) as client,
    ):
        sqlite_application.tag()
        await client.subscribe()
        assert b'"t1"' in (await client.receive()).body


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200),
        ("LOCALHOST.:8081", 200),
        ("127.0.0.1:8081", 200),
        ("[::1]:8081", 200),
        ("console.localhost", 200),
        ("attacker.example:8081", 403),
        ("localhost.attacker.example", 403),
        ("127.0.0.1.attacker.example", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ],
)
async def test_loopback_address_refuses_other_host_names(host: str, status: int) -> None:
    async with serving(pages()) as port:
        assert (await port.get("/metrics", host=host)).status_code == status


async def test_other_address_accepts_any_host_name() -> None:
    port = free_port()
    listeners = await open_listeners(AdminOptions(host="0.0.0.0", port=port))  # noqa: S104 - the subject of the test
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listeners, pages())
        assert (await Port(port).get("/livez", host="probe.example")).status_code == 200
        nursery.cancel_scope.cancel()


TOKEN = "correct-horse-battery:staple"
BASIC = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()


@pytest.mark.parametrize(
    "header, status",
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Basic {BASIC}", 200),
        ("", 401),
        (TOKEN, 401),
        ("Bearer", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {TOKEN}", 401),
        ("Basic YTpiYg==", 401),
        ("Basic //79", 401),
    ],
)
async def test_pages_but_probes_need_the_token(header: str, status: int) -> None:
    async with serving(pages(), TOKEN) as port:
        headers = {"authorization": header} if header else {}
        for path in ("/metrics", "/api/connections", "/"):
            answer = await port.get(path, host="airy.example:8081", **headers)
            expected = 404 if status == 200 and path != "/metrics" else status
            assert (answer.status_code, "www-authenticate" in answer.headers) == (expected, status == 401)
        for probe in ("/livez", "/readyz"):
            assert (await port.get(probe, **headers)).status_code == 200


async def test_token_does_not_open_probes_to_other_host_names() -> None:
    async with serving(pages(), TOKEN) as port:
        assert (await port.get("/readyz", host="attacker.example")).status_code == 403
        assert (await port.get("/readyz", host="airy.example", authorization=f"Bearer {TOKEN}")).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_port_in_use_is_one_line(host: str, sqlite_application: Application) -> None:
    with closing(socket.create_server((HOST, 0))) as taken:
        port = taken.getsockname()[1]
        settings = sqlite_application.migrate(admin(port, f'host = "{host}"\n'))
        with pytest.raises(StartError) as caught:
            await app.serve(settings)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(f"admin: cannot listen on {host}:{port}: ")
    assert "\n" not in caught.value.faults[0]


async def test_invalid_host_is_one_line() -> None:
    with pytest.raises(StartError, match=r"admin: cannot listen on 203\.0\.113\.1:9: \S"):
        await open_listeners(AdminOptions(host="203.0.113.1", port=9))


async def test_failing_page_is_answered_and_logged() -> None:
    with capture_logs() as logs:
        async with serving(BROKEN) as port:
            assert (await port.get("/failing")).status_code == 500
            while not (faults := [line for line in logs if line["log_level"] == "error"]):
                assert (await port.get("/nothing")).status_code == 404  # the log line follows the answer
    (fault,) = faults
    assert fault["event"] == "admin request failed"
    assert fault["exc_info"]


async def open_socket(port: Port, sent: bytes) -> trio.SocketStream:
    stream = await trio.open_tcp_stream(HOST, port.number)
    await stream.send_all(sent)
    return stream


async def until_served(port: Port) -> None:
    """Poll until one more connection is accepted."""
    with trio.fail_after(TIMEOUT_S):
        while True:
            try:
                await port.get("/")
            except httpx2.TransportError:
                continue
            return


async def end_of(stream: trio.SocketStream) -> bytes:
    """Receive until the server closes or resets the connection."""
    data = bytearray()
    with trio.fail_after(TIMEOUT_S):
        try:
            async for some in stream:
                data += some
        except trio.BrokenResourceError:
            pass
    return bytes(data)


async def test_peer_that_reads_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_S", 0.1)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(server, "IDLE_S", 0.1)
    async with serving(BROKEN) as port, await open_socket(port, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as stuck:
        assert await stuck.receive_some(10)
        await until_served(port)  # there is room for one connection
        assert len(await end_of(stuck)) < LARGE_BYTES


async def test_peer_that_reads_nothing_does_not_block_shutdown() -> None:
    with trio.fail_after(10 * server.WRITE_S):
        async with serving(BROKEN) as port:
            stuck = await open_socket(port, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await stuck.receive_some(10)
        await stuck.aclose()


INCOMPLETE = (
    b"",
    b"GET /livez HTTP/1.1\r\nHost:",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100,
    b"PRI * HTTP/2.0\r\n",
)


async def test_incomplete_request_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    default_s = server.IDLE_S
    monkeypatch.setattr(server, "IDLE_S", 0.2)
    async with serving(pages()) as port, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(await open_socket(port, sent)) for sent in INCOMPLETE]
        for sent, stream in zip(INCOMPLETE, slow, strict=True):
            with trio.move_on_after(default_s - 1) as scope:  # before the default time-out would end the connection
                await end_of(stream)
            assert not scope.cancelled_caught, sent


async def test_connection_has_a_maximum_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_S", 0.2)
    monkeypatch.setattr(server, "IDLE_S", 1000)
    async with serving(pages()) as port, await open_socket(port, b"") as idle:
        await end_of(idle)
        assert (await port.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff" * 100,
        b"GET\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (HEAD_BYTES_MAX + 1) + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
        b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
    ids=["garbage", "no request", "a body", "a large head", "broken HTTP/2", "an upgrade"],
)
async def test_invalid_request_ends_its_own_connection(sent: bytes) -> None:
    async with serving(pages()) as port:
        async with await open_socket(port, sent) as stream:
            await stream.send_eof()
            await end_of(stream)
        assert (await port.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    "sent, answers",
    [
        (LIVEZ.replace(b"GET", b"HEAD") + LIVEZ, [b"200", b"200"]),
        (LIVEZ.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + LIVEZ, [b"200"]),
        (LIVEZ.replace(b"HTTP/1.1", b"HTTP/1.0") + LIVEZ, [b"200"]),
        (b"GET /livez HTTP/1.0\r\n\r\n", [b"200"]),
        (b"GET /livez HTTP/1.0\r\nHost: x\r\n\r\n", [b"403"]),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx" + LIVEZ, [b"403"]),
        (LIVEZ.replace(b"GET", b"OPTIONS"), [b"405"]),
        (b"GET /livez HTTP/1.1\r\n\r\n" + LIVEZ, [b"400"]),
        (b"GET /livez HTTP/1.1\r\nHost:", [b"400"]),
        (LIVEZ + b"\xff\r\n\r\n", [b"200", b"400"]),
    ],
    ids=[
        *("HEAD", "close", "HTTP/1.0", "HTTP/1.0 without host", "HTTP/1.0 with another host", "a body", "OPTIONS"),
        *("no host", "half a request", "garbage"),
    ],
)
async def test_which_requests_of_a_connection_are_answered(sent: bytes, answers: list[bytes]) -> None:
    async with serving(pages()) as port, await open_socket(port, sent) as stream:
        await stream.send_eof()
        found = await end_of(stream)
    assert re.findall(rb"HTTP/1.1 (\d+) ", found) == answers
    assert found.count(b'{"alive": true}') == answers.count(b"200") - sent.count(b"HEAD")
    assert found.count(b"date: ") == len(answers)


async def test_exception_ends_one_connection_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(HttpConnection):
        async def serve(self) -> None:
            await trio.lowlevel.checkpoint()
            raise ValueError

    with capture_logs() as logs:
        async with serving(pages()) as port:
            monkeypatch.setattr(server, "HttpConnection", Faulty)
            async with await open_socket(port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
                assert await end_of(stream) == b""
            monkeypatch.setattr(server, "HttpConnection", HttpConnection)
            assert (await port.get("/livez")).status_code == 200
    assert "admin connection failed" in {line["event"] for line in logs}


async def test_new_connection_replaces_the_oldest(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    with trio.fail_after(TIMEOUT_S), capture_logs() as logs, ExitStack() as stack:
        async with serving_all(settings) as (address, port):
            kept = [await open_socket(port, b"") for _ in range(CONNECTIONS_MAX)]
            assert (await port.get("/livez")).status_code == 200
            assert await end_of(kept[0]) == b""
            await kept[1].send_all(LIVEZ)
            assert (await kept[1].receive_some()).startswith(b"HTTP/1.1 200 ")
            for stream in kept:
                stack.enter_context(closing(stream.socket))
            async with await connect(address.host, address.port) as client:
                await client.subscribe()
                sqlite_application.tag()
                assert b'"t1"' in (await client.receive()).body
    (line,) = [line for line in logs if line["event"] == "admin connections closed to make room for new ones"]
    assert (line["address"], line["count"]) == (HOST, 1)


async def test_peer_with_most_connections_loses_one() -> None:
    async with serving(pages()) as port:
        few = await trio.open_tcp_stream(HOST, port.number, local_address="127.0.0.2")
        many = [await open_socket(port, b"") for _ in range(CONNECTIONS_MAX)]  # the last of them evicts the first
        assert await end_of(many[0]) == b""
        await few.send_all(LIVEZ)
        assert (await few.receive_some()).startswith(b"HTTP/1.1 200 ")
        for stream in (few, *many):
            await stream.aclose()


@pytest.mark.parametrize(
    "sent, status",
    [
        (PREFACE, b"404"),
        (
            LIVEZ.replace(b"Host", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings:\r\nHost"),
            b"200",
        ),
    ],
    ids=["prior knowledge", "an upgrade"],
)
async def test_http2_is_not_supported(sent: bytes, status: bytes) -> None:
    async with serving(pages()) as port, await open_socket(port, sent) as stream:
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 " + status)


async def test_probes_do_not_wait_for_other_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_S", TIMEOUT_S)
    made = made_before = 0

    def page(_request: PageRequest) -> Answer:
        nonlocal made
        made += 1
        time.sleep(PAGE_S)  # like a page with very many clients
        return Answer(HTTPStatus.OK, b"x")

    def livez(_request: PageRequest) -> Answer:
        nonlocal made_before
        made_before = made
        return Answer(HTTPStatus.OK, b"alive")

    crowd_size, requests = CONNECTIONS_MAX - 1, 20
    with trio.fail_after(TIMEOUT_S):
        async with serving(Pages({"/page": page, "/livez": livez})) as port:
            probe = await open_socket(port, b"")
            crowd = [await open_socket(port, LIVEZ.replace(b"livez", b"page") * requests) for _ in range(crowd_size)]
            before = made
            await probe.send_all(LIVEZ)
            assert (await probe.receive_some()).startswith(b"HTTP/1.1 200 ")
            assert made_before - before <= 5, "a few pages, made one after another"
            for stream in (probe, *crowd):
                await stream.aclose()


@pytest.mark.parametrize(
    "sent",
    [LIVEZ * 20, LIVEZ.replace(b"GET", b"\xff"), PREFACE + bytes(60_000), b""],
    ids=["requests", "garbage", "HTTP/2", "nothing"],
)
async def test_ended_connections_leave_nothing(sent: bytes) -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with serving(pages()) as port:
        with freed_without_the_collector(h11.Connection) as left:
            await trio.testing.wait_all_tasks_blocked()
            before = tasks()
            for _ in range(CONNECTIONS_MAX):
                await (await open_socket(port, sent)).aclose()
            with trio.fail_after(server.IDLE_S / 2):
                while tasks() > before:  # noqa: ASYNC110 - the server has no event for this
                    await trio.sleep(0.01)
            if sys.version_info >= (3, 13):
                gc.collect()  # after a reset a cycle remains among Trio's frames
    assert not left


@define
class Counted:
    """A page that counts how often it is generated."""

    made: int = 0

    def pages(self) -> Pages:
        return Pages({"/page": self._page})

    def _page(self, _request: PageRequest) -> Answer:
        self.made += 1
        return Answer(HTTPStatus.OK, b"x")


async def test_no_pages_for_a_peer_that_has_reset() -> None:
    counted = Counted()
    async with serving(counted.pages()) as port:
        stream = await open_socket(port, LIVEZ.replace(b"livez", b"page") * 20)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        reset_at_close(stream)
        await stream.aclose()
        assert (await port.get("/page")).status_code == 200  # after every page that waits
        await trio.sleep(20 * server.PAGE_PAUSE_S)
    assert counted.made < 10


async def test_pages_leave_time_for_clients() -> None:
    counted, requests = Counted(), 20
    async with serving(counted.pages()) as port:
        begun_at = trio.current_time()
        async with await open_socket(port, LIVEZ.replace(b"livez", b"page") * requests) as stream:
            while counted.made < requests:
                await stream.receive_some()
        assert trio.current_time() - begun_at >= requests * server.PAGE_PAUSE_S


async def test_clients_are_served_while_scrapers_hang(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    with trio.fail_after(TIMEOUT_S):
        async with serving_all(settings) as (address, port), await connect(address.host, address.port) as client:
            await client.subscribe()
            hanging = [await open_socket(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 500) for _ in range(10)]
            for number in range(20):
                sqlite_application.tag(f"t{number}")
                assert f'"t{number}"'.encode() in (await client.receive()).body
            for stream in hanging:
                await stream.aclose()
