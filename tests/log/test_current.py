"""The recorder of the current state: generations, backfills, what becomes the state of an object, and what ends it."""

from collections.abc import Iterable, Sequence
from datetime import UTC

import pytest
from attrs import evolve

from airy_trio.capture.feed import Backfill, ChangedObject, ChannelGone, MessageGone, Metadata, Tag, TagGone
from airy_trio.events.translate import EventsOptions, translate
from airy_trio.log.current import CurrentState, Marks, StateOptions, StateRecorder
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import Bounds, NewEvent, StateAt, StateChange, StoredState

KEPT = frozenset({"tag.updated", "channel.updated"})
OPTIONS = StateOptions(types=KEPT | {"message.updated"}, kept=KEPT, shape="shape")


def bounds(state: StoredState | None = None) -> Bounds:
    return Bounds(epoch="abcdef", first=1, last=9, now_ms=0, state=state)


def tag(name: str) -> NewEvent:
    return NewEvent("tag.updated", name, None, None, b"")


def begun(options: StateOptions = OPTIONS, state: StoredState | None = None) -> StateRecorder:
    recorder = StateRecorder(options)
    recorder.begin(bounds(state))
    return recorder


def change(
    recorder: StateRecorder,
    ended: Iterable[tuple[str, str]] = (),
    backfills: Iterable[Backfill] = (),
    head: int = 9,
    *,
    events: Sequence[NewEvent] = (),
    continues: bool = False,
) -> StateChange:
    made = recorder.change(head, events, ended, backfills, continues=continues)
    assert made is not None
    return made


def mark(token: str, *, ended: bool = False) -> Backfill:
    return Backfill(kind="tags", token=token, ended=ended)


def whole(made: StateChange) -> set[str]:
    marks = Marks.parse(made.marks)
    assert marks is not None
    return set(marks.whole)


def stored(made: StateChange) -> StoredState:
    return StoredState(made.generation, made.marks, 9)


def test_restart_continues_the_generation() -> None:
    first = begun()
    change(first, backfills=[mark("a")])
    made = change(first, backfills=[mark("a", ended=True)])
    again = begun(state=stored(made))
    assert (again.generation, str(again.marks)) == (made.generation, made.marks)
    assert whole(change(again)) == {"tag.updated"}


def test_backfill_continues_over_a_restart() -> None:
    made = change(begun(), backfills=[mark("a")], head=4)
    ended = change(begun(state=stored(made)), backfills=[mark("a", ended=True)], head=7)
    assert (whole(ended), ended.swept) == ({"tag.updated"}, {"tag.updated": 4})


OTHER_MARKS = {"another mapping": ('"shape": "shape"', '"shape": "x"'), "another version": ('"begun"', '"renamed"')}


@pytest.mark.parametrize("state", [None, *OTHER_MARKS])
def test_state_that_cannot_be_continued_begins_again(state: str | None) -> None:
    """The state is missing (an older recorder has appended, or an epoch has begun), or its marks do not fit."""
    first = begun()
    change(first, backfills=[mark("a")])
    made = change(first, backfills=[mark("a", ended=True)])
    known = None
    if state is not None:
        known = StoredState(made.generation, made.marks.replace(*OTHER_MARKS[state]), 9)
    again = change(begun(state=known))
    assert again.generation != made.generation
    assert whole(again) == set()


def test_more_mapped_types_continue_the_generation() -> None:
    """The types are those of this recorder: a table that is mapped now may be missing in the state."""
    made = change(begun())
    again = begun(StateOptions(types=KEPT, kept=KEPT, shape="shape"), stored(made))
    assert (again.generation, again.marks.types) == (made.generation, KEPT)


def test_new_epoch_begins_a_generation() -> None:
    recorder = begun()
    before = recorder.generation
    recorder.begin(None)
    assert recorder.generation not in {"", before}


async def test_append_without_a_state_ends_the_generation() -> None:
    store = MemoryStore()
    recorder = StateRecorder(OPTIONS)
    recorder.begin(await store.bounds())
    head = (await store.bounds()).head
    await store.append(head, [tag("t1")], "one", state=change(recorder))
    between = StateRecorder(OPTIONS)
    between.begin(await store.bounds())
    assert between.generation == recorder.generation
    await store.append(head.at(1), [], "two")
    after = StateRecorder(OPTIONS)
    after.begin(await store.bounds())
    assert after.generation != recorder.generation


def test_type_is_whole_from_the_end_of_its_backfill() -> None:
    recorder = begun()
    assert whole(change(recorder)) == set()
    first = change(recorder, backfills=[mark("a")], head=3)
    assert (whole(first), first.swept) == (set(), {})
    last = change(recorder, backfills=[mark("a", ended=True)], head=8)
    assert (whole(last), last.swept) == ({"tag.updated"}, {"tag.updated": 3})


def test_whole_backfill_in_one_batch() -> None:
    made = change(begun(), backfills=[mark("a"), mark("a", ended=True)], head=5)
    assert (whole(made), made.swept) == ({"tag.updated"}, {"tag.updated": 5})


def test_types_become_whole_one_by_one() -> None:
    recorder = begun()
    change(recorder, backfills=[mark("a"), mark("a", ended=True)])
    channels = [Backfill(kind="channels", token="b", ended=ended) for ended in (False, True)]
    assert whole(change(recorder, backfills=channels)) == KEPT


def test_interleaved_backfills_end_with_the_newest() -> None:
    recorder = begun()
    change(recorder, backfills=[mark("a")], head=1)
    change(recorder, backfills=[mark("b")], head=2)
    former = change(recorder, backfills=[mark("a", ended=True)], head=3)
    assert (whole(former), former.swept) == (set(), {})
    newest = change(recorder, backfills=[mark("b", ended=True)], head=4)
    assert (whole(newest), newest.swept) == ({"tag.updated"}, {"tag.updated": 2})


def test_end_without_its_begin_is_ignored() -> None:
    made = change(begun(), backfills=[mark("a", ended=True)])
    assert (whole(made), made.swept) == (set(), {})


def test_marks_of_types_that_are_not_kept_are_ignored() -> None:
    recorder = begun()
    marks = [Backfill(kind="messages", token="a", ended=ended) for ended in (False, True)]
    made = change(recorder, backfills=marks)
    assert (whole(made), made.swept) == (set(), {})


@pytest.mark.parametrize("type_, folds", [("tag.updated", True), ("tag.deleted", False), ("message.updated", False)])
def test_only_events_of_kept_types_are_folded(type_: str, folds: bool) -> None:
    assert change(begun(), events=[NewEvent(type_, "a", None, None, b"")]).folds == folds


def test_only_objects_of_kept_types_end() -> None:
    assert change(begun(), [("channel.updated", "c"), ("message.updated", "m")]).ended == {"c"}


def test_nothing_is_kept_without_types() -> None:
    assert begun(StateOptions()).change(9, [tag("a")], [("tag.updated", "b")]) is None


def test_ended_objects_of_a_translation() -> None:
    """A channel with a last state that cannot become an event, a deleted tag without ``deletes``, empty metadata."""
    objects: list[ChangedObject] = [
        ChannelGone(id="c1", source=None, source_channel_id="page"),
        TagGone(id="t1"),
        MessageGone(id="m1", conversation_id="c1", channel_id="ch1"),
        Metadata(
            subject="conversation", identifier="c1", conversation_id="c1", channel_id=None, entries=(), time_zone=UTC
        ),
        Tag(id="t2", name="flag", color="red"),
    ]
    made = translate(objects, EventsOptions(deletes=False))
    assert [fault.reason for fault in made.faults] != []
    assert [event.type for event in made.events] == ["metadata.updated", "tag.updated"]
    assert made.ended == (
        ("channel.updated", "channel:c1"),
        ("tag.updated", "tag:t1"),
        ("message.updated", "message:m1"),
        ("metadata.updated", made.events[0].object),
    )


def test_reader_knows_which_backfills_have_begun() -> None:
    recorder = begun()
    running = stored(change(recorder, backfills=[mark("a")]))
    ended = stored(change(recorder, backfills=[mark("a", ended=True)]))
    states = [CurrentState.of(bounds(state), bounds().head) for state in (running, ended)]
    assert [state.filling for state in states] == [{"tag.updated"}, set()]


def test_state_for_a_reader() -> None:
    head = bounds().head
    assert CurrentState.of(bounds(), head) == CurrentState(head)
    made = change(begun(), backfills=[mark("a"), mark("a", ended=True)], head=5)
    found = CurrentState.of(bounds(stored(made)), head.at(5))
    assert found == CurrentState(
        head.at(5), StateAt(made.generation, head.at(5)), frozenset({"tag.updated"}), OPTIONS.types, kept=KEPT
    )
    behind = evolve(stored(made), folded=3)
    assert CurrentState.of(bounds(behind), head).at == StateAt(made.generation, head.at(3))
    unreadable = evolve(stored(made), marks=made.marks.replace(*OTHER_MARKS["another version"]))
    assert CurrentState.of(bounds(unreadable), head) == CurrentState(head)


def test_type_is_whole_once_the_events_of_its_backfill_are_in_the_state() -> None:
    recorder = begun()
    change(recorder, backfills=[mark("a")], head=2)
    first = change(recorder, backfills=[mark("a", ended=True)], head=5, events=[tag("a"), tag("b")])
    again = change(recorder, backfills=[mark("b"), mark("b", ended=True)], head=8)
    for made, folded, found in ((first, 6, set()), (first, 7, {"tag.updated"}), (again, 7, {"tag.updated"})):
        state = evolve(stored(made), folded=folded)
        assert CurrentState.of(bounds(state), bounds().head).whole == found


def test_marks_of_a_later_version_can_be_read() -> None:
    text = str(Marks(types=KEPT, kept=KEPT, shape="x", begun={"tag.updated": ("a", 3)}))
    assert Marks.parse(text.replace("{", '{"later": 1, ', 1)) == Marks.parse(text)


@pytest.mark.parametrize("restarted", [False, True])
def test_object_visible_at_the_begin_of_a_backfill_is_not_swept(restarted: bool) -> None:
    """Its transaction may have been open while the keys were written, so that the backfill has not seen its row."""
    recorder = begun()
    change(recorder, head=0)
    first = change(recorder, head=1)
    if restarted:
        recorder = begun(state=stored(first))
    change(recorder, backfills=[mark("a")], head=2, continues=True)
    ended = change(recorder, backfills=[mark("a", ended=True)], head=3)
    assert ended.swept == {"tag.updated": 1}


def test_metadata_without_rows_has_ended_whatever_its_owner_is() -> None:
    pair = Metadata(subject="conversation", identifier="c1", entries=(), time_zone=UTC, conversation_id=b"\xff")
    translation = translate([pair], EventsOptions())
    assert translation.ended == (("metadata.updated", "metadata:conversation:c1"),)
    assert len(translation.faults) == 1
