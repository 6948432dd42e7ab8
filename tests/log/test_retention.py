"""Retention: in small batches, only by the recording node, and never data that is still needed."""

from collections.abc import Collection

import pytest
import trio
from trio.testing import MockClock

from airy_trio.capture.feed import Consumer
from airy_trio.log.current import FOLD_EVENTS_MAX, StateOptions
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.recorder import TRIM_CHANGES_MAX, TRIM_EVENTS_MAX, TRIM_PERIOD_S, Retention
from airy_trio.log.store import Acknowledgement, Claim, StoreUnavailable
from tests.log.places import event
from tests.log.recording import MoodyStore, Node, captured_warnings, node, recorded, started, tag, until
from tests.memory_feed import MemoryChanges, MemoryFeed


class Limited(MoodyStore):
    """Records how many events each call of ``trim`` deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.trimmed: list[int] = []
        self.trims_fail = False

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        if self.trims_fail:
            raise StoreUnavailable("the store is away")
        assert limit == TRIM_EVENTS_MAX
        self.trimmed.append(await super().trim(age_s=age_s, keep=keep, limit=limit, unused_s=unused_s))
        return self.trimmed[-1]


class LimitedFeed(MemoryFeed):
    def __init__(self, changes: MemoryChanges) -> None:
        super().__init__(changes)
        self.trimmed: list[int] = []

    async def trim(self, upto: str, limit: int) -> int:
        assert limit == TRIM_CHANGES_MAX
        self.trimmed.append(await super().trim(upto, limit))
        return self.trimmed[-1]


@pytest.fixture
def changes() -> MemoryChanges:
    return MemoryChanges()


def retention_of(
    one: Node,
    feed: MemoryFeed,
    *,
    retain_events: int = 10,
    retain_s: float = 3600,
    retain_durables_s: float = 86_400,
) -> Retention:
    options = LogOptions(
        store="memory", retain_events=retain_events, retain_s=retain_s, retain_durables_s=retain_durables_s
    )
    return Retention(one.log.store, feed, one.recorder, options)


async def test_excess_events_are_deleted_in_small_batches(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = Limited()
    await store.append((await store.bounds()).head, [event(1)] * (2 * TRIM_EVENTS_MAX + 100), changes.point(0))
    changes.consumer = Consumer((await store.bounds()).epoch, "our store")
    one = await started(nursery, node(changes, store))
    retention = retention_of(one, MemoryFeed(changes))
    nursery.start_soon(retention.run)
    await trio.sleep(1.5 * TRIM_PERIOD_S)
    assert store.trimmed == [TRIM_EVENTS_MAX, TRIM_EVENTS_MAX, 90]
    assert len(await recorded(store)) == 10
    assert retention.trimmed == {"events": 2 * TRIM_EVENTS_MAX + 90, "changes": 0}
    nursery.cancel_scope.cancel()


class Folding(Limited):
    """Records how far the state is after each call of ``fold``."""

    def __init__(self) -> None:
        super().__init__()
        self.folded: list[int] = []
        self.folds_fail = False

    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        assert limit == FOLD_EVENTS_MAX
        if self.folds_fail:
            raise StoreUnavailable("the store is away")
        more = await super().fold(generation, types, limit)
        self.folded.append(self._state.folded if self._state else -1)
        return more


async def test_recorded_events_enter_the_state_in_small_batches(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, tags = Folding(), frozenset({"tag.updated"})
    state = StateOptions(types=tags, kept=tags, shape="shape")
    one = await started(nursery, node(changes, store, batch_rows_max=5000, state=state))
    nursery.start_soon(retention_of(one, MemoryFeed(changes)).run)
    changes.write(*map(tag, range(FOLD_EVENTS_MAX + 7)))
    await trio.sleep(10 * TRIM_PERIOD_S)
    assert store.folded == [FOLD_EVENTS_MAX, FOLD_EVENTS_MAX + 7]
    assert len(await recorded(store)) == 10
    changes.write(tag(1))
    await trio.sleep(10 * TRIM_PERIOD_S)
    assert store.folded[2:] == [FOLD_EVENTS_MAX + 8]
    changes.write(tag(1))
    store.folds_fail = True
    await trio.sleep(10 * TRIM_PERIOD_S)
    store.folds_fail = False
    await trio.sleep(10 * TRIM_PERIOD_S)
    assert store.folded[3:] == [FOLD_EVENTS_MAX + 9]
    nursery.cancel_scope.cancel()


async def test_events_that_are_not_in_the_state_stay(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    tags = frozenset({"tag.updated"})
    state = StateOptions(types=tags, kept=tags, shape="shape")
    one = await started(nursery, node(changes, MemoryStore(), batch_rows_max=5000, state=state))
    changes.write(*map(tag, range(20)))
    await until(lambda: one.log.head.offset == 20)
    assert await one.log.store.trim(age_s=3600, keep=10, limit=100, unused_s=3600) == 0
    nursery.start_soon(retention_of(one, MemoryFeed(changes)).run)
    await trio.sleep(2 * TRIM_PERIOD_S)
    assert len(await recorded(one.log.store)) == 10
    nursery.cancel_scope.cancel()


async def test_old_events_are_deleted(changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    now_s = [1000.0]
    store = MemoryStore(lambda: now_s[0])
    one = await started(nursery, node(changes, store))
    nursery.start_soon(retention_of(one, MemoryFeed(changes), retain_s=60).run)
    changes.write(tag(1))
    await until(lambda: one.log.head.offset == 1)
    now_s[0] += 50
    changes.write(tag(2))
    await until(lambda: one.log.head.offset == 2)
    now_s[0] += 11
    await trio.sleep(1.5 * TRIM_PERIOD_S)
    assert await recorded(store) == ["tag:t2"]
    nursery.cancel_scope.cancel()


async def test_positions_are_retained_longer_than_events(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    now_s = [1000.0]
    store = MemoryStore(lambda: now_s[0])
    one = await started(nursery, node(changes, store))
    nursery.start_soon(retention_of(one, MemoryFeed(changes), retain_s=60, retain_durables_s=600).run)
    changes.write(tag(1))
    await until(lambda: one.log.head.offset == 1)
    await store.acknowledge([Acknowledgement(Claim("ann", "inbox", "token"), one.log.head)])
    found = []
    for age_s in (61, 599, 601):
        now_s[0] = 1000 + age_s
        await trio.sleep(1.5 * TRIM_PERIOD_S)
        found.append((await recorded(store), await store.acknowledged("ann", "inbox")))
    assert found == [([], one.log.head), ([], one.log.head), ([], None)]
    nursery.cancel_scope.cancel()


async def test_recorded_changes_are_deleted_in_small_batches(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore(), batch_rows_max=5000))
    feed = LimitedFeed(changes)
    retention = retention_of(one, feed)
    nursery.start_soon(retention.run)
    changes.write(*[tag(1)] * (TRIM_CHANGES_MAX + 7))
    await trio.sleep(1.5 * TRIM_PERIOD_S)
    assert feed.trimmed == [TRIM_CHANGES_MAX, 7]
    assert changes.trimmed == TRIM_CHANGES_MAX + 7
    assert retention.trimmed["changes"] == TRIM_CHANGES_MAX + 7
    nursery.cancel_scope.cancel()


async def test_change_log_is_trimmed_only_after_recording(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MoodyStore()))
    feed = LimitedFeed(changes)
    nursery.start_soon(retention_of(one, feed).run)
    changes.write(tag(1))
    await trio.sleep(10 * TRIM_PERIOD_S)
    changes.write(tag(2), tag(3))
    await trio.sleep(10 * TRIM_PERIOD_S)
    assert feed.trimmed == [1, 2]
    nursery.cancel_scope.cancel()


async def test_unrecorded_changes_stay(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MoodyStore()
    one = await started(nursery, node(changes, store))
    changes.write(*map(tag, range(1, 6)))
    await until(lambda: one.log.head.offset == 5)
    store.away = True
    changes.write(*map(tag, range(6, 9)))
    nursery.start_soon(retention_of(one, MemoryFeed(changes)).run)
    await trio.sleep(10 * TRIM_PERIOD_S)
    store.away = False
    await until(lambda: one.log.head.offset == 8)
    await trio.sleep(2 * TRIM_PERIOD_S)
    assert changes.trimmed == 8
    assert await recorded(store) == [f"tag:t{number}" for number in range(1, 9)]
    nursery.cancel_scope.cancel()


async def test_only_the_recording_node_trims(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = Limited()
    one = await started(nursery, node(changes, store))
    two = await started(nursery, node(changes, store))
    nursery.start_soon(retention_of(two, MemoryFeed(changes), retain_events=1).run)
    changes.write(*map(tag, range(1, 6)))
    await until(lambda: one.log.head.offset == 5)
    await trio.sleep(10 * TRIM_PERIOD_S)
    assert (store.trimmed, changes.trimmed) == ([], 0)
    changes.holder = two.lease
    await until(lambda: two.recorder.recording)
    await trio.sleep(2 * TRIM_PERIOD_S)
    assert len(await recorded(store)) == 1
    nursery.cancel_scope.cancel()


async def test_an_outage_is_logged_once(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = Limited()
    one = await started(nursery, node(changes, store))
    with captured_warnings() as warnings:
        nursery.start_soon(retention_of(one, MemoryFeed(changes), retain_events=1).run)
        changes.write(*map(tag, range(1, 6)))
        for _ in range(2):
            store.trims_fail = True
            await trio.sleep(10 * TRIM_PERIOD_S)
            store.trims_fail = False
            await trio.sleep(2 * TRIM_PERIOD_S)
    assert warnings == ["trimming postponed"] * 2
    assert len(await recorded(store)) == 1
    nursery.cancel_scope.cancel()
