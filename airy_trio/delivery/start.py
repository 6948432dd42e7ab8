"""Where a subscription starts: the verdict on the position that a client brings, and the recent window without one.

Wire contract, "Positions and resuming". Reads the log; sends nothing, and knows nothing of frames and sockets.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio
from attrs import frozen

from airy_trio.delivery.client import ReplayOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.position import Position
from airy_trio.log.store import StoredEvent, StoreUnavailable
from airy_trio.log.tail import View

T = TypeVar("T")

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
_BACKOFF_DOUBLINGS_MAX: Final = 10
RECENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of bodies in a recent window, which is held for each subscription until it is sent: a thousand events of 4 KiB."""

LIVE: Final = "live"
RESUMED: Final = "resumed"
RESET_EXPIRED: Final = "reset-expired"
RESET_EPOCH: Final = "reset-epoch"


@frozen
class Start:
    """Where a subscription starts: everything after ``position`` will be sent, and before it what is ``owed``."""

    position: Position
    verdict: str
    owed: Sequence[StoredEvent] = ()


@frozen
class Wish:
    """What SUBSCRIBE asked for: ``last_event_id`` as the client wrote it, which beats ``replay`` (none, all, None).

    ``address``: where the client is counted; the reads of the store are shared out by it.
    """

    last_event_id: str | None
    replay: str | None
    address: str = ""


def backoff_s(retries: int) -> float:
    """How long to wait before the store is asked again, after so many failures in a row."""
    return min(math.ldexp(BACKOFF_FIRST_S, min(retries, _BACKOFF_DOUBLINGS_MAX)), BACKOFF_MAX_S)


async def start(
    eventlog: EventLog,
    view: View,
    wish: Wish,
    options: ReplayOptions,
    pause: Callable[[float], Awaitable[object]] = trio.sleep,
) -> Start:
    """Decide where a subscription to a view starts, however long the store is unavailable (``answered``)."""
    return await answered(partial(_start, eventlog, view, wish, options), pause)


async def answered(ask: Callable[[], Awaitable[T]], pause: Callable[[float], Awaitable[object]]) -> T:
    """Return the store's answer. While the store is unavailable, ask again after pauses of some seconds."""
    retries = 0
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await pause(backoff_s(retries))
            retries += 1


def at_once(eventlog: EventLog, view: View, wish: Wish) -> Start | None:
    """Where a subscription starts for which nothing has to be read: only what is new, or what the tail still holds."""
    if wish.last_event_id is None:
        return Start(eventlog.head, LIVE) if wish.replay == "none" else None
    position = Position.parse(wish.last_event_id)
    if position is None or not _known(eventlog, position) or position.offset < view.evicted:
        return None
    return Start(position, RESUMED)


async def _start(eventlog: EventLog, view: View, wish: Wish, options: ReplayOptions) -> Start:
    found = at_once(eventlog, view, wish)
    if found is not None:
        return found
    verdict = LIVE
    if wish.last_event_id is not None:
        position = Position.parse(wish.last_event_id)
        verdict = await _verdict(eventlog, view, position, wish.address)
        if position is not None and verdict == RESUMED:
            return Start(position, verdict)
    elif wish.replay == "all":
        async with eventlog.gate.place(wish.address):
            return Start(await eventlog.floor(), verdict)
    head, owed = await eventlog.recent(
        view.destination,
        age_s=options.window_s,
        limit=options.events_max,
        bytes_max=RECENT_BYTES_MAX,
        address=wish.address,
    )
    return Start(head, verdict, owed)


async def _verdict(eventlog: EventLog, view: View, position: Position | None, address: str) -> str:
    if position is None:
        return RESET_EPOCH
    if not _known(eventlog, position):
        async with eventlog.gate.place(address):
            if not _known(eventlog, position):  # another node may have shown the client what this one has not read yet
                await eventlog.catch_up()
        if not _known(eventlog, position):
            return RESET_EPOCH
    if position.offset >= view.evicted:
        return RESUMED
    async with eventlog.gate.place(address):
        floor = await eventlog.floor()
    if floor.epoch != position.epoch:  # another one began meanwhile
        return RESET_EPOCH
    return RESUMED if position >= floor else RESET_EXPIRED


def _known(eventlog: EventLog, position: Position) -> bool:
    return position.epoch == eventlog.epoch and position <= eventlog.head
