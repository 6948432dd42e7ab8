"""The transport in memory behaves like a socket: it fills up, drains, refuses data, and ends."""

from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.memory_transport import MemoryTransport


async def test_data_over_the_capacity_is_pending() -> None:
    transport = MemoryTransport(3)
    assert transport.offer(b"12345")
    assert transport.pending
    assert not transport.offer(b"6")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.drain)
        await wait_all_tasks_blocked()
        assert transport.take(2) == b"12"
    assert transport.take() == b"345"
    assert not transport.pending


async def test_full_transport_refuses_an_offer_and_accepts_a_push() -> None:
    await trio.lowlevel.checkpoint()
    transport = MemoryTransport(0)
    assert not transport.offer(b"1")
    transport.push(b"2")
    assert transport.pending
    assert transport.offers_refused == 1


async def test_moods_lose_nothing(autojump_clock: MockClock) -> None:
    transport = MemoryTransport(100, moods=Random(3), moody_share=0.5)
    sent, got = b"", b""
    for number in range(200):
        data = b"%d," % number
        while not transport.offer(data):
            if transport.pending:
                got += transport.take()
                await transport.drain()
        sent += data
        got += transport.take(5)
    while transport.pending:
        got += transport.take()
        await transport.drain()
    assert got + transport.take() == sent
    assert transport.offers_refused > 10


async def test_the_peer_can_send_and_end() -> None:
    transport = MemoryTransport()
    transport.feed(b"hello")
    transport.feed_eof()
    assert await transport.receive_some(10) == b"hello"
    assert await transport.receive_some(10) == b""


async def test_closed_transport_accepts_nothing_and_wakes_waiting_tasks() -> None:
    transport = MemoryTransport(0)
    transport.push(b"1")

    async def drain() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await transport.drain()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await wait_all_tasks_blocked()
        await transport.abort()
    assert transport.aborted
    with pytest.raises(trio.ClosedResourceError):
        transport.offer(b"2")
