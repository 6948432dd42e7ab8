"""The send tasks: events from store and tail, what they wait for, when they begin and when they end."""

from collections.abc import Sequence
from random import Random

import pytest
import trio
import trio.lowlevel
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import ClientState, ReplayOptions
from airy_trio.delivery.fanout import BATCH_BYTES_MAX, WATCH_EVERY_S
from airy_trio.events.destinations import OfType
from airy_trio.log.options import LogOptions
from airy_trio.log.store import Bounds, StoredEvent, StoreUnavailable
from airy_trio.websocket.frames import close_frame
from tests.delegating_store import Read
from tests.delivery.rig import SEND_TIMEOUT_S, MoodyStore, RecordingTransport, delivering, rigged
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import event, events, open_log

NEVER_AWAY = {"delay_s": 0.0, "away_share": 0.0}


def store(**moods: float) -> MoodyStore:
    return MoodyStore(Random(1), **{**NEVER_AWAY, **moods})


SUBSCRIBE = (("id", "0"), ("destination", "/events"))


async def test_many_events_leave_in_few_writes(autojump_clock: MockClock) -> None:
    transport = RecordingTransport()
    async with rigged(await open_log(), transport) as rig:
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        transport.writes.clear()
        await rig.append(events(1, 1000))
        assert len([f for f in await rig.read_all() if f.command == "MESSAGE"]) == 1000
    assert len(transport.writes) <= 4
    assert max(len(data) for data in transport.writes) <= BATCH_BYTES_MAX


async def test_a_client_that_keeps_up_has_no_send_task(autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport()) as rig:
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        for number in range(1, 50):
            await rig.append(events(number, number))
            await wait_all_tasks_blocked()
            assert rig.client.state is ClientState.LIVE
            assert not rig.senders.sending


async def test_a_client_handed_over_twice_gets_one_send_task(autojump_clock: MockClock) -> None:
    transport = MemoryTransport(100)
    async with rigged(await open_log(), transport) as rig:
        rig.read()
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 1, size=1000))
        await wait_all_tasks_blocked()
        rig.senders.hand_over(rig.client)
        rig.senders.hand_over(rig.client)
        await wait_all_tasks_blocked()
        states = [rig.client.state]
        assert rig.senders.sending == 1
        assert len(await rig.read_all()) == 1
        assert [*states, rig.client.state] == [ClientState.BEHIND, ClientState.LIVE]
        assert rig.senders.sending == 0


@pytest.mark.parametrize("state", [ClientState.CONNECTING, ClientState.BEHIND, ClientState.CLOSING])
async def test_only_live_clients_are_handed_over(state: ClientState, autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport()) as rig:
        rig.client.state = state
        rig.senders.hand_over(rig.client)
        await wait_all_tasks_blocked()
        assert not rig.senders.sending
        assert rig.client.state is state


async def test_no_send_task_starts_for_a_client_that_is_closing(autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport()) as rig:
        rig.senders.hand_over(rig.client)
        rig.client.close()
        await wait_all_tasks_blocked()
        assert not rig.senders.sending
        assert rig.client.state is ClientState.CLOSING


class FaultyTransport(MemoryTransport):
    """A transport over which a send task fails because of a bug."""

    error: BaseException = RuntimeError("bug")

    async def drain(self) -> None:
        await trio.lowlevel.checkpoint()
        raise self.error


async def test_a_failing_send_task_disconnects_only_its_client(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with delivering(await open_log()) as delivery:
            faulty, sound = FaultyTransport(1000), MemoryTransport(1000)
            one, other = await delivery.connect(faulty), await delivery.connect(sound)
            for rig in (one, other):
                rig.read()
                await rig.request("SUBSCRIBE", *SUBSCRIBE)
            await one.append(events(1, 1, size=5000))
            await trio.sleep(1)
            assert one.client.reason is disconnects.INTERNAL
            assert other.client.reason is None
            assert delivery.senders.sending == 1
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["session failed"]


async def test_system_exit_of_a_send_task_passes_through(autojump_clock: MockClock) -> None:
    transport = FaultyTransport(1000)
    transport.error = SystemExit(3)
    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
        async with rigged(await open_log(), transport) as rig:
            await rig.request("SUBSCRIBE", *SUBSCRIBE)
            await rig.append(events(1, 1, size=5000))
            await trio.sleep(1)


@pytest.mark.parametrize("begun", [True, False])
async def test_stop_waits_for_the_end_of_the_send_task(begun: bool, autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport(100)) as rig:
        await rig.senders.stop(rig.client)  # there is none
        rig.read()
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 1, size=1000))
        while not rig.senders.sending:  # noqa: ASYNC110 - a sender has no event for this
            await trio.lowlevel.checkpoint()
        if begun:
            await wait_all_tasks_blocked()
        for _ in range(2):
            await rig.senders.stop(rig.client)
            assert rig.senders.sending == 0


async def test_a_full_window_is_not_behind(autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport(500)) as rig:
        rig.read()
        await rig.request("SUBSCRIBE", *SUBSCRIBE, ("ack", "client"), ("prefetch-count", "1"))
        await rig.append(events(1, 2, size=1000))
        await wait_all_tasks_blocked()
        states = [rig.client.state]
        (first,) = await rig.read_all()
        states.append(rig.client.state)
        await rig.request("ACK", ("id", first.get("ack") or ""))
        await wait_all_tasks_blocked()
        states.append(rig.client.state)
        (second,) = await rig.read_all()
        assert second.body == event(2, size=1000).body
    assert states == [ClientState.BEHIND, ClientState.LIVE, ClientState.BEHIND]


async def test_the_log_is_not_read_while_the_client_takes_nothing(autojump_clock: MockClock) -> None:
    transport = MemoryTransport(100)
    async with rigged(await open_log(), transport) as rig:
        rig.read()
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 5, size=BATCH_BYTES_MAX))
        await wait_all_tasks_blocked()
        subscription = rig.client.subscriptions[1]
        assert subscription.position.offset == 1
        assert transport.pending
        await rig.append(events(6, 9, size=BATCH_BYTES_MAX))
        await wait_all_tasks_blocked()
        assert subscription.position.offset == 1


async def test_the_store_serves_a_position_up_to_the_tail(autojump_clock: MockClock) -> None:
    kept = store()
    log = await open_log(kept, LogOptions(store="memory", tail_events=16))
    async with rigged(log, MemoryTransport()) as rig:
        await rig.append(events(1, 300))
        await rig.request("SUBSCRIBE", *SUBSCRIBE, ("last-event-id", str(log.head.at(7))))
        bodies = [f.body for f in await rig.read_all() if f.command == "MESSAGE"]
        assert bodies == [e.body for e in events(8, 300)]
        reads = kept.reads
        await rig.append(events(301, 310))
        assert len(await rig.read_all()) == 10
    assert 0 < reads == kept.reads, "what the tail has is not read from the store"


async def test_a_quiet_destination_reaches_the_tail(
    autojump_clock: MockClock,
) -> None:
    log = await open_log(store(), LogOptions(store="memory", tail_events=16))
    async with rigged(log, MemoryTransport()) as rig:
        await rig.append(events(1, 100))
        headers = (("id", "q"), ("destination", "/events/conversation/quiet"), ("last-event-id", str(log.head.at(3))))
        await rig.request("SUBSCRIBE", *headers)
        with trio.fail_after(100):
            await wait_all_tasks_blocked()
        await rig.append([event(101, conversation="quiet")])
        assert [f.body for f in await rig.read_all() if f.command == "MESSAGE"] == [event(101).body]


async def test_an_unavailable_store_is_retried_without_delaying_others(autojump_clock: MockClock) -> None:
    kept = store()
    log = await open_log(kept, LogOptions(store="memory", tail_events=16))
    async with rigged(log, MemoryTransport()) as rig:
        await rig.append(events(1, 100))
        kept.away_share = 1.0
        await rig.request("SUBSCRIBE", ("id", "old"), ("destination", "/events"), ("last-event-id", str(log.head)))
        rig.client.subscriptions[1].position = log.head.at(50)
        rig.fanout.serve(rig.client.subscriptions[1], trio.current_time())
        await trio.sleep(10)
        assert kept.reads > 5
        await rig.request("SUBSCRIBE", ("id", "new"), ("destination", "/events"), ("replay", "none"))
        await rig.append(events(101, 101))
        assert [f.get("subscription") for f in await rig.read_all() if f.command == "MESSAGE"] == ["new"]
        kept.away_share = 0.0
        assert len(await rig.read_all()) == 51
    assert kept.reads < 40, "it backs off"


class FailsForTypes(MoodyStore):
    """Reads for a type of events fail; all others succeed."""

    failures = 0

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        if isinstance(call.destination, OfType):
            self.failures += 1
            raise StoreUnavailable("away")
        return await super().on_read(call)


@pytest.mark.parametrize("failing_first", [True, False])
async def test_store_that_fails_for_one_destination_does_not_delay_others(
    failing_first: bool, autojump_clock: MockClock
) -> None:
    kept = FailsForTypes(Random(1), delay_s=0.0, away_share=0.0)
    log = await open_log(kept, LogOptions(store="memory", tail_events=16))
    async with rigged(log, MemoryTransport()) as rig:
        await rig.append(events(1, 300))
        wanted = [("failing", "/events/message.updated"), ("good", "/events")]
        for id_, destination in wanted if failing_first else reversed(wanted):
            await rig.request("SUBSCRIBE", ("id", id_), ("destination", destination), ("last-event-id", str(log.head)))
        for subscription in tuple(rig.client.subscriptions.values()):
            subscription.position = log.head.at(50)
            rig.fanout.serve(subscription, trio.current_time())
        await trio.sleep(1)
        assert sum(f.get("subscription") == "good" for f in rig.read() if f.command == "MESSAGE") == 250
    assert 0 < kept.failures < 10


async def test_subscribe_waits_for_an_unavailable_store(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store()
    log = await open_log(kept)

    async def away() -> Bounds:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("away")

    async with rigged(log, MemoryTransport()) as rig:
        monkeypatch.setattr(kept, "bounds", away)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *SUBSCRIBE, ("replay", "all"), ("receipt", "r"))
            await trio.sleep(60)
            assert [f.command for f in rig.read()] == ["CONNECTED"]
            assert rig.client.reason is None
            monkeypatch.undo()
        assert rig.read()[0].get("receipt-id") == "r"


async def test_a_stalled_client_is_disconnected(autojump_clock: MockClock) -> None:
    transport = MemoryTransport(1000)
    async with rigged(await open_log(), transport) as rig:
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 1, size=5000))
        await trio.sleep(SEND_TIMEOUT_S + 0.1)
        assert rig.client.reason is disconnects.TOO_SLOW


async def test_a_page_is_read_once_for_a_small_window(autojump_clock: MockClock) -> None:
    kept = store()
    log = await open_log(kept, LogOptions(store="memory", tail_events=16))
    async with rigged(log, MemoryTransport()) as rig:
        await rig.append(events(1, 100))
        headers = (("ack", "client"), ("prefetch-count", "5"), ("last-event-id", str(log.head.at(0))))
        await rig.request("SUBSCRIBE", *SUBSCRIBE, *headers)
        while new := [frame for frame in await rig.read_all() if frame.command == "MESSAGE"]:
            await rig.request("ACK", ("id", new[-1].get("ack") or ""))
        bodies = [frame.body for frame in rig.frames if frame.command == "MESSAGE"]
        assert bodies == [one.body for one in events(1, 100)]
    assert kept.reads == 1


async def test_a_trimmed_position_disconnects_the_client(autojump_clock: MockClock) -> None:
    kept = store()
    log = await open_log(kept, LogOptions(store="memory", tail_events=16))
    async with rigged(log, MemoryTransport()) as rig:
        await rig.append(events(1, 100))
        await rig.request("SUBSCRIBE", *SUBSCRIBE, ("last-event-id", str(log.head)))
        rig.client.subscriptions[1].position = log.head.at(10)
        await kept.trim(age_s=3600, keep=50, limit=100, unused_s=10**6)
        rig.fanout.serve(rig.client.subscriptions[1], trio.current_time())
        await wait_all_tasks_blocked()
        assert rig.client.reason is disconnects.POSITION_EXPIRED


class AskedStore(MoodyStore):
    """Counts how often its bounds are read."""

    asked = 0

    async def bounds(self) -> Bounds:
        self.asked += 1
        return await super().bounds()


async def test_no_expired_positions_are_searched_while_no_client_is_behind(autojump_clock: MockClock) -> None:
    kept = AskedStore(Random(1), **NEVER_AWAY)
    transport = MemoryTransport(100)
    async with rigged(await open_log(kept), transport) as rig:
        rig.read()
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 1, size=1000))
        await wait_all_tasks_blocked()
        assert rig.senders.sending == 1
        await trio.sleep(WATCH_EVERY_S + 1)
        searched = kept.asked
        await rig.read_all()
        await trio.sleep(WATCH_EVERY_S)  # the search that was due when the client caught up
        caught_up = kept.asked
        await trio.sleep(100 * WATCH_EVERY_S)
        assert (searched > 0, kept.asked) == (True, caught_up)


async def test_unsubscribing_with_a_full_socket_ends_delivery(autojump_clock: MockClock) -> None:
    transport = MemoryTransport(1000)
    async with rigged(await open_log(), transport) as rig:
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 3, size=BATCH_BYTES_MAX))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "UNSUBSCRIBE", ("id", "0"), ("receipt", "end"))
            frames = await rig.read_all()
        assert [f.command for f in frames] == ["CONNECTED", "MESSAGE", "RECEIPT"]


async def test_the_recent_window_precedes_new_events(autojump_clock: MockClock) -> None:
    async with rigged(await open_log(), MemoryTransport(200), replay=ReplayOptions(events_max=2)) as rig:
        rig.read()
        await rig.append(events(1, 4))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *SUBSCRIBE, ("receipt", "r"))
            nursery.start_soon(rig.append, events(5, 5))
            frames = await rig.read_all()
    assert frames[0].command == "RECEIPT"
    numbers = [int(f.body.split(b",")[0][6:]) for f in frames[1:]]
    assert numbers in ([3, 4, 5], [4, 5])


async def test_nothing_is_sent_after_a_close_frame(autojump_clock: MockClock) -> None:
    transport = RecordingTransport(100)
    async with rigged(await open_log(), transport) as rig:
        rig.read()
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, 1, size=1000))
        await wait_all_tasks_blocked()
        await rig.append(events(2, 2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.stream.close, close_frame(1000, ""))
            for _ in range(20):
                transport.take()
                await wait_all_tasks_blocked()
        assert transport.writes[-1] == close_frame(1000, "")
        await rig.append(events(3, 3))
        await wait_all_tasks_blocked()
        assert transport.writes[-1] == close_frame(1000, "")


async def test_a_slow_steady_client_stays_connected_within_the_retention(autojump_clock: MockClock) -> None:
    count = 2000
    kept = store()
    log = await open_log(kept, LogOptions(store="memory", tail_events=50))
    async with rigged(log, MemoryTransport(2000)) as rig:
        await rig.request("SUBSCRIBE", *SUBSCRIBE)
        await rig.append(events(1, count))
        await wait_all_tasks_blocked()
        begun_at = trio.current_time()
        while rig.client.state is ClientState.BEHIND or rig.transport.pending:
            await trio.sleep(SEND_TIMEOUT_S / 2)
            rig.read(8000)
            assert rig.client.reason is None
            (subscription,) = rig.client.subscriptions.values()
            after = subscription.position.offset
            await kept.trim(age_s=3600, keep=count - after, limit=count, unused_s=10**6)
        assert trio.current_time() - begun_at > 10 * SEND_TIMEOUT_S
        await rig.append(events(count + 1, count + 1))
        await rig.read_all()
        bodies = [frame.body for frame in rig.frames if frame.command == "MESSAGE"]
        assert bodies == [one.body for one in events(1, count + 1)]
        assert rig.client.state is ClientState.LIVE
