"""Who is connected now, a page at a time: what the console shows of each connection, as plain values.

Read from the clients' own state when somebody asks; nothing is kept for it but a number for each connection, which
pages go on after. Credentials are no part of it, nor is anything that was sent.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final

from airy_trio.events.destinations import text
from airy_trio.websocket.subscriptions import Client, State, Subscription

PAGE_MAX: Final = 200
"""Connections in one page."""
DESTINATION_CHARS_MAX: Final = 128
"""What is shown of a destination; clients may choose longer ones."""


def page(clients: Iterable[Client], now: float, *, after: int, limit: int, behind: bool) -> dict[str, Any]:
    """Describe the first ``limit`` connections numbered above ``after``, in the order in which they came.

    ``clients``: the oldest first. ``now``: in Trio's time. ``behind``: only those with events still to be sent.
    ``next``: what to go on after; None where that was all.
    """
    found: list[dict[str, Any]] = []
    last: int | None = None
    for client in clients:
        if client.number <= after or (behind and not _is_behind(client)):
            continue
        if len(found) == min(limit, PAGE_MAX):
            return {"connections": found, "next": last}
        found.append(_described(client, now))
        last = client.number
    return {"connections": found, "next": None}


def _is_behind(client: Client) -> bool:
    """Whether there is something to send, for whatever reason it has not been: also a window of acks that is full."""
    return client.state is State.BEHIND or any(_waiting(one)[0] for one in client.subscriptions.values())


def _described(client: Client, now: float) -> dict[str, Any]:
    subscriptions = [_subscription(one) for one in client.subscriptions.values()]
    return {
        "number": client.number,
        "session": client.session,
        "user": client.user.name,
        "address": client.address,
        "state": client.state.value,
        "connected_s": round(max(0.0, now - client.begun_at), 1),
        "behind": sum(one["behind"] for one in subscriptions),
        "behind_exactly": all(one["behind_exactly"] for one in subscriptions),
        "subscriptions": subscriptions,
    }


def _subscription(subscription: Subscription) -> dict[str, Any]:
    behind, exactly = _waiting(subscription)
    return {
        "destination": _shown(text(subscription.view.destination)),
        "position": str(subscription.position),
        "behind": behind,
        "behind_exactly": exactly,
        "waits_for_acks": subscription.window is not None and subscription.window.room <= 0,
    }


def _shown(destination: str) -> str:
    return destination if len(destination) <= DESTINATION_CHARS_MAX else destination[: DESTINATION_CHARS_MAX - 1] + "…"


def _waiting(subscription: Subscription) -> tuple[int, bool]:
    """How many events of its view a subscription has not had, and whether that is all: the tail may hold too few."""
    view, offset = subscription.view, subscription.position.offset
    owed = len(subscription.owed)
    if offset >= view.last:
        return owed, True
    if offset >= view.evicted:
        return owed + len(view.offsets) - bisect_right(view.offsets, offset), True
    return owed + len(view.offsets) + 1, False
