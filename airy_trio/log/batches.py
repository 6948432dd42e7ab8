"""From a batch of the change feed to what is appended: how large one may be, and what it means as events.

A batch is appended whole, with the resume point after it, so it is the read that has to be small enough: as many rows
of the change log as make about ``BATCH_BYTES_MAX`` of bodies. What turns out larger is read again with fewer rows. It
refuses to know feeds and stores.
"""

from collections.abc import Sequence
from typing import Final

import trio
from attrs import field, frozen

from airy_trio.changes.feed import Batch
from airy_trio.events.codec import EventTooLargeError, encode
from airy_trio.events.models import Event
from airy_trio.events.translate import EventsOptions, RowFault, translate
from airy_trio.log.store import NewEvent

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of bodies in one append, unless a single change makes more: a store's time-outs are made for less than seconds."""
SLICE_OBJECTS: Final = 250
"""Translated between two checkpoints, which is some milliseconds: clients are served meanwhile."""


@frozen(kw_only=True)
class Meaning:
    """What a batch means: events to append, rows that cannot become one, and metadata that became strings.

    ``size``: bytes of the bodies. ``share``: how much of the batch this is; less than 1 where it became too large.
    """

    events: Sequence[NewEvent]
    faults: Sequence[RowFault]
    misfits: int
    size: int
    share: float


@frozen
class _Collected:
    """What has been translated so far, except the figures."""

    events: list[NewEvent] = field(factory=list)
    faults: list[RowFault] = field(factory=list)


async def meaning_of(batch: Batch, options: EventsOptions, *, body_bytes_max: int) -> Meaning:
    """Translate a batch and encode its events, up to ``BATCH_BYTES_MAX``; a batch of one change whole."""
    found = _Collected()
    size = misfits = done = 0
    while done < len(batch.objects) and (size <= BATCH_BYTES_MAX or batch.changes <= 1):
        if done:
            await trio.lowlevel.checkpoint()
        translation = translate(batch.objects[done : done + SLICE_OBJECTS], options)
        done = min(done + SLICE_OBJECTS, len(batch.objects))
        misfits += translation.misfits
        found.faults.extend(translation.faults)
        size += _encode(translation.events, body_bytes_max, found)
    whole = batch.changes <= 1 or size <= BATCH_BYTES_MAX
    share = 1.0 if whole else min(done / len(batch.objects), BATCH_BYTES_MAX / size)
    return Meaning(events=found.events, faults=found.faults, misfits=misfits, size=size, share=share)


def _encode(events: Sequence[Event], body_bytes_max: int, found: _Collected) -> int:
    size = 0
    for event in events:
        try:
            body, truncated = encode(event, body_bytes_max)
        except EventTooLargeError as error:
            found.faults.append(error.fault)
        else:
            found.events.append(_new_event(event, body, truncated=truncated))
            size += len(body)
    return size


def _new_event(event: Event, body: bytes, *, truncated: bool) -> NewEvent:
    return NewEvent(event.type, event.object, event.conversation_id, event.channel_id, body, truncated)


class BatchRows:
    """How many rows of the change log are read at once: ``limit``, from what the settings allow down to 1."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self.limit = rows_max  # an object that changes in two pages of a backlog is told twice

    def fitted(self, batch: Batch, size: int) -> None:
        """A batch had bodies of so many bytes: where it was full and twice as much would fit, double."""
        if batch.changes >= self.limit and 2 * size <= BATCH_BYTES_MAX:
            self.limit = min(2 * self.limit, self._rows_max)

    def exceeded(self, batch: Batch, share: float) -> None:
        """Only about this share of a batch, less than 1, would have fitted: read fewer rows, at least one."""
        self.limit = max(1, int(batch.changes * share * 0.9))
