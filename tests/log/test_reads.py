"""Reads for clients: how many at once, in which order, and which of them the store never sees."""

from collections.abc import Sequence
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, Within
from airy_trio.log.eventlog import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.position import Position
from airy_trio.log.reads import READS_MAX, Gate
from airy_trio.log.store import PositionExpired, StoredEvent
from tests.log.places import event

MANY = 1 << 30


class Scanned(MemoryStore):
    """A store that notes the reads of one destination, and finishes none before ``go_on`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.scans: list[Position] = []
        self.go_on = trio.Event()

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        if destination is not None:
            self.scans.append(after)
            await self.go_on.wait()
        return await super().read(after, limit, destination, bytes_max=bytes_max)


async def opened(store: MemoryStore, count: int = 3) -> EventLog:
    log = EventLog(store, LogOptions(store="memory"))
    await log.open()
    await log.append(log.head, [event(number) for number in range(1, count + 1)], "point")
    return log


async def test_places_go_to_the_addresses_in_turn(nursery: trio.Nursery) -> None:
    gate = Gate(1)
    served: list[str] = []

    async def read(address: str, number: int) -> None:
        async with gate.place(address):
            served.append(f"{address}{number}")
            await trio.lowlevel.checkpoint()

    async with gate.place("a"):
        for address, count in (("a", 3), ("b", 2), ("c", 1)):
            for number in range(count):
                nursery.start_soon(read, address, number)
                await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    assert served == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert gate.statistics() == {"waiting": 0, "free": 1}


async def test_a_cancelled_read_leaves_the_queue(nursery: trio.Nursery) -> None:
    gate = Gate(1)
    served: list[str] = []

    async def read(address: str, scope: trio.CancelScope) -> None:
        with scope:
            async with gate.place(address):
                served.append(address)

    async with gate.place("a"):
        leaving = trio.CancelScope()
        for address, scope in (("b", leaving), ("c", trio.CancelScope())):
            nursery.start_soon(read, address, scope)
            await wait_all_tasks_blocked()
        leaving.cancel()
        await wait_all_tasks_blocked()
        assert gate.statistics() == {"waiting": 1, "free": 0}
    await wait_all_tasks_blocked()
    assert (served, gate.statistics()) == (["c"], {"waiting": 0, "free": 1})


async def test_a_quiet_destination_is_scanned_once() -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store, 20)
    await log.append(log.head, [event(21, channel_id="quiet")], "point")
    quiet, busy = OfChannel("quiet"), OfChannel("ch1")

    async def read(offset: int, destination: Destination = quiet) -> list[int]:
        return [one.offset for one in await log.read(log.head.at(offset), 100, destination, bytes_max=MANY)]

    assert [await read(0), await read(5), await read(0), await read(21)] == [[21], [21], [21], []]
    assert [position.offset for position in store.scans] == [0]
    await log.append(log.head, [event(22), event(23, channel_id="quiet")], "point")
    assert [await read(0), await read(0), await read(21)] == [[21, 23], [21, 23], [23]]
    assert [position.offset for position in store.scans] == [0, 21], "only what is new is scanned"
    assert [await read(20, busy), await read(22, busy)] == [[22], []]
    assert [position.offset for position in store.scans] == [0, 21, 20]


async def test_nothing_is_remembered_beyond_its_epoch() -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store)
    before = log.head
    assert await log.read(before.at(0), 10, OfChannel("quiet"), bytes_max=MANY) == []
    await log.begin_epoch(before, "again")
    with pytest.raises(PositionExpired):
        await log.read(before.at(0), 10, OfChannel("quiet"), bytes_max=MANY)


@pytest.mark.parametrize("seed", range(20))
async def test_reads_return_what_the_store_does(seed: int) -> None:
    random, store = Random(seed), MemoryStore()
    log = await opened(store, 0)
    destinations: list[Destination] = [EVERYTHING, *map(OfChannel, "abcd"), Within(EVERYTHING, frozenset("cd"))]
    for number in range(1, 300):
        [channel] = random.choices("abcd", (100, 10, 3, 1))
        await log.append(log.head, [event(number, channel_id=channel)], "point")
        for destination in random.sample(destinations, 2):
            after, limit = log.head.at(random.randint(0, number)), random.choice((1, 5, 100))
            bytes_max = random.choice((1, 10, MANY))
            read = await log.read(after, limit, destination, bytes_max=bytes_max)
            assert read == await store.read(after, limit, destination, bytes_max=bytes_max)


async def test_few_reads_of_clients_reach_the_store_at_once(nursery: trio.Nursery) -> None:
    store = Scanned()
    log = await opened(store)
    found: list[int] = []

    async def read(offset: int) -> None:
        events = await log.read(log.head.at(offset), 10, EVERYTHING, bytes_max=MANY, address="a")
        found.append(len(events))

    for offset in (0, 1, 2, 0, 1, 2):
        nursery.start_soon(read, offset)
    await wait_all_tasks_blocked()
    assert len(store.scans) == READS_MAX
    store.go_on.set()
    await wait_all_tasks_blocked()
    assert sorted(found) == [1, 1, 2, 2, 3, 3]
