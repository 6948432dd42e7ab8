"""A stream whose reader is cancelled, as while a session waits for the store: nothing is lost or kept."""

import gc
import ssl
import tracemalloc
from contextlib import suppress
from random import Random

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Pong, TextMessage

from airy_trio.websocket import tls
from airy_trio.websocket.frames import (
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    FrameError,
    FrameReader,
    close_answer,
    pong_frame,
    text_message,
)
from airy_trio.websocket.stream import FramedStream, InputEnded
from airy_trio.websocket.tls import TlsTransport
from tests.certificates import issue
from tests.living import freed_without_the_collector
from tests.memory_transport import MemoryTransport
from tests.websocket.records import Peer
from tests.websocket.test_battery import FRAME_BYTES_MAX, frame
from tests.websocket.test_stream import SEND_TIMEOUT_S, upgraded
from tests.websocket.test_tls import VERSIONS, Octets


async def cancel_while_the_close_answer_waits(stream: FramedStream, transport: MemoryTransport) -> None:
    transport.feed(frame(CLOSE, b"\x03\xe8"))
    async with trio.open_nursery() as nursery, stream.lock:  # as a send task that drains a batch
        nursery.start_soon(stream.receive)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def test_close_frame_is_answered_although_the_reader_was_cancelled(autojump_clock: MockClock) -> None:
    stream, transport = await upgraded()
    await cancel_while_the_close_answer_waits(stream, transport)
    outcome = "still reading after the client's Close frame, 100 s later"
    with trio.move_on_after(100):
        try:
            await stream.receive()
        except InputEnded:
            outcome = "ended"
    assert (outcome, transport.take()) == ("ended", close_answer(b"\x03\xe8"))


async def test_input_after_an_unanswered_close_frame_takes_no_memory(autojump_clock: MockClock) -> None:
    stream, transport = await upgraded()
    await cancel_while_the_close_answer_waits(stream, transport)
    for _ in range(500):
        transport.feed(b"x" * 4096)
    with trio.move_on_after(100):
        with suppress(InputEnded):
            await stream.receive()
    assert len(stream.unread) <= 8192


async def test_input_is_awaited_again_after_a_cancelled_turn(autojump_clock: MockClock) -> None:
    """A message arrives in two reads. The turn of the second read is cancelled, as by ``Inbox.unless_gone``."""
    waits = False

    async def turn() -> None:
        if waits:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    stream, transport = await upgraded(turn)
    data = frame(TEXT, b"hello")
    transport.feed(data[:8])
    with trio.move_on_after(1):
        await stream.receive()
    waits = True
    transport.feed(data[8:])
    with trio.move_on_after(1):
        await stream.receive()
    waits = False
    assert await stream.receive() == b"hello"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive)  # idle: nothing has arrived
        await trio.testing.wait_all_tasks_blocked()
        assert (stream.reading, stream.read_at) == (True, trio.current_time())
        nursery.cancel_scope.cancel()
    assert not stream.reading


async def test_ping_is_answered_once_although_the_reader_was_cancelled(autojump_clock: MockClock) -> None:
    stream, transport = await upgraded()
    transport.capacity_bytes = 1
    transport.feed(frame(PING, b"p"))
    taken = b""
    for _ in range(5):
        with trio.move_on_after(1):
            await stream.receive()
        taken += transport.take()
    transport.capacity_bytes = None
    with trio.move_on_after(1):
        await stream.receive()
    assert taken + transport.take() == pong_frame(b"p")


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 4000])
async def test_idle_client_keeps_nothing_of_its_last_message(autojump_clock: MockClock, size: int) -> None:
    count = 200
    streams = [await upgraded() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        tracemalloc.start()
        try:
            for stream, transport in streams:
                transport.feed(frame(TEXT, b"\n" * size))
                await stream.receive()
            for stream, _ in streams:
                nursery.start_soon(stream.receive)
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            kept = sum(one.size for one in tracemalloc.take_snapshot().traces if "test_battery" in str(one.traceback))
        finally:
            tracemalloc.stop()
        nursery.cancel_scope.cancel()
    assert kept < size * count / 10, "made by `frame`"


@pytest.mark.parametrize("patience_s", [0.5, 5], ids=["cancelled", "control"])
async def test_fault_with_a_cancelled_turn_leaves_no_cycle(autojump_clock: MockClock, patience_s: float) -> None:
    class Breaking(MemoryTransport):
        broken = False

        async def receive_some(self, bytes_max: int) -> bytes:
            if self.broken:
                raise trio.BrokenResourceError("reset")
            return await super().receive_some(bytes_max)

    async def turn() -> None:
        await trio.sleep(1)

    async def live() -> None:
        transport = Breaking()
        stream = FramedStream(transport, send_timeout_s=SEND_TIMEOUT_S, turn=turn)
        await stream.upgrade(b"answer", FRAME_BYTES_MAX)
        transport.broken = True
        with trio.move_on_after(patience_s), suppress(trio.BrokenResourceError):
            await stream.receive()

    with freed_without_the_collector(FramedStream) as left:
        await live()
        await trio.testing.wait_all_tasks_blocked()
    assert not left


@pytest.mark.parametrize(
    "data", [frame(TEXT, b"\xff"), frame(TEXT, b"\xce"), frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xff")]
)
def test_reader_returns_nothing_after_an_error(data: bytes) -> None:
    reader = FrameReader(FRAME_BYTES_MAX)
    reader.feed(data)
    with pytest.raises(FrameError):
        reader.next()
    try:
        found = reader.next()
    except FrameError:
        found = None
    assert found is None


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    files = issue(tmp_path_factory.mktemp("tls"))
    return tls.load(str(files.certificate), str(files.key)).context


@pytest.mark.parametrize("seed", range(6))
async def test_cancelled_reads_over_tls_lose_nothing(seed: int, context: ssl.SSLContext) -> None:
    random = Random(seed)
    below = Octets()
    transport, peer = TlsTransport(below, context), Peer(below, VERSIONS[seed % 2])
    with trio.fail_after(20):
        await peer.shake_hands(transport)

        async def turn() -> None:
            for _ in range(random.randrange(4)):
                await trio.lowlevel.checkpoint()

        stream = FramedStream(transport, send_timeout_s=SEND_TIMEOUT_S, turn=turn)
        await stream.upgrade(b"answer", FRAME_BYTES_MAX)
        sent = [b"%d" % number * random.randrange(1, 300) for number in range(20)]
        for message in sent:
            peer.send(frame(TEXT, message))
        received: list[bytes] = []
        while len(received) < len(sent):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel() -> None:
                        for _ in range(random.randrange(40)):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel)
                    while len(received) < len(sent):
                        received.append(await stream.receive())
                    nursery.cancel_scope.cancel()
        assert received == sent


@pytest.mark.parametrize("seed", range(10))
async def test_pongs_never_interleave_with_batches(seed: int, autojump_clock: MockClock) -> None:
    """A send task, a fan-out that offers, and a reader that is cancelled at random write to a moody transport."""
    random = Random(seed)
    transport = MemoryTransport(200, moods=random, moody_share=0.3)
    stream = FramedStream(transport, send_timeout_s=SEND_TIMEOUT_S)
    await stream.upgrade(b"", FRAME_BYTES_MAX)
    taken = bytearray()
    accepted = 0
    done = False

    async def take() -> None:
        while not done or transport.pending:
            taken.extend(transport.take(random.randrange(1, 200)))
            await trio.sleep(random.random())

    async def fan_out() -> None:
        nonlocal accepted
        for number in range(100):
            accepted += stream.offer(text_message(b"f%d" % number * 20) * 2, trio.current_time())
            await trio.sleep(random.random())

    async def send() -> None:
        for number in range(30):
            with trio.move_on_after(random.random() * 10):
                await stream.write(text_message(b"s%d" % number * 200))
            await trio.sleep(random.random())

    async def read() -> None:
        while True:
            with trio.move_on_after(random.random() * 3):
                await stream.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async with trio.open_nursery() as writers:
            for number in range(50):
                transport.feed(frame(PING, b"%d" % number))
            writers.start_soon(read)
            async with trio.open_nursery() as both:
                both.start_soon(fan_out)
                both.start_soon(send)
            await trio.sleep(100)
            writers.cancel_scope.cancel()
        with trio.move_on_after(1000):
            async with stream.lock:
                await stream.drain()
        done = True
    taken.extend(transport.take())
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(bytes(taken))
    events = list(client.events())
    pongs = [int(event.payload) for event in events if isinstance(event, Pong)]
    assert list(dict.fromkeys(pongs)) == list(range(50))
    assert sum(isinstance(event, TextMessage) for event in events) >= 2 * accepted
