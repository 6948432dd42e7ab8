"""The fan-out over transports in memory: which clients it serves, shared batches, fairness, faults of one client."""

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.delivery import disconnects, fanout
from airy_trio.delivery.client import ClientState
from airy_trio.delivery.fanout import BATCH_BYTES_MAX, YIELD_EVERY
from airy_trio.log.options import LogOptions
from airy_trio.stomp.codec import encode
from airy_trio.stomp.frames import Frame, Version
from tests.delivery.rig import Delivery, RecordingTransport, Rig, delivering, rigged
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import event, events, open_log


def everything(id_: str = "0") -> tuple[tuple[str, str], ...]:
    return (("id", id_), ("destination", "/events"), ("replay", "none"))


async def joined(
    delivery: Delivery, transport: RecordingTransport, destination: str = "/events", id_: str = "0"
) -> Rig:
    """Connect and subscribe a client, and discard what was written so far."""
    rig = await delivery.connect(transport)
    await rig.request("SUBSCRIBE", ("id", id_), ("destination", destination), ("replay", "none"))
    rig.read()
    transport.writes.clear()
    return rig


async def test_only_readers_of_a_grown_view_are_written_to(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        transports = [RecordingTransport() for _ in range(3)]
        for transport, destination in zip(
            transports, ("/events", "/events/conversation/mine", "/events/conversation/theirs"), strict=True
        ):
            await joined(delivery, transport, destination)
        await delivery.log.append(delivery.log.head, [event(1, conversation="mine")], "point")
        await wait_all_tasks_blocked()
    assert [len(transport.writes) for transport in transports] == [1, 1, 0]


async def test_equal_cursors_get_the_same_bytes(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        transports = [RecordingTransport() for _ in range(5)]
        for transport in transports:
            await joined(delivery, transport)
        for number in (1, 2):
            await delivery.log.append(delivery.log.head, events(number, number), "point")
            await wait_all_tasks_blocked()
            assert len({id(transport.writes[-1]) for transport in transports}) == 1
        assert delivery.batches.deliveries == 10


async def test_neighbour_with_another_id_or_cursor_gets_another_batch(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        one, other = (await joined(delivery, RecordingTransport(), id_=id_) for id_ in ("a", "b")), RecordingTransport()
        rigs = [rig async for rig in one]
        late = await delivery.connect(other)
        await late.request("SUBSCRIBE", *everything("a")[:2], ("last-event-id", str(delivery.log.head.at(0))))
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        found = [[(f.get("subscription"), f.body) for f in rig.read()] for rig in rigs]
        assert found == [[("a", event(2).body)], [("b", event(2).body)]]
        assert [f.body for f in late.read()[-2:]] == [event(1).body, event(2).body]


async def test_neighbour_with_another_id_gets_a_batch_of_its_own(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        rigs = [await delivery.connect(RecordingTransport()) for _ in range(2)]
        for rig, id_ in zip(rigs, "ab", strict=True):
            await rig.request("SUBSCRIBE", *everything(id_)[:2])  # and the recent window before it
        one, other = (rig.client.subscriptions[1] for rig in rigs)
        other.position = one.position  # equal, and of different batches
        assert one.in_step
        assert other.in_step
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert [[frame.get("subscription") for frame in rig.read()[-2:]] for rig in rigs] == [["a", "a"], ["b", "b"]]


async def neighbours(delivery: Delivery, count: int = 2) -> list[tuple[Rig, RecordingTransport]]:
    """Connect clients that share one position object, because they have received the same batch."""
    transports = [RecordingTransport() for _ in range(count)]
    rigs = [await joined(delivery, transport) for transport in transports]
    await delivery.log.append(delivery.log.head, events(1, 1), "point")
    await wait_all_tasks_blocked()
    assert len({id(rig.client.subscriptions[1].position) for rig in rigs}) == 1
    for rig, transport in zip(rigs, transports, strict=True):
        rig.read()
        transport.writes.clear()
    return list(zip(rigs, transports, strict=True))


async def test_a_neighbour_that_is_behind_is_only_woken(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        _, (rig, transport) = await neighbours(delivery)
        rig.client.state, wake_up = ClientState.BEHIND, rig.client.expect_wake_up()
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert not transport.writes
        assert wake_up.is_set()


async def test_neighbour_that_needs_acks_gets_another_batch(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        ((one, _),) = await neighbours(delivery, 1)
        acking = await delivery.connect(RecordingTransport())
        await acking.request("SUBSCRIBE", *everything(), ("ack", "client"))
        other, known = acking.client.subscriptions[1], one.client.subscriptions[1]
        other.prefix, other.position = known.prefix, known.position
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert [frame.get("ack") for frame in one.read()] == [None]
        assert [frame.get("ack") for frame in acking.read()[-1:]] == [f"1.{delivery.log.head}"]


async def test_a_neighbour_that_lacks_more_gets_more(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        (one, _), (other, _) = await neighbours(delivery)
        other.client.subscriptions[1].position = delivery.log.head.at(0)
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert [frame.body for frame in one.read()] == [event(2).body]
        assert [frame.body for frame in other.read()] == [event(1).body, event(2).body]


async def test_a_neighbour_whose_receipt_is_not_written_gets_nothing(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        ((one, _),) = await neighbours(delivery, 1)
        transport = RecordingTransport()
        late = (await joined(delivery, transport)).client.subscriptions[1]
        late.prefix, late.position = one.client.subscriptions[1].prefix, one.client.subscriptions[1].position
        late.started = False
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert len(one.read()) == 1
        assert not transport.writes


async def test_the_receipt_of_a_subscribe_precedes_its_replay(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        rig = await delivery.connect(RecordingTransport())
        rig.read()
        await rig.request("SUBSCRIBE", *everything()[:2], ("receipt", "r"))
        assert [frame.command for frame in rig.read()] == ["RECEIPT", "MESSAGE"]


async def test_a_closing_neighbour_gets_nothing(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        _, (rig, transport) = await neighbours(delivery)
        rig.stream.closing = True
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert not transport.writes


async def test_neighbours_get_more_than_one_batch_completely(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        both = await neighbours(delivery)
        await delivery.log.append(delivery.log.head, events(2, 5, size=BATCH_BYTES_MAX // 2), "point")
        await wait_all_tasks_blocked()
        for rig, _ in both:
            assert [frame.body for frame in rig.read()] == [e.body for e in events(2, 5, size=BATCH_BYTES_MAX // 2)]


async def test_events_during_a_round_are_one_write(autojump_clock: MockClock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "YIELD_EVERY", 1)  # a round takes as many turns as there are clients
        async with delivering(await open_log()) as delivery:
            transports = [RecordingTransport() for _ in range(50)]
            for transport in transports:
                await joined(delivery, transport)
            for number in range(1, 21):
                await delivery.log.append(delivery.log.head, events(number, number), "point")
            await wait_all_tasks_blocked()
            assert max(len(transport.writes) for transport in transports) < 10
            for rig in delivery.rigs:
                assert [f.body for f in rig.read()] == [e.body for e in events(1, 20)]


async def test_many_readers_do_not_keep_other_tasks_waiting(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        transports = [RecordingTransport() for _ in range(3 * YIELD_EVERY)]
        for transport in transports:
            await joined(delivery, transport)
        served: list[int] = []
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        while not served or served[-1] < len(transports):
            served.append(sum(len(transport.writes) for transport in transports))
            await trio.lowlevel.checkpoint()
    seen = {count for count in served if count}
    assert len(seen) >= 2
    assert all(count % YIELD_EVERY == 0 for count in seen)


async def test_nothing_is_written_after_unsubscribe(autojump_clock: MockClock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "YIELD_EVERY", 1)
        async with delivering(await open_log()) as delivery:
            rigs = [await joined(delivery, RecordingTransport()) for _ in range(50)]
            await delivery.log.append(delivery.log.head, events(1, 1), "point")
            while not any(rig.client.subscriptions[1].position.offset for rig in rigs):  # noqa: ASYNC110 - a fan-out has no event for this
                await trio.lowlevel.checkpoint()
            waiting = [rig for rig in rigs if not rig.client.subscriptions[1].position.offset]
            for rig in waiting:
                rig.conversation.end()
            await wait_all_tasks_blocked()
            assert waiting
            assert not any(rig.read() for rig in waiting)


async def test_no_batch_is_repeated_after_unsubscribe(autojump_clock: MockClock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with delivering(await open_log()) as delivery:
            both = await neighbours(delivery, 50)
            patch.setattr(fanout, "YIELD_EVERY", 2)  # a slice: one that is served, one that gets the same
            await delivery.log.append(delivery.log.head, events(2, 2), "point")
            while not any(transport.writes for _, transport in both):  # noqa: ASYNC110 - a fan-out has no event for this
                await trio.lowlevel.checkpoint()
            waiting = [(rig, transport) for rig, transport in both if not transport.writes][1::2]
            for rig, _ in waiting:
                rig.conversation.end()
            await wait_all_tasks_blocked()
            assert waiting
            assert not any(transport.writes for _, transport in waiting)


@pytest.mark.parametrize(
    "fault, reason",
    [
        (RuntimeError("bug"), disconnects.INTERNAL),
        (KeyError("bug"), disconnects.INTERNAL),
        (trio.BrokenResourceError(), disconnects.GONE),
        (trio.ClosedResourceError(), disconnects.GONE),
    ],
)
async def test_fault_of_one_client_does_not_stop_the_fan_out(
    fault: Exception, reason: disconnects.DisconnectReason, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_data: bytes) -> bool:
        raise fault

    async with delivering(await open_log()) as delivery:
        rigs = [await joined(delivery, RecordingTransport()) for _ in range(3)]
        monkeypatch.setattr(rigs[1].transport, "offer", fail)
        with capture_logs() as logs:
            for number in (1, 2):
                await delivery.log.append(delivery.log.head, events(number, number), "point")
                await wait_all_tasks_blocked()
        assert [rig.client.reason for rig in rigs] == [None, reason, None]
        assert [len(rig.read()) for rig in rigs] == [2, 0, 2]
    assert len(logs) == (reason is disconnects.INTERNAL)


@pytest.mark.parametrize("state", [ClientState.CONNECTING, ClientState.BEHIND, ClientState.CLOSING])
async def test_only_live_clients_are_written_to(state: ClientState, autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        transport = RecordingTransport()
        rig = await joined(delivery, transport)
        rig.client.state, wake_up = state, rig.client.expect_wake_up()
        await rig.append(events(1, 1))
        await wait_all_tasks_blocked()
        assert not transport.writes
        assert wake_up.is_set() == (state is ClientState.BEHIND)


async def test_a_position_before_the_tail_is_not_served_from_it(autojump_clock: MockClock) -> None:
    log = await open_log(options=LogOptions(store="memory", tail_events=16))
    transport = RecordingTransport()
    async with rigged(log, transport) as rig:
        await rig.append(events(1, 100))
        await rig.request("SUBSCRIBE", *everything())
        transport.writes.clear()
        subscription = rig.client.subscriptions[1]
        subscription.position = log.head.at(10)
        rig.fanout.serve(subscription, trio.current_time())
        assert not transport.writes
        assert rig.client.state is ClientState.BEHIND


async def test_an_ended_epoch_disconnects_live_and_behind_clients(autojump_clock: MockClock) -> None:
    log = await open_log()
    async with delivering(log) as delivery:
        rigs = [await joined(delivery, RecordingTransport()) for _ in range(2)]
        rigs[0].client.state = ClientState.BEHIND
        await log.begin_epoch(log.head, "point")
        await wait_all_tasks_blocked()
        assert [rig.client.reason for rig in rigs] == [disconnects.POSITION_EXPIRED] * 2


async def test_thousands_of_acks_in_one_message_let_others_run(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        rig = await delivery.connect(MemoryTransport())
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        await rig.request("SUBSCRIBE", *everything("a")[:2], ("ack", "client"), ("prefetch-count", "10000"))
        acks = b"".join(
            encode(Frame("ACK", (("id", f"1.{delivery.log.head.at(n)}"),)), Version.V1_2) for n in range(1000)
        )
        delivery.nursery.start_soon(take_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        await rig.conversation.handle(acks)
        assert turns - before >= 10
        assert rig.conversation._services.acks_ignored == 1000  # noqa: SLF001 - a copy of the delivery's services
