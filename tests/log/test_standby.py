"""A standby records only if the recorder process does not, and offers it the lease regularly."""

import pytest
import trio
from trio.testing import MockClock

from airy_trio.log.memory import MemoryStore
from airy_trio.log.recorder import LEASE_POLL_S, STANDBY_POLL_S, STANDBY_TERM_S
from tests.log.recording import Node, node, recorded, started, tag, until
from tests.memory_feed import MemoryChanges, MemoryFeed

MARGIN_S = 4 * LEASE_POLL_S


@pytest.fixture
def changes() -> MemoryChanges:
    return MemoryChanges()


class SilentFeed(MemoryFeed):
    """A feed that returns from ``wait`` only for a change."""

    async def wait(self) -> None:
        await self._changes.written.wait()


async def waiting_standby(changes: MemoryChanges, nursery: trio.Nursery) -> tuple[Node, Node]:
    """Start an idle node that holds the lease, and a standby that waits for the lease for a while."""
    store = MemoryStore()
    other = node(changes, store)
    assert await other.lease.try_acquire()
    standby = node(changes, store, standby=True)
    await standby.log.open()
    nursery.start_soon(standby.recorder.ahead.run)
    nursery.start_soon(standby.recorder.run)
    await trio.sleep(10)
    return other, standby


@pytest.mark.parametrize("feed", [MemoryFeed, SilentFeed])
async def test_standby_hands_the_lease_to_the_recorder_process(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock, feed: type[MemoryFeed]
) -> None:
    store = MemoryStore()
    standby = await started(nursery, node(changes, store, standby=True, feed=feed(changes)))
    changes.write(tag(1))
    other = await started(nursery, node(changes, store))
    assert (standby.recorder.recording, other.recorder.recording) == (True, False)
    await until(lambda: other.recorder.recording, limit_s=STANDBY_TERM_S + MARGIN_S)
    changes.write(tag(2))
    await trio.sleep(2 * STANDBY_TERM_S)
    assert (standby.recorder.recording, other.recorder.recording) == (False, True)
    assert await recorded(store) == ["tag:t1", "tag:t2"]
    assert standby.recorder.lag_s == 0
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_standby_offers_the_lease_during_a_backlog(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    standby = await started(nursery, node(changes, store, standby=True, batch_rows_max=1))
    changes.write(*map(tag, range(10_000)))
    other = await started(nursery, node(changes, store))
    await trio.sleep(STANDBY_TERM_S)
    await until(lambda: other.recorder.recording, limit_s=MARGIN_S)
    assert not standby.recorder.recording
    nursery.cancel_scope.cancel()


async def test_standby_takes_a_free_lease_within_its_poll(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    other, standby = await waiting_standby(changes, nursery)
    await other.lease.release()
    await until(lambda: standby.recorder.recording, limit_s=STANDBY_POLL_S + MARGIN_S)
    nursery.cancel_scope.cancel()


async def test_standby_keeps_recording_if_its_offer_is_not_taken(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    other, standby = await waiting_standby(changes, nursery)
    await other.lease.release()
    await until(lambda: standby.recorder.recording, limit_s=STANDBY_POLL_S + MARGIN_S)
    for number in range(1, 100):
        changes.write(tag(number))
        await until(lambda at=number: standby.log.head.offset == at, limit_s=STANDBY_POLL_S + MARGIN_S)  # type: ignore[misc]
        await trio.sleep(STANDBY_TERM_S / 20)
    nursery.cancel_scope.cancel()


async def test_recorder_process_records_again_after_an_outage(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    other = await started(nursery, node(changes, store))
    standby = await started(nursery, node(changes, store, standby=True))
    for outage_s in (1.0, 1.1, 1.23, 1.37, 1.42):
        await other.lease.release()
        changes.away = True
        changes.write(tag(1))
        await trio.sleep(outage_s)
        changes.away = False
        await until(lambda: other.recorder.recording, limit_s=STANDBY_TERM_S + 1)
        assert not standby.recorder.recording
    nursery.cancel_scope.cancel()


async def test_standby_yields_the_lease_to_the_recorder_process(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    standbys = []
    for _ in range(5):
        standbys.append(await started(nursery, node(changes, store, standby=True)))
        await trio.sleep(0.07)  # they poll at different times
    other = await started(nursery, node(changes, store))
    await until(lambda: other.recorder.recording, limit_s=5 * STANDBY_TERM_S)
    await trio.sleep(2 * STANDBY_TERM_S)
    assert [one.recorder.recording for one in standbys] == [False] * 5
    nursery.cancel_scope.cancel()
