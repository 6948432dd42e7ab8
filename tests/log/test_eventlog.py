"""The event log of one node: opening, following, catching up, and truncated stores."""

import sys
from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.events.destinations import EVERYTHING, OfChannel, OfType
from airy_trio.log.current import Marks
from airy_trio.log.event_log import (
    LAG_EVERY_S,
    OWN_APPENDS_MAX,
    READ_BYTES_MAX,
    READ_EVENTS_MAX,
    EventLog,
)
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.reads import Reads
from airy_trio.log.store import Bounds, NewEvent, Position, StaleAppend, StateChange, StoredEvent, StoreUnavailable
from airy_trio.log.tail import View
from tests.delegating_store import Append, DelegatingStore, Read
from tests.log.places import event

MANY = 1 << 30


class Outages(DelegatingStore):
    """A store with its own clock, which is unavailable while ``away`` is true.

    ``held``: if not None, bounds are returned only when this event is set. ``held_reads``: the same for reads.
    ``calls``: the number of reads of ``bounds`` and of ``events``.
    """

    def __init__(self) -> None:
        super().__init__(lambda: self.now_s)
        self.now_s = 1000.0
        self.away = False
        self.held: trio.Event | None = None
        self.held_reads: trio.Event | None = None
        self.calls = Counter({"bounds": 0, "events": 0})

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    async def bounds(self) -> Bounds:
        self.calls["bounds"] += 1
        self._reach()
        bounds = await super().bounds()
        if self.held is not None:
            await self.held.wait()
        return bounds

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        self._reach()
        return await super().on_append(call)

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        self.calls["events"] += 1
        self._reach()
        found = await super().on_read(call)
        if self.held_reads is not None:
            await self.held_reads.wait()
        return found

    async def since(self, age_s: float) -> Position:
        self._reach()
        return await super().since(age_s)

    async def wait(self, after: Position) -> None:
        self._reach()
        with trio.move_on_after(1):
            await super().wait(after)
        self._reach()

    async def add(self, *events: NewEvent) -> None:
        """Append as another node would."""
        await super().on_append(Append(self._bounds().head, events, "point"))

    def lose(self, count: int) -> None:
        """Lose the newest events, like a store that was restored from a copy."""
        del self._events[-count:]


class Weighing(Outages):
    """A store that counts the bytes it returns: ``given`` in total, ``largest`` in one read."""

    def __init__(self) -> None:
        super().__init__()
        self.given = self.largest = 0

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        found = await super().on_read(call)
        size = sum(len(event.body) for event in found)
        self.given, self.largest = self.given + size, max(self.largest, size)
        return found


@pytest.fixture
def store() -> Outages:
    return Outages()


def log_over(store: MemoryStore, *, tail_events: int = 100) -> EventLog:
    return EventLog(store, LogOptions(store="memory", tail_events=tail_events))


async def opened(store: MemoryStore, *, tail_events: int = 100) -> EventLog:
    log = log_over(store, tail_events=tail_events)
    await log.open()
    return log


def held(log: EventLog, view: View) -> list[int]:
    return [one.offset for one in log.tail.after(view, view.evicted, events_max=10_000, bytes_max=10**9)]


def numbered(first: int, last: int) -> list[NewEvent]:
    return [event(number) for number in range(first, last + 1)]


def test_head_before_open_is_an_error(store: Outages) -> None:
    with pytest.raises(RuntimeError, match=r"open\(\) comes first"):
        _ = log_over(store).head


@pytest.mark.parametrize("count", [0, 5, 100, 101, READ_EVENTS_MAX, READ_EVENTS_MAX + 1])
async def test_open_fills_the_tail(store: Outages, count: int) -> None:
    await store.add(*numbered(1, count))
    log = await opened(store, tail_events=1001)
    view = log.tail.attach(EVERYTHING, "reader")
    assert log.head == (await store.bounds()).head
    assert held(log, view) == list(range(1, count + 1))


async def test_older_events_are_read_from_the_store(store: Outages) -> None:
    await store.add(*numbered(1, 250))
    log = await opened(store)
    paged = Reads(log)
    view = log.tail.attach(EVERYTHING, "reader")
    assert (view.evicted, log.head.offset) == (150, 250)
    assert [one.offset for one in (await paged.page(log.head.at(0), EVERYTHING)).events][:3] == [1, 2, 3]


async def test_open_reads_few_more_bytes_than_the_tail_has() -> None:
    sizes = [60_000] * 300 + [10] * 5 + [200_000] * 3 + [0] * 7
    store = Weighing()
    await store.add(*(event(number)._replace(body=b"x" * size) for number, size in enumerate(sizes, start=1)))
    log = EventLog(store, LogOptions(store="memory", tail_events=1000, tail_bytes=1_000_000))
    await log.open()
    view = log.tail.attach(EVERYTHING, "reader")
    assert log.head.offset == len(sizes)
    kept = held(log, view)
    assert kept == list(range(len(sizes) - len(kept) + 1, len(sizes) + 1))
    assert 600_000 < log.statistics()["bytes"] <= 1_000_000
    assert store.given < 10_000_000  # of 18 MB; a page larger than 4 MiB is read again in smaller parts
    assert store.largest <= READ_BYTES_MAX + 60_000


async def test_one_large_event_fills_the_tail() -> None:
    store = Weighing()
    await store.add(*(event(number)._replace(body=b"x" * 3_000_000) for number in range(1, 6)))
    log = EventLog(store, LogOptions(store="memory", tail_bytes=1000))
    await log.open()
    assert held(log, log.tail.attach(EVERYTHING, "reader")) == [5]


async def test_open_after_all_events_were_trimmed(store: Outages) -> None:
    await store.add(*numbered(1, 5))
    await store.trim(age_s=10**6, keep=0, limit=10, unused_s=10**6)
    log = await opened(store)
    paged = Reads(log)
    assert (log.head.offset, await paged.floor()) == (5, log.head)


async def test_open_can_be_retried(store: Outages) -> None:
    log = log_over(store)
    store.away = True
    with pytest.raises(StoreUnavailable):
        await log.open()
    store.away = False
    await log.open()
    assert log.head.offset == 0


async def test_an_append_is_in_the_tail_and_reported(store: Outages) -> None:
    log = await opened(store)
    view = log.tail.attach(OfType("message.updated"), "reader")
    head = await log.append(log.head, numbered(1, 3), "point")
    assert head == log.head == Position(log.epoch, 3)
    assert held(log, view) == [1, 2, 3]
    with trio.fail_after(1):
        assert await log.wait_grown() == {view}


async def test_readers_run_before_the_writer_continues(store: Outages, nursery: trio.Nursery) -> None:
    log = await opened(store)
    log.tail.attach(EVERYTHING, object())
    order: list[str] = []

    async def serve() -> None:
        while True:
            await log.wait_grown()
            order.append("served")

    nursery.start_soon(serve)
    for _ in range(20):  # Trio runs tasks in random order
        await wait_all_tasks_blocked()
        await log.append(log.head, numbered(1, 1), "point")
        order.append("continued")
    assert order == ["served", "continued"] * 20


async def test_a_stale_append_is_rejected_after_catching_up(store: Outages) -> None:
    log = await opened(store)
    mine = log.head
    await store.add(event(1))
    await log.catch_up()
    with pytest.raises(StaleAppend):
        await log.append(mine, numbered(2, 2), "point")
    assert (log.head.offset, await store.resume_point()) == (1, "point")


async def test_an_append_after_unread_events_is_read_in_order(store: Outages) -> None:
    log = await opened(store)
    view = log.tail.attach(EVERYTHING, "reader")
    await store.add(*numbered(1, 3))
    assert (await log.append((await store.bounds()).head, numbered(4, 5), "point")).offset == 5
    assert (log.head.offset, held(log, view)) == (0, [])
    await log.catch_up()
    assert held(log, view) == [1, 2, 3, 4, 5]


async def test_follow_reads_appends_of_other_nodes(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    view = log.tail.attach(EVERYTHING, "reader")
    nursery.start_soon(log.follow)
    for number in range(1, 4):
        await store.add(event(number))
        with trio.fail_after(2):
            assert await log.wait_grown() == {view}
        assert log.head.offset == number
    assert held(log, view) == [1, 2, 3]
    nursery.cancel_scope.cancel()


async def test_lag_grows_while_events_are_not_read(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    nursery.start_soon(log.follow)
    nursery.start_soon(log.watch_lag)
    await trio.sleep(100)
    assert log.follow_lag_s == 0
    store.held_reads = trio.Event()
    await store.add(event(1))
    await trio.sleep(20)
    assert log.follow_lag_s == pytest.approx(20, abs=LAG_EVERY_S)
    store.held_reads.set()
    await trio.sleep(0.1)
    assert (log.head.offset, log.follow_lag_s) == (1, 0)
    store.held = trio.Event()
    await trio.sleep(20)
    assert log.follow_lag_s == pytest.approx(20, abs=LAG_EVERY_S)
    store.held.set()
    await trio.sleep(0.1)
    assert log.follow_lag_s == 0
    nursery.cancel_scope.cancel()


async def test_log_follows_a_changed_store_clock(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    nursery.start_soon(log.watch_lag)
    store.now_s += 3600
    await trio.sleep(2 * LAG_EVERY_S)
    assert 0 <= log.clock.ms_before(0) - store.now_s * 1000 <= LAG_EVERY_S * 1000
    nursery.cancel_scope.cancel()


async def test_a_new_epoch_ends_the_lag(store: Outages, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    log = await opened(store)
    nursery.start_soon(log.watch_lag)
    await store.add(event(1))
    await trio.sleep(20)
    await store.begin_epoch((await store.bounds()).head, "again")
    await trio.sleep(20)
    assert log.follow_lag_s == pytest.approx(40, abs=LAG_EVERY_S)
    await log.catch_up()
    assert log.follow_lag_s == 0
    nursery.cancel_scope.cancel()


async def test_appends_of_all_nodes_are_in_one_order(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    view = log.tail.attach(EVERYTHING, "reader")
    nursery.start_soon(log.follow)
    for _ in range(20):
        await store.add(event(1))
        try:
            await log.append(log.head, [event(2)], "point")
        except StaleAppend:
            await log.catch_up()
    await wait_all_tasks_blocked()
    assert held(log, view) == list(range(1, store._bounds().last + 1))  # noqa: SLF001 - the contents of the memory, without its checkpoint
    nursery.cancel_scope.cancel()


async def test_own_appends_are_not_read_from_the_store(store: Outages, nursery: trio.Nursery) -> None:
    log = log_over(store)
    await log.open()
    nursery.start_soon(log.follow)
    await wait_all_tasks_blocked()
    calls = store.calls.copy()
    for number in range(1, 4):
        await log.append(log.head, [event(number)], "point")
        await wait_all_tasks_blocked()
    assert store.calls == calls
    await store.add(event(4))
    await wait_all_tasks_blocked()
    assert log.head.offset == 4
    assert store.calls > calls


async def test_an_append_of_another_node_costs_one_read(store: Outages, nursery: trio.Nursery) -> None:
    log = log_over(store)
    await log.open()
    nursery.start_soon(log.follow)
    await wait_all_tasks_blocked()
    for number in range(1, 4):
        calls = store.calls.copy()
        await store.add(event(number))
        await wait_all_tasks_blocked()
        assert store.calls - calls == Counter(events=1)


async def test_a_failed_append_makes_follow_compare(store: Outages, nursery: trio.Nursery) -> None:
    log = log_over(store)
    await log.open()
    nursery.start_soon(log.follow)
    await log.append(log.head, [event(1), event(2)], "point")
    await wait_all_tasks_blocked()
    before = log.head
    store.away = True
    with pytest.raises(StoreUnavailable):
        await log.append(before, [event(3)], "further")
    store.lose(1)  # a copy without the newest event has replaced it, and another node has recorded into the copy
    store.away = False
    await store.add(event(4), event(5))
    await wait_all_tasks_blocked()
    assert log.epoch != before.epoch


async def test_a_doubt_raised_during_catch_up_remains(store: Outages, nursery: trio.Nursery) -> None:
    log = await opened(store)
    before = await log.append(log.head, numbered(1, 2), "point")
    for outage in (1, 2):
        store.away = True
        with pytest.raises(StoreUnavailable):
            await log.append(before, [event(3)], "further")
        store.away = False
        if outage == 1:
            store.held_reads = trio.Event()
            nursery.start_soon(log.catch_up)
            await wait_all_tasks_blocked()  # it has compared the newest event and found it unchanged
    store.lose(1)  # during the second outage a copy without that event has replaced the store
    await store.add(event(4), event(5))
    assert store.held_reads is not None
    store.held_reads.set()
    await wait_all_tasks_blocked()
    assert log.epoch != before.epoch


async def test_an_append_during_catch_up_settles_no_doubt(store: Outages, nursery: trio.Nursery) -> None:
    log = await opened(store)
    before = await log.append(log.head, numbered(1, 2), "point")
    store.away = True
    with pytest.raises(StoreUnavailable):
        await log.append(before, [event(3)], "further")
    store.lose(1)
    store.away = False
    await store.add(event(4))  # under the offset of the lost event
    store.held = trio.Event()
    nursery.start_soon(log.catch_up)
    await wait_all_tasks_blocked()
    await log.append(before, [event(5)], "further")
    store.held.set()
    await wait_all_tasks_blocked()
    assert log.epoch != before.epoch


async def test_a_new_epoch_is_followed_while_the_bounds_are_fresh(store: Outages, nursery: trio.Nursery) -> None:
    log = log_over(store)
    await log.open()
    nursery.start_soon(log.follow)
    await store.add(event(1), event(2))
    await wait_all_tasks_blocked()
    bounds = await store.begin_epoch(log.head, "point")
    await store.add(event(3))
    await wait_all_tasks_blocked()
    assert (log.epoch, log.head.offset) == (bounds.epoch, 1)


async def test_a_new_epoch_empties_every_view(store: Outages) -> None:
    log = await opened(store)
    view = log.tail.attach(OfChannel("ch1"), "reader")
    await log.append(log.head, numbered(1, 3), "point")
    old = log.head
    await store.begin_epoch(old, "again")  # on another node
    await store.add(event(1))
    await log.wait_grown()
    await log.catch_up()
    assert (log.epoch != old.epoch, log.head.offset, held(log, view)) == (True, 1, [1])
    with trio.fail_after(1):
        assert await log.wait_grown() == {view}


async def test_begin_epoch_returns_the_head(store: Outages) -> None:
    log = await opened(store)
    head = await log.append(log.head, numbered(1, 3), "point")
    begun = await log.begin_epoch(head, "again")
    assert begun == log.head == Position(log.epoch, 0)
    with pytest.raises(StaleAppend):
        await log.begin_epoch(head, "stale")
    assert log.head == begun


async def test_bounds_of_an_ended_epoch_are_not_used(store: Outages, nursery: trio.Nursery) -> None:
    log = await opened(store)
    head = await log.append(log.head, numbered(1, 3), "point")
    store.held = trio.Event()
    epochs = []

    async def begin() -> None:
        await log.begin_epoch(head, "again")
        epochs.append(log.epoch)

    with capture_logs() as logged:
        nursery.start_soon(log.catch_up)
        await wait_all_tasks_blocked()  # it has read the bounds of the old epoch
        nursery.start_soon(begin)
        await wait_all_tasks_blocked()
        store.held.set()
        await wait_all_tasks_blocked()
    assert logged == []  # the log has not returned to the old epoch
    assert epochs == [log.epoch] == [store._bounds().epoch]  # noqa: SLF001 - the contents of the memory, without its checkpoint


async def test_a_node_behind_the_retention_continues_at_the_floor(store: Outages) -> None:
    log = await opened(store)
    view = log.tail.attach(EVERYTHING, "reader")
    await log.append(log.head, numbered(1, 3), "point")
    await store.add(*numbered(4, 20))
    await store.trim(age_s=10**6, keep=5, limit=100, unused_s=10**6)
    await log.catch_up()
    assert (view.evicted, held(log, view)) == (15, [16, 17, 18, 19, 20])
    assert log.head.offset == 20


async def test_an_outage_and_its_end_are_logged_once(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    log.tail.attach(EVERYTHING, "reader")
    with capture_logs() as logged:
        nursery.start_soon(log.follow)
        store.away = True
        await trio.sleep(30)
        store.away = False
        await store.add(event(1))
        with trio.fail_after(5):
            await log.wait_grown()
        await trio.sleep(5)
    assert [line["event"] for line in logged] == ["event store unavailable", "event store available again"]
    nursery.cancel_scope.cancel()


async def test_a_truncated_store_gets_a_new_epoch(store: Outages) -> None:
    log = await opened(store)
    head = await log.append(log.head, numbered(1, 10), "point")
    store.lose(3)
    await log.catch_up()
    assert (log.epoch != head.epoch, log.head.offset) == (True, 0)
    assert (await store.resume_point(), (await store.bounds()).epoch) == ("point", log.epoch)


async def test_a_store_replaced_during_an_outage_gets_a_new_epoch(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    head = await log.append(log.head, numbered(1, 10), "point")
    nursery.start_soon(log.follow)
    store.away = True
    await trio.sleep(5)
    store.lose(3)
    await store.add(*numbered(80, 90))
    store.away = False
    await trio.sleep(5)
    assert log.epoch != head.epoch
    nursery.cancel_scope.cancel()


async def test_an_outage_alone_begins_no_epoch(
    store: Outages, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    log = await opened(store)
    head = await log.append(log.head, numbered(1, 10), "point")
    nursery.start_soon(log.follow)
    store.away = True
    await trio.sleep(5)
    with pytest.raises(StoreUnavailable):
        await log.append(head, [event(11)], "point")
    await store.add(event(12))
    await store.trim(age_s=10**6, keep=1, limit=100, unused_s=10**6)
    store.away = False
    await trio.sleep(5)
    assert log.head == head.at(11)
    nursery.cancel_scope.cancel()


async def test_an_append_during_catch_up_is_no_loss(store: Outages, nursery: trio.Nursery) -> None:
    log = await opened(store)
    store.held = trio.Event()
    nursery.start_soon(log.catch_up)
    await wait_all_tasks_blocked()
    head = await log.append(log.head, numbered(1, 3), "point")
    store.held.set()
    await wait_all_tasks_blocked()
    assert log.head == head


class TestSince:
    async def since(self, log: EventLog, age_s: float) -> int:
        position = await Reads(log).since(age_s)
        assert position.epoch == log.epoch
        return position.offset

    async def test_tail_and_store_agree(self, store: Outages, autojump_clock: MockClock) -> None:  # noqa: ARG002 - stops time
        for number in range(60):
            store.now_s += 1
            await store.add(event(number))
        whole, short = await opened(store), await opened(store, tail_events=5)
        store.away = True  # the whole tail needs no store
        from_tail = [await self.since(whole, age_s) for age_s in range(70)]
        store.away = False
        assert from_tail == [await self.since(short, age_s) for age_s in range(70)]
        assert from_tail == [max(0, 59 - age_s) for age_s in range(70)]

    async def test_age_is_by_the_stores_clock(self, store: Outages, autojump_clock: MockClock) -> None:  # noqa: ARG002 - the same
        log = await opened(store)
        await log.append(log.head, numbered(1, 3), "point")
        await trio.sleep(30)
        store.now_s += 30
        assert (await self.since(log, 29), await self.since(log, 31)) == (3, 0)
        assert await self.since(log, sys.float_info.max) == 0

    async def test_an_unavailable_store_raises(self, store: Outages) -> None:
        await store.add(*numbered(1, 20))
        log = await opened(store, tail_events=5)
        store.away = True
        with pytest.raises(StoreUnavailable):
            await Reads(log).since(60)

    async def test_it_is_never_after_the_head_of_this_node(self, store: Outages) -> None:
        await store.add(*numbered(1, 20))
        log = await opened(store, tail_events=5)
        store.now_s += 100
        await store.add(*numbered(21, 30))
        store.now_s += 100
        assert await self.since(log, 50) == 20

    async def test_a_new_epoch_is_followed_first(self, store: Outages) -> None:
        await store.add(*numbered(1, 20))
        log = await opened(store, tail_events=5)
        await store.begin_epoch(log.head, "again")
        await store.add(event(1))
        assert await Reads(log).since(60) == (await store.bounds()).head.at(0)


async def test_no_growth_is_lost_between_two_calls(store: Outages, nursery: trio.Nursery) -> None:
    log = await opened(store)
    views = {name: log.tail.attach(OfChannel(name), "reader") for name in ("ch1", "ch2", "ch3")}
    seen: list[int] = []

    async def consume() -> None:
        while True:
            for view in await log.wait_grown():
                seen.extend(held(log, view)[len([one for one in seen if one in view.offsets]) :])
                await trio.lowlevel.checkpoint()

    nursery.start_soon(consume)
    for number in range(1, 100):
        await log.append(log.head, [event(number, channel_id=f"ch{number % 3 + 1}")], "point")
        if number % 5 == 0:
            await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert sorted(seen) == list(range(1, 100))
    assert all(view.last == view.offsets[-1] for view in views.values())
    nursery.cancel_scope.cancel()


async def test_growth_is_reported_by_the_next_call(store: Outages) -> None:
    log = await opened(store)
    one, two = log.tail.attach(OfChannel("ch1"), "reader"), log.tail.attach(OfChannel("ch2"), "reader")
    await log.append(log.head, [event(1, channel_id="ch1")], "point")
    await log.append(log.head, [event(2, channel_id="ch2")], "point")
    with trio.move_on_after(0) as scope:
        await log.wait_grown()
    assert scope.cancelled_caught
    with trio.fail_after(1):
        assert await log.wait_grown() == {one, two}


async def test_a_gap_in_the_store_raises(store: Outages) -> None:
    log = await opened(store)
    await store.add(*numbered(1, 3))
    store._events[2] = store._events[2]._replace(offset=4)  # noqa: SLF001 - the contents of the memory, without its checkpoint
    with pytest.raises(ValueError, match="event 4 does not follow 2"):
        await log.catch_up()


async def test_changed_at_of_own_and_other_appends(store: Outages, autojump_clock: MockClock) -> None:
    await store.add(event(1))
    log = await opened(store)
    await trio.sleep(7)
    store.now_s += 7
    await log.append(log.head, numbered(2, 3), "point", changed_at=trio.current_time() - 2)
    await trio.sleep(3)
    store.now_s += 3
    await store.add(event(4))
    await log.catch_up()
    ages = [
        round(trio.current_time() - log.changed_at(one), 3) for one in await store.read(log.head.at(0), 10, EVERYTHING)
    ]
    assert ages == [10, 5, 5, 0]  # for the first and the last one only the time of the append is known


async def test_exact_times_of_the_oldest_own_appends_are_forgotten(store: Outages, autojump_clock: MockClock) -> None:
    log = await opened(store)
    for number in range(1, OWN_APPENDS_MAX + 2):
        await log.append(log.head, [event(number)], "point", changed_at=trio.current_time() - 0.0004)
    oldest = await store.read(log.head.at(0), 2)
    assert [trio.current_time() - log.changed_at(one) for one in oldest] == pytest.approx([0, 0.0004])


async def test_exact_times_of_own_appends_end_with_their_epoch(store: Outages, autojump_clock: MockClock) -> None:
    log = await opened(store)
    await log.append(log.head, [event(1)], "point", changed_at=trio.current_time() - 5)
    head = await log.begin_epoch(log.head, "other")
    await store.add(event(2))
    await log.catch_up()
    (stored,) = await store.read(head, 1)
    assert (stored.offset, trio.current_time() - log.changed_at(stored)) == (1, 0)


async def test_changed_at_of_an_event_read_before_its_append_returns(store: Outages, autojump_clock: MockClock) -> None:
    log = await opened(store)
    head = log.head
    await store.add(event(1))
    await log.catch_up()
    (stored,) = await store.read(head, 1)
    log._take(head.epoch, [stored], trio.current_time() - 4)  # noqa: SLF001 - as append does once it returns
    assert trio.current_time() - log.changed_at(stored) == 4


async def test_ages_reach_other_nodes(store: Outages, autojump_clock: MockClock) -> None:
    recording, following = await opened(store), await opened(store)
    for first, last, age_s in ((1, 2, 5), (3, 3, 0.25), (4, 4, 40)):
        changed_at = trio.current_time() - age_s
        await recording.append(recording.head, numbered(first, last), str(last), changed_at=changed_at)
        await trio.sleep(1)
        store.now_s += 1
    await following.catch_up()
    newest = await store.read(following.head.at(0), 10, EVERYTHING)
    assert [round(trio.current_time() - following.changed_at(one), 3) for one in newest] == [8, 8, 2.25, 41]


async def test_appends_are_timed(autojump_clock: MockClock) -> None:
    class Slow(DelegatingStore):
        async def on_append(self, call: Append) -> Sequence[StoredEvent]:
            await trio.sleep(2)
            return await super().on_append(call)

    log = await opened(Slow())
    await log.append(log.head, numbered(1, 3), "point")
    assert (log.appending.total_s, sum(log.appending.counts)) == (2, 1)


async def test_away_is_set_during_an_outage(store: Outages, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    log = await opened(store)
    nursery.start_soon(log.follow)
    reasons = []
    for away in (False, True, False):
        store.away = away
        await trio.sleep(5)
        reasons.append(log.away)
    assert reasons == [None, "away", None]
    nursery.cancel_scope.cancel()


class SlowBounds(MemoryStore):
    """Takes a second for its bounds, or fails after that."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.slow = self.fails = False

    async def bounds(self) -> Bounds:
        self.reads += 1
        if self.slow:
            await trio.sleep(1)
        if self.fails:
            raise StoreUnavailable("the store is away")
        return await super().bounds()


@pytest.mark.parametrize("fails", [False, True])
async def test_crowd_that_asks_for_the_state_reads_it_once(fails: bool, autojump_clock: MockClock) -> None:
    store, results = SlowBounds(), list[str]()
    log = await opened(store)
    paged = Reads(log)

    async def ask() -> None:
        try:
            await paged.current_state(window_s=60)
        except StoreUnavailable as error:
            results.append(str(error))
        else:
            results.append("read")

    store.reads, store.slow, store.fails = 0, True, fails
    with trio.fail_after(1.5):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
    assert (results, store.reads) == (["the store is away" if fails else "read"] * 50, 1)


async def test_cancelled_read_of_the_state_is_taken_over(autojump_clock: MockClock) -> None:
    store = SlowBounds()
    log = await opened(store)
    paged = Reads(log)
    store.slow = True
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            await paged.current_state(window_s=60)
        nursery.start_soon(paged.current_state, 60)
        nursery.start_soon(paged.current_state, 60)
    assert paged._state_being_read is None  # noqa: SLF001 - the next client reads again


async def test_node_that_lags_has_no_state_that_is_complete_later() -> None:
    """Its state ends at its own head, and the backfill after that."""
    store, tags = MemoryStore(), frozenset({"tag.updated"})
    log = await opened(store)
    paged = Reads(log)
    marks = Marks(types=tags, kept=tags, whole={"tag.updated": 2})
    new = [NewEvent("tag.updated", f"tag:{number}", None, None, b"") for number in range(2)]
    await store.append(log.head, new, "point", state=StateChange(generation="first0", marks=str(marks)))
    found = await paged.current_state(window_s=60)
    assert (found.until, found.missing(tags)) == (log.head, tags)
