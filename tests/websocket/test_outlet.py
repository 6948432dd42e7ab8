"""Outlets over real sockets and over streams: whole or refused, what is pending, and the two ways to close."""

import errno
import socket
from collections.abc import Callable, Generator

import pytest
import trio
import trio.testing

from airy_trio.testing.outlet import MemoryOutlet
from airy_trio.websocket.outlet import CHUNK_BYTES, Outlet, SocketOutlet, StreamOutlet

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


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await trio.to_thread.run_sync(sock.recv, 65536)
    return data


def read_to_end(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


async def drain_all(outlet: Outlet) -> None:
    while outlet.pending:
        await outlet.drain()


async def test_what_the_socket_does_not_take_is_pending_and_arrives_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    outlet = SocketOutlet(pair[0])
    assert outlet.offer(LARGE)
    assert outlet.pending
    assert not outlet.offer(b"not now")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain_all, outlet)
            data = await read_exactly(pair[1], len(LARGE))
    assert data == LARGE
    assert not outlet.pending


async def test_a_full_socket_refuses_the_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    taken = 0
    while outlet.offer(b"x"):  # one byte is never taken in part
        taken += 1
    assert not outlet.pending
    with trio.fail_after(20):
        assert await read_exactly(pair[1], taken) == b"x" * taken
    assert outlet.offer(b"x")


async def test_push_takes_all_even_of_a_full_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    await trio.lowlevel.checkpoint()
    outlet = SocketOutlet(pair[0])
    while outlet.offer(b"x"):
        pass
    outlet.push(b"y" * 10)
    assert outlet.pending
    with pytest.raises(RuntimeError):
        outlet.push(b"z")


async def test_a_cancelled_drain_goes_on_where_it_stopped(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    outlet.push(LARGE)
    with trio.move_on_after(0.01):
        await drain_all(outlet)
    assert outlet.pending
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain_all, outlet)
            assert await read_exactly(pair[1], len(LARGE)) == LARGE


async def test_closing_lets_what_was_sent_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    outlet.push(b"last words")
    await outlet.send_eof()
    await outlet.aclose()
    await outlet.aclose()
    assert pair[1].recv(100) == b"last words"
    assert pair[1].recv(100) == b""


async def test_abort_resets_the_peer_and_drops_what_is_pending(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    outlet.push(LARGE)
    await outlet.abort()
    await outlet.abort()
    assert not outlet.pending
    with pytest.raises(ConnectionResetError):
        read_to_end(pair[1])


async def test_the_end_of_the_peers_stream_is_empty(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    pair[1].sendall(b"hello")
    assert await outlet.receive_some(100) == b"hello"
    pair[1].shutdown(socket.SHUT_WR)
    assert await outlet.receive_some(100) == b""


async def test_a_peer_that_is_gone_breaks_the_outlet(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair[1].close()
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError) as broken:
        await outlet.receive_some(100)
    assert isinstance(broken.value.__cause__, OSError)
    assert broken.value.__cause__.errno == errno.ECONNRESET
    with pytest.raises(trio.BrokenResourceError):
        outlet.offer(b"x")
    with pytest.raises(trio.BrokenResourceError):
        outlet.push(b"x")


async def test_closing_wakes_who_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = SocketOutlet(pair[0])
    outlet.push(LARGE)

    async def closed(wait: Callable[[], object]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait()  # type: ignore[misc]

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed, lambda: outlet.receive_some(100))
            nursery.start_soon(closed, lambda: drain_all(outlet))
            await trio.testing.wait_all_tasks_blocked()
            await outlet.aclose()
    for use in (outlet.offer, outlet.push):
        with pytest.raises(trio.ClosedResourceError):
            use(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await outlet.receive_some(100)
    with pytest.raises(trio.ClosedResourceError):
        await outlet.send_eof()


async def test_small_writes_leave_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    await trio.lowlevel.checkpoint()
    SocketOutlet(pair[0])
    assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_stream_has_all_pending_until_drained() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    outlet = StreamOutlet(ours)
    assert outlet.offer(LARGE)
    assert outlet.pending
    assert not outlet.offer(b"not now")
    await outlet.drain()
    assert len(await theirs.receive_some()) == CHUNK_BYTES
    await drain_all(outlet)
    assert await theirs.receive_some() == LARGE[CHUNK_BYTES:]
    await outlet.send_eof()
    assert await theirs.receive_some() == b""
    await theirs.send_all(b"hello")
    assert await outlet.receive_some(100) == b"hello"


async def test_a_stream_whose_write_was_cut_off_is_broken() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    outlet = StreamOutlet(ours)
    outlet.push(b"x" * 10)
    with trio.move_on_after(0):
        await outlet.drain()
    with pytest.raises(trio.BrokenResourceError):
        await outlet.drain()
    await outlet.abort()


@pytest.mark.parametrize("make", [lambda: StreamOutlet(trio.testing.memory_stream_pair()[0]), MemoryOutlet])
async def test_an_outlet_takes_nothing_over_what_is_pending(make: Callable[[], Outlet]) -> None:
    await trio.lowlevel.checkpoint()
    outlet = make()
    if isinstance(outlet, MemoryOutlet):
        outlet.capacity_bytes = 1
    outlet.push(b"xy")
    assert outlet.pending
    with pytest.raises(RuntimeError):
        outlet.push(b"z")
    assert not outlet.offer(b"z")
