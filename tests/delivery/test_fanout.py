"""The fan-out over outlets in memory: who is served, what neighbours share, when others run, whose trouble it is."""

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.delivery import disconnects, fanout
from airy_trio.delivery.batches import BATCH_BYTES_MAX
from airy_trio.delivery.client import ClientState
from airy_trio.delivery.fanout import YIELD_EVERY
from airy_trio.log.options import LogOptions
from airy_trio.stomp.encoder import encode
from airy_trio.stomp.frames import Frame, Version
from airy_trio.testing.transport import MemoryTransport
from tests.delivery.rig import Delivery, RecordingTransport, Rig, delivering, rigged
from tests.sessions.serving import event, events, open_log


def everything(id_: str = "0") -> tuple[tuple[str, str], ...]:
    return (("id", id_), ("destination", "/events"), ("replay", "none"))


async def joined(delivery: Delivery, outlet: RecordingTransport, destination: str = "/events", id_: str = "0") -> Rig:
    """A client that is subscribed, of whose outlet only what follows is looked at."""
    rig = await delivery.connect(outlet)
    await rig.say("SUBSCRIBE", ("id", id_), ("destination", destination), ("replay", "none"))
    rig.read()
    outlet.writes.clear()
    return rig


async def test_only_who_reads_what_grew_is_written_to(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        outlets = [RecordingTransport() for _ in range(3)]
        for outlet, destination in zip(
            outlets, ("/events", "/events/conversation/mine", "/events/conversation/theirs"), strict=True
        ):
            await joined(delivery, outlet, destination)
        await delivery.log.append(delivery.log.head, [event(1, conversation="mine")], "point")
        await wait_all_tasks_blocked()
    assert [len(outlet.writes) for outlet in outlets] == [1, 1, 0]


async def test_equal_cursors_are_given_the_same_octets_made_once(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        outlets = [RecordingTransport() for _ in range(5)]
        for outlet in outlets:
            await joined(delivery, outlet)
        for number in (1, 2):
            await delivery.log.append(delivery.log.head, events(number, number), "point")
            await wait_all_tasks_blocked()
            assert len({id(outlet.writes[-1]) for outlet in outlets}) == 1
        assert delivery.batches.statistics().deliveries == 10


async def test_a_neighbour_with_another_id_or_cursor_gets_its_own(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        one, other = (await joined(delivery, RecordingTransport(), id_=id_) for id_ in ("a", "b")), RecordingTransport()
        rigs = [rig async for rig in one]
        late = await delivery.connect(other)
        await late.say("SUBSCRIBE", *everything("a")[:2], ("last-event-id", str(delivery.log.head.at(0))))
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        found = [[(f.get("subscription"), f.body) for f in rig.read()] for rig in rigs]
        assert found == [[("a", event(2).body)], [("b", event(2).body)]]
        assert [f.body for f in late.read()[-2:]] == [event(1).body, event(2).body]


async def test_a_neighbour_with_the_same_cursor_and_another_id_gets_its_own(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        rigs = [await delivery.connect(RecordingTransport()) for _ in range(2)]
        for rig, id_ in zip(rigs, "ab", strict=True):
            await rig.say("SUBSCRIBE", *everything(id_)[:2])  # and is owed the first
        one, other = (rig.client.subscriptions[1] for rig in rigs)
        assert one.position is other.position
        assert one.in_step
        assert other.in_step
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert [[frame.get("subscription") for frame in rig.read()[-2:]] for rig in rigs] == [["a", "a"], ["b", "b"]]


async def neighbours(delivery: Delivery, count: int = 2) -> list[tuple[Rig, RecordingTransport]]:
    """Clients whose cursors are one object, since they have taken one run."""
    outlets = [RecordingTransport() for _ in range(count)]
    rigs = [await joined(delivery, outlet) for outlet in outlets]
    await delivery.log.append(delivery.log.head, events(1, 1), "point")
    await wait_all_tasks_blocked()
    assert len({id(rig.client.subscriptions[1].position) for rig in rigs}) == 1
    for rig, outlet in zip(rigs, outlets, strict=True):
        rig.read()
        outlet.writes.clear()
    return list(zip(rigs, outlets, strict=True))


async def test_a_neighbour_that_is_behind_is_only_woken(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        _, (rig, outlet) = await neighbours(delivery)
        rig.client.state, wake_up = ClientState.BEHIND, rig.client.expect_wake_up()
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert not outlet.writes
        assert wake_up.is_set()


async def test_a_neighbour_that_needs_acks_gets_its_own(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        ((one, _),) = await neighbours(delivery, 1)
        acking = await delivery.connect(RecordingTransport())
        await acking.say("SUBSCRIBE", *everything(), ("ack", "client"))
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
        outlet = RecordingTransport()
        late = (await joined(delivery, outlet)).client.subscriptions[1]
        late.prefix, late.position = one.client.subscriptions[1].prefix, one.client.subscriptions[1].position
        late.started = False
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert len(one.read()) == 1
        assert not outlet.writes


async def test_the_receipt_of_a_subscribe_comes_before_what_it_is_owed(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        rig = await delivery.connect(RecordingTransport())
        rig.read()
        await rig.say("SUBSCRIBE", *everything()[:2], ("receipt", "r"))
        assert [frame.command for frame in rig.read()] == ["RECEIPT", "MESSAGE"]


async def test_a_neighbour_that_is_owed_something_gets_that_first(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        _, (rig, _) = await neighbours(delivery)
        rig.client.subscriptions[1].extend_backlog(await delivery.log.store.read(delivery.log.head.at(0), 1))
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert [frame.body for frame in rig.read()] == [event(1).body, event(2).body]


async def test_a_neighbour_that_was_told_goodbye_gets_nothing(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        _, (rig, outlet) = await neighbours(delivery)
        rig.stream.closing = True
        await delivery.log.append(delivery.log.head, events(2, 2), "point")
        await wait_all_tasks_blocked()
        assert not outlet.writes


async def test_neighbours_get_all_of_what_is_longer_than_a_run(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        both = await neighbours(delivery)
        await delivery.log.append(delivery.log.head, events(2, 5, size=BATCH_BYTES_MAX // 2), "point")
        await wait_all_tasks_blocked()
        for rig, _ in both:
            assert [frame.body for frame in rig.read()] == [e.body for e in events(2, 5, size=BATCH_BYTES_MAX // 2)]


async def test_what_comes_while_a_round_runs_is_one_write(autojump_clock: MockClock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "YIELD_EVERY", 1)  # a round takes as many turns as there are clients
        async with delivering(await open_log()) as delivery:
            outlets = [RecordingTransport() for _ in range(50)]
            for outlet in outlets:
                await joined(delivery, outlet)
            for number in range(1, 21):
                await delivery.log.append(delivery.log.head, events(number, number), "point")
            await wait_all_tasks_blocked()
            assert max(len(outlet.writes) for outlet in outlets) < 10
            for rig in delivery.rigs:
                assert [f.body for f in rig.read()] == [e.body for e in events(1, 20)]


async def test_many_readers_do_not_keep_other_tasks_waiting(autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        outlets = [RecordingTransport() for _ in range(3 * YIELD_EVERY)]
        for outlet in outlets:
            await joined(delivery, outlet)
        served: list[int] = []
        await delivery.log.append(delivery.log.head, events(1, 1), "point")
        while not served or served[-1] < len(outlets):
            served.append(sum(len(outlet.writes) for outlet in outlets))
            await trio.lowlevel.checkpoint()
    seen = {count for count in served if count}
    assert len(seen) >= 2
    assert all(count % YIELD_EVERY == 0 for count in seen)


async def test_nothing_is_written_to_who_unsubscribed_while_others_ran(autojump_clock: MockClock) -> None:
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


async def test_nothing_is_repeated_to_who_unsubscribed_while_others_ran(autojump_clock: MockClock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with delivering(await open_log()) as delivery:
            both = await neighbours(delivery, 50)
            patch.setattr(fanout, "YIELD_EVERY", 2)  # a slice: one that is served, one that gets the same
            await delivery.log.append(delivery.log.head, events(2, 2), "point")
            while not any(outlet.writes for _, outlet in both):  # noqa: ASYNC110 - a fan-out has no event for this
                await trio.lowlevel.checkpoint()
            waiting = [(rig, outlet) for rig, outlet in both if not outlet.writes][1::2]
            for rig, _ in waiting:
                rig.conversation.end()
            await wait_all_tasks_blocked()
            assert waiting
            assert not any(outlet.writes for _, outlet in waiting)


@pytest.mark.parametrize(
    "fault, farewell",
    [
        (RuntimeError("bug"), disconnects.INTERNAL),
        (KeyError("bug"), disconnects.INTERNAL),
        (trio.BrokenResourceError(), disconnects.GONE),
        (trio.ClosedResourceError(), disconnects.GONE),
    ],
)
async def test_one_clients_trouble_does_not_stop_the_fan_out(
    fault: Exception, farewell: disconnects.DisconnectReason, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
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
        assert [rig.client.reason for rig in rigs] == [None, farewell, None]
        assert [len(rig.read()) for rig in rigs] == [2, 0, 2]
    assert len(logs) == (farewell is disconnects.INTERNAL)


@pytest.mark.parametrize("state", [ClientState.CONNECTING, ClientState.BEHIND, ClientState.CLOSING])
async def test_only_who_is_live_is_written_to(state: ClientState, autojump_clock: MockClock) -> None:
    async with delivering(await open_log()) as delivery:
        outlet = RecordingTransport()
        rig = await joined(delivery, outlet)
        rig.client.state, wake_up = state, rig.client.expect_wake_up()
        await rig.append(events(1, 1))
        await wait_all_tasks_blocked()
        assert not outlet.writes
        assert wake_up.is_set() == (state is ClientState.BEHIND)


async def test_a_position_before_the_tail_is_not_served_from_it(autojump_clock: MockClock) -> None:
    log = await open_log(options=LogOptions(store="memory", tail_events=16))
    outlet = RecordingTransport()
    async with rigged(log, outlet) as rig:
        await rig.append(events(1, 100))
        await rig.say("SUBSCRIBE", *everything())
        outlet.writes.clear()
        subscription = rig.client.subscriptions[1]
        subscription.position = log.head.at(10)
        rig.fanout.serve(subscription, trio.current_time())
        assert not outlet.writes
        assert rig.client.state is ClientState.BEHIND


async def test_an_ended_epoch_dismisses_its_readers_live_or_behind(autojump_clock: MockClock) -> None:
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

        await rig.say("SUBSCRIBE", *everything("a")[:2], ("ack", "client"), ("prefetch-count", "10000"))
        acks = b"".join(
            encode(Frame("ACK", (("id", f"1.{delivery.log.head.at(n)}"),)), Version.V1_2) for n in range(1000)
        )
        delivery.nursery.start_soon(take_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        await rig.conversation.handle(acks)
        assert turns - before >= 10
        assert rig.conversation.acks_ignored == 1000
