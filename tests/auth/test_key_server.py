"""Keys over HTTPS: a real server with a certificate of its own authority, rotation, and faults of the server."""

import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trustme
from attrs import define, field
from structlog.testing import capture_logs

from airy_trio.auth import keys
from airy_trio.auth.keys import FETCH_TIMEOUT_S, KEYS_BYTES_MAX, KeyServer, KeysFault
from airy_trio.auth.users import AuthOptions
from airy_trio.stomp.frames import Frame
from airy_trio.websocket.frames import CLOSE, PING, TEXT, close_answer
from tests.auth.signing import Issuer, issuer, jwk, jwks
from tests.hanging_file import make_hang, open_writer
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import Server, serving
from tests.websocket.test_battery import frame
from tests.websocket.test_request import head

FIRST, SECOND = issuer("ES256", 0, "first"), issuer("ES256", 1, "second")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"


def published(*issuers: Issuer) -> bytes:
    return jwks(*(jwk(one.key, kid=one.kid) for one in issuers if not isinstance(one.key, str)))


def answer(data: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(data) + data


@define
class Publisher:
    """An HTTPS server that answers everything with ``response``.

    If it ``hangs``, it then sends a byte every 0.1 s until the client ends the connection.
    """

    url: str
    response: bytes
    hangs: bool = False
    requests: list[bytes] = field(factory=list)
    broken: trio.Event = field(factory=trio.Event)

    def publish(self, *issuers: Issuer) -> None:
        self.response = answer(published(*issuers))

    async def serve(self, stream: trio.abc.Stream) -> None:
        try:
            self.requests.append(bytes(await stream.receive_some(65536)))
            await stream.send_all(self.response)
            while self.hangs:
                await stream.send_all(b"x")
                await trio.sleep(0.1)
        except trio.BrokenResourceError:
            self.broken.set()  # the client did not trust the certificate, or has ended the connection
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(stream)


@asynccontextmanager
async def publishing(
    *issuers: Issuer, name: str = "localhost", host: str = "127.0.0.1", authority: trustme.CA
) -> AsyncGenerator[Publisher]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host=host, https_compatible=True)
        transport = listeners[0].transport_listener
        assert isinstance(transport, trio.SocketListener)
        port = transport.socket.getsockname()[1]
        publisher = Publisher(f"https://localhost:{port}/keys?v=1#x", answer(published(*issuers)))
        nursery.start_soon(trio.serve_listeners, publisher.serve, listeners)  # noqa: ASYNC113 - they listen already
        yield publisher
        nursery.cancel_scope.cancel()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that this process trusts, through ``SSL_CERT_FILE``."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def source(publisher: Publisher) -> KeyServer:
    return KeyServer(publisher.url, ("ES256",))


async def test_a_server_at_an_ipv6_address(authority: trustme.CA) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with publishing(FIRST, name="::1", host="::1", authority=authority) as publisher:
        at = publisher.url.replace("localhost", "[::1]")
        assert [key.kid for key in await KeyServer(at, ("ES256",)).load()] == ["first"]
        assert b"\r\nhost: %s\r\n" % at.split("/")[2].encode() in publisher.requests[0].lower()


@pytest.mark.parametrize(
    "url, header",
    [
        ("https://keys.example/", b"keys.example"),
        ("https://keys.example:443/", b"keys.example"),
        ("https://keys.example:8443/", b"keys.example:8443"),
        ("https://[::1]:8443/", b"[::1]:8443"),
        ("https://\u4f8b\u3048.\u30c6\u30b9\u30c8:8443/", b"xn--r8jz45g.xn--zckzah:8443"),
        (f"https://{'k' * 63}:8443/", b"k" * 63 + b":8443"),
    ],
)
def test_host_header_names_the_host_and_its_port(url: str, header: bytes) -> None:
    assert keys._host_header(urlsplit(url)) == header  # noqa: SLF001 - such a name cannot be resolved here


async def test_address_that_does_not_answer_delays_the_keys_only_briefly(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with publishing(FIRST, authority=authority) as publisher:
        port = urlsplit(publisher.url).port
        with socket.create_server(("127.0.0.2", port or 0), backlog=0), ExitStack() as stack:
            for _ in range(4):  # fill the backlog
                waiting = stack.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(("127.0.0.2", port))
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_given, **_named: found)
            with trio.fail_after(FETCH_TIMEOUT_S / 2):
                assert [key.kid for key in await source(publisher).load()] == ["first"]


async def test_path_and_query_are_escaped(authority: trustme.CA) -> None:
    async with publishing(FIRST, authority=authority) as publisher:
        host = publisher.url.partition("/keys")[0]
        for rest, target in (("", b"/"), ("/%7Ek", b"/%7Ek"), ("/schlüssel?ü=1", b"/schl%C3%BCssel?%C3%BC=1")):
            await KeyServer(host + rest, ("ES256",)).load()
            assert publisher.requests.pop().startswith(b"GET %s HTTP/1.1\r\n" % target)


async def test_keys_are_loaded_from_a_trusted_server(authority: trustme.CA) -> None:
    async with publishing(FIRST, SECOND, authority=authority) as publisher:
        assert [key.kid for key in await source(publisher).load()] == ["first", "second"]
        assert publisher.requests[0].startswith(b"GET /keys?v=1 HTTP/1.1\r\n")


async def test_certificate_of_another_authority_is_not_trusted(authority: trustme.CA) -> None:
    for other, name in ((trustme.CA(), "localhost"), (authority, "elsewhere.example")):
        async with publishing(FIRST, authority=other, name=name) as publisher:
            with pytest.raises(KeysFault, match="CERTIFICATE_VERIFY_FAILED"):
                await source(publisher).load()
            assert publisher.requests == []


@pytest.mark.parametrize(
    "response, words",
    [
        (answer(b"{}"), "no array"),
        (answer(b"<html>"), "not JSON"),
        (answer(b"no", b"HTTP/1.1 404 Not Found\r\n"), "status 404"),
        (answer(b"", b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\n"), "status 302"),
        (answer(b"", b"HTTP/1.1 500 Oh no\r\n"), "status 500"),
        (b"220 mail.example ESMTP\r\n", "did not answer in HTTP"),
        (OK + b"Content-Length: 1000\r\n\r\n{", "did not answer in HTTP"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{", "did not answer in HTTP"),
        (b"", "did not answer in HTTP"),
        (OK + b"X: " + b"x" * 2**20 + b"\r\n\r\n", "did not answer in HTTP"),
        (OK + b"\r\n" + published(FIRST) + b" " * KEYS_BYTES_MAX, f"larger than {KEYS_BYTES_MAX} bytes"),
        (answer(b"\x1f\x8b" + b"\0" * 20, OK + b"Content-Encoding: gzip\r\n"), "not JSON"),
    ],
    ids=range(12),  # the keys differ in each process of the suite
)
async def test_response_without_keys_is_a_fault(response: bytes, words: str, authority: trustme.CA) -> None:
    async with publishing(authority=authority) as publisher:
        publisher.response = response
        with pytest.raises(KeysFault, match=words):
            await source(publisher).load()


async def test_unreachable_server_is_a_fault(authority: trustme.CA) -> None:
    async with publishing(authority=authority) as publisher:
        pass
    with pytest.raises(KeysFault, match="cannot be fetched: "):
        await source(publisher).load()


@pytest.mark.slow
@pytest.mark.parametrize("response", [b"", OK + b"X: ", OK + b"\r\n{"])
async def test_hanging_server_times_out_while_others_run(
    response: bytes, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "FETCH_TIMEOUT_S", 1.0)
    turns = 0

    async def run() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0.05)
            turns += 1

    async with publishing(authority=authority) as publisher, trio.open_nursery() as nursery:
        publisher.response, publisher.hangs = response, True
        nursery.start_soon(run)
        with pytest.raises(KeysFault, match="took more than 1 s"):
            await source(publisher).load()
        assert turns > 3
        with trio.fail_after(2):  # the fetch closes its connection when it times out
            await publisher.broken.wait()
        nursery.cancel_scope.cancel()


async def test_load_can_be_cancelled_while_the_file_of_authorities_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_hang(tmp_path / "authorities.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(KeyServer("https://127.0.0.1:9/", ("ES256",)).load)
        writing = await open_writer(tmp_path / "authorities.pem")
        nursery.cancel_scope.cancel()
    os.close(writing)


async def test_loads_do_not_use_up_the_threads_while_the_file_of_authorities_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_hang(tmp_path / "authorities.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    monkeypatch.setattr(keys, "FETCH_TIMEOUT_S", 0.01)
    server = KeyServer("https://127.0.0.1:9/", ("ES256",))
    trio.to_thread.current_default_thread_limiter().total_tokens = 1
    for _ in range(2):
        with pytest.raises(KeysFault, match=r"took more than 0\.01 s"):
            await server.load()
    writing = await open_writer(tmp_path / "authorities.pem")
    try:
        with trio.fail_after(2):
            await trio.to_thread.run_sync(os.getpid)
    finally:
        os.close(writing)


async def answer_to(server: Server, signer: Issuer) -> Frame:
    """Return the answer to a CONNECT with a token."""
    plugged = server.plug()
    await plugged.client.upgrade()
    return await plugged.client.connect(headers=[("Authorization", f"Bearer {signer.token()}")])


@pytest.mark.slow
async def test_session_survives_key_rotation_until_its_key_is_removed(authority: trustme.CA) -> None:
    async with publishing(FIRST, authority=authority) as publisher:
        auth = AuthOptions(mode="jwt", jwt_key=publisher.url, jwt_algorithms=["ES256"])
        async with serving(auth=auth, listen=False) as server:
            first = await server.plug_connected(headers=[("passcode", FIRST.token())])
            assert len(publisher.requests) == 1
            publisher.publish(FIRST, SECOND)
            assert (await answer_to(server, SECOND)).get("message") == "401-unauthorized"
            assert len(publisher.requests) == 1, "loaded again within the pause"
            server.sessions.renew(auth)  # as SIGHUP does; otherwise the keys are loaded only after the pause
            second = await server.plug_connected(headers=[("passcode", SECOND.token())])
            assert len(publisher.requests) == 2
            assert (await first.client.subscribe()).command == "RECEIPT"
            publisher.publish(SECOND)
            server.sessions.renew(auth)
            assert (await first.client.receive()).get("message") == "401-unauthorized"
            assert (await second.client.subscribe()).command == "RECEIPT"


@pytest.mark.slow
async def test_old_keys_remain_while_the_server_is_unavailable(authority: trustme.CA) -> None:
    async with publishing(FIRST, authority=authority) as publisher:
        auth = AuthOptions(mode="jwt", jwt_key=publisher.url, jwt_algorithms=["ES256"])
        async with serving(auth=auth, listen=False) as server:
            first = await server.plug_connected(headers=[("passcode", FIRST.token())])
            publisher.response = answer(b"", b"HTTP/1.1 503 Away\r\n")
            with capture_logs() as logs:
                server.sessions.renew(auth)
                assert (await answer_to(server, SECOND)).get("message") == "401-unauthorized"
            assert "503" in str([log for log in logs if log["log_level"] == "warning"])
            assert (await first.client.subscribe()).command == "RECEIPT"
            assert (await answer_to(server, FIRST)).command == "CONNECTED"


@pytest.mark.slow
async def test_client_gets_500_while_there_are_no_keys(authority: trustme.CA) -> None:
    async with publishing(authority=authority) as publisher:
        publisher.response = answer(b"", b"HTTP/1.1 503 Away\r\n")
        auth = AuthOptions(mode="jwt", jwt_key=publisher.url, jwt_algorithms=["ES256"])
        async with serving(auth=auth, listen=False) as server:
            assert (await answer_to(server, FIRST)).get("message") == "500-internal"
            publisher.publish(FIRST)
            with trio.fail_after(30):
                while (await answer_to(server, FIRST)).command != "CONNECTED":  # noqa: ASYNC110 - as the next line says
                    await trio.sleep(0.1)  # the key server is queried again after a second, in real time


@pytest.mark.slow
async def test_ping_and_close_are_answered_while_keys_are_loaded(authority: trustme.CA) -> None:
    async with publishing(FIRST, authority=authority) as publisher:
        publisher.response, publisher.hangs = b"", True
        auth = AuthOptions(mode="jwt", jwt_key=publisher.url, jwt_algorithms=["ES256"])
        async with serving(auth=auth, listen=False) as server:
            transport = MemoryTransport()
            ending = server.start(transport)
            transport.feed(head())
            transport.feed(frame(TEXT, f"CONNECT\naccept-version:1.2\npasscode:{FIRST.token()}\n\n\0".encode()))
            transport.feed(frame(PING, b"here?"))
            transport.feed(frame(CLOSE, b"\x03\xe8"))
            taken = b""
            with trio.fail_after(FETCH_TIMEOUT_S / 2):
                while ending.reason is None:  # noqa: ASYNC110 - the session has no event for its end
                    await trio.sleep(0.01)
                    taken += transport.take()
            assert b"here?" in taken
            assert taken.endswith(close_answer(b"\x03\xe8"))
