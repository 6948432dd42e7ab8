"""Who of the clients connected now has been sent an event, who will be, and who never will, and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from airy_trio.events.destinations import Addressed, covers, destinations_of
from airy_trio.log.position import Position
from airy_trio.websocket.subscriptions import Client, Subscription

PASSED: Final = "passed"
"""A subscription that wants the event stands at it or after it: it was sent, or it is older than the subscription."""
WAITING: Final = "waiting"
"""A subscription that wants it has not got so far."""
FILTERED: Final = "filtered"
"""None of its subscriptions is to a destination of the event, though one could be."""
NOT_GRANTED: Final = "not_granted"
"""Its credentials keep the event from it, whatever it subscribes to."""
NO_SUBSCRIPTION: Final = "no_subscription"
CLIENTS_TOLD_MAX: Final = 100


def audience(clients: Iterable[Client], position: Position, event: Addressed) -> Mapping[str, object]:
    """How many clients there are of each verdict, and of the first ``CLIENTS_TOLD_MAX`` each one, fit for JSON.

    Of several subscriptions of a client the most favourable counts. Costs the number of subscriptions; never waits.
    """
    counts = Counter({PASSED: 0, WAITING: 0, FILTERED: 0, NOT_GRANTED: 0, NO_SUBSCRIPTION: 0})
    told: list[Mapping[str, object]] = []
    for client in clients:
        verdict = _verdict(client, position, event)
        counts[verdict] += 1
        if len(told) < CLIENTS_TOLD_MAX:
            told.append({"session": client.session, "user": client.user.name, "verdict": verdict})
    return {"position": str(position), "clients": counts.total(), **counts, "sessions": told}


def _verdict(client: Client, position: Position, event: Addressed) -> str:
    if not _may_read(client, event):
        return NOT_GRANTED
    started = [found for found in client.subscriptions.values() if found.started]
    if not started:
        return NO_SUBSCRIPTION
    wanted = [found for found in started if covers(found.view.destination, event)]
    if not wanted:
        return FILTERED
    return PASSED if any(_has_passed(found, position) for found in wanted) else WAITING


def _may_read(client: Client, event: Addressed) -> bool:
    granted = (client.user.grant.of(destination) for destination in destinations_of(event))
    return any(destination is not None and covers(destination, event) for destination in granted)


def _has_passed(subscription: Subscription, position: Position) -> bool:
    at = subscription.position
    if at.epoch != position.epoch or at.offset < position.offset:
        return False
    return all(owed.offset != position.offset for owed in subscription.owed)
