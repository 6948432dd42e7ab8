"""The size of a batch adapts: a batch that is too large is read again with fewer rows; small ones grow."""

from collections.abc import Sequence

import pytest
import trio

from airy_trio.capture.feed import Batch, Tag
from airy_trio.events.translate import EventsOptions
from airy_trio.log import recorder
from airy_trio.log.recorder import BATCH_BYTES_MAX, SLICE_OBJECTS, TranslatedBatch, adapted_limit, translate_batch
from airy_trio.log.store import StoredEvent
from tests.delegating_store import Append, DelegatingStore
from tests.log.recording import faulty, node, recorded, started, tag, until
from tests.memory_feed import MemoryChanges, MemoryFeed

LARGE = 1000


class Weighed(DelegatingStore):
    """Records each append. ``appends``: the number of events, and the bytes of their bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.appends: list[tuple[int, int]] = []

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        self.appends.append((len(call.events), sum(len(event.body) for event in call.events)))
        return await super().on_append(call)


def batch(changes: int, *, name_length: int = 4) -> Batch:
    objects = tuple(tag(number)._replace(name="n" * name_length) for number in range(changes))
    return Batch(objects=objects, resume_point="point", changes=changes, more=False)


def large(number: int) -> Tag:
    return tag(number)._replace(name="n" * LARGE)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BATCH_BYTES_MAX", 10 * LARGE)


@pytest.mark.usefixtures("small_batches")
async def test_batch_too_large_to_append_is_read_again_in_parts(nursery: trio.Nursery) -> None:
    store, changes = Weighed(), MemoryChanges()
    one = await started(nursery, node(changes, store, batch_rows_max=10_000, body_bytes_max=10 * LARGE))
    changes.write(*(large(number) for number in range(300)))
    await until(lambda: one.log.head.offset == 300, limit_s=10)
    assert await recorded(store) == [f"tag:t{number}" for number in range(300)]
    assert max(size for _, size in store.appends) <= 10 * LARGE
    assert min(count for count, _ in store.appends[:-1] if count) > 1  # nearly as few appends as possible
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("small_batches")
async def test_single_change_is_appended_whatever_its_size(nursery: trio.Nursery) -> None:
    store, changes = Weighed(), MemoryChanges()
    one = await started(nursery, node(changes, store, batch_rows_max=10_000, body_bytes_max=100 * LARGE))
    changes.write(*(tag(number)._replace(name="n" * 50 * LARGE) for number in range(3)))
    await until(lambda: one.log.head.offset == 3, limit_s=10)
    assert [count for count, _ in store.appends if count] == [1, 1, 1]
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("small_batches")
async def test_faults_of_a_batch_read_twice_are_logged_once(nursery: trio.Nursery) -> None:
    store, changes = Weighed(), MemoryChanges()
    one = await started(nursery, node(changes, store, batch_rows_max=10_000, body_bytes_max=10 * LARGE))
    changes.write(faulty(1000), *(large(number) for number in range(300)))
    await until(lambda: one.log.head.offset == 300, limit_s=10)
    assert one.recorder.counts["faults"] == 1
    nursery.cancel_scope.cancel()


async def test_batch_that_fits_is_translated_completely() -> None:
    translated = await translate_batch(batch(3 * SLICE_OBJECTS + 1), EventsOptions(), body_bytes_max=1000)
    assert (translated.share, len(translated.events)) == (1, 3 * SLICE_OBJECTS + 1)
    assert translated.size == sum(len(event.body) for event in translated.events)


async def test_clients_are_served_while_a_large_batch_is_translated(nursery: trio.Nursery) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(count_turns)
    await translate_batch(batch(10 * SLICE_OBJECTS), EventsOptions(), body_bytes_max=1000)
    assert turns >= 8  # nine checkpoints between ten slices; after the last one Trio chooses the order at random
    nursery.cancel_scope.cancel()


class Inseparable(MemoryFeed):
    """Returns changes in multiples of four."""

    async def read(self, after: str, limit: int) -> Batch:
        return await super().read(after, -(-limit // 4) * 4)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("batch_rows_max", [1, 3, 10])
async def test_changes_that_the_feed_cannot_separate_are_recorded(nursery: trio.Nursery, batch_rows_max: int) -> None:
    store, changes = Weighed(), MemoryChanges()
    tied = node(changes, store, batch_rows_max=batch_rows_max, body_bytes_max=10 * LARGE, feed=Inseparable(changes))
    one = await started(nursery, tied)
    changes.write(*(tag(number)._replace(name="n" * 3 * LARGE) for number in range(12)))
    await until(lambda: one.log.head.offset == 12, limit_s=10)
    assert [count for count, _ in store.appends if count] == [4, 4, 4]
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_translation_stops_when_the_batch_is_too_large() -> None:
    many = batch(100 * SLICE_OBJECTS, name_length=BATCH_BYTES_MAX // SLICE_OBJECTS // 2)
    translated = await translate_batch(many, EventsOptions(), body_bytes_max=BATCH_BYTES_MAX)
    assert translated.size < 2 * BATCH_BYTES_MAX
    assert 0.01 < translated.share < 0.04


def test_rows_grow_while_batches_are_full_and_small() -> None:
    def translated(share: float, size: int = 0) -> TranslatedBatch:
        return TranslatedBatch(events=(), faults=(), value_faults=0, size=size, share=share)

    def adapted(limit: int, changes: int, translated: TranslatedBatch) -> int:
        return adapted_limit(limit, 5000, batch(changes), translated)

    seen = [adapted(5000, 5000, translated(0.2))]
    for _ in range(4):
        seen.append(adapted(seen[-1], seen[-1], translated(1, BATCH_BYTES_MAX // 2)))
    assert seen == [900, 1800, 3600, 5000, 5000]
    assert adapted(5000, 5000, translated(1, BATCH_BYTES_MAX)) == 5000
    assert adapted(5000, 5000, translated(0.5)) == 2250
    assert adapted(2250, 2249, translated(1)) == 2250
    assert adapted(2250, 2250, translated(1, BATCH_BYTES_MAX // 2 + 1)) == 2250
    for changes, share in ((2, 0.99), (100, 0.0)):
        assert adapted(2250, changes, translated(share)) == 1
