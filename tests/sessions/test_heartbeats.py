"""The timer wheel over transports in memory; ``test_wire_contract`` tests what clients receive."""

from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import Client, ClientState
from airy_trio.delivery.fanout import Batches, Senders
from airy_trio.delivery.framing import StompFraming
from airy_trio.log.reads import Reads
from airy_trio.sessions.heartbeats import PING_EVERY_S, SLOT_S, UNANSWERED_MAX_S, ClientTimers, TimerWheel
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.frames import HeartBeat
from airy_trio.websocket.fair_queue import ENTRIES_PER_PASS, FairQueue, Turn
from airy_trio.websocket.frames import EMPTY_PING, HEART_BEAT
from airy_trio.websocket.stream import FramedStream
from tests.delivery.rig import slot
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import open_log


@pytest.fixture
async def senders() -> Senders:
    log = await open_log()
    return Senders(Reads(log), Batches(log))


@pytest.fixture
async def wheel(senders: Senders) -> AsyncGenerator[TimerWheel]:
    wheel = TimerWheel(senders)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        yield wheel
        nursery.cancel_scope.cancel()


def timers_of(
    transport: MemoryTransport,
    *,
    outgoing_s: float | None = None,
    incoming_s: float | None = None,
    turn: Turn = trio.lowlevel.checkpoint,
) -> ClientTimers:
    connection = StompFraming(ConnectionOptions(server="airy-trio/test"), "s1")
    stream = FramedStream(transport, send_timeout_s=10, turn=turn)
    stream.reading = True
    client = Client(connection, stream, slot(), state=ClientState.LIVE)
    return ClientTimers(client, HeartBeat(outgoing_s=outgoing_s, incoming_s=incoming_s))


async def test_each_client_has_its_own_interval(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    transports = [MemoryTransport() for _ in range(3)]
    for transport, outgoing_s in zip(transports, (30.0, 2.0, 7.0), strict=True):
        wheel.watch(timers_of(transport, outgoing_s=outgoing_s))
    await trio.sleep(60)
    beats = [len(transport.take()) // len(HEART_BEAT) for transport in transports]
    assert beats[0] == 2
    assert beats[1] in {30, 31}
    assert beats[2] == 8


@pytest.mark.parametrize("outgoing_s", [0.05, 0.1, 0.30000000000000004, 1, 29.999, 30])
async def test_heart_beats_are_never_late_nor_much_early(
    outgoing_s: float, wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    transport = MemoryTransport()
    one = timers_of(transport, outgoing_s=outgoing_s)
    wheel.watch(one)
    written_at = [one.client.stream.written_at]
    for _ in range(1000):
        await trio.sleep(max(outgoing_s / 100, SLOT_S / 5))
        if one.client.stream.written_at != written_at[-1]:
            written_at.append(one.client.stream.written_at)
    pauses = [after - before for before, after in pairwise(written_at)]
    assert len(pauses) > 5
    assert max(pauses) <= max(outgoing_s, SLOT_S) + 1e-9
    assert min(pauses) >= outgoing_s - 2 * SLOT_S


async def test_a_client_without_heart_beats_is_pinged_and_times_out(
    wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    transport = MemoryTransport()
    one = timers_of(transport)
    wheel.watch(one)
    pings = int(UNANSWERED_MAX_S / PING_EVERY_S) - 1
    await trio.sleep(UNANSWERED_MAX_S - 1)
    assert transport.take() == EMPTY_PING * pings
    one.client.stream.read_at = trio.current_time()
    await trio.sleep(UNANSWERED_MAX_S - 1)
    assert one.client.reason is None
    assert transport.take() == EMPTY_PING * pings
    await trio.sleep(1 + SLOT_S)
    assert one.client.reason is disconnects.UNANSWERED


async def test_a_slow_client_that_takes_bytes_stays_connected(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    transport = MemoryTransport(1)
    one = timers_of(transport)
    wheel.watch(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.client.stream.write, b"x" * 1000)
        for _ in range(999):
            await trio.sleep(5)
            transport.take(1)
        found = [one.client.reason]
        await trio.sleep(UNANSWERED_MAX_S - 1)
        found.append(one.client.reason)
        await trio.sleep(1 + SLOT_S)
        assert [*found, one.client.reason] == [None, None, disconnects.UNANSWERED]
        nursery.cancel_scope.cancel()


async def test_client_that_sends_is_not_pinged(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    talking, beating = MemoryTransport(), MemoryTransport()
    all_timers = [timers_of(talking), timers_of(beating, incoming_s=PING_EVERY_S)]
    for one in all_timers:
        wheel.watch(one)
    for _ in range(20):
        await trio.sleep(PING_EVERY_S - 1)
        for one in all_timers:
            one.client.stream.read_at = trio.current_time()
    assert [talking.take(), beating.take()] == [b"", b""]


@pytest.mark.parametrize("outgoing_s, written", [(50, HEART_BEAT * 2 + EMPTY_PING), (1000, HEART_BEAT + EMPTY_PING)])
async def test_a_ping_is_written_with_an_expected_heart_beat(
    outgoing_s: float, written: bytes, wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    transport = MemoryTransport()
    wheel.watch(timers_of(transport, outgoing_s=outgoing_s))
    await trio.sleep(101)
    assert transport.take() == written


@pytest.mark.parametrize("outgoing_s, pings", [(30.0, 9), (PING_EVERY_S, 7), (PING_EVERY_S + 1, 14)])
async def test_events_do_not_delay_a_ping_for_long(
    outgoing_s: float, pings: int, wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    transport = MemoryTransport()
    one = timers_of(transport, outgoing_s=outgoing_s)
    wheel.watch(one)
    while trio.current_time() < UNANSWERED_MAX_S - 1:
        one.client.stream.offer(b"event", trio.current_time())
        await trio.sleep(5)
    assert transport.take().count(EMPTY_PING) == pings


async def test_a_client_being_served_is_not_silent(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    one = timers_of(MemoryTransport(), incoming_s=1)
    one.client.stream.reading = False
    wheel.watch(one)
    await trio.sleep(100)
    found = [one.client.reason]
    one.client.stream.reading = True
    await trio.sleep(2.5 + 2 * SLOT_S)
    assert [*found, one.client.reason] == [None, disconnects.SILENT]
    assert wheel.clients == 0


async def test_silence_after_waiting_for_a_turn_times_out(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    fair_queue, transport = FairQueue(), MemoryTransport()
    one = timers_of(transport, incoming_s=1, turn=fair_queue.enter)
    for _ in range(ENTRIES_PER_PASS):
        await fair_queue.enter()
    transport.feed(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.client.stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        wheel.watch(one)
        await trio.sleep(30)
        found = [one.client.reason]
        nursery.start_soon(fair_queue.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(one.client.stream.receive_some)
        await trio.sleep((one.heartbeat.silent_after_s or 0) - SLOT_S)
        found.append(one.client.reason)
        await trio.sleep(3 * SLOT_S)
        assert [*found, one.client.reason] == [None, None, disconnects.SILENT]
        nursery.cancel_scope.cancel()


async def test_a_refused_heart_beat_is_not_repeated(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    transport = MemoryTransport(0)
    one = timers_of(transport, outgoing_s=1)
    wheel.watch(one)
    await trio.sleep(10)
    assert transport.offers_refused in {10, 11}
    assert not transport.pending


@pytest.mark.parametrize("capacity_bytes", [0, 1])
async def test_refused_or_partial_heart_beats_need_a_send_task(
    capacity_bytes: int, wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    one, well = timers_of(MemoryTransport(capacity_bytes), outgoing_s=1), timers_of(MemoryTransport(), outgoing_s=1)
    wheel.watch(one)
    wheel.watch(well)
    await trio.sleep(2)
    assert one.client.state is ClientState.BEHIND
    assert well.client.state is ClientState.LIVE


async def test_timers_of_clients_behind_are_served(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    one = timers_of(MemoryTransport(), incoming_s=1)
    one.client.state = ClientState.BEHIND
    wheel.watch(one)
    await trio.sleep(2.5 + 2 * SLOT_S)
    assert one.client.reason is disconnects.SILENT


async def test_a_fault_of_one_client_does_not_stop_the_wheel(
    wheel: TimerWheel, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, broken = MemoryTransport(), MemoryTransport()
    monkeypatch.setattr(broken, "offer", lambda _data: 1 / 0)
    gone = MemoryTransport()
    await gone.aclose()
    all_timers = [timers_of(one, outgoing_s=1) for one in (broken, gone, transport)]
    for one in all_timers:
        wheel.watch(one)
    with capture_logs() as logs:
        await trio.sleep(1.5)
    assert [one.client.reason for one in all_timers] == [disconnects.INTERNAL, disconnects.GONE, None]
    assert [line["event"] for line in logs] == ["session failed"]
    assert transport.take() == HEART_BEAT


async def test_forgetting_leaves_nothing(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    one = timers_of(MemoryTransport(), outgoing_s=1)
    wheel.watch(one)
    assert wheel.clients == 1
    wheel.forget(one.client)
    wheel.forget(one.client)
    assert wheel.clients == 0
    await trio.sleep(5)
