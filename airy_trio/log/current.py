"""The current state: the newest event of each object of the kept types, and which types it has completely.

The log is trimmed; the state is not. An append only notes which objects have ended, in the same step. The events
themselves are added to the state in the background (``EventStore.fold``), so that an append of a kept type takes no
longer than any other. A node that reads the state for a client first adds what is left. No trim deletes an event that
the state does not have yet, so it needs no repair after a crash.

At first the state is incomplete, because only changes cause events. A *backfill* completes it: it writes the keys of
all rows into the change log, between two marks (``feed.Backfill``), and the recorder records them as changes. With the
second mark, objects without an event since the first one leave the state: they have no row any more, or a row fault.
Once the events up to the second mark are in the state, the type is *whole*.

The state starts again, empty and with a new *generation*, if the mapping or the list of kept types has changed, if an
epoch begins, or if a server of an earlier version, which has no state, has appended. The recorder decides this when it
begins to record, and replaces the former state at once. After that no other server can have appended, because then the
recorder's own appends would be stale.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Self

import trio
from attrs import evolve, field, frozen

from airy_trio.capture.feed import Backfill, Kind
from airy_trio.capture.mapping import SINGULAR
from airy_trio.log.store import Bounds, EventStore, NewEvent, Position, StateAt, StateChange, new_epoch

FOLD_EVENTS_MAX: Final = 250
"""Events added to the state in one transaction: a few milliseconds, during which an SQLite file accepts no append."""
TYPE_OF: Mapping[Kind, str] = {kind: f"{name}.updated" for kind, name in SINGULAR.items()}
"""The type of events that carry the current state of a table's objects."""


@frozen(kw_only=True)
class StateOptions:
    """What the recorder keeps. ``types``: of the mapped tables. ``kept``: those whose objects are kept.

    ``shape``: a digest of the mapping of the kept types. Events of another mapping belong to another state.
    """

    types: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    shape: str = ""


@frozen(kw_only=True)
class Marks(StateOptions):
    """What the recorder knows of the state, stored with it as JSON.

    ``begun``: for each type the token of the newest backfill that has begun, and ``before`` at that time. ``whole``:
    for each type that a backfill has completed, the offset from which on the folded state has all of its objects.
    ``before``: the head before the changes that became visible together with those of the newest append.

    A backfill sends every row that was committed before the mark of its begin. A transaction that was still open at
    that moment may become visible together with the mark, and its changes may be recorded before it. The backfill has
    not seen those rows, so ``before`` is where the sweep must end.
    """

    begun: Mapping[str, tuple[str, int]] = field(factory=dict)
    whole: Mapping[str, int] = field(factory=dict)
    before: int = 0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read what ``str`` wrote. None if another version has written it in another form."""
        try:
            marks = json.loads(text)
            return cls(
                types=frozenset(marks["types"]),
                kept=frozenset(marks["kept"]),
                shape=marks["shape"],
                begun={type_: (token, offset) for type_, (token, offset) in marks["begun"].items()},
                whole=dict(marks["whole"]),
                before=marks["before"],
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def __str__(self) -> str:
        known = {"types": sorted(self.types), "kept": sorted(self.kept), "whole": self.whole, "shape": self.shape}
        return json.dumps({**known, "begun": self.begun, "before": self.before})


@frozen
class CurrentState:
    """The state for a reader: its end, the types that it has completely, and all mapped types.

    ``kept``: the types that it has, completely or not. ``since``: the offset after which the recent window begins; the
    window has the events of the other types. ``at``: None if there is no state to read. ``types``: None if no recorder
    has stored which tables are mapped. ``filling``: the types with an unfinished backfill: it has not ended, or some of
    its events are not in the state yet.
    """

    until: Position
    at: StateAt | None = None
    whole: frozenset[str] = frozenset()
    types: frozenset[str] | None = None
    filling: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    since: int = 0

    @classmethod
    def of(cls, bounds: Bounds, until: Position) -> Self:
        """Return the state that the bounds name, at most up to a position of their epoch."""
        marks = None if bounds.state is None else Marks.parse(bounds.state.marks)
        if bounds.state is None or marks is None:
            return cls(until)
        until = min(until, until.at(bounds.state.folded))
        at = StateAt(bounds.state.generation, until)
        whole = frozenset(type_ for type_, offset in marks.whole.items() if offset <= until.offset)
        filling = frozenset(marks.begun.keys() | marks.whole.keys() - whole)
        return cls(until, at, whole, marks.types, filling, marks.kept)

    def missing(self, types: AbstractSet[str]) -> frozenset[str]:
        """Return those of some types that the state does not have completely. An unmapped table has no objects."""
        mapped = types if self.types is None else types & self.types
        return frozenset(mapped - self.whole)


async def fold(store: EventStore, generation: str, kept: Collection[str]) -> bool:
    """Add some events to the state; return whether more is left. Pauses for as long as that took.

    So appends get half of the time of a store with one writer.
    """
    begun_at = trio.current_time()
    more = await store.fold(generation, kept, FOLD_EVENTS_MAX)
    await trio.sleep(trio.current_time() - begun_at)
    return more


class StateRecorder:
    """Tracks the state for one recorder, from ``begin`` on. ``generation``: "" before that, or if nothing is kept."""

    def __init__(self, options: StateOptions) -> None:
        self._options = options
        self.generation = ""
        self.marks = Marks()

    def begin(self, bounds: Bounds | None) -> None:
        """Continue the state that the store has, if it was recorded in the same way; else begin a generation.

        ``bounds``: of the store, at the head of the next append; None: an epoch has just begun.
        """
        options = self._options
        state = None if bounds is None else bounds.state
        marks = None if state is None else Marks.parse(state.marks)
        if state is not None and marks is not None and marks.shape == options.shape:
            self.generation, self.marks = state.generation, evolve(marks, types=options.types, kept=options.kept)
        else:
            self.generation = new_epoch()
            self.marks = Marks(types=options.types, kept=options.kept, shape=options.shape)

    def change(
        self,
        head: int,
        events: Sequence[NewEvent],
        ended: Iterable[tuple[str, str]],
        backfills: Iterable[Backfill] = (),
        *,
        continues: bool = False,
    ) -> StateChange | None:
        """Return what an append after the offset ``head`` changes in the state; None if nothing is kept.

        ``ended``: types and objects that no longer exist. ``backfills``: their marks in the batch, in order.
        ``continues``: see ``Batch``.
        """
        kept = self._options.kept
        if not kept:
            return None
        # The marks change before the append. If that fails, the recorder calls ``begin`` again, which takes the marks
        # of the store.
        if not continues:
            self.marks = evolve(self.marks, before=head)
        swept: dict[str, int] = {}
        for backfill in backfills:
            swept |= self._mark(backfill, head + len(events))
        over = frozenset(object_ for type_, object_ in ended if type_ in kept)
        folds = any(event.type in kept for event in events)
        return StateChange(generation=self.generation, marks=str(self.marks), ended=over, swept=swept, folds=folds)

    def _mark(self, backfill: Backfill, head: int) -> Mapping[str, int]:
        """Note the begin or the end of a backfill in an append up to ``head``; return what it sweeps."""
        type_ = TYPE_OF[backfill.kind]
        if type_ not in self._options.kept:
            return {}
        begun = dict(self.marks.begun)
        if not backfill.ended:
            begun[type_] = backfill.token, self.marks.before
            self.marks = evolve(self.marks, begun=begun)
            return {}
        token, offset = begun.pop(type_, ("", 0))
        if token != backfill.token:  # it began in another generation, or another one has begun since
            return {}
        # A type that is whole keeps its offset. With the new one it would count as incomplete until the fold has
        # reached that.
        self.marks = evolve(self.marks, begun=begun, whole={type_: head, **self.marks.whole})
        # The sweep goes up to ``before``, not up to the append that contains the begin of the backfill. Changes that
        # became visible together with the begin may be recorded before it. If their transactions were still open while
        # the backfill looked for rows, it has not found these, and their events must stay. An event up to ``before``
        # may go: if its row still existed, the backfill has found it and caused another event after the begin.
        return {type_: offset}
