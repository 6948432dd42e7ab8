"""The next batch of a backlog is read while the last one is appended, and used only if it is still the next."""

import gc
import weakref
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.capture.feed import Batch, ResumePointLost
from airy_trio.database import DatabaseUnavailable
from airy_trio.log.memory import MemoryStore
from airy_trio.log.recorder import ReadAhead
from airy_trio.log.store import StaleAppend, StoredEvent, StoreUnavailable
from tests.delegating_store import Append, DelegatingStore
from tests.log.recording import node, recorded, started, tag, until
from tests.memory_feed import MemoryChanges, MemoryFeed


class WatchedFeed(MemoryFeed):
    """A feed that records after which points it was read; ``consumed`` can be set."""

    def __init__(self, changes: MemoryChanges) -> None:
        super().__init__(changes)
        self.read_after: list[str] = []

    async def read(self, after: str, limit: int) -> Batch:
        self.read_after.append(after)
        return await super().read(after, limit)


class Store(DelegatingStore):
    """A store whose appends wait until they are allowed, and whose second append fails."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = trio.Event()
        self.appends = 0
        self.failure: Exception | None = None
        self.fails_after = False

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        await self.leave.wait()
        self.appends += 1
        failure = self.failure if self.appends == 2 else None
        if failure is not None and not self.fails_after:
            raise failure
        stored = await super().on_append(call)
        if failure is not None:
            raise failure
        return stored


@pytest.fixture
def changes() -> MemoryChanges:
    found = MemoryChanges()
    found.write(*map(tag, range(35)))
    return found


ALL = [f"tag:t{number}" for number in range(35)]


async def test_next_batch_is_read_while_the_last_one_is_appended(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    feed, store = WatchedFeed(changes), Store()
    one = node(changes, store, feed=feed)
    await one.log.open()
    nursery.start_soon(one.recorder.ahead.run)
    nursery.start_soon(one.recorder.run)
    await wait_all_tasks_blocked()
    assert feed.read_after == [changes.point(0), changes.point(10)]
    store.leave.set()
    await until(lambda: one.log.head.offset == len(ALL))
    assert await recorded(store) == ALL
    assert feed.read_after[:4] == [changes.point(number) for number in (0, 10, 20, 30)]
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_recorded_batches_leave_memory(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Feed(MemoryFeed):
        async def read(self, after: str, limit: int) -> Batch:
            gc.collect()
            assert sum(one() is not None for one in given) <= 1  # the batch that is being appended
            batch = await super().read(after, limit)
            given.append(weakref.ref(batch))
            return batch

    given: list[weakref.ref[Batch]] = []
    one = node(changes, MemoryStore(), feed=Feed(changes))
    await one.log.open()
    nursery.start_soon(one.recorder.ahead.run)
    nursery.start_soon(one.recorder.run)
    await until(lambda: one.log.head.offset == len(ALL))
    await wait_all_tasks_blocked()
    gc.collect()
    assert len(given) >= 4
    assert not any(one() for one in given)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fails_after", [False, True])
@pytest.mark.parametrize("failure", [StoreUnavailable("the store is away"), StaleAppend("the head is elsewhere")])
async def test_batch_read_ahead_is_read_again_after_a_failed_append(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock, failure: Exception, fails_after: bool
) -> None:
    feed, store = WatchedFeed(changes), Store()
    store.failure, store.fails_after = failure, fails_after
    one = node(changes, store, feed=feed)
    await one.log.open()
    nursery.start_soon(one.recorder.ahead.run)
    nursery.start_soon(one.recorder.run)
    store.leave.set()
    await until(lambda: one.log.head.offset == len(ALL))
    assert await recorded(store) == ALL
    assert feed.read_after.count(changes.point(20)) == 2
    nursery.cancel_scope.cancel()


async def test_batch_read_ahead_is_discarded_when_the_lease_is_lost(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = Store()
    first, second = node(changes, store), node(changes, store)
    await first.log.open()
    nursery.start_soon(first.recorder.ahead.run)
    nursery.start_soon(first.recorder.run)
    await wait_all_tasks_blocked()
    changes.holder = second.lease
    store.leave.set()
    await until(lambda: first.log.head.offset == 10)
    await started(nursery, second)
    await until(lambda: second.log.head.offset == len(ALL))
    changes.holder = first.lease
    changes.write(tag(35))
    await until(lambda: first.recorder.recording and first.log.head.offset == len(ALL) + 1)
    assert await recorded(store) == [*ALL, "tag:t35"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), ResumePointLost("another history")])
async def test_error_of_a_read_ahead_is_raised_by_take(
    changes: MemoryChanges, nursery: trio.Nursery, error: Exception
) -> None:
    class Failing(MemoryFeed):
        async def read(self, after: str, limit: int) -> Batch:
            await super().read(after, limit)
            raise error

    ahead = ReadAhead(Failing(changes))
    nursery.start_soon(ahead.run)
    await wait_all_tasks_blocked()
    ahead.begin(changes.point(0), 10)
    with pytest.raises(type(error)):
        await ahead.take(changes.point(0), 10)
    nursery.cancel_scope.cancel()


async def test_unconsumed_feed_is_never_read_ahead(changes: MemoryChanges, nursery: trio.Nursery) -> None:
    """It remembers the objects since the recorded point, and cannot go back by two batches."""

    class Unconsumed(WatchedFeed):
        consumed = False

    feed = Unconsumed(changes)
    ahead = ReadAhead(feed)
    nursery.start_soon(ahead.run)
    await wait_all_tasks_blocked()
    ahead.begin(changes.point(0), 10)
    await wait_all_tasks_blocked()
    assert not feed.read_after
    nursery.cancel_scope.cancel()


async def test_age_of_a_batch_read_ahead_counts_from_its_request(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ahead = ReadAhead(MemoryFeed(changes))
    nursery.start_soon(ahead.run)
    await wait_all_tasks_blocked()
    asked_at = trio.current_time()
    ahead.begin(changes.point(0), 10)
    await trio.sleep(5)
    assert (await ahead.take(changes.point(0), 10))[1] == asked_at
    nursery.cancel_scope.cancel()
