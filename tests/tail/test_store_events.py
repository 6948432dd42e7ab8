"""``tail`` on the memory store: no event is skipped, and resets are reported."""

import json

import pytest
import trio
import trio.testing

from airy_trio import tail
from airy_trio.events.destinations import EVERYTHING, Destination, OfConversation
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import NewEvent, Position
from airy_trio.tail import TailOptions
from airy_trio.terminal import Stdout


def event(number: int, conversation: str = "c1") -> NewEvent:
    body = f'{{"n":{number}}}'.encode()
    return NewEvent(
        type="tag.updated", object=f"tag:{number}", conversation_id=conversation, channel_id=None, body=body
    )


class Lines(Stdout):
    """Collects the offset of each event, and each verdict with the offset after which reading continues."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: list[int | tuple[str, int]] = []

    def write(self, text: str) -> bool:
        line = json.loads(text)
        position = Position.parse(line["position"])
        assert position is not None
        self.offsets.append((line["resume"], position.offset) if "resume" in line else position.offset)
        return True

    def note(self, text: str) -> None:
        assert text.startswith("reset-")


class Log:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.appended = 0
        self.lines = Lines()

    async def head(self) -> Position:
        return (await self.store.bounds()).head

    async def append(self, count: int, conversation: str = "c1") -> Position:
        events = [event(self.appended + n, conversation) for n in range(1, count + 1)]
        self.appended += count
        await self.store.append(await self.head(), events, "p")
        return await self.head()

    async def read(
        self, after: Position, count: int, destination: Destination = EVERYTHING
    ) -> list[int | tuple[str, int]]:
        """Read this number of events after a position; return what was written."""
        options = TailOptions(destination=destination, as_json=True, events_max=count)
        await tail.write_events(self.store, after, options, self.lines)
        return self.lines.offsets


async def test_everything_after_the_position_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "READ_EVENTS_MAX", 4)
    log = Log()
    head = await log.append(10)
    assert await log.read(head.at(3), 7) == [4, 5, 6, 7, 8, 9, 10]


async def test_ends_within_a_batch() -> None:
    log = Log()
    head = await log.append(10)
    assert await log.read(head.at(3), 2) == [4, 5]


async def test_waits_at_the_head_for_new_events(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    head = await log.append(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.read, head, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert log.lines.offsets == []
        await log.append(1)
    assert log.lines.offsets == [2]


async def test_events_of_other_destinations_are_skipped(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    await log.append(3, "c2")
    await log.append(1, "c1")
    head = await log.append(2, "c2")
    with trio.move_on_after(1) as waiting:
        await log.read(head.at(0), 2, OfConversation("c1"))
    assert waiting.cancelled_caught  # the events of others do not end the wait
    assert log.lines.offsets == [4]


async def test_trimmed_events_give_a_reset_then_the_rest() -> None:
    log = Log()
    head = await log.append(5)
    await log.store.trim(age_s=3600, keep=2, limit=100, unused_s=10**6)
    assert await log.read(head.at(1), 2) == [("reset-expired", 3), 4, 5]


async def test_new_epoch_gives_a_reset_then_its_events() -> None:
    log = Log()
    head = await log.append(2)
    await log.store.begin_epoch(head, None)
    await log.append(1)
    assert await log.read(head, 1) == [("reset-epoch", 0), 1]


async def test_position_beyond_the_head_gives_a_reset() -> None:
    log = Log()
    head = await log.append(2)
    assert await log.read(head.at(7), 2) == [("reset-epoch", 0), 1, 2]
