"""Appends that change the current state, and folds, as the recorder makes them."""

from collections.abc import Mapping, Sequence

from airy_trio.events.models import STATE_TYPES
from airy_trio.log.current import Marks
from airy_trio.log.event_log import EventLog
from airy_trio.log.store import StateChange
from tests.log.places import fold
from tests.sessions.serving import event

GENERATION = "first0"


async def keep(
    log: EventLog,
    names: Sequence[str] = (),
    *,
    ended: Sequence[str] = (),
    swept: Mapping[str, int] | None = None,
    types: str = "",
    whole: str = "",
    kept: str = " ".join(STATE_TYPES),
    generation: str = GENERATION,
    size: int = 0,
    folds: bool = True,
) -> None:
    """Append an event for each name, and add it to the current state as that of the object of that name.

    ``types``, ``whole``, ``kept``: those that are mapped, that the state has completely, and that it has, separated by
    spaces.
    ``folds``: whether the events are added at once.
    """
    new = [event(log.head.offset + number, obj=name, size=size) for number, name in enumerate(names, start=1)]
    known, has = frozenset(types.split()), frozenset(kept.split())
    marks = Marks(kept=has, types=known, whole=dict.fromkeys(whole.split(), 0))
    state = StateChange(generation=generation, marks=str(marks), ended=ended, swept=swept or {})
    await log.append(log.head, new, "point", state=state)
    if folds:
        await fold(log.store, generation, has)
