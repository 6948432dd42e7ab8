"""A step of the store for many durable subscriptions: where it refuses, whose fault it is shows in halves.

What it refuses of one ends that client's session, and the others, who have nothing to do with it, go on.
"""

from collections.abc import Sequence
from typing import TypeVar

from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, EventStore, Holder, StoreUnavailable
from airy_trio.websocket.faults import farewell_after
from airy_trio.websocket.holds import Hold

T = TypeVar("T")


async def keep(store: EventStore, new: Sequence[tuple[Hold, Position]]) -> Sequence[Holder]:
    """Write positions, and give who is not the holder any more. Raises ``StoreUnavailable``."""
    try:
        return await store.acknowledge([Acknowledgement(hold.holder, at) for hold, at in new])
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - the others on this node have nothing to do with it
        fault = error
    if len(new) == 1:
        _dismiss(new[0][0], fault)
        return []
    return [lost for half in _halves(new) for lost in await keep(store, half)]


async def held(store: EventStore, claims: Sequence[Hold]) -> Sequence[Position | None]:
    """Make each the holder, and give what was acknowledged of each. Raises ``StoreUnavailable``."""
    try:
        return await store.hold([hold.holder for hold in claims])
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - the others on this node have nothing to do with it
        fault = error
    if len(claims) == 1:
        _dismiss(claims[0], fault)
        return [None]
    return [position for half in _halves(claims) for position in await held(store, half)]


def _halves(several: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    middle = len(several) // 2
    return several[:middle], several[middle:]


def _dismiss(hold: Hold, fault: Exception) -> None:
    client = hold.subscription.client
    client.dismiss(farewell_after(fault, client.session))
