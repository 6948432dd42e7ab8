"""Two views of the connected clients for operators: the connection list, and the recipients of one event.

Both read the clients' own state when they are called, and never wait. Neither contains credentials, or data that was
sent to a client. The keys are those of the JSON on the admin port.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import trio

from airy_trio.delivery.client import Client, ClientState, Subscription
from airy_trio.events.destinations import Addressed, covers, destinations_of, text
from airy_trio.log.store import Position

# Clients may choose longer destinations; the rest is not shown.
DESTINATION_CHARS_MAX: Final = 128
# Clients that are listed as recipients; all are counted.
LISTED_MAX: Final = 100

# The verdicts on one client, the most favourable first. A client gets the most favourable verdict of its subscriptions.
PASSED: Final = "passed"  # the event was sent, or is older than the subscription
WAITING: Final = "waiting"  # the cursor has not reached the event
FILTERED: Final = "filtered"  # the client may subscribe to a destination of the event, but has not
NOT_GRANTED: Final = "not_granted"  # the credentials exclude the event
NO_SUBSCRIPTION: Final = "no_subscription"


def connection_page(clients: Iterable[Client], *, after: int, limit: int, behind: bool) -> dict[str, Any]:
    """Describe the first ``limit`` connections with numbers above ``after``, the oldest first.

    ``behind``: only those with events still to be sent. ``next`` is the number after which the next page begins;
    None if this is the last one.
    """
    now = trio.current_time()
    found: list[dict[str, Any]] = []
    last: int | None = None
    for client in clients:
        if client.number <= after or (behind and not _is_behind(client)):
            continue
        if len(found) == limit:
            return {"connections": found, "next": last}
        found.append(_describe(client, now))
        last = client.number
    return {"connections": found, "next": None}


def recipients(clients: Iterable[Client], position: Position, event: Addressed) -> Mapping[str, object]:
    """Count the clients by their verdict on an event, and list the first ``LISTED_MAX``, as values for JSON."""
    counts = Counter({PASSED: 0, WAITING: 0, FILTERED: 0, NOT_GRANTED: 0, NO_SUBSCRIPTION: 0})
    listed: list[Mapping[str, object]] = []
    for client in clients:
        verdict = _verdict(client, position, event)
        counts[verdict] += 1
        if len(listed) < LISTED_MAX:
            listed.append({"session": client.session, "user": client.user.name, "verdict": verdict})
    return {"position": str(position), "clients": counts.total(), **counts, "sessions": listed}


def _is_behind(client: Client) -> bool:
    """Whether there are events to send, for any reason; a full ack window is one."""
    return client.state is ClientState.BEHIND or any(_unsent(one)[0] for one in client.subscriptions.values())


def _describe(client: Client, now: float) -> dict[str, Any]:
    subscriptions = [_describe_subscription(one) for one in client.subscriptions.values()]
    return {
        "number": client.number,
        "session": client.session,
        "user": client.user.name,
        "address": client.slot.address,
        "state": client.state.value,
        "connected_s": round(max(0.0, now - client.begun_at), 1),
        "behind": sum(one["behind"] for one in subscriptions),
        "behind_exactly": all(one["behind_exactly"] for one in subscriptions),
        "subscriptions": subscriptions,
    }


def _describe_subscription(subscription: Subscription) -> dict[str, Any]:
    unsent, exact = _unsent(subscription)
    destination = text(subscription.view.destination)
    if len(destination) > DESTINATION_CHARS_MAX:
        destination = destination[: DESTINATION_CHARS_MAX - 1] + "…"
    return {
        "destination": destination,
        "position": str(subscription.position),
        "behind": unsent,
        "behind_exactly": exact,
        "waits_for_acks": subscription.window is not None and subscription.window.room <= 0,
    }


def _unsent(subscription: Subscription) -> tuple[int, bool]:
    """Count the events still to be sent, and whether the number is exact: the tail may not hold all of them."""
    view, offset = subscription.view, subscription.position.offset
    if subscription.replay is not None:
        return len(view.offsets) + 1, False
    if offset >= view.last:
        return 0, True
    if offset >= view.evicted:
        return len(view.offsets) - bisect_right(view.offsets, offset), True
    return len(view.offsets) + 1, False


def _verdict(client: Client, position: Position, event: Addressed) -> str:
    granted = (client.user.grant.of(destination) for destination in destinations_of(event))
    if not any(destination is not None and covers(destination, event) for destination in granted):
        return NOT_GRANTED
    started = [found for found in client.subscriptions.values() if found.started]
    if not started:
        return NO_SUBSCRIPTION
    matching = [found for found in started if covers(found.view.destination, event)]
    if not matching:
        return FILTERED
    return PASSED if any(_has_passed(found, position) for found in matching) else WAITING


def _has_passed(subscription: Subscription, position: Position) -> bool:
    at = subscription.position
    return at.epoch == position.epoch and at.offset >= position.offset
