"""The listener over real sockets: accepted and rejected connections, and how they end."""

import errno
import socket
import sys
from collections.abc import AsyncGenerator

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.errors import StartError
from airy_trio.sessions.listener import (
    EXHAUSTED_PAUSE_S,
    PROBE_EVERY_S,
    SHORTAGE_OVER_S,
    UNSENT_BYTES_MAX,
    VANISHED_AFTER_S,
    BrokenListenerError,
    ListenerOptions,
    accept,
    open_listening_socket,
)
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient
from tests.sessions.serving import HOST, Server, open_log, serving


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    async with serving() as server:
        with trio.fail_after(20):
            yield server


async def test_an_error_arrives_despite_unread_input(server: Server) -> None:
    async with await server.dial() as client:
        await client.send(Frame("SEND", (("destination", "/x"),)))
        for _ in range(200):
            await client.send_text("x" * 1000)
        assert (await client.receive()).get("message") == "403-send-not-allowed"
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 4403


async def test_an_error_arrives_after_a_too_large_message(server: Server) -> None:
    async with await server.dial() as client:
        await client.send_text("x" * 500_000)
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 1009


async def test_a_client_that_reads_nothing_is_reset() -> None:
    async with (
        serving(options=ListenerOptions(port=0, send_timeout_s=0.2)) as server,
        await server.dial() as healthy,
        await server.dial() as client,
    ):
        await healthy.subscribe()
        await client.subscribe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_cancelled, healthy)
            number = 1
            while len(server.sessions.clients) == 2:
                await server.append(number, number + 9, size=50_000)
                number += 10
            nursery.cancel_scope.cancel()
        assert server.sessions.disconnects["too slow"] == 1
        with pytest.raises(trio.BrokenResourceError) as broken:
            await read_to_end(client)
        assert isinstance(broken.value.__cause__, ConnectionResetError)


async def receive_until_cancelled(client: StompClient) -> None:
    while True:
        await client.receive()


@pytest.mark.slow
async def test_a_full_socket_is_reset_within_the_time_limit(server: Server) -> None:
    async with await server.dial() as client:
        await client.subscribe()
        (session,) = server.sessions.clients
        number = 1
        while not session.subscriptions[1].has_work:
            await server.append(number, number + 9, size=50_000)
            number += 10
            await trio.testing.wait_all_tasks_blocked()
        begun_at = trio.current_time()
        await server.sessions.disconnect_all(0)
        assert trio.current_time() - begun_at < 3
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


async def read_to_end(client: StompClient) -> None:
    while await client.stream.receive_some():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other options")
@pytest.mark.parametrize("send_timeout_s, patience_s", [(10, VANISHED_AFTER_S), (500.5, 501)])
async def test_accepted_connections_have_the_options_of_the_listener(send_timeout_s: float, patience_s: int) -> None:
    with (
        await open_listening_socket(ListenerOptions(port=0, send_timeout_s=send_timeout_s)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        await trio.lowlevel.wait_readable(listening)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES_MAX
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            found = [accepted.getsockopt(socket.IPPROTO_TCP, option) for option in options]
            assert found == [PROBE_EVERY_S, PROBE_EVERY_S, VANISHED_AFTER_S // PROBE_EVERY_S, patience_s * 1000]


async def test_the_port_is_free_again_after_the_listener() -> None:
    async with serving() as server:
        port = server.port
        async with await server.dial():
            pass
    async with serving(options=ListenerOptions(port=port)) as server, await server.dial() as client:
        assert (await client.subscribe()).command == "RECEIPT"


async def test_a_foreign_host_is_reported_clearly() -> None:
    with pytest.raises(StartError):
        await open_listening_socket(ListenerOptions(host="192.0.2.1", port=0))


class Exhausted(socket.socket):
    """A listening socket of a process that runs out of descriptors for a while."""

    failures = 3

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_running_out_of_descriptors_does_not_end_the_accept_loop() -> None:
    log = await open_log()
    async with serving(log, listen=False) as server:
        with Exhausted() as listening, capture_logs() as logs:
            listening.bind((HOST, 0))
            listening.listen()
            listening.settimeout(0)
            server.port = listening.getsockname()[1]
            server.connections.start_soon(accept, listening, server.sessions, server.connections)
            async with await server.dial() as client:
                assert (await client.subscribe()).command == "RECEIPT"
            server.connections.cancel_scope.cancel()
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["cannot accept connections"]


async def test_broken_listening_socket_ends_the_accept_loop() -> None:
    async with serving(listen=False) as server:
        with await open_listening_socket(ListenerOptions(port=0)) as listening, trio.fail_after(20):
            listening.shutdown(socket.SHUT_RDWR)
            with pytest.raises(BrokenListenerError, match="the listening socket is broken: Invalid argument"):
                await accept(listening, server.sessions, server.connections)
        server.connections.cancel_scope.cancel()


async def test_a_descriptor_shortage_is_logged_at_start_and_end(autojump_clock: MockClock) -> None:
    async def shortage(listening: Exhausted, failures: int) -> None:
        listening.failures = failures
        caller = socket.create_connection(listening.getsockname())
        with caller:
            while listening.failures:  # noqa: ASYNC110 - a socket has no event for this
                await trio.sleep(EXHAUSTED_PAUSE_S)

    async with serving(listen=False) as server:
        with Exhausted() as listening, capture_logs() as logs:
            listening.bind((HOST, 0))
            listening.listen()
            listening.settimeout(0)
            server.connections.start_soon(accept, listening, server.sessions, server.connections)
            for _ in range(10):  # at the limit, when each client that leaves makes room for another one
                await shortage(listening, 3)
                await trio.sleep(SHORTAGE_OVER_S / 2)
            await trio.sleep(SHORTAGE_OVER_S)
            await shortage(listening, 1)
            server.connections.cancel_scope.cancel()
    received = [line for line in logs if "accept" in line["event"]]
    assert [(line["event"], line["log_level"]) for line in received] == [
        ("cannot accept connections", "warning"),
        ("connections are accepted again", "info"),
        ("cannot accept connections", "warning"),
    ]
    assert 9 * SHORTAGE_OVER_S / 2 < received[1]["lasted_s"] < 10 * SHORTAGE_OVER_S / 2 + 5


async def test_connections_that_vanish_before_the_upgrade_leave_nothing(server: Server) -> None:
    for _ in range(50):
        sock = socket.create_connection((HOST, server.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    async with await server.dial() as client:
        assert (await client.subscribe()).command == "RECEIPT"
    await server.ended()


async def test_the_log_has_the_client_address(server: Server) -> None:
    with capture_logs() as logs:
        async with await server.dial() as client:
            await client.disconnect()
        with trio.fail_after(10):
            while len(logs) < 2:  # noqa: ASYNC110 - a log has no event for this
                await trio.lowlevel.checkpoint()
    assert [(line["event"], line.get("address"), line.get("disconnect")) for line in logs] == [
        ("connection opened", "127.0.0.1", None),
        ("connection closed", "127.0.0.1", "done"),
    ]
