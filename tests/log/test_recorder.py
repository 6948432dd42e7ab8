"""The recorder: its resume points, how a stale recorder is fenced out, and its log lines and counts."""

from collections.abc import Sequence
from math import inf
from random import Random

import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.capture.feed import Backfill, Batch, Consumer, TagGone
from airy_trio.database import DatabaseUnavailable
from airy_trio.errors import MappingError
from airy_trio.events.models import TYPES
from airy_trio.log.current import CurrentState, StateOptions
from airy_trio.log.leadership import ForeignConsumerError
from airy_trio.log.memory import MemoryStore
from airy_trio.log.recorder import BEGINNING_PATIENCE_S, CONSUMER_POLL_S, FOREIGN_PATIENCE_S
from airy_trio.log.store import NewEvent, Position, StoredEvent, StoreUnavailable
from tests.delegating_store import Append, DelegatingStore
from tests.log.recording import MoodyStore, Node, captured_warnings, faulty, node, recorded, started, tag, until
from tests.memory_feed import MemoryChanges, MemoryFeed


@pytest.fixture
def changes() -> MemoryChanges:
    return MemoryChanges()


def tags(first: int, last: int) -> list[str]:
    return [f"tag:t{number}" for number in range(first, last + 1)]


async def run_until_idle(changes: MemoryChanges, store: MemoryStore, state: StateOptions | None = None) -> Node:
    """Run one process until it has recorded everything, and end it."""
    one = node(changes, store, state=state)
    async with trio.open_nursery() as nursery:
        await started(nursery, one)
        await until(lambda: one.recorder.recorded == changes.point(len(changes.rows)), limit_s=5)
        nursery.cancel_scope.cancel()
    await one.lease.release()
    return one


async def test_changes_are_recorded_in_order(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore()))
    changes.write(*map(tag, range(1, 26)))
    await until(lambda: one.log.head.offset == 25)
    assert await recorded(one.log.store) == tags(1, 25)
    assert one.recorder.counts == {
        "events": 25,
        "changes": 25,
        "faults": 0,
        "value_faults": 0,
        "kept": 0,
        "ended": 0,
    }
    assert one.recorder.events_by_type == {**dict.fromkeys(TYPES, 0), "tag.updated": 25}
    assert one.recorder.recording
    nursery.cancel_scope.cancel()


async def test_recorder_has_started_when_the_first_batch_is_recorded(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    changes.write(*map(tag, range(1, 6)))
    one = await started(nursery, node(changes, MemoryStore()))
    assert one.log.head.offset == 5
    nursery.cancel_scope.cancel()


async def test_restart_continues_where_the_last_run_ended(changes: MemoryChanges, autojump_clock: MockClock) -> None:
    store = MemoryStore()
    changes.write(*map(tag, range(1, 8)))
    first = await run_until_idle(changes, store)
    changes.write(*map(tag, range(8, 13)))
    second = await run_until_idle(changes, store)
    assert await recorded(store) == tags(1, 12)
    assert first.log.epoch == second.log.epoch


OURS, ANOTHER = "ours", "another"


@pytest.mark.parametrize(
    "recorded_before, consumer, begins_at, new_epoch",
    [
        pytest.param(False, None, 3, True, id="the first start of all"),
        pytest.param(False, OURS, 3, True, id="a log that was adopted"),
        pytest.param(False, ANOTHER, 3, True, id="a new store after another"),
        pytest.param(True, OURS, 6, False, id="a restart"),
        pytest.param(True, None, 3, True, id="the change log was made again"),
        pytest.param(True, ANOTHER, 3, True, id="another store recorded meanwhile"),
    ],
)
async def test_recorder_starts_at(
    changes: MemoryChanges,
    *,
    recorded_before: bool,
    consumer: str | None,
    begins_at: int,
    new_epoch: bool,
    autojump_clock: MockClock,
) -> None:
    """Changes 1 and 2 are before the origin, 3 to 5 were recorded if any were, 6 and 7 are new."""
    store = MemoryStore()
    changes.write(*map(tag, range(1, 8)))
    changes.origin = 2
    epoch = (await store.bounds()).epoch
    if recorded_before:
        await store.append(Position(epoch, 0), [], changes.point(5))
    if consumer is not None:
        changes.consumer = Consumer(epoch if consumer == OURS else "other0", "some store")
    await run_until_idle(changes, store)
    assert await recorded(store) == tags(begins_at, 7)
    assert ((await store.bounds()).epoch != epoch) == new_epoch
    assert changes.consumer == Consumer((await store.bounds()).epoch, "our store" if new_epoch else "some store")


async def test_lost_memory_store_begins_where_trimming_has_reached(
    changes: MemoryChanges, autojump_clock: MockClock
) -> None:
    changes.write(*map(tag, range(1, 8)))
    await run_until_idle(changes, MemoryStore())
    changes.origin = changes.trimmed = 4
    store = MemoryStore()
    await run_until_idle(changes, store)
    assert await recorded(store) == tags(5, 7)


async def test_epoch_begun_and_not_named_is_begun_again(changes: MemoryChanges, autojump_clock: MockClock) -> None:
    store = MemoryStore()
    changes.write(*map(tag, range(1, 4)))
    await run_until_idle(changes, store)
    await store.begin_epoch((await store.bounds()).head, changes.point(3))
    changes.origin = 2
    await run_until_idle(changes, store)
    assert await recorded(store) == tags(3, 3)
    assert changes.consumer is not None
    assert changes.consumer.epoch == (await store.bounds()).epoch


async def test_restored_database_begins_an_epoch(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore()))
    changes.write(*map(tag, range(1, 4)))
    await until(lambda: one.log.head.offset == 3)
    epoch = one.log.epoch
    changes.restore()
    with captured_warnings() as logs:
        changes.write(tag(4))  # not recorded: clients reload, and read it from the database
        await until(lambda: one.log.epoch != epoch)
        changes.write(tag(5))
        await until(lambda: one.log.head.offset == 1)
    assert await recorded(one.log.store) == tags(5, 5)
    assert changes.consumer == Consumer(one.log.epoch, "our store")
    assert logs == ["new epoch: the database has another history"]
    nursery.cancel_scope.cancel()


TAGS = frozenset({"tag.updated"})
KEEPS_TAGS = StateOptions(types=TAGS, kept=TAGS, shape="shape")


async def test_new_epoch_begins_another_generation(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore(), state=KEEPS_TAGS))
    generations = []
    for number in (1, 2):
        changes.write(tag(number))
        await until(lambda: one.log.head.offset == 1)
        state = (await one.log.store.bounds()).state
        assert state is not None
        generations.append(state.generation)
        epoch = one.log.epoch
        changes.restore()
        changes.write(tag(number))
        await until(lambda: one.log.epoch != epoch)  # noqa: B023 - called in this round only
    assert generations[0] != generations[1]
    nursery.cancel_scope.cancel()


class BackfilledFeed(MemoryFeed):
    """Returns row by row. A backfill begins with the second row, which became visible with the first, and then ends."""

    async def read(self, after: str, limit: int) -> Batch:
        del limit
        batch = await super().read(after, 1)
        second, third = (self._changes.point(number) for number in (2, 3))
        marks = {
            second: Backfill(kind="tags", token="a", ended=False),
            third: Backfill(kind="tags", token="a", ended=True),
        }
        found = [marks[batch.resume_point]] if batch.changes and batch.resume_point in marks else []
        return evolve(batch, backfills=tuple(found), continues=batch.resume_point == second)


async def assert_kept(one: Node, objects: list[str]) -> CurrentState:
    """Assert that the current state has these objects when all events are added, and return it."""
    store = one.log.store
    await one.recorder.fold(until=inf)
    bounds = await store.bounds()
    state = CurrentState.of(bounds, bounds.head)
    assert state.at is not None
    assert [kept.object for kept in await store.current(state.at, bounds.head.at(0), 10)] == objects
    return state


async def test_backfill_makes_the_state_whole(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore(), feed=BackfilledFeed(changes), state=KEEPS_TAGS))
    changes.write(tag(1), tag(2), tag(3))
    await until(lambda: one.recorder.recorded == changes.point(3))
    state = await assert_kept(one, tags(1, 3))
    assert state.whole == TAGS
    nursery.cancel_scope.cancel()


async def test_objects_without_an_event_since_the_begin_of_a_backfill_leave_the_state(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Their events are not in the state yet: nothing adds events in this test before its end."""

    class Swept(BackfilledFeed):
        async def read(self, after: str, limit: int) -> Batch:
            batch = await super().read(after, limit)
            return batch if after == changes.point(0) else evolve(batch, continues=False)

    one = await started(nursery, node(changes, MemoryStore(), feed=Swept(changes), state=KEEPS_TAGS))
    changes.write(tag(1), tag(2), tag(3))
    await until(lambda: one.recorder.recorded == changes.point(3))
    assert (await assert_kept(one, tags(2, 3))).whole == TAGS
    nursery.cancel_scope.cancel()


async def test_objects_that_end_leave_the_state(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore(), state=KEEPS_TAGS))
    changes.write(tag(1), tag(2))
    await until(lambda: one.log.head.offset == 2)
    changes.write(TagGone(id="t1"))
    await until(lambda: one.recorder.recorded == changes.point(3))
    await assert_kept(one, tags(2, 2))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options, kept",
    [
        (KEEPS_TAGS, True),
        (evolve(KEEPS_TAGS, types=TAGS | {"message.updated"}), True),
        (evolve(KEEPS_TAGS, shape="other"), False),
        (StateOptions(), False),
    ],
    ids=["the-same", "more-types", "another-mapping", "nothing-kept"],
)
async def test_state_is_that_of_the_recorder_before_the_first_change(
    changes: MemoryChanges, options: StateOptions, kept: bool, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    changes.write(tag(1))
    await run_until_idle(changes, store, KEEPS_TAGS)
    before = (await store.bounds()).state
    await run_until_idle(changes, store, options)
    bounds = await store.bounds()
    found = CurrentState.of(bounds, bounds.head)
    assert found.types == (options.types or None)
    assert before is not None
    assert (bounds.state is not None and bounds.state.generation == before.generation) == kept
    assert await recorded(store) == tags(1, 1)
    changes.write(tag(2))
    await run_until_idle(changes, store, options)
    assert await recorded(store) == tags(1, 2)


async def test_stale_recorder_is_fenced_by_the_resume_point_alone(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    changes.write(*map(tag, range(1, 4)))
    stale = await started(nursery, node(changes, store, unaware=True))
    await until(lambda: stale.recorder.recorded == changes.point(3))
    changes.rows += map(tag, (4, 5))  # the other recorder makes no events of them
    await store.append(stale.log.head, [], changes.point(5), replaces=changes.point(3))
    changes.write(tag(6))
    await until(lambda: stale.recorder.recorded == changes.point(6))
    assert await recorded(store) == [*tags(1, 3), *tags(6, 6)]
    nursery.cancel_scope.cancel()


async def test_stale_recorder_forgets_no_changes(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It has lost the lease, and its resume point was trimmed: only the store can keep it from restarting the feed."""
    store = MemoryStore()
    stale = await started(nursery, node(changes, store, unaware=True))
    changes.write(tag(1))
    await until(lambda: stale.log.head.offset == 1)
    await store.append(stale.log.head, [], changes.point(1))
    await store.append((await store.bounds()).head, [NewEvent(**_FACTS)], changes.point(2))  # type: ignore[arg-type]
    changes.rows.append(tag(2))
    changes.trimmed = 2
    changes.rows.append(tag(3))
    await until(lambda: stale.log.head.offset == 3)
    assert await recorded(store) == ["tag:t1", "tag:of another", "tag:t3"]
    nursery.cancel_scope.cancel()


_FACTS: dict[str, object] = {
    "type": "tag.updated",
    "object": "tag:of another",
    "conversation_id": None,
    "channel_id": None,
    "body": b"{}",
}


async def test_only_the_holder_of_the_lease_records(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    one = await started(nursery, node(changes, store))
    two = await started(nursery, node(changes, store))
    changes.write(*map(tag, range(1, 8)))
    await until(lambda: two.log.head.offset == 7)
    assert (one.recorder.counts["events"], two.recorder.counts["events"]) == (7, 0)
    assert (one.recorder.recording, two.recorder.recording) == (True, False)
    nursery.cancel_scope.cancel()


async def test_another_node_takes_over_the_lease(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    one = await started(nursery, node(changes, store))
    two = await started(nursery, node(changes, store))
    changes.write(*map(tag, range(1, 4)))
    await until(lambda: one.log.head.offset == 3)
    changes.holder = two.lease
    with captured_warnings() as logs:
        await until(lambda: two.recorder.recording and not one.recorder.recording)
    changes.write(*map(tag, range(4, 8)))
    await until(lambda: one.log.head.offset == 7)
    assert await recorded(store) == tags(1, 7)
    assert two.recorder.counts["events"] == 4
    assert logs == ["the lease was lost: another server may record"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(40))
async def test_recorder_unaware_of_its_lost_lease_never_appends_twice(
    changes: MemoryChanges, seed: int, autojump_clock: MockClock
) -> None:
    moods = Random(seed)
    store = MoodyStore()
    nodes = [node(changes, store, unaware=True, batch_rows_max=moods.choice((1, 3, 50))) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for one in nodes:
            await started(nursery, one)
        store.moods = moods
        number = 0
        while number < 120:
            changes.holder = moods.choice(nodes).lease
            count = moods.randint(1, 5)
            changes.write(*map(tag, range(number + 1, number + count + 1)))
            number += count
            await trio.sleep(moods.uniform(0, 1))
        await until(lambda: all(one.log.head.offset >= number for one in nodes))
        nursery.cancel_scope.cancel()
    assert await recorded(store) == tags(1, number)


async def test_row_faults_are_counted_and_skipped(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore()))
    with capture_logs() as logs:
        changes.write(tag(1), faulty(2), tag(3))
        await until(lambda: one.log.head.offset == 2)
    assert await recorded(one.log.store) == ["tag:t1", "tag:t3"]
    assert one.recorder.counts == {
        "events": 2, "changes": 3, "faults": 1, "value_faults": 0, "kept": 0, "ended": 0,
    }  # fmt: skip
    assert [(line["event"], line["table"]) for line in logs] == [("row fault", "tags")]
    nursery.cancel_scope.cancel()


async def test_batch_of_faults_only_is_not_read_again(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore()))
    changes.write(faulty(1), faulty(2))
    await until(lambda: one.recorder.counts["faults"] == 2)
    assert await one.log.store.resume_point() == one.recorder.recorded == changes.point(2)
    nursery.cancel_scope.cancel()


async def test_body_that_cannot_be_truncated_enough_is_a_fault(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore(), body_bytes_max=80))
    changes.write(tag(10**80), tag(2))
    await until(lambda: one.recorder.counts["changes"] == 2)
    assert await recorded(one.log.store) == ["tag:t2"]
    assert one.recorder.counts["faults"] == 1
    nursery.cancel_scope.cancel()


async def test_fault_read_again_after_an_outage_is_logged_once(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MoodyStore()
    one = await started(nursery, node(changes, store))
    store.away = True
    with capture_logs() as logs:
        changes.write(faulty(1))
        await trio.sleep(20)
        store.away = False
        await until(lambda: one.recorder.counts["changes"] == 1)
    assert [line["event"] for line in logs].count("row fault") == 1
    assert one.recorder.counts["faults"] == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("times", [1, 3])
async def test_store_outage_is_logged_once_and_recording_resumes(
    changes: MemoryChanges, nursery: trio.Nursery, times: int, autojump_clock: MockClock
) -> None:
    store = MoodyStore()
    one = await started(nursery, node(changes, store))
    with capture_logs() as logs:
        for number in range(1, times + 1):
            store.away = True
            changes.write(tag(number))
            await trio.sleep(20)
            assert not one.recorder.recording
            store.away = False
            await until(lambda: one.recorder.recording, limit_s=5)
    assert await recorded(store) == tags(1, times)
    events = [line["event"] for line in logs if "recording" in line["event"]]
    assert events == ["recording interrupted", "recording again"] * times
    nursery.cancel_scope.cancel()


async def test_each_outage_is_logged_after_another_server_took_over(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    ours, other = [await started(nursery, node(changes, store)) for _ in range(2)]
    with capture_logs() as logs:
        for _ in range(3):
            changes.away = True
            await trio.sleep(5)
            changes.away, changes.holder = False, other.lease
            await trio.sleep(5)
            assert (ours.recorder.interruption, other.recorder.recording) == (None, True)
    assert [line["event"] for line in logs].count("recording interrupted") == 2 * 3
    nursery.cancel_scope.cancel()


async def test_recording_resumes_after_a_database_outage(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore()))
    changes.away = True
    await until(lambda: not one.recorder.recording)
    changes.write(tag(1))
    await trio.sleep(20)
    changes.away = False
    await until(lambda: one.log.head.offset == 1, limit_s=5)
    assert one.recorder.recording
    nursery.cancel_scope.cancel()


class LosesAColumn(MemoryFeed):
    lost = False

    async def read(self, after: str, limit: int) -> Batch:
        batch = await super().read(after, limit)
        if self.lost and batch.changes:
            raise MappingError(["the column is gone"])
        return batch


async def test_lost_column_is_logged_although_the_outage_began_otherwise(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    feed = LosesAColumn(changes)
    await started(nursery, node(changes, MemoryStore(), feed=feed))
    with capture_logs() as logs:
        changes.away = True
        await trio.sleep(3)
        feed.lost = True
        changes.write(tag(1))
        changes.away = False
        await trio.sleep(60)
    reasons = [line["reason"] for line in logs if line["event"] == "recording interrupted"]
    assert reasons[1:] == ["the column is gone"]
    nursery.cancel_scope.cancel()


async def test_no_recorder_that_lost_a_column_reports_that_another_records(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Slow(LosesAColumn):
        async def read(self, after: str, limit: int) -> Batch:
            await trio.sleep(0.1 if self.lost else 0)
            return await super().read(after, limit)

    store, feeds = MemoryStore(), [Slow(changes) for _ in range(3)]
    nodes = [await started(nursery, node(changes, store, feed=feed)) for feed in feeds]
    for feed in feeds:
        feed.lost = True
    changes.write(tag(1))
    await until(lambda: all(one.recorder.interruption for one in nodes))
    interruptions = set()
    for _ in range(600):
        await trio.sleep(0.05)
        interruptions |= {one.recorder.interruption for one in nodes}
    assert interruptions == {"the column is gone"}
    nursery.cancel_scope.cancel()


async def test_recorder_that_lost_a_column_does_not_end_the_state_of_another(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, kept, feed = MemoryStore(), frozenset({"tag.updated"}), LosesAColumn(changes)
    options = StateOptions(types=kept, kept=kept, shape="old")
    old = await started(nursery, node(changes, store, feed=feed, state=options))
    feed.lost = True
    changes.write(tag(1))
    await until(lambda: old.recorder.interruption is not None)
    new = await started(nursery, node(changes, store, state=evolve(options, shape="new")))
    await until(lambda: new.recorder.recording)
    await trio.sleep(5)
    known = (await store.bounds()).state
    assert known is not None
    changes.write(tag(2))
    changes.holder = old.lease
    await trio.sleep(30)
    found = (await store.bounds()).state
    assert found is not None
    assert found.generation == known.generation
    nursery.cancel_scope.cancel()


async def test_outage_during_the_start_is_raised(changes: MemoryChanges, autojump_clock: MockClock) -> None:
    one = node(changes, MemoryStore())
    await one.log.open()
    changes.away = True
    with pytest.raises(DatabaseUnavailable):
        await one.recorder.run()
    changes.away = False
    store = MoodyStore()
    one = node(changes, store)
    await one.log.open()
    store.away = True
    with pytest.raises(StoreUnavailable):
        await one.recorder.run()


async def test_append_whose_answer_was_lost_is_not_repeated(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = LosesAnswers()
    one = await started(nursery, node(changes, store))
    for number in range(1, 6):
        changes.write(tag(number))
        await until(lambda number=number: one.log.head.offset == number)  # type: ignore[misc]
    assert await recorded(store) == tags(1, 5)
    nursery.cancel_scope.cancel()


class LosesAnswers(DelegatingStore):
    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        await super().on_append(call)
        raise StoreUnavailable("the answer was lost")


async def test_server_with_another_store_fails_to_start(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await started(nursery, node(changes, MemoryStore(), words="the memory of process 7"))
    other = node(changes, MemoryStore())
    await other.log.open()
    start = trio.current_time()
    with pytest.raises(ForeignConsumerError, match="the memory of process 7"):
        await other.recorder.run()
    assert trio.current_time() - start == pytest.approx(FOREIGN_PATIENCE_S, abs=0.2)
    nursery.cancel_scope.cancel()


async def test_server_starts_while_another_names_an_epoch(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    changes.holder = "a recorder that has begun an epoch"
    changes.consumer = Consumer("older0", "our store")
    two = node(changes, store)
    await two.log.open()
    nursery.start_soon(two.recorder.ahead.run)
    nursery.start_soon(two.recorder.run)
    await trio.sleep(FOREIGN_PATIENCE_S * 0.8)
    changes.consumer = Consumer(two.log.epoch, "our store")
    await trio.sleep(60)
    changes.holder = None
    await until(lambda: two.recorder.recording)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("begins", [True, False])
async def test_server_has_started_once_the_first_epoch_has_begun(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock, *, begins: bool
) -> None:
    """Two servers start at once on an empty log: no client of the second gets a position without an epoch."""
    store = MemoryStore()
    changes.holder = "a recorder that is about to begin the first epoch"
    changes.consumer = None
    two = node(changes, store)
    await two.log.open()
    start = trio.current_time()
    with captured_warnings() as logs:
        async with trio.open_nursery() as starting:
            starting.start_soon(nursery.start, two.recorder.run)
            await trio.sleep(0.5)
            assert starting.child_tasks, "not started"
            if begins:
                await store.begin_epoch((await store.bounds()).head, "0")
        assert trio.current_time() - start == pytest.approx(0.5 if begins else BEGINNING_PATIENCE_S, abs=0.3)
    assert logs == []
    assert two.log.epoch == (await store.bounds()).epoch
    nursery.cancel_scope.cancel()


async def test_server_that_has_recorded_stays_while_another_log_is_named(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one = await started(nursery, node(changes, MemoryStore()))
    await until(lambda: one.recorder.recording)
    changes.holder = "a server with another log"
    changes.consumer = Consumer("other0", "another store")
    with capture_logs() as logs:
        await trio.sleep(FOREIGN_PATIENCE_S + 2 * CONSUMER_POLL_S)
        assert not one.recorder.recording
        assert "another server records the changes" in str(one.recorder.interruption)
        assert one.recorder.lag_s > 0
        changes.holder = None
        await until(lambda: one.recorder.recording)
    assert one.recorder.interruption is None
    events = [line["event"] for line in logs if line["event"].startswith("recording")]
    assert events == ["recording interrupted", "recording again"]
    assert changes.consumer == Consumer(one.log.epoch, "our store")
    nursery.cancel_scope.cancel()


async def test_new_server_with_another_log_returns_the_lease(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """As in an outage of the database, the lease is free for a moment."""
    one = await started(nursery, node(changes, MemoryStore(), words="our store"))
    other = node(changes, MemoryStore())
    await other.log.open()
    changes.away = True
    await trio.sleep(10)
    changes.away, changes.holder = False, None
    with trio.fail_after(60), pytest.raises(ForeignConsumerError, match="our store"):
        await other.recorder.run()
    assert one.recorder.recording
    nursery.cancel_scope.cancel()


async def test_new_store_begins_where_trimming_of_the_old_one_ended(
    changes: MemoryChanges, autojump_clock: MockClock
) -> None:
    changes.write(*map(tag, range(1, 4)))
    changes.consumer = Consumer("other0", "another store")
    changes.origin = changes.trimmed = 1
    store = MemoryStore()
    await run_until_idle(changes, store)
    assert await recorded(store) == tags(2, 3)


async def test_waiting_node_reports_an_interruption_until_it_is_over(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    nodes = [await started(nursery, node(changes, store)) for _ in range(2)]
    await trio.sleep(5)
    assert [one.recorder.interruption for one in nodes] == [None, None]
    changes.away = True
    await trio.sleep(5)
    assert [one.recorder.interruption for one in nodes] == ["the database is unavailable"] * 2
    assert all(3 < one.recorder.lag_s <= 5 for one in nodes)
    changes.away = False
    await trio.sleep(5)
    assert [(one.recorder.interruption, one.recorder.lag_s) for one in nodes] == [(None, 0)] * 2
    nursery.cancel_scope.cancel()


async def test_lag_grows_while_an_append_hangs(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Hanging(DelegatingStore):
        async def on_append(self, call: Append) -> Sequence[StoredEvent]:
            await trio.sleep(30)
            return await super().on_append(call)

    one = await started(nursery, node(changes, Hanging()))
    await trio.sleep(100)
    assert one.recorder.lag_s == 0
    changes.write(tag(1))
    await trio.sleep(20)
    assert one.recorder.lag_s == pytest.approx(20, abs=1)
    await trio.sleep(20)
    assert one.recorder.lag_s == 0
    nursery.cancel_scope.cancel()


async def test_age_of_a_change_reaches_the_log(
    changes: MemoryChanges, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Aged(MemoryFeed):
        async def read(self, after: str, limit: int) -> Batch:
            return evolve(await super().read(after, limit), age_s=3.0)

    one = node(changes, MemoryStore(), feed=Aged(changes))
    await started(nursery, one)
    changes.write(tag(1))
    await until(lambda: one.log.head.offset == 1)
    (stored,) = await one.log.store.read(one.log.head.at(0), 1)
    assert 3 <= trio.current_time() - one.log.changed_at(stored) < 4
    nursery.cancel_scope.cancel()


async def test_log_of_an_unconsumed_feed_continues_or_starts_now(
    changes: MemoryChanges, autojump_clock: MockClock
) -> None:
    class Unconsumed(MemoryFeed):
        consumed = False

        async def adopt(self, consumer: Consumer) -> None:  # noqa: ARG002 - the signature of the port
            await trio.lowlevel.checkpoint()

    changes.write(tag(1))
    changes.origin = 1
    store = MemoryStore()
    for count in (0, 2):
        one = node(changes, store, feed=Unconsumed(changes))
        async with trio.open_nursery() as nursery:
            await started(nursery, one)
            await until(lambda one=one, count=count: one.log.head.offset == count)  # type: ignore[misc]
            nursery.cancel_scope.cancel()
        changes.holder = None
        assert changes.consumer is None
        if not count:
            assert await store.resume_point() == changes.point(1)
            changes.write(tag(2), tag(3))  # while no node records, and before anything was recorded
            changes.origin = 3
    assert await recorded(store) == tags(2, 3)
