"""Transports over real sockets and over streams: all or nothing, pending data, and both ways to close.

Tests that hold for every transport over a socket run without TLS and over both versions of it.
"""

import errno
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import frozen

from airy_trio.websocket import tls
from airy_trio.websocket.tls import TlsTransport
from airy_trio.websocket.transport import SocketTransport, Transport
from tests.certificates import issue, trusting
from tests.memory_transport import CHUNK_BYTES, MemoryTransport, StreamTransport

LARGE = bytes(range(256)) * 4096 * 2  # more than two sockets' buffers


@pytest.fixture
def pair() -> Generator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on loopback; the second blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def narrow(pair: tuple[socket.socket, socket.socket]) -> tuple[socket.socket, socket.socket]:
    """The same pair with small buffers, which are soon full of single bytes."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return pair


@frozen
class Ends:
    """A transport, and its peer: a blocking socket, with TLS if the transport has it."""

    transport: Transport
    theirs: socket.socket

    def end(self) -> None:
        """End the data of the peer."""
        if isinstance(self.theirs, ssl.SSLSocket):
            self.theirs.settimeout(0)
            with suppress(ssl.SSLWantReadError):  # it need not wait for our answer
                self.theirs.unwrap()
        else:
            self.theirs.shutdown(socket.SHUT_WR)


@pytest.fixture(params=[None, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["plain", "TLS 1.2", "TLS 1.3"])
async def ends(
    request: pytest.FixtureRequest, pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> AsyncGenerator[Ends]:
    """The two ends of a connection after the handshake."""
    ours, theirs = pair
    if request.param is None:
        transport: Transport = SocketTransport(ours)
        await transport.handshake()
        yield Ends(transport, theirs)
        return
    files = issue(tmp_path)
    transport = TlsTransport(SocketTransport(ours), tls.load(str(files.certificate), str(files.key)).context)
    wrap = partial(trusting(request.param).wrap_socket, suppress_ragged_eofs=False, server_hostname="localhost")
    wrapped: list[socket.socket] = []

    async def shake_hands() -> None:
        wrapped.append(await trio.to_thread.run_sync(wrap, theirs))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake_hands)
            await transport.handshake()
    with wrapped[0]:
        yield Ends(transport, wrapped[0])


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await trio.to_thread.run_sync(sock.recv, 65536)
    return data


def read_to_end(sock: socket.socket) -> None:
    while socket.socket.recv(sock, 65536):  # below TLS, where a reset and an end look the same
        pass


async def drain_all(transport: Transport) -> None:
    while transport.pending:
        await transport.drain()


async def test_data_the_socket_does_not_take_is_pending(ends: Ends) -> None:
    transport = ends.transport
    assert transport.offer(LARGE)
    assert transport.pending
    assert not transport.offer(b"not now")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain_all, transport)
            data = await read_exactly(ends.theirs, len(LARGE))
    assert data == LARGE
    assert not transport.pending


async def test_full_socket_refuses_all(narrow: tuple[socket.socket, socket.socket]) -> None:
    transport = SocketTransport(narrow[0])
    taken = 0
    while transport.offer(b"x"):  # one byte is never taken in part
        taken += 1
    assert not transport.pending
    with trio.fail_after(20):
        assert await read_exactly(narrow[1], taken) == b"x" * taken
    assert transport.offer(b"x")


async def test_offer_is_refused_while_data_is_pending() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = SocketTransport(ours)
        assert transport.offer(LARGE)
        assert transport.pending
        theirs.settimeout(0)
        with suppress(BlockingIOError):  # now there is room, but what is pending comes first
            while theirs.recv(CHUNK_BYTES):
                pass
        assert not transport.offer(b"next")
        await transport.drain()


async def test_push_accepts_all_on_a_full_socket(narrow: tuple[socket.socket, socket.socket]) -> None:
    await trio.lowlevel.checkpoint()
    transport = SocketTransport(narrow[0])
    while transport.offer(b"x"):
        pass
    transport.push(b"y" * 10)
    assert transport.pending
    with pytest.raises(RuntimeError):
        transport.push(b"z")


async def test_cancelled_drain_can_be_continued(ends: Ends) -> None:
    transport = ends.transport
    transport.push(LARGE)
    with trio.move_on_after(0.01):
        await drain_all(transport)
    assert transport.pending
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain_all, transport)
            assert await read_exactly(ends.theirs, len(LARGE)) == LARGE


async def test_sent_data_arrives_after_closing(ends: Ends) -> None:
    transport = ends.transport
    transport.push(b"last words")
    await transport.send_eof()
    await transport.aclose()
    await transport.aclose()
    assert ends.theirs.recv(100) == b"last words"
    assert ends.theirs.recv(100) == b""


async def test_abort_resets_the_peer_and_drops_pending_data(ends: Ends) -> None:
    transport = ends.transport
    transport.push(LARGE)
    await transport.abort()
    await transport.abort()
    assert not transport.pending
    with pytest.raises(ConnectionResetError):
        read_to_end(ends.theirs)


async def test_the_end_of_the_peers_stream_is_empty(ends: Ends) -> None:
    transport = ends.transport
    ends.theirs.sendall(b"hello")
    assert await transport.receive_some(100) == b"hello"
    ends.end()
    assert await transport.receive_some(100) == b""


async def test_gone_peer_breaks_the_transport(ends: Ends) -> None:
    transport = ends.transport
    ends.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends.theirs.close()
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError) as broken:
        await transport.receive_some(100)
    assert isinstance(broken.value.__cause__, OSError)
    assert broken.value.__cause__.errno == errno.ECONNRESET
    with pytest.raises(trio.BrokenResourceError):
        transport.offer(b"x")
    with pytest.raises(trio.BrokenResourceError):
        transport.push(b"x")


async def test_closing_wakes_waiting_tasks(ends: Ends) -> None:
    transport = ends.transport
    transport.push(LARGE)

    async def closed(wait: Callable[[], object]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait()  # type: ignore[misc]

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed, lambda: transport.receive_some(100))
            nursery.start_soon(closed, lambda: drain_all(transport))
            await trio.testing.wait_all_tasks_blocked()
            await transport.aclose()
    for use in (transport.offer, transport.push):
        with pytest.raises(trio.ClosedResourceError):
            use(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_some(100)
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_eof()


async def test_stream_transport_is_pending_until_drained() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours)
    assert transport.offer(LARGE)
    assert transport.pending
    assert not transport.offer(b"not now")
    await transport.drain()
    assert len(await theirs.receive_some()) == CHUNK_BYTES
    await drain_all(transport)
    assert await theirs.receive_some() == LARGE[CHUNK_BYTES:]
    await transport.send_eof()
    assert await theirs.receive_some() == b""
    await theirs.send_all(b"hello")
    assert await transport.receive_some(100) == b"hello"


async def test_stream_transport_with_a_cancelled_write_is_broken() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    transport = StreamTransport(ours)
    transport.push(b"x" * 10)
    with trio.move_on_after(0):
        await transport.drain()
    with pytest.raises(trio.BrokenResourceError):
        await transport.drain()
    await transport.abort()


@pytest.mark.parametrize("make", [lambda: StreamTransport(trio.testing.memory_stream_pair()[0]), MemoryTransport])
async def test_push_over_pending_data_is_an_error(make: Callable[[], Transport]) -> None:
    await trio.lowlevel.checkpoint()
    transport = make()
    if isinstance(transport, MemoryTransport):
        transport.capacity_bytes = 1
    transport.push(b"xy")
    assert transport.pending
    with pytest.raises(RuntimeError):
        transport.push(b"z")
    assert not transport.offer(b"z")
