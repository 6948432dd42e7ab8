"""Who of two recorders leaves the lease to the other, and how soon each goes on."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.log.leadership import DEFERENT_POLL_S, HELD_MIN_S, LEASE_POLL_S, LeaderPreference
from airy_trio.log.memory import MemoryStore
from airy_trio.testing.feed import MemoryChanges, MemoryFeed
from tests.log.recording import Node, node, recorded, started, tag, until

A_MOMENT_S = 4 * LEASE_POLL_S


@pytest.fixture
def changes() -> MemoryChanges:
    return MemoryChanges()


class Silent(MemoryFeed):
    """A feed that returns from ``wait`` for a change alone."""

    async def wait(self) -> None:
        await self._changes.written.wait()


async def deferring(changes: MemoryChanges, nursery: trio.Nursery) -> tuple[LeaderPreference, Node, Node]:
    """One that has the lease and does nothing, and one that has left it to that for a while."""
    store, deference = MemoryStore(), LeaderPreference()
    deference.ask()
    other = node(changes, store)
    assert await other.lease.try_acquire()
    worker = node(changes, store, deference=deference)
    await worker.log.open()
    nursery.start_soon(worker.recorder.run)
    await trio.sleep(10)
    return deference, other, worker


@pytest.mark.parametrize("feed", [MemoryFeed, Silent])
async def test_who_is_asked_lets_go_of_the_lease_and_the_other_one_has_it_and_keeps_it(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock, feed: type[MemoryFeed]
) -> None:
    store, deference = MemoryStore(), LeaderPreference()
    worker = await started(nursery, node(changes, store, deference=deference, feed=feed(changes)))
    changes.write(tag(1))
    other = await started(nursery, node(changes, store))
    assert (worker.recorder.recording, other.recorder.recording) == (True, False)
    deference.ask()
    await until(lambda: other.recorder.recording, limit_s=A_MOMENT_S)
    changes.write(tag(2))
    await trio.sleep(10 * DEFERENT_POLL_S)
    assert (worker.recorder.recording, other.recorder.recording) == (False, True)
    assert await recorded(store) == ["tag:t1", "tag:t2"]
    assert worker.recorder.lag_s == 0
    nursery.cancel_scope.cancel()


async def test_who_is_no_longer_asked_asks_for_the_lease_at_once(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    deference, other, worker = await deferring(changes, nursery)
    await other.lease.release()
    deference.withdraw()
    await until(lambda: worker.recorder.recording, limit_s=A_MOMENT_S)
    nursery.cancel_scope.cancel()


async def test_who_is_asked_takes_the_lease_all_the_same_where_nobody_else_does(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What was said of the other one may be wrong: it is there, and hangs. Now and then it is offered the lease."""
    _, other, worker = await deferring(changes, nursery)
    await other.lease.release()
    changes.write(tag(1))
    await until(lambda: worker.log.head.offset == 1, limit_s=DEFERENT_POLL_S + A_MOMENT_S)
    for number in range(2, 5):
        await trio.sleep(HELD_MIN_S / 5)
        changes.write(tag(number))
        await until(lambda at=number: worker.log.head.offset == at, limit_s=A_MOMENT_S)  # type: ignore[misc]
    await until(lambda: not worker.recorder.recording, limit_s=HELD_MIN_S)
    await until(lambda: worker.recorder.recording, limit_s=DEFERENT_POLL_S + A_MOMENT_S)
    nursery.cancel_scope.cancel()


async def test_who_was_cancelled_leaves_the_lease_though_that_was_withdrawn_at_once(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What it waited for may have been in the middle of something; giving way begins with a new session."""
    deference = LeaderPreference()
    worker = await started(nursery, node(changes, MemoryStore(), deference=deference))
    deference.ask()
    deference.withdraw()
    await wait_all_tasks_blocked()
    assert not worker.recorder.recording
    await until(lambda: worker.recorder.recording, limit_s=A_MOMENT_S)
    nursery.cancel_scope.cancel()


async def test_after_an_outage_who_defers_lets_the_other_one_come_first(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, deference = MemoryStore(), LeaderPreference()
    other = await started(nursery, node(changes, store))
    worker = await started(nursery, node(changes, store, deference=deference))
    deference.ask()
    for outage_s in (1.0, 1.1, 1.23, 1.37, 1.42):
        await other.lease.release()
        changes.away = True
        changes.write(tag(1))
        await trio.sleep(outage_s)
        changes.away = False
        await until(lambda: worker.recorder.recording or other.recorder.recording)
        assert other.recorder.recording
    nursery.cancel_scope.cancel()


async def test_of_all_who_are_asked_at_once_none_takes_what_another_lets_go(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, deferences = MemoryStore(), [LeaderPreference() for _ in range(5)]
    workers = [await started(nursery, node(changes, store, deference=each)) for each in deferences]
    other = await started(nursery, node(changes, store))
    for number, deference in enumerate(deferences):
        deference.ask()
        await trio.sleep(LEASE_POLL_S / (2 + number))  # words come to each in its own time
    holders = set()
    while not other.recorder.recording:
        holders |= {number for number, worker in enumerate(workers) if worker.recorder.recording}
        await trio.sleep(0.001)
    assert holders <= {0}
    nursery.cancel_scope.cancel()
