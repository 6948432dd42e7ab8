"""Where a subscription starts: the verdicts of the wire contract, "Positions and resuming"."""

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from airy_trio.delivery.client import ReplayOptions
from airy_trio.delivery.start import Start, StartRequest, start
from airy_trio.events.destinations import EVERYTHING
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import Bounds, StoreUnavailable
from tests.sessions.serving import event, events, open_log

OPTIONS = ReplayOptions(window_s=3600, events_max=3)


async def filled(count: int = 10, *, tail_events: int = 20_000) -> EventLog:
    log = await open_log(options=LogOptions(store="memory", tail_events=tail_events))
    await log.append(log.head, events(1, count), "point")
    return log


async def started(
    log: EventLog, last_event_id: str | None = None, replay: str | None = None, options: ReplayOptions = OPTIONS
) -> tuple[int, str, list[int]]:
    view = log.attach(EVERYTHING, log)
    found: Start = await start(log, view, StartRequest(last_event_id, replay), options)
    assert found.position.epoch == log.epoch
    return found.position.offset, found.resume, [event.offset for event in found.backlog]


async def test_without_a_position_the_recent_window_comes_first() -> None:
    assert await started(await filled()) == (10, "live", [8, 9, 10])


async def test_window_has_the_newest_event_of_each_object() -> None:
    log = await open_log()
    await log.append(log.head, [event(n, obj=name) for n, name in enumerate("abcab", start=1)], "point")
    assert await started(log) == (5, "live", [3, 4, 5])


async def test_none_turns_the_window_off_and_all_gives_everything() -> None:
    log = await filled()
    await log.store.trim(age_s=3600, keep=4, limit=100, unused_s=10**6)
    assert await started(log, replay="none") == (10, "live", [])
    assert await started(log, replay="all") == (6, "live", [])


@pytest.mark.parametrize("offset", [0, 4, 10])
async def test_a_retained_position_is_resumed(offset: int) -> None:
    log = await filled()
    assert await started(log, str(log.head.at(offset)), "none") == (offset, "resumed", [])


@pytest.mark.parametrize("offset, verdict", [(5, "reset-expired"), (6, "resumed")])
async def test_a_position_before_trimmed_events_is_reset(offset: int, verdict: str) -> None:
    log = await filled(tail_events=3)
    await log.store.trim(age_s=3600, keep=4, limit=100, unused_s=10**6)
    position, found, backlog = await started(log, str(log.head.at(offset)))
    assert found == verdict
    assert (position, backlog) == ((6, []) if verdict == "resumed" else (10, [8, 9, 10]))


@pytest.mark.parametrize("received", ["", "nonsense", "abcdef-3", "zzzzzz-00", "ABCDEF-1"])
async def test_a_foreign_or_malformed_position_is_reset(received: str) -> None:
    assert await started(await filled(), received) == (10, "reset-epoch", [8, 9, 10])


async def test_a_position_beyond_the_head_is_reset() -> None:
    log = await filled()
    assert await started(log, str(log.head.at(11))) == (10, "reset-epoch", [8, 9, 10])


async def test_node_catches_up_to_a_position_from_another_node() -> None:
    store = MemoryStore()
    log, other = await open_log(store), await open_log(store)
    await other.append(other.head, events(1, 5), "point")
    assert log.head.offset == 0
    assert await started(log, str(other.head)) == (5, "resumed", [])


@pytest.mark.parametrize("asked", [None, 2])
async def test_an_epoch_that_begins_during_the_read_is_reported(
    asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await filled(tail_events=3)
    received = None if asked is None else str(log.head.at(asked))
    bounds = log.store.bounds

    async def another_node_began_one() -> Bounds:
        monkeypatch.undo()
        head = await log.store.begin_epoch(log.head, "point")
        await log.store.append(head.head, events(1, 4), "point")
        return await bounds()

    monkeypatch.setattr(log.store, "bounds", another_node_began_one)
    expected = (0, "live", []) if asked is None else (4, "reset-epoch", [2, 3, 4])
    assert await started(log, received, "all") == expected


async def test_an_unavailable_store_is_waited_for(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await filled()
    asked: list[float] = []
    bounds = log.store.bounds

    async def away() -> Bounds:
        asked.append(trio.current_time())
        if len(asked) < 8:
            message = "away"
            raise StoreUnavailable(message)
        return await bounds()

    monkeypatch.setattr(log.store, "bounds", away)
    assert await started(log, replay="all") == (0, "live", [])
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1, 1])
