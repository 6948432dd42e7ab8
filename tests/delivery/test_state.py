"""Delivery of the current state: in pages, up to a fixed end, then everything after it."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import ClientState
from airy_trio.delivery.fanout import WATCH_EVERY_S
from airy_trio.log import reads
from airy_trio.log.current import FOLD_EVENTS_MAX
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.reads import PAGE_BYTES_MAX, PAGE_EVENTS_MAX, STATE_AGE_S
from airy_trio.log.store import StoredEvent
from airy_trio.stomp.frames import Frame
from tests.delegating_store import Current, DelegatingStore
from tests.delivery.kept import keep
from tests.delivery.rig import Rig, delivering, rigged
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import events, open_log

CURRENT = (("id", "0"), ("destination", "/events"), ("receipt", "r"), ("replay", "current"))
ONE_BY_ONE = (("ack", "client"), ("prefetch-count", "1"))


class Counting(DelegatingStore):
    """A store that counts the reads of the current state."""

    reads = 0

    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        self.reads += 1
        return await super().on_current(call)


class EndsAfterTheFirstRead(Counting):
    """A store whose only object ends once the current state was read."""

    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        found = await super().on_current(call)
        self._kept.pop("o1", None)
        self._kept_events = None
        return found


def make_pages_small(patch: pytest.MonkeyPatch, events_max: int = 2) -> None:
    """Let pages have few events, and retain only the newest page."""
    patch.setattr(reads.Reads.__init__, "__defaults__", (events_max, PAGE_BYTES_MAX))
    patch.setattr(reads, "PAGES_MAX", 1)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pages_small(monkeypatch)


async def opened(count: int = 0, *, tail_events: int = 16) -> EventLog:
    log = await open_log(Counting(), LogOptions(store="memory", tail_events=tail_events))
    await keep(log, [f"o{number}" for number in range(1, count + 1)])
    return log


def offsets(frames: Sequence[Frame]) -> list[int]:
    return [int((f.get("message-id") or "").rpartition("-")[2]) for f in frames if f.command == "MESSAGE"]


def completed(frames: Sequence[Frame]) -> list[int]:
    """Return the offsets of the messages that complete a state."""
    return offsets([frame for frame in frames if frame.get("state") == "complete"])


def receipt_of(rig: Rig) -> Frame:
    [receipt] = [frame for frame in rig.frames if frame.command == "RECEIPT"]
    return receipt


async def subscribe_one_by_one(rig: Rig) -> None:
    """Subscribe to the current state with an ack window of one, and read the first event."""
    await rig.request("SUBSCRIBE", *CURRENT, *ONE_BY_ONE)
    await wait_all_tasks_blocked()
    rig.read()


async def acknowledge(rig: Rig) -> list[Frame]:
    """Acknowledge the last MESSAGE, and return what follows."""
    await rig.request("ACK", ("id", rig.frames[-1].get("ack") or ""))
    await wait_all_tasks_blocked()
    return rig.read()


async def acknowledge_all(rig: Rig) -> None:
    while await acknowledge(rig):
        pass


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
@pytest.mark.usefixtures("small_pages")
async def test_state_is_sent_in_pages(count: int, autojump_clock: MockClock) -> None:
    async with rigged(await opened(count), MemoryTransport()) as rig:
        await keep(rig.log, ["o1"])
        await keep(rig.log, ["other"])
        await keep(rig.log, ended=["other"])  # so that the state ends after its last event
        await rig.request("SUBSCRIBE", *CURRENT)
        await rig.read_all()
        await rig.append(events(count + 3, count + 4))
        await rig.read_all()
        state = [*range(2, count + 2)]
        assert offsets(rig.frames) == [*state, count + 3, count + 4]
        assert completed(rig.frames) == [count + 1]
        assert rig.client.state is ClientState.LIVE


async def test_state_has_everything_that_was_appended_before(autojump_clock: MockClock) -> None:
    """An event of an object that has ended would never be corrected if it followed the state."""
    async with rigged(await opened(3), MemoryTransport()) as rig:
        await keep(rig.log, ["o1", "o2", *(f"p{number}" for number in range(FOLD_EVENTS_MAX))], folds=False)
        await keep(rig.log, ended=["o2"], folds=False)
        await rig.request("SUBSCRIBE", *CURRENT, ("receipt", "start"))
        await rig.read_all()
        assert receipt_of(rig).get("until") == str(rig.log.head)
        last = 5 + FOLD_EVENTS_MAX
        assert (offsets(rig.frames), completed(rig.frames)) == ([3, 4, *range(6, last + 1)], [last])


async def test_fan_out_sends_nothing_before_the_state(autojump_clock: MockClock) -> None:
    async with rigged(await opened(3), MemoryTransport()) as rig:
        await keep(rig.log, ["o1"])
        await rig.request("SUBSCRIBE", *CURRENT)
        frames = await rig.read_all()
        assert (offsets(frames), completed(frames)) == ([2, 3, 4], [4])


async def test_state_of_many_pages_is_sent(autojump_clock: MockClock) -> None:
    count = 3 * PAGE_EVENTS_MAX
    async with rigged(await opened(count), MemoryTransport(20_000)) as rig:
        await rig.request("SUBSCRIBE", *CURRENT)
        frames = await rig.read_all()
        assert offsets(frames) == [*range(1, count + 1)]
        assert completed(frames) == [count]


@pytest.mark.parametrize("count", [2, 5])
async def test_large_events_fill_pages(count: int, autojump_clock: MockClock) -> None:
    """Each body is a page, so only another read shows which page is the last."""
    log = await opened()
    await keep(log, [f"o{number}" for number in range(count)], size=2 * PAGE_BYTES_MAX)
    await keep(log, ["other"])
    await keep(log, ended=["other"])  # so that the state ends after its last event
    async with rigged(log, MemoryTransport(PAGE_BYTES_MAX)) as rig:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *CURRENT)
            await rig.read_all()
        assert offsets(rig.frames) == [*range(1, count + 1)]
        assert completed(rig.frames) == [count]


@pytest.mark.usefixtures("small_pages")
async def test_ack_window_of_one_gets_the_whole_state(autojump_clock: MockClock) -> None:
    async with rigged(await opened(5), MemoryTransport()) as rig:
        await subscribe_one_by_one(rig)
        await keep(rig.log, ["o9"])
        for number in range(1, 7):
            assert offsets(rig.frames) == [*range(1, number + 1)]
            await acknowledge(rig)
        assert completed(rig.frames) == [5]


@pytest.mark.usefixtures("small_pages")
async def test_full_window_keeps_no_page(autojump_clock: MockClock) -> None:
    async with rigged(await opened(5), MemoryTransport()) as rig:
        await rig.request("SUBSCRIBE", *CURRENT, *ONE_BY_ONE)
        await wait_all_tasks_blocked()
        assert rig.client.state is ClientState.LIVE, "a full window is not behind"
        assert rig.senders.sending == 0


@pytest.mark.usefixtures("small_pages")
async def test_last_event_that_is_superseded_between_pages(autojump_clock: MockClock) -> None:
    """Then the next message completes the state."""
    async with rigged(await opened(3), MemoryTransport()) as rig:
        await subscribe_one_by_one(rig)
        await keep(rig.log, ["o3"])
        await acknowledge_all(rig)
        assert offsets(rig.frames) == [1, 2, 4]
        assert completed(rig.frames) == [4]


@pytest.mark.usefixtures("small_pages")
async def test_last_event_that_ends_between_pages(autojump_clock: MockClock) -> None:
    async with rigged(await opened(3), MemoryTransport()) as rig:
        await subscribe_one_by_one(rig)
        await keep(rig.log, ended=["o3"])
        await acknowledge_all(rig)
        assert (offsets(rig.frames), completed(rig.frames)) == ([1, 2], [])
        await rig.append(events(4, 5))
        await wait_all_tasks_blocked()
        rig.read()
        await acknowledge_all(rig)
        assert (offsets(rig.frames), completed(rig.frames)) == ([1, 2, 4, 5], [4])


async def test_state_that_is_gone_after_its_receipt_is_completed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next message has both headers: that of the reset and that of the end."""
    monkeypatch.setattr(reads, "PAGES_MAX", 0)
    log = await open_log(EndsAfterTheFirstRead(), LogOptions(store="memory"))
    await keep(log, ["o1"])
    async with rigged(log, MemoryTransport()) as rig:
        await rig.request("SUBSCRIBE", *CURRENT, ("last-event-id", "zzzzzz-1"))
        await rig.read_all()
        await keep(log, ["o2"])
        await rig.read_all()
        [message] = [frame for frame in rig.frames if frame.command == "MESSAGE"]
        found = [message.get(name) for name in ("message-id", "resume", "state")]
        assert found == [str(log.head), "reset-epoch", "complete"]


@pytest.mark.usefixtures("small_pages")
async def test_growth_during_the_state_completes_it_once(autojump_clock: MockClock) -> None:
    """After the last page was sent, the send task checks that page again, because events were appended meanwhile."""
    async with rigged(await opened(2), MemoryTransport(100)) as rig:
        rig.read()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *CURRENT)
            await wait_all_tasks_blocked()
            await keep(rig.log, ["o8", "o9"])
            await rig.read_all()
        assert offsets(rig.frames) == [1, 2, 3, 4]
        assert completed(rig.frames) == [2]


async def test_empty_state_is_complete_with_the_receipt(autojump_clock: MockClock) -> None:
    log = await opened(3)
    await keep(log, ended=["o1", "o2", "o3"])
    async with rigged(log, MemoryTransport()) as rig:
        await rig.request("SUBSCRIBE", *CURRENT)
        await rig.append(events(4, 5))
        await rig.read_all()
        receipt = receipt_of(rig)
        assert receipt.get("position") == receipt.get("until") == str(log.head.at(3))
        assert (offsets(rig.frames), completed(rig.frames)) == ([4, 5], [])


async def test_partial_state_is_sent_and_completed(autojump_clock: MockClock) -> None:
    async with rigged(await opened(2), MemoryTransport()) as rig:
        await keep(rig.log, ["o3"], types="message.updated tag.updated", whole="message.updated")
        await rig.request("SUBSCRIBE", *CURRENT)
        await rig.read_all()
        receipt = receipt_of(rig)
        assert (receipt.get("state"), receipt.get("state-missing")) == ("partial", "tag.updated")
        assert (offsets(rig.frames), completed(rig.frames)) == ([1, 2, 3], [3])


@pytest.mark.usefixtures("small_pages")
async def test_unsubscribe_ends_the_state(autojump_clock: MockClock) -> None:
    async with rigged(await opened(40), MemoryTransport(200)) as rig:
        rig.read()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *CURRENT)
            await wait_all_tasks_blocked()
            rig.read(500)
            nursery.start_soon(rig.request, "UNSUBSCRIBE", ("id", "0"), ("receipt", "end"))
            frames = await rig.read_all()
        assert 0 < len(offsets(rig.frames)) < 40
        assert frames[-1].get("receipt-id") == "end"
        assert rig.client.state is ClientState.LIVE


@pytest.mark.parametrize("how", ["generation", "without a state", "epoch"])
@pytest.mark.usefixtures("small_pages")
async def test_state_that_ends_disconnects_its_readers(how: str, autojump_clock: MockClock) -> None:
    """The client has everything after it has subscribed again with its position."""
    log = await opened(5)
    async with delivering(log) as delivery:
        rig = await delivery.connect(MemoryTransport())
        await subscribe_one_by_one(rig)
        assert offsets(rig.frames) == [1]
        match how:
            case "generation":
                await keep(log, ["o6"], generation="second")
            case "without a state":
                await log.append(log.head, events(6, 6), "point")
            case _:
                await log.begin_epoch(log.head, "point")
                await keep(log, ["o1", "o2"])
        for _ in range(3):
            await acknowledge(rig)
        assert rig.client.reason is disconnects.POSITION_EXPIRED
        position = [frame for frame in rig.frames if frame.command == "MESSAGE"][-1].get("message-id") or ""
        again = await delivery.connect(MemoryTransport())
        await again.request("SUBSCRIBE", *CURRENT, ("last-event-id", position))
        await again.read_all()
        had = set(offsets(rig.frames)) if how != "epoch" else set()
        assert had | set(offsets(again.frames)) == set(range(1, log.head.offset + 1))


@pytest.mark.usefixtures("small_pages")
async def test_state_that_has_ended_is_not_sent_again(autojump_clock: MockClock) -> None:
    """Not even to a client that subscribes again at once."""
    log = await opened(5)
    async with delivering(log) as delivery:
        rig = await delivery.connect(MemoryTransport())
        await subscribe_one_by_one(rig)
        await keep(log, ["o1"], generation="second")
        while rig.client.reason is None:
            await acknowledge(rig)
        again = await delivery.connect(MemoryTransport())
        await again.request("SUBSCRIBE", *CURRENT)
        await wait_all_tasks_blocked()
        again.read()
        assert (offsets(again.frames), completed(again.frames)) == ([6], [6])


@pytest.mark.usefixtures("small_pages")
async def test_position_below_the_floor_does_not_expire_within_the_state(autojump_clock: MockClock) -> None:
    log = await opened(30)
    async with rigged(log, MemoryTransport(200)) as rig:
        rig.read()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *CURRENT)
            await wait_all_tasks_blocked()
            await log.store.trim(age_s=3600, keep=0, limit=100, unused_s=10**6)
            await trio.sleep(2 * WATCH_EVERY_S)
            assert rig.client.subscriptions[1].position.offset < (await log.bounds()).floor.offset
            assert rig.client.reason is None
            await rig.read_all()
        assert (offsets(rig.frames), completed(rig.frames)) == ([*range(1, 31)], [30])


@pytest.mark.usefixtures("small_pages")
async def test_end_of_the_state_below_the_floor_expires(autojump_clock: MockClock) -> None:
    """Otherwise the events after the state would be missing."""
    log = await opened(30, tail_events=2)
    async with rigged(log, MemoryTransport(200)) as rig:
        rig.read()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *CURRENT)
            await wait_all_tasks_blocked()
            await keep(log, [f"p{number}" for number in range(10)])
            await log.store.trim(age_s=3600, keep=3, limit=100, unused_s=10**6)
            await trio.sleep(2 * WATCH_EVERY_S)
            assert rig.client.reason is disconnects.POSITION_EXPIRED
            nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("acks", [(), ONE_BY_ONE[:1]])
async def test_crowd_reads_the_state_once(
    acks: tuple[tuple[str, str], ...], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand subscriptions of a hundred connections: each page is read at most twice, though the state changes."""
    monkeypatch.setattr(reads.Reads.__init__, "__defaults__", (20, PAGE_BYTES_MAX))
    log = await opened(100, tail_events=1000)
    pages = 100 // 20
    store: Any = log.store
    async with delivering(log) as delivery:
        rigs = [await delivery.connect(MemoryTransport()) for _ in range(100)]
        async with trio.open_nursery() as nursery:
            for number in range(10):
                for rig in rigs:
                    headers = (("id", str(number)), *CURRENT[1:], *acks)
                    nursery.start_soon(rig.request, "SUBSCRIBE", *headers)
                await trio.sleep(STATE_AGE_S / 30)
                await keep(log, [f"o{1 + number}"])
        for rig in rigs:
            frames = [*await rig.read_all(), *rig.frames]
            assert len({frame.get("message-id") for frame in frames}) > 100
            assert sum(frame.get("state") == "complete" for frame in rig.frames) == 10
    assert store.reads <= 2 * pages


@pytest.mark.usefixtures("small_pages")
async def test_pages_of_the_state_are_no_pages_of_the_log(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages of a state up to another position differ too."""
    monkeypatch.setattr(reads, "PAGES_MAX", 16)
    log = await opened(5)
    await keep(log, ["o1", "o2", "o3"])
    async with delivering(log) as delivery:
        rigs = [await delivery.connect(MemoryTransport()) for _ in range(3)]
        await rigs[0].request("SUBSCRIBE", *CURRENT)
        await rigs[1].request("SUBSCRIBE", *CURRENT[:3], ("replay", "all"))
        await trio.sleep(STATE_AGE_S)
        await keep(log, ["o4"])
        await rigs[2].request("SUBSCRIBE", *CURRENT)
        found = [offsets(await rig.read_all()) for rig in rigs]
        assert found == [[4, 5, 6, 7, 8, 9], [*range(1, 10)], [5, 6, 7, 8, 9]]


@pytest.mark.usefixtures("small_pages")
async def test_two_subscriptions_of_a_connection_take_turns(autojump_clock: MockClock) -> None:
    """Pages are sent in turn, so that a small destination does not wait for the whole state of a large one."""
    async with rigged(await opened(12), MemoryTransport(100)) as rig:
        rig.read()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.request, "SUBSCRIBE", *CURRENT)
            nursery.start_soon(rig.request, "SUBSCRIBE", ("id", "1"), *CURRENT[1:3], CURRENT[3])
            await rig.read_all()
        of = {id_: [f for f in rig.frames if f.get("subscription") == id_] for id_ in "01"}
        assert {id_: offsets(frames) for id_, frames in of.items()} == {id_: [*range(1, 13)] for id_ in "01"}
        assert {id_: completed(frames) for id_, frames in of.items()} == {id_: [12] for id_ in "01"}
        order = [frame.get("subscription") for frame in rig.frames if frame.command == "MESSAGE"]
        assert order.index("1") < 12, "the second waited for the first"
