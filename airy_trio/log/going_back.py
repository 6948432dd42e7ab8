"""A store that has gone back (restored, failed over): how a node that knows better finds out, and what it does then."""

import structlog

from airy_trio.log.position import Position
from airy_trio.log.store import Bounds, EventStore, PositionExpired, StaleAppend, StoredEvent

logger = structlog.get_logger(__name__)


async def has_gone_back(store: EventStore, bounds: Bounds, known: Position, newest: StoredEvent | None) -> bool:
    """Whether the store has lost events up to ``known``, of the same epoch as its ``bounds``.

    ``newest``: after an outage, the event at ``known``, if it is in memory: the store may have lost and replaced it.
    Raises ``StoreUnavailable``.
    """
    if bounds.last < known.offset:
        return True
    if newest is None or newest.offset < bounds.first:
        return False
    try:
        found = await store.read(known.at(newest.offset - 1), 1)
    except PositionExpired:  # trimmed just now, or an epoch began: what follows will tell
        return False
    return list(found) != [newest]


async def disown(store: EventStore, bounds: Bounds, known: Position) -> Bounds:
    """Begin an epoch, so that no position that a client was given ever names another event; the bounds after it.

    Raises ``StoreUnavailable``.
    """
    logger.error("the event store has lost events that clients were sent", known=str(known), found=str(bounds.head))
    try:
        return await store.begin_epoch(bounds.head, await store.resume_point())
    except StaleAppend:  # another node did, or has appended to what is left
        return await store.bounds()
