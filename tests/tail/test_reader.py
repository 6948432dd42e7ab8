"""The cursor of ``tail`` on the memory store: no event is skipped, and resets are reported."""

import pytest
import trio
import trio.testing

from airy_trio import tail
from airy_trio.client import Reset
from airy_trio.events.destinations import EVERYTHING, Destination, OfConversation
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import NewEvent, Position
from airy_trio.tail import Reader


def event(number: int, conversation: str = "c1") -> NewEvent:
    body = f'{{"n":{number}}}'.encode()
    return NewEvent(
        type="tag.updated", object=f"tag:{number}", conversation_id=conversation, channel_id=None, body=body
    )


class Log:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.appended = 0

    async def head(self) -> Position:
        return (await self.store.bounds()).head

    async def append(self, count: int, conversation: str = "c1") -> Position:
        events = [event(self.appended + n, conversation) for n in range(1, count + 1)]
        self.appended += count
        await self.store.append(await self.head(), events, "p")
        return await self.head()

    async def reader(self, offset: int = 0, destination: Destination = EVERYTHING) -> Reader:
        return Reader(self.store, destination, (await self.head()).at(offset))


async def offsets(reading: Reader) -> list[int]:
    found = await reading.next()
    assert not isinstance(found, Reset)
    return [one.offset for one in found]


async def test_everything_after_the_position_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "READ_EVENTS_MAX", 4)
    log = Log()
    await log.append(10)
    reading = await log.reader(3)
    assert [await offsets(reading) for _ in range(2)] == [[4, 5, 6, 7], [8, 9, 10]]


async def test_waits_at_the_head_for_new_events(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    await log.append(1)
    reading = await log.reader(1)
    found: list[int] = []

    async def read() -> None:
        found.extend(await offsets(reading))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        await log.append(1)
    assert found == [2]


async def test_events_of_other_destinations_are_skipped(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    await log.append(3, "c2")
    await log.append(1, "c1")
    await log.append(2, "c2")
    reading = await log.reader(0, OfConversation("c1"))
    assert await offsets(reading) == [4]
    with trio.move_on_after(1) as waiting:
        await reading.next()
    assert waiting.cancelled_caught  # the events of others do not end the wait
    assert reading.position.offset == 6


async def test_trimmed_events_give_a_reset_then_the_rest() -> None:
    log = Log()
    await log.append(5)
    await log.store.trim(age_s=3600, keep=2, limit=100, unused_s=10**6)
    reading = await log.reader(1)
    assert await reading.next() == Reset(verdict="reset-expired", position=str((await log.head()).at(3)))
    assert await offsets(reading) == [4, 5]


async def test_new_epoch_gives_a_reset_then_its_events() -> None:
    log = Log()
    head = await log.append(2)
    reading = await log.reader(2)
    await log.store.begin_epoch(head, None)
    await log.append(1)
    gone = await reading.next()
    assert gone == Reset(verdict="reset-epoch", position=str((await log.head()).at(0)))
    assert await offsets(reading) == [1]


async def test_position_beyond_the_head_gives_a_reset(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    await log.append(2)
    reading = await log.reader(7)
    assert await reading.next() == Reset(verdict="reset-epoch", position=str((await log.head()).at(0)))
