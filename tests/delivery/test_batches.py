"""Batches: bounded, shared between equal subscriptions, with acks and resume headers that are not shared."""

from typing import cast

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from airy_trio.delivery.client import Client, Subscription, Window
from airy_trio.delivery.fanout import BATCH_BYTES_MAX, SHARED_BATCHES_MAX, Batches
from airy_trio.delivery.framing import StompFraming
from airy_trio.events.destinations import EVERYTHING, Within
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.reads import Page, Replay
from airy_trio.log.store import Position, StateAt
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.frames import AckMode, Subscribe
from airy_trio.websocket.stream import FramedStream
from tests.delivery.messages import Reader, stomp
from tests.delivery.rig import slot
from tests.sessions.serving import event, events, open_log


async def filled(count: int, *, size: int = 0, tail_events: int = 20_000) -> EventLog:
    log = await open_log(options=LogOptions(store="memory", tail_events=tail_events))
    await log.append(log.head, events(1, count, size=size), "point")
    return log


def subscribed(log: EventLog, offset: int = 0, *, id_: str = "0", ack: AckMode = AckMode.AUTO) -> Subscription:
    connection = StompFraming(ConnectionOptions(server="airy-trio/test"), "s1")
    connection.receive(b"CONNECT\naccept-version:1.2\n\n\0")
    connection.connected()
    (request,) = connection.receive(f"SUBSCRIBE\nid:{id_}\ndestination:/events\nack:{ack.value}\n\n\0")
    assert isinstance(request, Subscribe)
    subscription = Subscription(
        Client(connection, cast("FramedStream", None), slot()),
        1,
        connection.message_prefix(request),
        log.head.at(offset),
        window=None if ack is AckMode.AUTO else Window(ack, 10),
        started=True,
    )
    subscription.view = log.tail.attach(EVERYTHING, subscription)
    return subscription


def of_state(until: Position) -> Replay:
    return Replay(until=until, since=until.offset, state=StateAt("first0", until), announced=True)


async def test_a_batch_is_whole_messages_of_one_frame_each() -> None:
    log = await filled(3)
    batch = Batches(log).next_batch(subscribed(log, 1))
    frames = [stomp(message) for message in Reader().feed(batch.data)]
    assert batch.offsets == (2, 3)
    assert [frame.body for frame in frames if frame] == [event.body for event in events(2, 3)]
    assert [frame.get("message-id") for frame in frames if frame] == [f"{log.epoch}-2", f"{log.epoch}-3"]


async def test_a_batch_is_bounded_in_bytes_but_never_empty() -> None:
    log = await filled(100, size=1000)
    batches = Batches(log)
    batch = batches.next_batch(subscribed(log))
    assert BATCH_BYTES_MAX - 2000 < len(batch.data) <= BATCH_BYTES_MAX
    large = await filled(2, size=BATCH_BYTES_MAX)
    assert Batches(large).next_batch(subscribed(large)).offsets == (1,)


async def test_a_batch_is_bounded_by_the_window() -> None:
    log = await filled(100)
    subscription = subscribed(log, ack=AckMode.CLIENT)
    assert len(Batches(log).next_batch(subscription).offsets) == 10


async def test_equal_subscriptions_share_a_batch_until_the_view_grows() -> None:
    log = await filled(3)
    batches = Batches(log)
    one, other, third = subscribed(log), subscribed(log), subscribed(log, id_="different")
    batch = batches.next_batch(one)
    assert batches.next_batch(other) is batch
    assert batches.next_batch(third) is not batch
    await log.append(log.head, events(4, 4), "point")
    assert batches.next_batch(other).offsets == (1, 2, 3, 4)


async def test_a_batch_of_an_ended_epoch_is_not_reused() -> None:
    log = await filled(3)
    batches = Batches(log)
    before = batches.next_batch(subscribed(log))
    await log.begin_epoch(log.head, "point")
    await log.append(log.head, events(1, 3), "point")
    after = batches.next_batch(subscribed(log))
    assert after.offsets == before.offsets
    assert log.epoch.encode() in after.data


async def test_shared_batches_are_bounded() -> None:
    log = await filled(SHARED_BATCHES_MAX + 10)
    batches = Batches(log)
    for offset in range(SHARED_BATCHES_MAX + 9):
        batches.next_batch(subscribed(log, offset))
    assert len(batches._shared) == SHARED_BATCHES_MAX  # noqa: SLF001 - no statistic shows its size


async def test_acks_and_resume_headers_are_not_shared() -> None:
    log = await filled(2)
    batches = Batches(log)
    acking = subscribed(log, ack=AckMode.CLIENT)
    acking.resume_header = b"resume:resumed\n"
    frames = [stomp(message) for message in Reader().feed(batches.next_batch(acking).data)]
    assert [(f.get("ack"), f.get("resume")) for f in frames if f] == [
        (f"1.{log.epoch}-1", "resumed"),
        (f"1.{log.epoch}-2", None),
    ]


@pytest.mark.parametrize("ack", [AckMode.AUTO, AckMode.CLIENT])
async def test_last_message_of_the_state_marks_it_as_complete(ack: AckMode) -> None:
    log = await filled(6, size=BATCH_BYTES_MAX // 2, tail_events=16)
    state = of_state(log.head.at(5))
    found = tuple(await log.store.read(log.head.at(0), 6))
    pages = (
        Page(EVERYTHING, log.head.at(0), 3, (found[0], found[2]), state),
        Page(EVERYTHING, log.head.at(3), 5, (found[3],), state),
    )
    batches = Batches(log)
    subscription = subscribed(log, ack=ack)
    subscription.begin_after(log.head.at(0), state, b"resume:reset-expired\n")
    seen: list[tuple[str | None, str | None]] = []
    for page in pages:
        while (batch := batches.of_page(subscription, page)) is not None:
            frames = [stomp(message) for message in Reader().feed(batch.data)]
            seen += [(frame.get("resume"), frame.get("state")) for frame in frames if frame]
            batches.commit(subscription, batch, 0.0)
    assert seen == [("reset-expired", None), (None, None), (None, "complete")]
    assert (subscription.position, subscription.replay) == (log.head.at(5), None)


async def test_a_cursor_leaves_the_state_at_its_end() -> None:
    log = await filled(5)
    subscription = subscribed(log)
    subscription.begin_after(log.head.at(0), of_state(log.head.at(4)))
    found = []
    for offset in (3, 4):
        subscription.skip_to(offset)
        found.append(subscription.replay is None)
    assert found == [False, True]


async def test_completing_header_waits_for_its_event() -> None:
    """The same holds if the event does not fit into the batch that is being made."""
    log = await filled(2, size=BATCH_BYTES_MAX)
    state = of_state(log.head)
    page = Page(EVERYTHING, log.head.at(0), 2, tuple(await log.store.read(log.head.at(0), 2)), state)
    batches, subscription = Batches(log), subscribed(log)
    subscription.begin_after(log.head.at(0), state)
    first = batches.of_page(subscription, page)
    assert first is not None
    batches.commit(subscription, first, 0.0)
    second = batches.of_page(subscription, page)
    assert second is not None
    assert [b"\nstate:complete\n" in batch.data for batch in (first, second)] == [False, True]


async def test_a_page_is_sent_from_the_position_to_its_end() -> None:
    log = await filled(10, size=BATCH_BYTES_MAX // 4, tail_events=16)
    batches = Batches(log)
    page = Page(EVERYTHING, log.head.at(0), 9, tuple(await log.store.read(log.head.at(0), 6)))
    subscription, acking = subscribed(log, 1), subscribed(log, 1, ack=AckMode.CLIENT)
    sent: list[int] = []
    while len(sent) < 10 and (batch := batches.of_page(subscription, page)) is not None:
        sent += batch.offsets
        batches.commit(subscription, batch, 0.0)
    assert sent == [2, 3, 4, 5, 6]
    assert subscription.position.offset == 9, "nothing else is of the destination up to there"
    first = batches.of_page(acking, page)
    assert first is not None
    assert b"\nack:1." in first.data


async def test_clients_at_one_position_of_a_page_share_its_batches() -> None:
    log = await filled(10)
    batches = Batches(log)
    page = Page(EVERYTHING, log.head.at(0), 10, tuple(await log.store.read(log.head.at(0), 10)))
    batch = batches.of_page(subscribed(log, 1), page)
    assert batches.of_page(subscribed(log, 1), page) is batch
    assert batches.of_page(subscribed(log, 1), evolve(page, upto=9, events=page.events[:9])) is not batch
    assert batches.of_page(subscribed(log, 1), evolve(page, replay=of_state(log.head))) is not batch
    assert batches.of_page(subscribed(log, 2), page) is not batch
    assert batches.of_page(subscribed(log, 1, id_="different"), page) is not batch
    assert batches.of_page(subscribed(log, 1, ack=AckMode.CLIENT), page) is not batch


async def test_a_position_before_the_tail_is_refused() -> None:
    log = await filled(100, tail_events=16)
    with pytest.raises(LookupError):
        Batches(log).next_batch(subscribed(log, 3))


async def test_a_view_that_promises_missing_events_is_a_bug() -> None:
    log = await filled(3)
    subscription = subscribed(log, 3)
    subscription.view.last = 4
    with pytest.raises(RuntimeError):
        Batches(log).next_batch(subscription)


async def test_live_deliveries_are_counted_with_their_latency(autojump_clock: MockClock) -> None:
    log = await filled(3)
    await log.append(log.head, events(4, 5), "point", changed_at=trio.current_time() - 2)
    batches = Batches(log)
    subscription = subscribed(log, 3)
    subscription.live_after = 3
    batch = batches.next_batch(subscription)
    await trio.sleep(1)
    batches.commit(subscription, batch, trio.current_time())
    assert (batches.deliveries, batches.bytes) == (2, len(batch.data))
    assert batches.latencies.total_s == pytest.approx(2 * 3)
    subscription.position, subscription.live_after = log.head.at(3), 4  # the first one is a replay now
    batches.commit(subscription, batches.next_batch(subscription), trio.current_time())
    assert batches.deliveries == 4
    assert sum(batches.latencies.counts) == 2


async def test_equal_cursors_get_one_batch_until_the_view_grows() -> None:
    log = await filled(3)
    batches = Batches(log)
    one, same, acking = subscribed(log, 1), subscribed(log, 1), subscribed(log, 1, ack=AckMode.CLIENT)
    batch = batches.next_batch(one)
    assert batches.next_batch(same) is batch
    assert batch.reaches_end
    assert batches.next_batch(subscribed(log, 2)).offsets == (3,)
    assert b"ack:" in batches.next_batch(acking).data
    await log.append(log.head, events(4, 4), "point")
    assert batches.next_batch(same).offsets == (2, 3, 4)


async def test_batch_reports_whether_it_reaches_the_end() -> None:
    log = await filled(2, size=BATCH_BYTES_MAX)
    batches = Batches(log)
    assert [batches.next_batch(subscribed(log, offset)).reaches_end for offset in (0, 1)] == [False, True]


async def test_repeated_batches_are_counted(autojump_clock: MockClock) -> None:
    log = await filled(1)
    await log.append(log.head, events(2, 3), "point", changed_at=trio.current_time() - 2)
    batches = Batches(log)
    first = subscribed(log, 1)
    batch = batches.next_batch(first)
    batches.count_repeats(None, 0, trio.current_time())
    batches.commit(first, batch, trio.current_time())
    batches.count_repeats(batch, 3, trio.current_time() + 1)
    assert first.prefix is batch.prefix
    assert (batches.deliveries, batches.bytes) == (8, 4 * len(batch.data))
    assert sum(batches.latencies.counts) == 8
    assert batches.latencies.total_s == pytest.approx(2 * 2 + 6 * 3)


async def test_plain_live_subscriptions_are_in_step() -> None:
    log = await filled(3)
    batches = Batches(log)
    plain, replayed, acking, waiting = (
        subscribed(log, 1),
        subscribed(log, 1),
        subscribed(log, 1, ack=AckMode.CLIENT),
        subscribed(log, 1),
    )
    replayed.live_after = 4  # events up to there are a replay, without latency
    waiting.started = False
    for subscription in (plain, replayed, acking, waiting):
        assert not subscription.in_step
        batches.commit(subscription, batches.next_batch(subscription), 0.0)
    assert [one.in_step for one in (plain, replayed, acking, waiting)] == [True, False, False, False]
    plain.end()
    assert not plain.in_step


async def test_a_cursor_moves_when_its_batch_is_committed() -> None:
    log = await filled(3)
    batches = Batches(log)
    subscription = subscribed(log, 1)
    batch = batches.next_batch(subscription)
    assert (batch.offsets, subscription.position.offset) == ((2, 3), 1)
    batches.commit(subscription, batch, 0.0)
    assert (subscription.position.offset, batches.deliveries) == (3, 2)


async def test_batches_are_not_shared_between_different_grants() -> None:
    log = await open_log()
    channels = ["ch1", "ch2", "ch3", "ch1"]
    await log.append(log.head, [event(number, channel=one) for number, one in enumerate(channels, 1)], "point")
    batches = Batches(log)
    of_all, of_two, also_of_two, of_one = (subscribed(log) for _ in range(4))
    rights = [(of_two, {"ch1", "ch2"}), (also_of_two, {"ch2", "ch1"}), (of_one, {"ch1", "ch4"})]
    for one, granted in rights:
        log.tail.detach(one.view, one)
        one.view = log.tail.attach(Within(EVERYTHING, frozenset(granted)), one)
    assert {one.view.last for one in (of_all, of_two, also_of_two, of_one)} == {4}
    assert batches.next_batch(of_all).offsets == (1, 2, 3, 4)
    assert batches.next_batch(of_two).offsets == (1, 2, 4)
    assert batches.next_batch(of_one).offsets == (1, 4)
    assert batches.next_batch(also_of_two) is batches.next_batch(of_two)
