"""The newest events in memory: bounded in events and bytes, and complete for every view."""

import sys
from collections.abc import Sequence
from types import FrameType

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st

from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfConversation, OfType, Within, covers
from airy_trio.log.store import StoredEvent
from airy_trio.log.tail import Tail, View

DESTINATIONS: tuple[Destination, ...] = (
    EVERYTHING,
    OfType("message.updated"),
    OfType("tag.updated"),
    OfChannel("ch1"),
    OfConversation("c1"),
    Within(EVERYTHING, frozenset({"ch1", "ch2"})),
    Within(EVERYTHING, frozenset({"ch2", "ch3"})),
    Within(OfType("tag.updated"), frozenset({"ch1"})),
    Within(OfConversation("c1"), frozenset({"ch2", "ch4"})),
)


def stored(offset: int, *, at_ms: int = 0, size: int = 10, **changed: str | None) -> StoredEvent:
    facts = {"type": "message.updated", "object": f"message:{offset}", "conversation_id": "c1", "channel_id": "ch1"}
    return StoredEvent(
        offset=offset, appended_at_ms=at_ms, body=b"x" * size, truncated=False, **{**facts, **changed}  # type: ignore[arg-type]
    )  # fmt: skip


def tail_of(count: int, *, events_max: int = 100, bytes_max: int = 10_000, size: int = 10) -> Tail:
    tail = Tail(events_max=events_max, bytes_max=bytes_max)
    tail.extend(stored(offset, size=size) for offset in range(1, count + 1))
    return tail


def offsets(events: Sequence[StoredEvent]) -> list[int]:
    return [event.offset for event in events]


@pytest.mark.parametrize("count, evicted", [(99, 0), (100, 0), (101, 6), (106, 6), (107, 12)])
def test_events_are_bounded_and_evicted_in_slices(count: int, evicted: int) -> None:
    tail = tail_of(count)
    assert (tail.evicted, tail.last, tail.statistics()["events"]) == (evicted, count, count - evicted)


@pytest.mark.parametrize("count, evicted", [(10, 0), (11, 1), (12, 2)])
def test_bytes_are_bounded(count: int, evicted: int) -> None:
    tail = tail_of(count, events_max=15, bytes_max=1000, size=100)
    assert (tail.evicted, tail.statistics()["bytes"]) == (evicted, 100 * (count - evicted))


def test_the_newest_event_is_never_evicted() -> None:
    tail = tail_of(3)
    tail.extend([stored(4, size=20_000)])
    assert (tail.evicted, tail.last, tail.statistics()["bytes"]) == (3, 4, 20_000)
    tail.extend([stored(5)])
    assert (tail.evicted, tail.last, tail.statistics()["bytes"]) == (4, 5, 10)


def test_a_tail_of_one_event() -> None:
    tail = tail_of(5, events_max=1)
    assert (tail.evicted, tail.last) == (4, 5)


def test_known_events_are_skipped_and_gaps_raise() -> None:
    tail = tail_of(3)
    tail.extend(stored(offset) for offset in (2, 3, 4))
    assert tail.last == 4
    with pytest.raises(ValueError, match="6 does not follow 4"):
        tail.extend([stored(6)])


def test_only_views_with_readers_grow() -> None:
    tail = Tail(events_max=100, bytes_max=10_000)
    view = tail.attach(OfChannel("ch1"), "reader")
    assert tail.extend([stored(1), stored(2)]) == {view}
    assert tail.extend([stored(3, channel_id="ch2")]) == set()
    assert (view.last, view.offsets) == (2, [1, 2])
    tail.detach(view, "reader")
    assert tail.extend([stored(4)]) == set()


def test_a_late_reader_gets_a_complete_view() -> None:
    tail = tail_of(5)
    view = tail.attach(OfConversation("c1"), "reader")
    assert offsets(tail.after(view, 2, events_max=10, bytes_max=1000)) == [3, 4, 5]


def test_a_quiet_destination_serves_old_cursors() -> None:
    tail = Tail(events_max=10, bytes_max=10_000)
    view = tail.attach(OfChannel("quiet"), "reader")
    tail.extend(stored(offset) for offset in range(1, 50))
    assert tail.evicted > 0
    tail.extend([stored(50, channel_id="quiet")])
    assert offsets(tail.after(view, 0, events_max=10, bytes_max=1000)) == [50]


def test_a_new_view_starts_at_the_evicted_events() -> None:
    tail = tail_of(101)
    view = tail.attach(OfChannel("quiet"), "reader")
    assert (view.evicted, view.last) == (6, 6)
    with pytest.raises(LookupError):
        tail.after(view, 5, events_max=10, bytes_max=1000)
    assert tail.after(view, 6, events_max=10, bytes_max=1000) == []


@pytest.mark.parametrize("events_max, bytes_max, found", [(2, 1000, [1, 2]), (9, 25, [1, 2]), (9, 5, [1])])
def test_a_read_is_bounded_but_returns_one_event(events_max: int, bytes_max: int, found: list[int]) -> None:
    tail = tail_of(5)
    view = tail.attach(EVERYTHING, "reader")
    assert offsets(tail.after(view, 0, events_max=events_max, bytes_max=bytes_max)) == found


def test_empty_views_without_readers_are_forgotten() -> None:
    tail = Tail(events_max=16, bytes_max=10_000)
    tail.extend(stored(offset, conversation_id=f"c{offset}") for offset in range(1, 500))
    assert tail.statistics()["views"] == 3 + 16
    view = tail.attach(OfConversation("other"), "reader")
    assert tail.statistics()["views"] == 4 + 16
    tail.detach(view, "reader")
    assert tail.statistics()["views"] == 3 + 16


def test_detaching_twice_does_not_affect_a_later_view() -> None:
    tail = Tail(events_max=16, bytes_max=10_000)
    first = tail.attach(OfChannel("ch9"), "first")
    tail.detach(first, "first")
    second = tail.attach(OfChannel("ch9"), "second")
    tail.detach(first, "first")
    assert tail.extend([stored(1, channel_id="ch9")]) == {second}


def test_start_after_empties_every_view() -> None:
    tail = tail_of(5)
    view = tail.attach(EVERYTHING, "reader")
    assert tail.start_after(20) == {view}
    assert (tail.evicted, tail.last, view.evicted, view.last) == (20, 20, 20, 20)
    assert tail.statistics() == {"events": 0, "bytes": 0, "views": 1}
    assert tail.newest is None
    tail.extend([stored(21)])
    assert offsets(tail.after(view, 20, events_max=10, bytes_max=1000)) == [21]


def test_events_since_a_time_follow_an_offset() -> None:
    tail = Tail(events_max=100, bytes_max=10_000)
    tail.extend(stored(number, at_ms=10 * number) for number in range(1, 6))
    assert [tail.since(since_ms) for since_ms in (0, 10, 11, 40, 41, 51)] == [0, 0, 1, 3, 4, 5]
    assert Tail(events_max=100, bytes_max=10_000).since(0) == 0


def test_events_since_a_time_are_unknown_beyond_the_tail() -> None:
    tail = Tail(events_max=16, bytes_max=10_000)
    tail.extend(stored(number, at_ms=10 * number) for number in range(1, 20))  # evicted: 1, 2, 3
    assert tail.evicted == 3
    assert [tail.since(since_ms) for since_ms in (30, 31, 40, 41)] == [None, 3, 3, 4]


def test_events_since_a_time_are_unknown_after_start_after() -> None:
    tail = Tail(events_max=16, bytes_max=10_000)
    tail.extend(stored(number, at_ms=number) for number in range(1, 20))
    assert tail.since(10) is not None  # the tail knows when the event before its first one was appended
    tail.start_after(37)
    assert tail.since(10) is None
    tail.extend([stored(38, at_ms=80)])
    assert (tail.since(80), tail.since(81)) == (None, 38)


def test_newer_events_are_known_while_they_are_in_memory() -> None:
    tail = Tail(events_max=2, bytes_max=10_000)
    first, second = (stored(offset, object="a") for offset in (1, 2))
    tail.extend([first, second])
    assert (tail.has_newer(first), tail.has_newer(second)) == (True, False)
    tail.extend(stored(offset, object=f"{offset}") for offset in (3, 4))
    assert not tail.has_newer(first)
    tail.start_after(4)
    assert not tail.has_newer(stored(0, object="4"))


def test_the_newest_event_of_a_conversation_is_found() -> None:
    tail = Tail(events_max=16, bytes_max=10_000)
    tail.extend(stored(number, conversation_id=f"c{number % 2}") for number in range(1, 20))
    newest = tail.newest_of(OfConversation("c0"))
    assert newest is not None
    assert (newest.offset, tail.newest_of(OfConversation("c2"))) == (18, None)


@define
class NaiveTail:
    """Keeps all events forever, and computes the contents of a view."""

    events: list[StoredEvent] = field(factory=list)

    def after(self, destination: Destination, offset: int, evicted: int) -> list[StoredEvent]:
        return [one for one in self.events if one.offset > max(offset, evicted) and covers(destination, one)]


events_of_one_step = st.lists(
    st.tuples(
        st.sampled_from(("message.updated", "tag.updated")),
        st.sampled_from((None, "ch1", "ch2")),
        st.sampled_from((None, "c1", "c2")),
        st.integers(0, 60),
    ),
    max_size=8,
)


@settings(max_examples=2 * settings().max_examples)
@given(st.integers(1, 20), st.integers(1, 300), st.lists(events_of_one_step, max_size=20), st.data())
def test_it_agrees_with_a_list(
    events_max: int, bytes_max: int, steps: list[list[tuple[str, str | None, str | None, int]]], data: st.DataObject
) -> None:
    tail, naive = Tail(events_max=events_max, bytes_max=bytes_max), NaiveTail()
    views: dict[Destination, View] = {}
    for step in steps:
        new = [
            stored(number, type=type_, channel_id=channel, conversation_id=conversation, size=size)
            for number, (type_, channel, conversation, size) in enumerate(step, start=len(naive.events) + 1)
        ]
        naive.events += new
        grown = tail.extend(new)
        assert {view.destination for view in grown} == {
            destination for destination in views if any(covers(destination, event) for event in new)
        }
        held = naive.events[tail.evicted :]
        assert len(held) <= events_max
        assert len(held) <= 1 or sum(len(event.body) for event in held) <= bytes_max
        assert tail.statistics()["bytes"] == sum(len(event.body) for event in held)
        destination = data.draw(st.sampled_from(DESTINATIONS))
        if destination in views:
            tail.detach(views.pop(destination), "reader")
        else:
            views[destination] = tail.attach(destination, "reader")
        for destination, view in views.items():
            wanted = naive.after(destination, 0, tail.evicted)
            assert list(tail.after(view, view.evicted, events_max=100, bytes_max=10_000)) == wanted
            assert view.last == (wanted[-1].offset if wanted else view.evicted)
            assert all(event.offset <= view.evicted or event in wanted
                       for event in naive.events if covers(destination, event))  # fmt: skip
            cursor = data.draw(st.integers(view.evicted, max(view.evicted, tail.last)))
            found = tail.after(view, cursor, events_max=100, bytes_max=10_000)
            assert found == naive.after(destination, cursor, 0)
            few = data.draw(st.integers(1, 4))
            assert tail.after(view, cursor, events_max=few, bytes_max=10_000) == found[:few]


@pytest.mark.parametrize("scanned", [0, 4, 10_000], ids=["by channel", "as it is", "one by one"])
def test_both_ways_to_read_a_narrow_view_agree(scanned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airy_trio.log.tail.SCANNED_PER_CHANNEL", scanned)
    tail = Tail(events_max=200, bytes_max=1_000_000)
    destination = Within(OfType("message.updated"), frozenset(f"ch{number}" for number in range(0, 20, 3)))
    tail.extend(stored(offset, channel_id=f"ch{offset * 7 % 20}") for offset in range(1, 301))
    view = tail.attach(destination, "reader")
    wanted = [offset for offset in range(tail.evicted + 1, 301) if offset * 7 % 20 % 3 == 0]
    assert view.last == wanted[-1]
    assert offsets(tail.after(view, view.evicted, events_max=1000, bytes_max=1_000_000)) == wanted


def test_readers_with_the_same_rights_share_a_view() -> None:
    tail = tail_of(5)
    before = tail.statistics()
    destination = Within(EVERYTHING, frozenset({"ch1", "ch2"}))
    first, second = tail.attach(destination, "first"), tail.attach(evolve(destination), "second")
    assert first is second
    tail.detach(first, "first")
    assert tail.extend([stored(6)]) == {first}
    tail.detach(first, "second")
    tail.detach(first, "second")
    assert tail.extend([stored(7)]) == set()
    assert tail.statistics()["views"] == before["views"]


def test_start_after_empties_narrow_views() -> None:
    tail = tail_of(5)
    view = tail.attach(Within(EVERYTHING, frozenset({"ch1", "ch2"})), "reader")
    assert tail.start_after(20) == {view}
    assert (view.evicted, view.last) == (20, 20)
    assert tail.extend([stored(21)]) == {view}


def test_events_cost_nothing_for_readers_of_other_channels() -> None:
    """The number of calls, counted with ``sys.setprofile``, does not depend on the number of other readers."""

    def calls(readers: int) -> int:
        tail = Tail(events_max=1000, bytes_max=1_000_000)
        for number in range(readers):
            tail.attach(Within(EVERYTHING, frozenset({f"a{number}", f"b{number}"})), number)
        count = 0

        def profile(frame: FrameType, _event: str, _argument: object) -> None:
            nonlocal count
            count += "airy_trio" in frame.f_code.co_filename  # ignores calls of the garbage collector

        sys.setprofile(profile)
        try:
            tail.extend(stored(offset) for offset in range(1, 101))
        finally:
            sys.setprofile(None)
        return count

    assert calls(2000) <= calls(1) * 1.01  # not 200 000 more
