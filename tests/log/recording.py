"""A recorder over changes in memory and any store, as one node of several."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

import structlog
import trio
from attrs import define

from airy_trio.capture.feed import ChangeFeed, Tag
from airy_trio.events.translate import EventsOptions
from airy_trio.log.current import StateOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.recorder import Recorder, RecorderOptions
from airy_trio.log.store import Bounds, EventStore, StoredEvent, StoreUnavailable
from tests.delegating_store import Append, DelegatingStore, Read
from tests.memory_feed import MemoryChanges, MemoryFeed, MemoryLease


def tag(number: int) -> Tag:
    return Tag(id=f"t{number}", name="flag", color="red")


def faulty(number: int) -> Tag:
    return Tag(id=f"t{number}", name=None, color="red")


class MoodyStore(DelegatingStore):
    """A store that is slow and sometimes unavailable: before an append, or after it has taken effect."""

    def __init__(self, moods: Random | None = None, *, away_share: float = 0.2) -> None:
        super().__init__()
        self.moods = moods
        self.away_share = away_share
        self.away = False

    async def _mood(self, *, moody: bool = True) -> None:
        if self.moods is not None:
            await trio.sleep(self.moods.uniform(0, 0.3))
        if self.away or (moody and self.moods is not None and self.moods.random() < self.away_share):
            raise StoreUnavailable("the store is away")

    async def bounds(self) -> Bounds:
        await self._mood(moody=False)
        return await super().bounds()

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        await self._mood()
        stored = await super().on_append(call)
        await self._mood()
        return stored

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        await self._mood(moody=False)
        return await super().on_read(call)

    async def resume_point(self) -> str | None:
        await self._mood(moody=False)
        found = await super().resume_point()
        await self._mood(moody=False)
        return found


@define(eq=False)
class Node:
    """One server's part in recording."""

    log: EventLog
    recorder: Recorder
    lease: MemoryLease


def node(
    changes: MemoryChanges,
    store: EventStore,
    *,
    words: str = "our store",
    unaware: bool = False,
    batch_rows_max: int = 10,
    body_bytes_max: int = 1000,
    feed: ChangeFeed | None = None,
    standby: bool = False,
    state: StateOptions | None = None,
) -> Node:
    log = EventLog(store, LogOptions(store="memory"))
    lease = MemoryLease(changes, unaware)
    options = RecorderOptions(
        batch_rows_max=batch_rows_max,
        body_bytes_max=body_bytes_max,
        events=EventsOptions(),
        store=words,
        standby=standby,
        state=state or StateOptions(),
    )
    return Node(log, Recorder(feed or MemoryFeed(changes), lease, log, options), lease)


async def started(nursery: trio.Nursery, one: Node) -> Node:
    """Open the node's log, start its recorder and let the log follow other writers."""
    await one.log.open()
    nursery.start_soon(one.recorder.ahead.run)
    await nursery.start(one.recorder.run)
    nursery.start_soon(one.log.follow)
    return one


async def until(true: Callable[[], bool], *, limit_s: float = 600) -> None:
    """Let the virtual clock run until a condition is true."""
    with trio.fail_after(limit_s):
        while True:
            if true():
                return
            await trio.sleep(0.05)


async def recorded(store: EventStore) -> list[str]:
    """Return the objects of all retained events, in order."""
    return [one.object for one in await store.read((await store.bounds()).floor, 100_000)]


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Collect the warnings and errors that are logged inside the block."""
    warnings: list[str] = []
    with structlog.testing.capture_logs() as lines:
        yield warnings
    warnings += [line["event"] for line in lines if line["log_level"] in {"warning", "error"}]
