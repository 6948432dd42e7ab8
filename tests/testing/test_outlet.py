"""The outlet in memory behaves as a socket does: it fills, is taken from, refuses, and ends."""

from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.testing.transport import MemoryTransport


async def test_what_is_over_the_capacity_is_pending_until_the_peer_takes() -> None:
    outlet = MemoryTransport(3)
    assert outlet.offer(b"12345")
    assert outlet.pending
    assert not outlet.offer(b"6")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outlet.drain)
        await wait_all_tasks_blocked()
        assert outlet.take(2) == b"12"
    assert outlet.take() == b"345"
    assert not outlet.pending


async def test_a_full_outlet_refuses_an_offer_and_keeps_a_push() -> None:
    await trio.lowlevel.checkpoint()
    outlet = MemoryTransport(0)
    assert not outlet.offer(b"1")
    outlet.push(b"2")
    assert outlet.pending
    assert outlet.offers_refused == 1


async def test_moods_lose_nothing(autojump_clock: MockClock) -> None:
    outlet = MemoryTransport(100, moods=Random(3), moody_share=0.5)
    sent, got = b"", b""
    for number in range(200):
        data = b"%d," % number
        while not outlet.offer(data):
            if outlet.pending:
                got += outlet.take()
                await outlet.drain()
        sent += data
        got += outlet.take(5)
    while outlet.pending:
        got += outlet.take()
        await outlet.drain()
    assert got + outlet.take() == sent
    assert outlet.offers_refused > 10


async def test_the_peer_can_send_and_end() -> None:
    outlet = MemoryTransport()
    outlet.feed(b"hello")
    outlet.feed_eof()
    assert await outlet.receive_some(10) == b"hello"
    assert await outlet.receive_some(10) == b""


async def test_a_closed_outlet_takes_nothing_and_wakes_who_waits() -> None:
    outlet = MemoryTransport(0)
    outlet.push(b"1")

    async def drain() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await outlet.drain()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await wait_all_tasks_blocked()
        await outlet.abort()
    assert outlet.aborted
    with pytest.raises(trio.ClosedResourceError):
        outlet.offer(b"2")
