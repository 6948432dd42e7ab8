"""Where a subscription starts: the verdicts of the wire contract, "Positions and resuming"."""

from functools import partial
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from airy_trio.delivery.client import ReplayOptions
from airy_trio.delivery.start import LIVE, Start, StartRequest, start
from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfConversation, OfType, Within
from airy_trio.events.models import TYPES
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.reads import STATE_AGE_S, Reads, Replay
from airy_trio.log.store import Bounds, Position, StateAt, StoreUnavailable
from airy_trio.log.tail import COMPARED_MAX
from airy_trio.retry import until_available
from tests.delivery.kept import GENERATION, keep
from tests.sessions.serving import event, events, open_log

OPTIONS = ReplayOptions(window_s=3600, events_max=3)
WINDOW = ReplayOptions(window_s=3600)


async def filled(count: int = 10, *, tail_events: int = 20_000) -> EventLog:
    log = await open_log(options=LogOptions(store="memory", tail_events=tail_events))
    await log.append(log.head, events(1, count), "point")
    return log


async def started(
    log: EventLog, last_event_id: str | None = None, replay: str | None = None, options: ReplayOptions = OPTIONS
) -> tuple[int, str]:
    view = log.tail.attach(EVERYTHING, log)
    found: Start = await until_available(partial(start, Reads(log), view, StartRequest(last_event_id, replay), options))
    assert found.position.epoch == log.epoch
    return found.position.offset, found.resume


@pytest.mark.parametrize("replay", [None, "recent"])
async def test_without_a_position_the_recent_window_comes_first(replay: str | None) -> None:
    whole, none = (ReplayOptions(window_s=window_s) for window_s in (3600, 0))
    log = await filled(tail_events=4)
    assert await started(log, replay=replay, options=whole) == (0, "live")
    await log.store.trim(age_s=3600, keep=8, limit=100, unused_s=10**6)
    assert await started(log, replay=replay, options=whole) == (2, "live")
    await trio.sleep(0.01)
    assert await started(log, replay=replay, options=none) == (10, "live")


async def test_events_max_does_not_lengthen_the_window() -> None:
    log = await filled()
    await trio.sleep(0.01)
    assert await started(log, options=ReplayOptions(window_s=0, events_max=3)) == (10, "live")


@pytest.mark.parametrize("events_max, position, state", [(3, 7, "partial"), (9, 1, "partial"), (10, 0, None)])
async def test_a_window_that_is_cut_is_partial(events_max: int, position: int, state: str | None) -> None:
    log = await filled()
    view = log.tail.attach(EVERYTHING, log)
    found = await start(Reads(log), view, StartRequest(None, None), ReplayOptions(window_s=3600, events_max=events_max))
    assert found.position.offset == position
    assert dict(found.headers).get("state") == state


async def test_none_turns_the_window_off_and_all_gives_everything() -> None:
    log = await filled()
    await log.store.trim(age_s=3600, keep=4, limit=100, unused_s=10**6)
    assert await started(log, replay="none") == (10, "live")
    assert await started(log, replay="all") == (6, "live")


@pytest.mark.parametrize("offset", [0, 4, 10])
async def test_a_retained_position_is_resumed(offset: int) -> None:
    log = await filled()
    assert await started(log, str(log.head.at(offset)), "none") == (offset, "resumed")


@pytest.mark.parametrize("offset, verdict", [(5, "reset-expired"), (6, "resumed")])
async def test_a_position_before_trimmed_events_is_reset(offset: int, verdict: str) -> None:
    log = await filled(tail_events=3)
    await log.store.trim(age_s=3600, keep=4, limit=100, unused_s=10**6)
    position, found = await started(log, str(log.head.at(offset)))
    assert (position, found) == (6 if verdict == "resumed" else 7, verdict)


@pytest.mark.parametrize("received", ["", "nonsense", "abcdef-3", "zzzzzz-00", "ABCDEF-1"])
async def test_a_foreign_or_malformed_position_is_reset(received: str) -> None:
    assert await started(await filled(), received) == (7, "reset-epoch")


async def test_a_position_beyond_the_head_is_reset() -> None:
    log = await filled()
    assert await started(log, str(log.head.at(11))) == (7, "reset-epoch")


@pytest.mark.parametrize("replay, position", [("none", 10), ("all", 6), ("recent", 7), (None, 7)])
async def test_replay_decides_after_a_reset(replay: str | None, position: int) -> None:
    log = await filled(tail_events=3)
    await log.store.trim(age_s=3600, keep=4, limit=100, unused_s=10**6)
    assert await started(log, str(log.head.at(5)), replay) == (position, "reset-expired")
    assert await started(log, "zzzzzz-1", replay) == (position, "reset-epoch")
    assert await started(log, str(log.head.at(6)), replay) == (6, "resumed")


async def test_node_catches_up_to_a_position_from_another_node() -> None:
    store = MemoryStore()
    log, other = await open_log(store), await open_log(store)
    await other.append(other.head, events(1, 5), "point")
    assert log.head.offset == 0
    assert await started(log, str(other.head)) == (5, "resumed")


@pytest.mark.parametrize("resume_from", [None, 2])
async def test_an_epoch_that_begins_during_the_read_is_reported(
    resume_from: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await filled(tail_events=3)
    received = None if resume_from is None else str(log.head.at(resume_from))
    bounds = log.store.bounds

    async def another_node_began_one() -> Bounds:
        monkeypatch.undo()
        head = await log.store.begin_epoch(log.head, "point")
        await log.store.append(head.head, events(1, 4), "point")
        return await bounds()

    monkeypatch.setattr(log.store, "bounds", another_node_began_one)
    expected = (0, "live" if resume_from is None else "reset-epoch")
    assert await started(log, received, "all") == expected


async def test_an_unavailable_store_is_waited_for(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await filled()
    read_at: list[float] = []
    bounds = log.store.bounds

    async def away() -> Bounds:
        read_at.append(trio.current_time())
        if len(read_at) < 8:
            raise StoreUnavailable("away")
        return await bounds()

    monkeypatch.setattr(log.store, "bounds", away)
    assert await started(log, replay="all") == (0, "live")
    pauses = [after - before for before, after in pairwise(read_at)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1, 1])


MAPPED = "message.updated tag.updated channel.updated metadata.updated"


async def found_state(reads: Reads, destination: Destination = EVERYTHING, last_event_id: str | None = None) -> Start:
    return await start(
        reads, reads.log.tail.attach(destination, reads), StartRequest(last_event_id, "current"), OPTIONS
    )


def state_of(found: Start) -> StateAt | None:
    return None if found.replay is None else found.replay.state


@pytest.mark.parametrize(
    "types, whole, destination, missing",
    [
        ("message.updated", "message.updated", EVERYTHING, ""),
        (MAPPED, "message.updated", EVERYTHING, "channel.updated metadata.updated tag.updated"),
        (MAPPED, "message.updated", OfType("message.updated"), ""),
        (MAPPED, "message.updated", OfType("tag.updated"), "tag.updated"),
        (MAPPED, "message.updated", OfType("message.deleted"), ""),
        (MAPPED, "message.updated", OfChannel("ch1"), "channel.updated metadata.updated"),
        (MAPPED, "message.updated", OfConversation("c1"), "metadata.updated"),
        (MAPPED, "message.updated", Within(EVERYTHING, frozenset({"ch1"})), "channel.updated metadata.updated"),
        (MAPPED, "", EVERYTHING, MAPPED),
    ],
)
async def test_missing_types_are_named(types: str, whole: str, destination: Destination, missing: str) -> None:
    """A type is missing if it is mapped, belongs to the destination, and has had no backfill."""
    log = await open_log()
    reads = Reads(log)
    await keep(log, "ab", types=types, whole=whole)
    headers = dict((await found_state(reads, destination)).headers)
    assert headers["until"] == str(log.head)
    assert (headers["state"], headers.get("state-missing", "")) == (
        "partial" if missing else "current",
        ",".join(sorted(missing.split())),
    )


async def test_without_a_recorded_state_every_type_is_missing() -> None:
    log = await filled()
    reads = Reads(log)
    assert dict((await found_state(reads)).headers) == {
        "position": str(log.head.at(log.head.offset - 3)),
        "resume": "live",
        "state": "partial",
        "until": str(log.head),
        "state-missing": ",".join(sorted(MAPPED.split())),
    }


async def test_an_empty_state_ends_where_it_begins() -> None:
    log = await filled()
    reads = Reads(log)
    await keep(log, "ab", types=MAPPED, whole=MAPPED)
    begin = await found_state(reads, OfType("tag.updated"))
    assert (begin.replay, begin.position, until_of(begin)) == (None, log.head, log.head)
    assert dict(begin.headers)["state"] == "current"
    begin = await found_state(reads)
    assert (state_of(begin), begin.position) == (StateAt(GENERATION, log.head), log.head.at(0))


async def test_resumable_position_has_precedence_over_the_state() -> None:
    log = await filled(tail_events=3)
    reads = Reads(log)
    await keep(log, "ab")
    begin = await found_state(reads, last_event_id=str(log.head.at(5)))
    assert begin.headers == (("position", str(log.head.at(5))), ("resume", "resumed"))
    await log.store.trim(age_s=3600, keep=4, limit=100, unused_s=10**6)
    begin = await found_state(reads, last_event_id=str(log.head.at(5)))
    assert (begin.resume, begin.position.offset, state_of(begin)) == ("reset-expired", 0, StateAt(GENERATION, log.head))


async def test_another_generation_or_epoch_during_the_read_is_followed(autojump_clock: MockClock) -> None:
    log = await filled()
    reads = Reads(log)
    await keep(log, "ab")
    assert state_of(await found_state(reads)) == StateAt(GENERATION, log.head)
    before = log.head
    await keep(log, "c", generation="second")
    other = OfType("message.updated")  # its pages are not retained yet
    assert state_of(await found_state(reads, other)) == StateAt("second", log.head)
    await log.begin_epoch(log.head, "point")
    begin = await found_state(reads)
    assert (begin.replay, until_of(begin)) == (None, log.head)
    assert dict(begin.headers)["state"] == "partial"
    assert log.epoch != before.epoch
    await log.begin_epoch(log.head, "point")
    assert until_of(await found_state(reads)) == log.head


async def test_clients_that_come_together_get_the_same_state(autojump_clock: MockClock) -> None:
    log = await filled()
    reads = Reads(log)
    await keep(log, "ab")
    first = until_of(await found_state(reads))
    await keep(log, "c")
    assert until_of(await found_state(reads)) == first
    await trio.sleep(STATE_AGE_S)
    assert until_of(await found_state(reads)) == log.head


async def test_the_state_ends_at_the_head_of_this_node() -> None:
    """The node may not have read the newest events of the store; they follow the state."""
    store = MemoryStore()
    log, other = await open_log(store), await open_log(store)
    reads = Reads(log)
    await keep(other, "ab")
    await log.catch_up()
    await keep(other, "bc")
    begin = await found_state(reads)
    assert until_of(begin) == log.head == other.head.at(2)


def until_of(begin: Start) -> Position | None:
    return Position.parse(dict(begin.headers)["until"])


async def recent(reads: Reads, options: ReplayOptions = WINDOW) -> Start:
    return await start(reads, reads.log.tail.attach(EVERYTHING, reads), StartRequest(None, None), options)


@pytest.mark.parametrize("tail_events", [20_000, 2])
async def test_recent_window_with_repeated_objects_is_read_in_pages(
    tail_events: int, autojump_clock: MockClock
) -> None:
    """Clients that come together read the same pages, up to a position that is a second old at most."""
    log = await open_log(options=LogOptions(store="memory", tail_events=tail_events))
    reads = Reads(log)
    await keep(log, "abab")
    await recent(reads)
    await keep(log, "bc")
    found = await recent(reads)
    assert (found.position, found.replay) == (log.head.at(0), Replay(until=log.head.at(4)))
    assert [name for name, _ in found.headers] == ["position", "resume"]
    await trio.sleep(STATE_AGE_S)
    assert (await recent(reads)).replay == Replay(until=log.head)
    await log.begin_epoch(log.head, "point")
    await keep(log, "aa")
    assert (await recent(reads)).replay == Replay(until=log.head)


async def test_recent_window_without_repeated_objects_is_a_position(autojump_clock: MockClock) -> None:
    log = await open_log()
    reads = Reads(log)
    await keep(log, "abc")
    assert await recent(reads) == Start(log.head.at(0), LIVE)
    await keep(log, "a")
    await trio.sleep(STATE_AGE_S)
    assert (await recent(reads)).replay is not None
    assert (await recent(reads, ReplayOptions(window_s=3600, events_max=3))).replay is None
    await log.begin_epoch(log.head, "point")
    assert await recent(reads) == Start(log.head, LIVE)


@pytest.mark.parametrize("count", [COMPARED_MAX - 1, COMPARED_MAX])
async def test_large_recent_window_is_not_searched_for_repeated_objects(count: int) -> None:
    log = await open_log()
    reads = Reads(log)
    await keep(log, [str(number) for number in range(count)])
    assert ((await recent(reads)).replay is None) == (count < COMPARED_MAX)


WINDOW_TYPES = {"message.updated", "message.deleted", "metadata.updated"}


@pytest.mark.parametrize(
    "destination, since, types",
    [
        (EVERYTHING, 8, WINDOW_TYPES),
        (OfChannel("ch1"), 8, WINDOW_TYPES),
        (OfType("message.updated"), 8, {"message.updated"}),
        (OfType("message.deleted"), 8, {"message.deleted"}),
        (OfType("tag.updated"), 10, set()),
    ],
)
async def test_current_state_has_the_recent_window_of_types_that_are_not_kept(
    destination: Destination, since: int, types: set[str]
) -> None:
    log = await open_log()
    await keep(log, "abcdefghij", kept="channel.updated tag.updated")
    options = ReplayOptions(window_s=3600, events_max=2)
    reads = Reads(log)
    found = await reads.current_state(options.window_s)
    assert found.at is not None
    replay = Replay(until=log.head, since=since, state=found.at, types=frozenset(types), announced=True)
    begun = await start(reads, log.tail.attach(destination, log), StartRequest(None, "current"), options)
    page = await reads.page(log.head.at(0), destination, replay)
    sent = [event.offset for event in page.events]
    assert sent == ([9, 10] if "message.updated" in types else [])
    assert (begun.position, begun.replay) == ((log.head.at(0), replay) if sent else (log.head, None))


@pytest.mark.parametrize("tail_events, sent", [(20_000, [2, 3]), (1, [1, 2, 3])])
async def test_window_within_the_current_state_ends_with_the_deletion(tail_events: int, sent: list[int]) -> None:
    """If the deletion is not in memory any more, the event before it is sent as well."""
    log = await open_log(options=LogOptions(store="memory", tail_events=tail_events))
    kinds = [("a", "message.updated"), ("a", "message.deleted"), ("b", "message.updated")]
    new = [event(number, obj=name, kind=kind) for number, (name, kind) in enumerate(kinds, start=1)]
    await log.append(log.head, new, "point")
    begin = await start(Reads(log), log.tail.attach(EVERYTHING, log), StartRequest(None, "current"), WINDOW)
    page = await Reads(log).page(begin.position, EVERYTHING, begin.replay)
    assert [event.offset for event in page.events] == sent


async def test_without_a_state_only_the_recent_window_is_sent() -> None:
    log = await filled()
    reads = Reads(log)
    begin = await found_state(reads)
    replay = Replay(until=log.head, since=7, types=frozenset(TYPES), announced=True)
    assert (begin.position, begin.replay) == (log.head.at(7), replay)
    assert dict(begin.headers)["state"] == "partial"
    await trio.sleep(0.01)
    log, options = await open_log(log.store), ReplayOptions(window_s=0)
    begin = await start(Reads(log), log.tail.attach(EVERYTHING, log), StartRequest(None, "current"), options)
    assert (begin.position, begin.replay) == (log.head, None)
    assert dict(begin.headers)["state"] == "partial"
