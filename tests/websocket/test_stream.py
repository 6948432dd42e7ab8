"""The framed stream: one writer at a time, nothing after a Close frame, and peers that take nothing."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from airy_trio.websocket.fair_queue import ENTRIES_PER_PASS, FairQueue, Turn
from airy_trio.websocket.frames import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_answer,
    close_frame,
    pong_frame,
    text_message,
)
from airy_trio.websocket.stream import FramedStream, InputEnded, StalledError
from tests.memory_transport import MemoryTransport
from tests.websocket.test_battery import FRAME_BYTES_MAX, frame

SEND_TIMEOUT_S = 10.0


def wired(capacity_bytes: int | None = None) -> tuple[FramedStream, MemoryTransport]:
    transport = MemoryTransport(capacity_bytes)
    return FramedStream(transport, send_timeout_s=SEND_TIMEOUT_S), transport


async def test_stream_refuses_an_offer_while_data_is_pending(autojump_clock: MockClock) -> None:
    stream, transport = wired(3)
    assert stream.offer(b"12345", 1.0)
    assert transport.pending
    assert transport.take(1) == b"1"  # there is room, but no other data may be written in between
    assert not stream.offer(b"6", 2.0)
    assert stream.written_at == 1.0
    assert transport.take() == b"23"
    async with stream.lock:
        await stream.drain()
    assert transport.take() == b"45"


async def test_writers_take_turns(autojump_clock: MockClock) -> None:
    stream, transport = wired(2)
    taken = bytearray()
    async with trio.open_nursery() as nursery:
        for letter in b"abc":
            nursery.start_soon(stream.write, bytes([letter]) * 10)
            await trio.testing.wait_all_tasks_blocked()
        while len(taken) < 30:
            taken += transport.take(1)
            await trio.sleep(0.1)
    assert taken == b"a" * 10 + b"b" * 10 + b"c" * 10


async def test_pending_data_leaves_before_a_control_frame(autojump_clock: MockClock) -> None:
    stream, transport = wired(3)
    assert stream.offer(b"12345", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, b"\x8a\x00")
        await trio.testing.wait_all_tasks_blocked()
        taken = transport.take()
        await trio.testing.wait_all_tasks_blocked()
        taken += transport.take()
    assert taken + transport.take() == b"12345\x8a\x00"


async def test_nothing_follows_a_close_frame(autojump_clock: MockClock) -> None:
    stream, transport = wired()
    await stream.close(close_frame(1000, ""))
    assert not stream.offer(text_message(b"x"), 0)
    await stream.write(text_message(b"x"))
    await stream.write(b"\x8a\x00")
    await stream.close(close_frame(1000, "second"))
    assert transport.take() == close_frame(1000, "")


async def test_next_writer_writes_the_close_frame_of_a_cancelled_one(autojump_clock: MockClock) -> None:
    stream, transport = wired()
    async with trio.open_nursery() as nursery, stream.lock:
        nursery.start_soon(stream.close, close_frame(1000, "first"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await stream.close(close_frame(1000, "second"))
    await stream.close(close_frame(1000, "third"))
    assert transport.take() == close_frame(1000, "second")


async def test_waiting_writer_writes_nothing_after_a_close_frame(autojump_clock: MockClock) -> None:
    stream, transport = wired()
    async with trio.open_nursery() as nursery, stream.lock:
        nursery.start_soon(stream.write, b"late")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stream.close, close_frame(1000, ""))
        await trio.testing.wait_all_tasks_blocked()
        assert stream.closing, "before the lock is acquired"
        assert not stream.offer(b"late too", 0)
    assert transport.take() == close_frame(1000, "")


async def test_peer_that_takes_nothing_stalls_the_stream(autojump_clock: MockClock) -> None:
    stream, _transport = wired(3)
    with pytest.raises(StalledError):
        await stream.write(b"12345")
    assert stream.stalled
    assert trio.current_time() == SEND_TIMEOUT_S


async def test_peer_that_takes_a_little_does_not_stall(autojump_clock: MockClock) -> None:
    stream, transport = wired(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, b"12345")
        for _ in range(5):
            await trio.sleep(SEND_TIMEOUT_S * 0.9)
            transport.take(1)
    assert not stream.stalled
    assert stream.written_at == pytest.approx(4 * 0.9 * SEND_TIMEOUT_S)


async def test_cancelled_write_is_completed_by_the_next(autojump_clock: MockClock) -> None:
    stream, transport = wired(3)
    with trio.move_on_after(1):
        await stream.write(b"12345")
    assert transport.take() == b"123"
    await stream.write(b"6")
    assert transport.take() == b"456"


async def test_read_at_is_the_time_since_which_input_is_awaited(autojump_clock: MockClock) -> None:
    stream, transport = wired()
    await trio.sleep(5)
    transport.feed(b"x")
    assert await stream.receive_some() == b"x"
    assert (stream.reading, stream.read_at) == (False, 5)


async def test_input_that_waits_for_its_turn_is_not_silence(autojump_clock: MockClock) -> None:
    fair_queue, transport = FairQueue(), MemoryTransport()
    stream = FramedStream(transport, send_timeout_s=SEND_TIMEOUT_S, turn=fair_queue.enter)
    for _ in range(ENTRIES_PER_PASS):
        await fair_queue.enter()
    transport.feed(b"hello")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.sleep(10)
        assert not stream.reading
        nursery.start_soon(fair_queue.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert (stream.reading, stream.read_at) == (True, trio.current_time())
        nursery.cancel_scope.cancel()


async def upgraded(turn: Turn = trio.lowlevel.checkpoint) -> tuple[FramedStream, MemoryTransport]:
    transport = MemoryTransport()
    stream = FramedStream(transport, send_timeout_s=SEND_TIMEOUT_S, turn=turn)
    await stream.upgrade(b"answer", FRAME_BYTES_MAX)
    assert transport.take() == b"answer"
    return stream, transport


async def test_receive_that_is_cancelled_anywhere_loses_nothing(autojump_clock: MockClock) -> None:
    turns: list[float] = []

    async def turn() -> None:
        turns.append(trio.current_time())
        await trio.sleep(1)

    stream, transport = await upgraded(turn)
    data = frame(TEXT, b"one") + frame(PING, b"two") + frame(TEXT, b"three", fin=False) + frame(CONTINUATION, b"four")
    received = []
    for octet in data:
        transport.feed(bytes([octet]))
        for patience_s in (0, 0.5, 1.5):
            with trio.move_on_after(patience_s):
                received.append(await stream.receive())
    assert received == [b"one", b"threefour"]
    assert transport.take() == pong_frame(b"two")


async def test_pong_is_written_although_the_reader_was_cancelled(autojump_clock: MockClock) -> None:
    stream, transport = await upgraded()
    transport.capacity_bytes = 3
    assert stream.offer(b"12345", 0)
    transport.feed(frame(PING, b"p"))
    with trio.move_on_after(1):
        await stream.receive()
    taken = transport.take()
    for _ in range(5):
        with trio.move_on_after(1):
            await stream.receive()
        taken += transport.take()
    assert taken == b"12345" + pong_frame(b"p")


async def test_each_frame_of_one_read_takes_its_turn(autojump_clock: MockClock) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        await trio.lowlevel.checkpoint()

    stream, transport = await upgraded(turn)
    transport.feed(frame(TEXT, b"x") * 5 + frame(PONG) * 5)
    assert [await stream.receive() for _ in range(5)] == [b"x"] * 5
    assert turns == 5
    with trio.move_on_after(1):
        await stream.receive()
    assert turns == 10


async def test_close_frame_is_answered_with_its_content(autojump_clock: MockClock) -> None:
    stream, transport = await upgraded()
    transport.feed(frame(CLOSE, b"\x0f\xa0why"))
    with pytest.raises(InputEnded):
        await stream.receive()
    assert transport.take() == close_answer(b"\x0f\xa0why")
    assert stream.ended
    assert stream.closing
