"""The wheel over outlets in memory; what clients see of it is in ``test_wire_contract``."""

from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.delivery import disconnects
from airy_trio.delivery.batches import Batches
from airy_trio.delivery.client import Client, ClientState
from airy_trio.delivery.fanout import Senders
from airy_trio.sessions.heartbeats import (
    PING_EVERY_S,
    SLOT_S,
    UNANSWERED_MAX_S,
    ClientTimers,
    TimerStatistics,
    TimerWheel,
)
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.stomp.requests import HeartBeat
from airy_trio.testing.transport import MemoryTransport
from airy_trio.websocket.fair_queue import ENTRIES_PER_PASS, FairQueue, Turn
from airy_trio.websocket.stream import HEART_BEAT, PING, FramedStream
from tests.sessions.serving import open_log


@pytest.fixture
async def senders() -> Senders:
    log = await open_log()
    return Senders(log, Batches(log))


@pytest.fixture
async def wheel(senders: Senders) -> AsyncGenerator[TimerWheel]:
    wheel = TimerWheel(senders)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        yield wheel
        nursery.cancel_scope.cancel()


def pulse(
    outlet: MemoryTransport,
    *,
    outgoing_s: float | None = None,
    incoming_s: float | None = None,
    turn: Turn | None = None,
) -> ClientTimers:
    connection = Connection(ConnectionOptions(server="airy-trio/test"), "s1")
    stream = FramedStream(outlet, send_timeout_s=10, turn=turn)
    client = Client(connection, stream, state=ClientState.LIVE)
    return ClientTimers(client, HeartBeat(outgoing_s=outgoing_s, incoming_s=incoming_s))


async def test_each_client_has_its_own_time(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    outlets = [MemoryTransport() for _ in range(3)]
    for outlet, outgoing_s in zip(outlets, (30.0, 2.0, 7.0), strict=True):
        wheel.watch(pulse(outlet, outgoing_s=outgoing_s))
    await trio.sleep(60)
    beats = [len(outlet.take()) // len(HEART_BEAT) for outlet in outlets]
    assert beats[0] == 2
    assert beats[1] in {30, 31}
    assert beats[2] == 8


@pytest.mark.parametrize("outgoing_s", [0.05, 0.1, 0.30000000000000004, 1, 29.999, 30])
async def test_never_later_than_the_interval_nor_much_sooner(
    outgoing_s: float, wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    outlet = MemoryTransport()
    one = pulse(outlet, outgoing_s=outgoing_s)
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


async def test_client_without_heart_beats_is_pinged_and_gone_if_it_never_answers(
    wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    outlet = MemoryTransport()
    one = pulse(outlet)
    wheel.watch(one)
    pings = int(UNANSWERED_MAX_S / PING_EVERY_S) - 1
    await trio.sleep(UNANSWERED_MAX_S - 1)
    assert outlet.take() == PING * pings
    one.client.stream.read_at = trio.current_time()
    await trio.sleep(UNANSWERED_MAX_S - 1)
    assert one.client.reason is None
    assert outlet.take() == PING * pings
    await trio.sleep(1 + SLOT_S)
    assert one.client.reason is disconnects.UNANSWERED


async def test_slow_client_without_heart_beats_is_not_gone_while_it_takes_what_waits(
    wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    outlet = MemoryTransport(1)
    one = pulse(outlet)
    wheel.watch(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.client.stream.write, b"x" * 1000)
        for _ in range(999):
            await trio.sleep(5)
            outlet.take(1)
        found = [one.client.reason]
        await trio.sleep(UNANSWERED_MAX_S - 1)
        found.append(one.client.reason)
        await trio.sleep(1 + SLOT_S)
        assert [*found, one.client.reason] == [None, None, disconnects.UNANSWERED]
        nursery.cancel_scope.cancel()


async def test_client_that_sends_is_not_pinged(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    talking, beating = MemoryTransport(), MemoryTransport()
    pulses = [pulse(talking), pulse(beating, incoming_s=PING_EVERY_S)]
    for one in pulses:
        wheel.watch(one)
    for _ in range(20):
        await trio.sleep(PING_EVERY_S - 1)
        for one in pulses:
            one.client.stream.read_at = trio.current_time()
    assert [talking.take(), beating.take()] == [b"", b""]


@pytest.mark.parametrize("outgoing_s, written", [(50, HEART_BEAT * 2 + PING), (1000, HEART_BEAT + PING)])
async def test_ping_goes_with_a_heart_beat_if_those_are_expected(
    outgoing_s: float, written: bytes, wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    outlet = MemoryTransport()
    wheel.watch(pulse(outlet, outgoing_s=outgoing_s))
    await trio.sleep(101)
    assert outlet.take() == written


async def test_the_silence_of_a_client_that_is_being_served_is_not_its_own(
    wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    one = pulse(MemoryTransport(), incoming_s=1)
    one.client.occupied = True
    wheel.watch(one)
    await trio.sleep(100)
    found = [one.client.reason]
    one.client.occupied = False
    await trio.sleep(2.5 + 2 * SLOT_S)
    assert [*found, one.client.reason] == [None, disconnects.SILENT]
    assert wheel.statistics() == TimerStatistics(0, 0)


async def test_who_is_silent_after_it_waited_for_its_turn_is_found_when_that_is_due(
    wheel: TimerWheel, autojump_clock: MockClock
) -> None:
    turnstile, outlet = FairQueue(), MemoryTransport()
    one = pulse(outlet, incoming_s=1, turn=turnstile.enter)
    for _ in range(ENTRIES_PER_PASS):
        await turnstile.enter()
    outlet.feed(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.client.stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        wheel.watch(one)
        await trio.sleep(30)
        found = [one.client.reason]
        nursery.start_soon(turnstile.run)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep((one.heartbeat.silent_after_s or 0) - SLOT_S)
        found.append(one.client.reason)
        await trio.sleep(3 * SLOT_S)
        assert [*found, one.client.reason] == [None, None, disconnects.SILENT]
        nursery.cancel_scope.cancel()


async def test_a_beat_that_a_full_outlet_refuses_is_not_owed(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    outlet = MemoryTransport(0)
    one = pulse(outlet, outgoing_s=1)
    wheel.watch(one)
    await trio.sleep(10)
    assert outlet.offers_refused in {10, 11}
    assert not outlet.pending


@pytest.mark.parametrize("capacity_bytes", [0, 1])
async def test_a_beat_that_was_refused_or_left_in_part_is_handed_to_a_send_task(
    capacity_bytes: int, wheel: TimerWheel, senders: Senders, autojump_clock: MockClock
) -> None:
    one, well = pulse(MemoryTransport(capacity_bytes), outgoing_s=1), pulse(MemoryTransport(), outgoing_s=1)
    wheel.watch(one)
    wheel.watch(well)
    await trio.sleep(2)
    assert one.client.state is ClientState.BEHIND
    assert well.client.state is ClientState.LIVE
    assert senders.statistics().waiting == 1


async def test_who_is_behind_is_watched_too(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    one = pulse(MemoryTransport(), incoming_s=1)
    one.client.state = ClientState.BEHIND
    wheel.watch(one)
    await trio.sleep(2.5 + 2 * SLOT_S)
    assert one.client.reason is disconnects.SILENT


async def test_one_clients_trouble_does_not_stop_the_wheel(
    wheel: TimerWheel, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlet, broken = MemoryTransport(), MemoryTransport()
    monkeypatch.setattr(broken, "offer", lambda _data: 1 / 0)
    gone = MemoryTransport()
    await gone.aclose()
    pulses = [pulse(one, outgoing_s=1) for one in (broken, gone, outlet)]
    for one in pulses:
        wheel.watch(one)
    with capture_logs() as logs:
        await trio.sleep(1.5)
    assert [one.client.reason for one in pulses] == [disconnects.INTERNAL, disconnects.GONE, None]
    assert [line["event"] for line in logs] == ["session failed"]
    assert outlet.take() == HEART_BEAT


async def test_forgetting_leaves_nothing(wheel: TimerWheel, autojump_clock: MockClock) -> None:
    one = pulse(MemoryTransport(), outgoing_s=1)
    wheel.watch(one)
    assert wheel.statistics() == TimerStatistics(1, 1)
    wheel.forget(one.client)
    wheel.forget(one.client)
    assert wheel.statistics() == TimerStatistics(0, 0)
    await trio.sleep(5)
