"""Reads for clients: how many run at a time, their order, and those that the cache answers."""

from collections.abc import Sequence
from random import Random

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfConversation, OfType, Within, covers
from airy_trio.log import reads
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.reads import (
    PAGE_EVENTS_MAX,
    PAGES_MAX,
    READS_MAX,
    REMEMBERED_BYTES_MAX,
    REMEMBERED_EVENTS_MAX,
    REMEMBERED_MAX,
    Gate,
    Page,
    Reads,
    Replay,
)
from airy_trio.log.store import (
    NewEvent,
    Position,
    PositionExpired,
    StateAt,
    StateChange,
    StoredEvent,
    StoreUnavailable,
)
from tests.delegating_store import DelegatingStore, Read
from tests.log.places import event

MANY = 1 << 30
TAG = "tag.updated"
MESSAGE = "message.updated"


class Scanned(DelegatingStore):
    """A store that records the starts of reads of one destination (``scans``) and of newest events (``backwards``).

    Reads of one destination end only when ``go_on`` is set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scans: list[Position] = []
        self.backwards: list[Position] = []
        self.go_on = trio.Event()
        self.away = False

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        if call.destination is not None:
            self.scans.append(call.after)
            await self.go_on.wait()
            if self.away:
                raise StoreUnavailable("away")
        return await super().on_read(call)

    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        self.backwards.append(until)
        return await super().newest(until, destination)


async def opened(store: MemoryStore, count: int = 3, *, tail_events: int = 20_000) -> EventLog:
    log = EventLog(store, LogOptions(store="memory", tail_events=tail_events))
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
    with trio.fail_after(1):
        await read("d", 0)  # the place is free again


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
    await wait_all_tasks_blocked()
    with trio.fail_after(1):
        await read("d", trio.CancelScope())  # the place is free again
    assert served == ["c", "d"]


async def read_on(paged: Reads, offset: int, destination: Destination) -> list[StoredEvent]:
    """Read page after page, up to the head."""
    found: list[StoredEvent] = []
    while offset < paged.log.head.offset:
        page = await paged.page(paged.log.head.at(offset), destination)
        assert page.upto > offset
        found += page.events_after(offset)
        offset = page.upto
    return found


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no page be retained, so that only small results are remembered."""
    monkeypatch.setattr(reads, "PAGES_MAX", 0)


async def test_a_quiet_destination_is_scanned_once() -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store, 20)
    paged = Reads(log)
    await log.append(log.head, [event(21, channel_id="quiet")], "point")
    quiet, busy = OfChannel("quiet"), OfChannel("ch1")

    async def read(offset: int, destination: Destination = quiet) -> list[int]:
        return [one.offset for one in await read_on(paged, offset, destination)]

    assert [await read(0), await read(5), await read(0), await read(21)] == [[21], [21], [21], []]
    assert [position.offset for position in store.scans] == [0]
    await log.append(log.head, [event(22), event(23, channel_id="quiet")], "point")
    assert [await read(0), await read(0), await read(21)] == [[21, 23], [21, 23], [23]]
    assert [position.offset for position in store.scans] == [0, 21], "only what is new is scanned"
    assert [await read(20, busy), await read(22, busy)] == [[22], []]
    assert [position.offset for position in store.scans] == [0, 21, 20]


async def test_no_event_is_remembered_beyond_its_epoch() -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store)
    paged = Reads(log)
    before = log.head
    assert (await paged.page(before.at(0), OfChannel("quiet"))).events == ()
    await log.begin_epoch(before, "again")
    with pytest.raises(PositionExpired):
        await paged.page(before.at(0), OfChannel("quiet"))


@pytest.mark.parametrize("seed", range(20))
async def test_pages_agree_with_the_store(seed: int) -> None:
    random, store = Random(seed), MemoryStore()
    log = await opened(store, 0)
    paged = Reads(log, random.choice((1, 5, 100)), random.choice((1, 10, 1000)))
    destinations: list[Destination] = [EVERYTHING, *map(OfChannel, "abcd"), Within(EVERYTHING, frozenset("cd"))]
    for number in range(1, 300):
        [channel] = random.choices("abcd", (100, 10, 3, 1))
        await log.append(log.head, [event(number, channel_id=channel)], "point")
        for destination in random.sample(destinations, 2):
            after = log.head.at(random.randint(0, number))
            page = await paged.page(after, destination)
            everything = await store.read(after, MANY, destination)
            assert list(page.events_after(after.offset)) == [one for one in everything if one.offset <= page.upto]
            assert page.upto > after.offset or after == log.head


async def test_a_replay_has_no_events_after_its_end_that_an_earlier_read_has_found() -> None:
    log = await opened(MemoryStore(), 3, tail_events=1)
    paged = Reads(log)
    begin = log.head.at(0)
    assert (await paged.page(begin, EVERYTHING)).upto == 3
    page = await paged.page(begin, EVERYTHING, Replay(until=log.head.at(2)))
    assert ([one.offset for one in page.events], page.upto) == ([1, 2], 2)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tail_events", [5, 1000])
async def test_replays_agree_with_a_list(tail_events: int, seed: int) -> None:
    """Of kept types the state, of others the window; an event is missing only if a newer one of its object follows.

    Before each replay, another client reads what follows.
    """
    random, store = Random(seed), MemoryStore()
    log = await opened(store, 0, tail_events=tail_events)
    paged = Reads(log, random.choice((1, 5, 100)), random.choice((1, 10, 1000)))
    appended: list[StoredEvent] = []
    ended: dict[str, int] = {}
    for number in range(60):
        names = random.choices("abcdefgh", k=random.randint(0, 4))
        new = [event(number, object=name, type=TAG if name < "d" else MESSAGE, channel_id=name) for name in names]
        over = [name for name in "abcd" if random.random() < 0.05]
        change = StateChange(generation="first0", ended=over)
        before = log.head
        await log.append(before, new, "point", state=change)
        ended |= dict.fromkeys(over, log.head.offset)
        appended += await store.read(before, MANY)
        while await store.fold("first0", {TAG}, MANY):
            pass
    newest = {one.object: one.offset for one in appended}
    until = log.head.at(log.head.offset - random.randint(0, 9))
    since = random.randint(0, until.offset)
    for destination in (EVERYTHING, OfType(TAG), OfType(MESSAGE), OfChannel("a"), Within(EVERYTHING, frozenset("ae"))):
        await paged.page(until.at(since), destination)
        state = Replay(
            until=until, since=since, state=StateAt("first0", until), types=frozenset({MESSAGE}), announced=True
        )
        recent = Replay(until=until)
        for replay, begin in ((state, 0), (recent, since)):
            at, sent = until.at(begin), list[StoredEvent]()
            while at.offset < until.offset:
                page = await paged.page(at, destination, replay)
                assert page.completes_state == (replay.announced and page.upto == until.offset)
                assert page.upto > at.offset
                assert page.events or page.upto == until.offset or not replay.announced
                sent += page.events_after(at.offset)
                at = at.at(page.upto)
            covered = [one for one in appended if covers(destination, one) and one.offset <= until.offset]
            kept = [one for one in covered if newest[one.object] == one.offset > ended.get(one.object, 0)]
            window = [one for one in covered if one.offset > since]
            if replay is state:
                kept = [one for one in kept if one.type == TAG]
                window = [one for one in window if one.type == MESSAGE]
            else:
                kept = []
            known = [one for one in window if newest[one.object] == one.offset]
            assert sent == sorted(set(sent)), "each event once, in order"
            assert {*kept, *known} <= set(sent) <= {*kept, *window}
            if tail_events > len(appended):
                assert set(sent) == {*kept, *known}


async def test_a_recent_window_in_memory_waits_for_no_read() -> None:
    """Two reads of a store that does not answer hold all places."""
    log = await opened(MemoryStore(), 0)
    paged = Reads(log)
    await log.append(log.head, [event(number, object="a") for number in (1, 2)], "point")
    async with paged.gate.place("first"), paged.gate.place("second"):
        with trio.fail_after(1):
            page = await paged.page(log.head.at(0), EVERYTHING, Replay(until=log.head))
    assert ([one.offset for one in page.events], page.upto) == ([2], 2)


async def test_a_page_of_the_recent_window_is_one_read_of_the_store() -> None:
    """Also if nothing of it is sent, so that a client gets on with a store that is unavailable again and again."""
    store = Scanned()
    store.go_on.set()
    log = await opened(store, 0, tail_events=2)
    await log.append(log.head, [event(number, object="a") for number in range(1, 5)], "point")
    paged = Reads(log, 2)
    page = await paged.page(log.head.at(0), EVERYTHING, Replay(until=log.head))
    assert (page.events, page.upto, len(store.scans)) == ((), 2, 1)


async def test_a_replay_has_no_events_of_the_next_epoch() -> None:
    """The new epoch begins while the read waits for its place, and the tail has events at the same offsets."""
    log = await opened(MemoryStore(), 3)
    paged = Reads(log)
    begin, replay = log.head.at(0), Replay(until=log.head, announced=True)

    async def read() -> None:
        with pytest.raises(PositionExpired):
            await paged.page(begin, EVERYTHING, replay)

    async with trio.open_nursery() as nursery, paged.gate.place("first"), paged.gate.place("second"):
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        head = await log.begin_epoch(log.head, "point")
        await log.append(head, [event(number) for number in range(1, 4)], "point")


@pytest.mark.parametrize("events_max, bytes_max", [(100, 1000), (2, 1000), (1, 1000), (100, 1)])
async def test_last_page_of_a_replay_has_events(events_max: int, bytes_max: int) -> None:
    """What follows them in the log has a newer event, or has ended."""
    store = MemoryStore()
    log = await opened(store, 0)
    change = StateChange(generation="first0")
    new = [event(1, object="t1", type=TAG), event(2, object="m1"), event(3, object="t2", type=TAG)]
    await log.append(log.head, new, "point", state=change)
    again = [event(4, object="m2"), event(5, object="t2", type=TAG), event(6, object="m2")]
    await log.append(log.head, again, "point", state=evolve(change, ended=["t2"]))
    while await store.fold("first0", {TAG}, MANY):
        pass
    until = log.head.at(5)
    paged = Reads(log, events_max, bytes_max)
    for since in (0, 2, 3):
        replay = Replay(
            until=until, since=since, state=StateAt("first0", until), types=frozenset({MESSAGE}), announced=True
        )
        at, pages = until.at(0), list[Page]()
        while at.offset < until.offset:
            pages.append(await paged.page(at, EVERYTHING, replay))
            at = at.at(pages[-1].upto)
        assert [one.offset for page in pages for one in page.events] == ([1, 2] if since < 2 else [1])
        assert [page.completes_state for page in pages if page.events][-1]


async def test_few_client_reads_reach_the_store_at_once(nursery: trio.Nursery) -> None:
    store = Scanned()
    log = await opened(store)
    paged = Reads(log)
    found: list[int] = []

    async def read(offset: int) -> None:
        page = await paged.page(log.head.at(offset), EVERYTHING, address="a")
        found.append(len(page.events_after(offset)))

    for offset in (0, 1, 2, 0, 1, 2):
        nursery.start_soon(read, offset)
        await wait_all_tasks_blocked()
    assert len(store.scans) == READS_MAX
    store.go_on.set()
    await wait_all_tasks_blocked()
    assert sorted(found) == [1, 1, 2, 2, 3, 3]
    assert len(store.scans) == READS_MAX, "the page from 0 contains what follows 2"


async def test_clients_at_one_position_share_one_read(nursery: trio.Nursery) -> None:
    store = Scanned()
    log = await opened(store)
    paged = Reads(log)
    found: list[Page] = []

    async def read(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await paged.page(log.head.at(0), EVERYTHING))

    first = trio.CancelScope()
    for scope in (first, trio.CancelScope(), trio.CancelScope()):
        nursery.start_soon(read, scope)
        await wait_all_tasks_blocked()
    assert len(store.scans) == 1
    first.cancel()
    await wait_all_tasks_blocked()
    assert len(store.scans) == 2, "another one reads in its place"
    store.go_on.set()
    await wait_all_tasks_blocked()
    assert len(found) == 2
    assert found[0] is found[1]


async def test_each_client_learns_that_the_store_is_unavailable(nursery: trio.Nursery) -> None:
    store = Scanned()
    log = await opened(store)
    paged = Reads(log)
    store.away = True
    failed: list[str] = []

    async def read() -> None:
        with pytest.raises(StoreUnavailable):
            await paged.page(log.head.at(0), EVERYTHING)
        failed.append("unavailable")

    for _ in range(3):
        nursery.start_soon(read)
    await wait_all_tasks_blocked()
    store.go_on.set()
    await wait_all_tasks_blocked()
    assert len(failed) == 3
    store.away = False
    assert len((await paged.page(log.head.at(0), EVERYTHING)).events) == 3


async def test_a_crowd_at_one_address_does_not_delay_another_address(nursery: trio.Nursery) -> None:
    store = Scanned()
    log = await opened(store)
    paged = Reads(log)
    served: list[str] = []

    async def read(destination: Destination, address: str) -> None:
        await paged.page(log.head.at(0), destination, address=address)
        served.append(address)

    channels = [OfChannel(f"quiet{number}") for number in range(READS_MAX + 5)]
    for channel, address in [*((channel, "crowd") for channel in channels), (channels[-1], "other")]:
        nursery.start_soon(read, channel, address)
        await wait_all_tasks_blocked()
    store.go_on.set()
    await wait_all_tasks_blocked()
    assert served.index("other") <= READS_MAX + 1, "although the crowd waits for the same page"


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - the signature is Trio's
        self.count += 1


async def test_failed_read_does_not_wake_all_waiting_tasks(nursery: trio.Nursery) -> None:
    store, crowd, steps = Scanned(), 300, Steps()
    log = await opened(store)
    paged = Reads(log)
    store.away = True
    failed: list[StoreUnavailable] = []

    async def read() -> None:
        try:
            await paged.page(log.head.at(0), EVERYTHING)
        except StoreUnavailable as error:
            failed.append(error)

    for _ in range(crowd):
        nursery.start_soon(read)
    await wait_all_tasks_blocked()
    store.go_on.set()
    trio.lowlevel.add_instrument(steps)
    await wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(steps)
    assert len(failed) == crowd
    assert steps.count < 10 * crowd


async def test_a_page_ends_at_the_head_of_this_node() -> None:
    store = MemoryStore()
    log = await opened(store)
    paged = Reads(log)
    await store.append(log.head, [event(4)], "point")  # by another node; this node has not read it
    page = await paged.page(log.head.at(1), EVERYTHING)
    assert (page.upto, [one.offset for one in page.events]) == (3, [2, 3])
    await log.catch_up()
    assert [one.offset for one in await read_on(paged, 1, EVERYTHING)] == [2, 3, 4]


@pytest.mark.parametrize("others, scans", [(PAGES_MAX - 1, 0), (PAGES_MAX, 1)])
async def test_the_last_retained_page_and_one_more(others: int, scans: int) -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store, PAGE_EVENTS_MAX + 1)
    paged = Reads(log)
    await paged.page(log.head.at(0), EVERYTHING)
    for number in range(others):
        await paged.page(log.head.at(0), OfChannel(f"quiet{number}"))
    store.scans.clear()
    await paged.page(log.head.at(1), EVERYTHING)
    assert len(store.scans) == scans


async def scans_after_two_reads(made: Sequence[NewEvent]) -> list[int]:
    """Read a quiet destination with these events twice; return where the store's scans began."""
    store = Scanned()
    store.go_on.set()
    log = await opened(store, 20)
    paged = Reads(log)
    await log.append(log.head, made, "point")
    for _ in range(2):
        assert len((await paged.page(log.head.at(0), OfChannel("quiet"))).events) == len(made)
    return [position.offset for position in store.scans]


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("count, scans", [(REMEMBERED_EVENTS_MAX, [0]), (REMEMBERED_EVENTS_MAX + 1, [0, 0])])
async def test_the_last_remembered_event_and_one_more(count: int, scans: list[int]) -> None:
    assert await scans_after_two_reads([event(number, channel_id="quiet") for number in range(count)]) == scans


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("size, scans", [(REMEMBERED_BYTES_MAX, [0]), (REMEMBERED_BYTES_MAX + 1, [0, 0])])
async def test_the_last_remembered_byte_and_one_more(size: int, scans: list[int]) -> None:
    bodies = b"x" * (size // 2), b"x" * (size - size // 2)
    made = [event(number, channel_id="quiet")._replace(body=body) for number, body in enumerate(bodies)]
    assert await scans_after_two_reads(made) == scans


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("others, scans", [(REMEMBERED_MAX - 1, 0), (REMEMBERED_MAX, 1)])
async def test_the_last_remembered_destination_and_one_more(others: int, scans: int) -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store)
    paged = Reads(log)

    async def read(number: int) -> None:
        assert (await paged.page(log.head.at(0), OfChannel(f"quiet{number}"))).events == ()

    for number in range(others + 1):
        await read(number)
    store.scans.clear()
    await read(0)
    assert len(store.scans) == scans


@pytest.mark.parametrize("others, scans", [(REMEMBERED_MAX - 1, 0), (REMEMBERED_MAX, 1)])
async def test_the_last_remembered_conversation_and_one_more(others: int, scans: int) -> None:
    store = Scanned()
    log = await opened(store, tail_events=1)
    paged = Reads(log)
    for number in range(others + 1):
        assert await paged.channels_of(OfConversation(f"unknown{number}")) == frozenset()
    store.backwards.clear()
    await paged.channels_of(OfConversation("unknown0"))
    assert len(store.backwards) == scans


@pytest.mark.parametrize("conversation, channels", [("unknown", frozenset()), ("old", frozenset({"ch2"}))])
async def test_the_whole_log_is_scanned_once_for_a_conversation(conversation: str, channels: frozenset[str]) -> None:
    store = Scanned()
    store.go_on.set()
    log = await opened(store, 0, tail_events=1)
    paged = Reads(log)
    first = event(1, conversation_id="old", channel_id="ch2")
    await log.append(log.head, [first, *(event(number) for number in range(2, 20))], "point")
    destination = OfConversation(conversation)
    assert [await paged.channels_of(destination) for _ in range(3)] == [channels] * 3
    await log.append(log.head, [event(20), event(21)], "point")
    assert [await paged.channels_of(destination) for _ in range(3)] == [channels] * 3
    assert [position.offset for position in store.backwards] == [19]
    assert [position.offset for position in store.scans] == [19], "only what is new is scanned"
    moved = event(22, conversation_id=conversation, channel_id="ch3")
    await log.append(log.head, [moved, event(23), event(24)], "point")
    assert [await paged.channels_of(destination) for _ in range(3)] == [{"ch3"}] * 3
    assert [position.offset for position in store.backwards] == [19, 24]


async def test_no_channel_is_remembered_beyond_its_epoch() -> None:
    store = Scanned()
    log = await opened(store, tail_events=1)
    paged = Reads(log)
    destination = OfConversation("c1")
    await log.append(log.head, [event(4, conversation_id="c2")], "point")
    assert await paged.channels_of(destination) == {"ch1"}
    await log.append(await log.begin_epoch(log.head, "again"), [event(5, conversation_id="c2")] * 2, "point")
    assert await paged.channels_of(destination) == frozenset()
    assert len(store.backwards) == 2


async def test_no_channel_is_remembered_longer_than_events_are_retained(autojump_clock: MockClock) -> None:
    store = MemoryStore(trio.current_time)
    log = EventLog(store, LogOptions(store="memory", tail_events=1, retain_s=3600))
    await log.open()
    paged = Reads(log)
    await log.append(log.head, [event(1), event(2, conversation_id="c2")], "point")
    assert await paged.channels_of(OfConversation("c1")) == {"ch1"}
    await trio.sleep(3601)
    await log.append(log.head, [event(3, conversation_id="c2")], "point")
    assert await paged.channels_of(OfConversation("c1")) == frozenset()
