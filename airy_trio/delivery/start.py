"""Where a subscription starts: the verdict on the position that a client sends, or the recent window without one.

Wire contract, "Positions and resuming". Reads the log; sends nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio
from attrs import frozen

from airy_trio.delivery.client import ReplayOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.store import Position, StoredEvent, StoreUnavailable
from airy_trio.log.tail import View
from airy_trio.retry import Backoff

T = TypeVar("T")

# Of bodies in a recent window: a thousand events of 4 KiB. Each subscription holds its window until it was sent.
RECENT_BYTES_MAX: Final = 4 * 1024 * 1024

# The values of the header ``resume``.
LIVE: Final = "live"
RESUMED: Final = "resumed"
RESET_EXPIRED: Final = "reset-expired"
RESET_EPOCH: Final = "reset-epoch"


@frozen
class StartRequest:
    """Where a SUBSCRIBE asks to start: after ``last_event_id``, else according to ``replay`` (none, all, None).

    ``last_event_id``: as the client sent it. ``address``: for the fair sharing of reads of the store.
    """

    last_event_id: str | None
    replay: str | None
    address: str = ""


@frozen
class Start:
    """Where a subscription starts: with the ``backlog``, then everything after ``position``.

    ``resume``: the header of the same name.
    """

    position: Position
    resume: str
    backlog: Sequence[StoredEvent] = ()


async def start(eventlog: EventLog, view: View, request: StartRequest, options: ReplayOptions) -> Start:
    """Decide where a subscription to a view starts. Waits while the store is unavailable."""
    return await until_available(partial(_start, eventlog, view, request, options))


def start_at_once(eventlog: EventLog, view: View, request: StartRequest, options: ReplayOptions) -> Start | None:
    """Decide where a subscription starts if the tail is enough for that; None if the store must be asked."""
    if request.last_event_id is not None:
        position = Position.parse(request.last_event_id)
        if position is None or not _is_known(eventlog, position) or position.offset < view.evicted:
            return None
        return Start(position, RESUMED)
    if request.replay == "none":
        return Start(eventlog.head, LIVE)
    if request.replay == "all":
        return None
    found = eventlog.recent_in_tail(
        view.destination, age_s=options.window_s, limit=options.events_max, bytes_max=RECENT_BYTES_MAX
    )
    return None if found is None else Start(found[0], LIVE, found[1])


async def until_available(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the store's answer; retry with backoff while the store is unavailable."""
    backoff = Backoff()
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await trio.sleep(backoff.next_s())


async def _start(eventlog: EventLog, view: View, request: StartRequest, options: ReplayOptions) -> Start:
    found = start_at_once(eventlog, view, request, options)
    if found is not None:
        return found
    resume = LIVE
    if request.last_event_id is not None:
        position = Position.parse(request.last_event_id)
        resume = await _verdict(eventlog, view, position, request.address)
        if position is not None and resume == RESUMED:
            return Start(position, resume)
    elif request.replay == "all":
        async with eventlog.gate.place(request.address):
            return Start(await eventlog.floor(), resume)
    head, backlog = await eventlog.recent(
        view.destination,
        age_s=options.window_s,
        limit=options.events_max,
        bytes_max=RECENT_BYTES_MAX,
        address=request.address,
    )
    return Start(head, resume, backlog)


async def _verdict(eventlog: EventLog, view: View, position: Position | None, address: str) -> str:
    if position is None:
        return RESET_EPOCH
    if not _is_known(eventlog, position):
        async with eventlog.gate.place(address):
            # Another node may have sent the client a position that this node has not read yet.
            if not _is_known(eventlog, position):
                await eventlog.catch_up()
        if not _is_known(eventlog, position):
            return RESET_EPOCH
    if position.offset >= view.evicted:
        return RESUMED
    async with eventlog.gate.place(address):
        floor = await eventlog.floor()
    if floor.epoch != position.epoch:  # a new epoch began during the read
        return RESET_EPOCH
    return RESUMED if position >= floor else RESET_EXPIRED


def _is_known(eventlog: EventLog, position: Position) -> bool:
    return position.epoch == eventlog.epoch and position <= eventlog.head
