"""TLS through the complete server: other clients, a renewed certificate, and connections without TLS."""

import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import websockets.sync.client

from airy_trio.testing.client import Closed, StompClient, connect
from tests.application import Application
from tests.certificates import Files, issue, trusting
from tests.clients.client_processes import client
from tests.clients.matrix import CLIENTS, Capability, RealClient
from tests.event_stream import EventStream
from tests.processes import Server, server

TIMEOUT_S = 40.0
EVENTS = 20
UNIT = Path(__file__).parents[2] / "deploy" / "airy-trio.service"


def configure(application: Application, folder: Path, files: Files, more: str = "") -> Path:
    """Write settings with TLS; ``more``: further lines of ``[listener]``."""
    application.migrate()
    config = folder / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{application.url}"\n[listener]\nport = 0\n{files.listener}{more}\n'
        '[admin]\nport = 0\n[logging]\nformat = "json"\n'
    )
    return config


@asynccontextmanager
async def speaking_tls(
    application: Application, folder: Path, more: str = ""
) -> AsyncIterator[tuple[Server, Files, Path]]:
    files = issue(folder)
    config = configure(application, folder, files, more)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            yield serving, files, config


async def our_client(serving: Server) -> StompClient:
    found = await connect("localhost", serving.port, tls=trusting())
    assert (await found.subscribe()).command == "RECEIPT"
    return found


@pytest.mark.parametrize("real", CLIENTS, ids=lambda real: real.package)
async def test_other_clients_connect(real: RealClient, sqlite_application: Application, tmp_path: Path) -> None:
    async with speaking_tls(sqlite_application, tmp_path) as (serving, files, _):
        assert serving.url.startswith("wss://127.0.0.1:")
        async with client(real.program, serving.url, count=EVENTS, authority=files.authority) as running:
            await running.until_reported("connected", 1)
            for number in range(1, EVENTS + 1):
                sqlite_application.message(id=f"m{number}")
            received = await running.messages(EVENTS)
            assert [one.offset for one in received] == list(range(1, EVENTS + 1))
            assert await running.wait() == 0
        ended = await serving.record("connection closed")
        leaves_in_order = real.verdict(Capability.DISCONNECT).works
        assert ended["disconnect"] == "done" if leaves_in_order else ended["disconnect"] in {"done", "gone"}
        assert "Traceback" not in "\n".join(serving.err.all)


async def test_client_that_does_not_trust_the_certificate_fails(
    sqlite_application: Application, tmp_path: Path
) -> None:
    async with (
        speaking_tls(sqlite_application, tmp_path) as (serving, _, _),
        client("stompjs.mjs", serving.url) as running,
    ):
        assert (await serving.record("connection closed"))["disconnect"] == "gone"
        assert not running.reported("connected")


async def test_alpn_selects_http_1(sqlite_application: Application, tmp_path: Path) -> None:
    """Browsers offer HTTP/2 too, and so does a library of many Python clients."""
    async with speaking_tls(sqlite_application, tmp_path) as (serving, _, _):

        def talk() -> tuple[str | None, str]:
            context = trusting()
            context.set_alpn_protocols(["h2", "http/1.1"])
            url = serving.url.replace("127.0.0.1", "localhost")
            with websockets.sync.client.connect(url, ssl=context) as talking:
                assert isinstance(talking.socket, ssl.SSLSocket)
                talking.send("CONNECT\naccept-version:1.2\n\n\0")
                return talking.socket.selected_alpn_protocol(), str(talking.recv(10))

        alpn, answer = await trio.to_thread.run_sync(talk)
        assert alpn == "http/1.1"
        assert answer.startswith("CONNECTED\n")


async def test_reload_with_nothing_to_renew_has_no_effect(sqlite_application: Application, tmp_path: Path) -> None:
    """``systemctl reload`` runs this line of the unit, with the process id in the environment."""
    [reload] = re.findall(r"^ExecReload=(.+)$", UNIT.read_text(), re.MULTILINE)
    sqlite_application.migrate()
    config = tmp_path / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{sqlite_application.url}"\n[listener]\nport = 0\n[admin]\nport = 0\n'
        '[logging]\nformat = "json"\n'
    )
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            assert not serving.tls
            await trio.run_process(["sh", "-c", reload], env={"MAINPID": str(serving.process.pid)})
            assert (await serving.record("settings renewed"))["only_after_a_restart"] == []
            async with await connect("127.0.0.1", serving.port) as found:
                assert (await found.subscribe()).command == "RECEIPT"
            assert await serving.terminate() == 0


@pytest.mark.parametrize(
    "sent, reason",
    [
        (b"GET /ws.communication HTTP/1.1\r\nHost: localhost\r\n\r\n", "http request"),
        (os.urandom(10_000).replace(b"\x16", b"\x17"), None),
        (b"\x16\x03\x01\x00\x05hello", "unexpected message"),
    ],
    ids=["HTTP", "garbage", "no ClientHello"],
)
async def test_connection_without_tls_is_logged_in_one_line(
    sqlite_application: Application, tmp_path: Path, sent: bytes, reason: str | None
) -> None:
    async with speaking_tls(sqlite_application, tmp_path) as (serving, _, _):
        stream = await trio.open_tcp_stream("127.0.0.1", serving.port)
        async with stream:
            await stream.send_all(sent)
            record = await serving.record("TLS handshake failed")
            assert record["reason"] == (reason or record["reason"])
            assert (record["level"], record["address"]) == ("info", "127.0.0.1")
            await read_to_end(stream)
            closed = await serving.record("connection closed", session=record["session"])
            assert closed["disconnect"] == "gone"
        async with await our_client(serving):
            pass
        assert len([line for line in serving.err.all if "TLS handshake failed" in line]) == 1
        assert "Traceback" not in "\n".join(serving.err.all)


async def read_to_end(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some(65_536):
            pass
    except trio.BrokenResourceError:
        pass


async def test_slow_handshake_times_out_and_delays_no_other(sqlite_application: Application, tmp_path: Path) -> None:
    async with speaking_tls(sqlite_application, tmp_path, "connect_timeout_s = 2") as (serving, _, _):
        silent = await trio.open_tcp_stream("127.0.0.1", serving.port)
        slow = await trio.open_tcp_stream("127.0.0.1", serving.port)
        async with silent, slow:
            await slow.send_all(b"\x16\x03\x01")  # the beginning of a ClientHello
            async with await our_client(serving):
                pass
            for stream in (silent, slow):
                with pytest.raises(trio.BrokenResourceError) as reset:
                    await stream.receive_some()
                assert isinstance(reset.value.__cause__, ConnectionResetError)


async def test_excess_connection_is_rejected_over_tls(sqlite_application: Application, tmp_path: Path) -> None:
    async with (
        speaking_tls(sqlite_application, tmp_path, "connections_max = 1") as (serving, _, _),
        await our_client(serving),
    ):
        stream = await trio.open_ssl_over_tcp_stream("localhost", serving.port, ssl_context=trusting())
        async with stream:
            await stream.send_all(b"GET /ws.communication HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 503 ")


async def test_shutdown_ends_with_close_notify(sqlite_application: Application, tmp_path: Path) -> None:
    async with speaking_tls(sqlite_application, tmp_path) as (serving, _, _), await our_client(serving) as found:
        serving.process.terminate()
        assert (await found.receive()).get("message") == "503-shutting-down"
        with pytest.raises(Closed) as closed:
            await found.receive()
        assert closed.value.code == 1012
        assert await found.stream.receive_some() == b""  # SSLStream raises if close_notify is missing
        await found.stream.aclose()
        assert await serving.wait() == 0


async def test_event_stream_over_tls(sqlite_application: Application, tmp_path: Path) -> None:
    async with speaking_tls(sqlite_application, tmp_path, "heartbeat_ms = 500\n") as (serving, _, _):
        raw = await trio.open_tcp_stream("localhost", serving.port)
        async with trio.SSLStream(raw, trusting(), server_hostname="localhost") as stream:
            events = await EventStream(stream).request("/events?replay=none", host="localhost")
            await events.subscribed()
            for number in range(EVENTS):
                sqlite_application.tag(f"t{number}")
            assert [(await events.receive()).json["payload"]["id"] for _ in range(EVENTS)] == [
                f"t{number}" for number in range(EVENTS)
            ]
            with trio.move_on_after(1.2):
                await events.receive()
            assert events.parser.comments > 0
            serving.process.terminate()
            assert (await events.receive()).json["token"] == "503-shutting-down"
            with pytest.raises(EOFError):  # and not `trio.BrokenResourceError`: TLS was closed in order
                await events.receive()
