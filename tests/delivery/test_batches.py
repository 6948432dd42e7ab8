"""Batches of events for one subscription: bounded, shared among equals, with verdicts and acks of its own."""

from collections import deque
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from airy_trio.delivery.batches import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, SHARED_BATCHES_MAX, Batches, BatchStatistics
from airy_trio.delivery.client import Client, Subscription, Window
from airy_trio.events.destinations import EVERYTHING, Within
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.stomp.requests import AckMode
from airy_trio.websocket.stream import FramedStream
from tests.delivery.messages import Reader, stomp
from tests.sessions.serving import event, events, open_log


async def filled(count: int, *, size: int = 0, tail_events: int = 20_000) -> EventLog:
    log = await open_log(options=LogOptions(store="memory", tail_events=tail_events))
    await log.append(log.head, events(1, count, size=size), "point")
    return log


def subscribed(log: EventLog, offset: int = 0, *, id_: str = "0", ack: AckMode = AckMode.AUTO) -> Subscription:
    connection = Connection(ConnectionOptions(server="airy-trio/test"), "s1")
    connection.receive(b"CONNECT\naccept-version:1.2\n\n\0")
    connection.connected()
    connection.receive(f"SUBSCRIBE\nid:{id_}\ndestination:/events\nack:{ack.value}\n\n\0")
    subscription = Subscription(
        Client(connection, cast("FramedStream", None)),
        1,
        connection.message_prefix(1),
        log.head.at(offset),
        window=None if ack is AckMode.AUTO else Window(ack, 10),
        started=True,
    )
    subscription.view = log.attach(EVERYTHING, subscription)
    return subscription


async def test_a_run_is_whole_messages_of_one_frame_each() -> None:
    log = await filled(3)
    run = Batches(log).after_position(subscribed(log, 1))
    frames = [stomp(message) for message in Reader().feed(run.data)]
    assert run.offsets == (2, 3)
    assert [frame.body for frame in frames if frame] == [event.body for event in events(2, 3)]
    assert [frame.get("message-id") for frame in frames if frame] == [f"{log.epoch}-2", f"{log.epoch}-3"]


async def test_a_run_is_bounded_in_bytes_but_never_empty() -> None:
    log = await filled(100, size=1000)
    runs = Batches(log)
    run = runs.after_position(subscribed(log))
    assert BATCH_BYTES_MAX - 2000 < len(run.data) <= BATCH_BYTES_MAX
    large = await filled(2, size=BATCH_BYTES_MAX)
    assert Batches(large).after_position(subscribed(large)).offsets == (1,)


async def test_a_run_is_bounded_by_the_window() -> None:
    log = await filled(100)
    subscription = subscribed(log, ack=AckMode.CLIENT)
    assert len(Batches(log).after_position(subscription).offsets) == 10


async def test_equal_subscriptions_share_a_run_until_the_view_grows() -> None:
    log = await filled(3)
    runs = Batches(log)
    one, other, third = subscribed(log), subscribed(log), subscribed(log, id_="different")
    run = runs.after_position(one)
    assert runs.after_position(other) is run
    assert runs.after_position(third) is not run
    await log.append(log.head, events(4, 4), "point")
    assert runs.after_position(other).offsets == (1, 2, 3, 4)


async def test_a_run_of_an_ended_epoch_is_not_given_again() -> None:
    log = await filled(3)
    runs = Batches(log)
    before = runs.after_position(subscribed(log))
    await log.begin_epoch(log.head, "point")
    await log.append(log.head, events(1, 3), "point")
    after = runs.after_position(subscribed(log))
    assert after.offsets == before.offsets
    assert log.epoch.encode() in after.data


async def test_few_runs_are_remembered() -> None:
    log = await filled(SHARED_BATCHES_MAX + 10)
    runs = Batches(log)
    for offset in range(SHARED_BATCHES_MAX + 9):
        runs.after_position(subscribed(log, offset))
    assert len(runs._shared) == SHARED_BATCHES_MAX  # noqa: SLF001 - that it does not grow is told nowhere


async def test_acks_and_verdicts_are_the_subscriptions_own() -> None:
    log = await filled(2)
    runs = Batches(log)
    acking = subscribed(log, ack=AckMode.CLIENT)
    acking.resume_header = b"resume:resumed\n"
    frames = [stomp(message) for message in Reader().feed(runs.after_position(acking).data)]
    assert [(f.get("ack"), f.get("resume")) for f in frames if f] == [
        (f"1.{log.epoch}-1", "resumed"),
        (f"1.{log.epoch}-2", None),
    ]


async def test_what_is_owed_comes_from_where_it_was_read() -> None:
    log = await filled(BATCH_EVENTS_MAX + 1)
    subscription = subscribed(log, BATCH_EVENTS_MAX + 1)
    subscription.backlog = deque(await log.read(log.head.at(0), 2, EVERYTHING, bytes_max=1 << 30))
    assert Batches(log).of_backlog(subscription).offsets == (1, 2)


async def test_a_position_before_the_tail_is_refused() -> None:
    log = await filled(100, tail_events=16)
    with pytest.raises(LookupError):
        Batches(log).after_position(subscribed(log, 3))


async def test_a_view_that_promises_more_than_there_is_is_a_bug() -> None:
    log = await filled(3)
    subscription = subscribed(log, 3)
    subscription.view.last = 4
    with pytest.raises(RuntimeError):
        Batches(log).after_position(subscription)


async def test_what_was_sent_is_counted_with_its_latency_unless_it_was_there_before(autojump_clock: MockClock) -> None:
    log = await filled(3)
    await log.append(log.head, events(4, 5), "point", changed_at=trio.current_time() - 2)
    runs = Batches(log)
    subscription = subscribed(log, 3)
    subscription.live_after = 3
    run = runs.after_position(subscription)
    await trio.sleep(1)
    runs.commit(subscription, run, trio.current_time())
    assert runs.statistics() == BatchStatistics(2, len(run.data))
    assert runs.latencies.total_s == pytest.approx(2 * 3)
    subscription.position, subscription.live_after = log.head.at(3), 4  # the first of them is a replay now
    runs.commit(subscription, runs.after_position(subscription), trio.current_time())
    assert runs.statistics().deliveries == 4
    assert sum(runs.latencies.counts) == 2


async def test_equal_cursors_are_given_one_run_until_the_view_grows() -> None:
    log = await filled(3)
    runs = Batches(log)
    one, same, acking = subscribed(log, 1), subscribed(log, 1), subscribed(log, 1, ack=AckMode.CLIENT)
    run = runs.next_batch(one)
    assert runs.next_batch(same) is run
    assert run.reaches_end
    assert runs.next_batch(subscribed(log, 2)).offsets == (3,)
    assert b"ack:" in runs.next_batch(acking).data
    await log.append(log.head, events(4, 4), "point")
    assert runs.next_batch(same).offsets == (2, 3, 4)


async def test_a_run_says_whether_it_goes_to_the_end() -> None:
    log = await filled(2, size=BATCH_BYTES_MAX)
    runs = Batches(log)
    assert [runs.after_position(subscribed(log, offset)).reaches_end for offset in (0, 1)] == [False, True]


async def test_what_neighbours_took_is_counted_at_once(autojump_clock: MockClock) -> None:
    log = await filled(1)
    await log.append(log.head, events(2, 3), "point", changed_at=trio.current_time() - 2)
    runs = Batches(log)
    first = subscribed(log, 1)
    run = runs.next_batch(first)
    runs.count_repeats(None, 0, trio.current_time())
    runs.commit(first, run, trio.current_time())
    runs.count_repeats(run, 3, trio.current_time() + 1)
    assert first.prefix is run.prefix
    assert runs.statistics() == BatchStatistics(8, 4 * len(run.data))
    assert sum(runs.latencies.counts) == 8
    assert runs.latencies.total_s == pytest.approx(2 * 2 + 6 * 3)


async def test_who_took_a_run_gets_what_neighbours_take_unless_something_is_its_own() -> None:
    log = await filled(3)
    runs = Batches(log)
    plain, replayed, acking, waiting = (
        subscribed(log, 1),
        subscribed(log, 1),
        subscribed(log, 1, ack=AckMode.CLIENT),
        subscribed(log, 1),
    )
    replayed.live_after = 4  # what it is sent up to there was before it, and counts in no latency
    waiting.started = False
    for subscription in (plain, replayed, acking, waiting):
        assert not subscription.in_step
        runs.commit(subscription, runs.next_batch(subscription), 0.0)
    assert [one.in_step for one in (plain, replayed, acking, waiting)] == [True, False, False, False]
    found: list[bool] = []
    plain.extend_backlog(await log.store.read(log.head.at(0), 2))
    found.append(plain.in_step)
    runs.commit(plain, runs.next_batch(plain), 0.0)
    found.append(plain.in_step)
    plain.end()
    found.append(plain.in_step)
    assert found == [False, True, False]


async def test_a_cursor_moves_when_its_run_was_taken() -> None:
    log = await filled(3)
    runs = Batches(log)
    subscription = subscribed(log, 1)
    subscription.backlog = deque(await log.read(log.head.at(0), 1, EVERYTHING, bytes_max=1 << 30))
    run = runs.next_batch(subscription)
    assert (run.offsets, subscription.position.offset, len(subscription.backlog)) == ((1,), 1, 1)
    runs.commit(subscription, run, 0.0)
    assert (subscription.position.offset, len(subscription.backlog)) == (1, 0)
    runs.commit(subscription, runs.next_batch(subscription), 0.0)
    assert subscription.position.offset == 3
    assert runs.statistics().deliveries == 3


async def test_a_run_is_not_shared_with_who_may_read_less_of_the_same_destination() -> None:
    log = await open_log()
    channels = ["ch1", "ch2", "ch3", "ch1"]
    await log.append(log.head, [event(number, channel=one) for number, one in enumerate(channels, 1)], "point")
    runs = Batches(log)
    of_all, of_two, also_of_two, of_one = (subscribed(log) for _ in range(4))
    rights = [(of_two, {"ch1", "ch2"}), (also_of_two, {"ch2", "ch1"}), (of_one, {"ch1", "ch4"})]
    for one, granted in rights:
        log.detach(one.view, one)
        one.view = log.attach(Within(EVERYTHING, frozenset(granted)), one)
    assert {one.view.last for one in (of_all, of_two, also_of_two, of_one)} == {4}
    assert runs.after_position(of_all).offsets == (1, 2, 3, 4)
    assert runs.after_position(of_two).offsets == (1, 2, 4)
    assert runs.after_position(of_one).offsets == (1, 4)
    assert runs.after_position(also_of_two) is runs.after_position(of_two)
