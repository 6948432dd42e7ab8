"""One client's send task: drains what is pending, then one run for each hungry subscription in turn, for ever.

Replay and live are this one loop over one log; where a position is served from, tail or store, is the only
difference. Waiting for the socket is the backpressure: nothing is queued, a slow client is a cursor that stands
still. The task is parked while there is nothing to do.
"""

import math
from typing import Final

import trio

from airy_trio.log.eventlog import EventLog
from airy_trio.log.store import PositionExpired, StoreUnavailable
from airy_trio.websocket.replay import backoff_s
from airy_trio.websocket.runs import Run, Runs
from airy_trio.websocket.subscriptions import Client, State, Subscription
from airy_trio.websocket.wire import Wire

STORE_EVENTS_MAX: Final = 128
"""One page of a replay, held while it is sent; about one run of events of usual size."""


async def send_for_ever(client: Client, wire: Wire, eventlog: EventLog, runs: Runs) -> None:
    """Send a client its events until cancelled, or until it is closing.

    Raises what the wire raises, and ``PositionExpired`` where the client must reload.
    """
    while client.state is not State.CLOSING:
        client.wakened = trio.Event()  # before looking: what grows meanwhile is seen or wakes
        served = False
        if wire.outlet.pending:
            async with wire.lock:
                await wire.drain()
        for subscription in tuple(client.subscriptions.values()):
            served |= await _serve(subscription, wire, eventlog, runs)
        if not served:
            with trio.move_on_at(_retry_at(client)):
                await client.wakened.wait()


def _retry_at(client: Client) -> float:
    """When the store is to be asked again, for whom it was away."""
    return min((one.retry_at for one in client.subscriptions.values() if one.retries), default=math.inf)


async def _serve(subscription: Subscription, wire: Wire, eventlog: EventLog, runs: Runs) -> bool:
    """Send one run; False where there is nothing to send now."""
    if subscription.started and subscription.position.epoch != eventlog.epoch:
        message = f"{subscription.position} is of an epoch that has ended"
        raise PositionExpired(message)
    if not subscription.hungry:
        return False
    if not subscription.owed and subscription.position.offset < subscription.view.evicted:
        return await _fetch(subscription, eventlog)
    async with wire.lock:  # one run per turn, so that RECEIPT and pong wait for one run at most
        await wire.drain()
        run = _next_run(subscription, eventlog, runs)
        if run is not None:
            await wire.push(run.data)
            runs.sent(subscription, run)
    return True


def _next_run(subscription: Subscription, eventlog: EventLog, runs: Runs) -> Run | None:
    """Take the next run and move the cursor; asked under the lock, after every wait, with none before the push."""
    client = subscription.client
    wanted = client.state is State.LIVE and client.subscriptions.get(subscription.number) is subscription
    if not wanted or not subscription.hungry or subscription.position.epoch != eventlog.epoch:
        return None
    if subscription.owed:
        run = runs.owed(subscription)
        for _ in run.offsets:
            subscription.owed.popleft()
    elif subscription.position.offset >= subscription.view.evicted:
        run = runs.after_position(subscription)
        subscription.position = subscription.position.at(run.offsets[-1])
    else:
        return None
    subscription.verdict = b""
    if subscription.window is not None:
        subscription.window.sent(run.offsets)
    return run


async def _fetch(subscription: Subscription, eventlog: EventLog) -> bool:
    """Read the next page from the store, and owe it; False where the store is away, which is tried again later."""
    if trio.current_time() < subscription.retry_at:
        return False
    head, after = eventlog.head, subscription.position
    try:
        events = await eventlog.read(after, STORE_EVENTS_MAX, subscription.view.destination)
    except StoreUnavailable:
        subscription.retry_at = trio.current_time() + backoff_s(subscription.retries)
        subscription.retries += 1
        return False
    subscription.retries, subscription.retry_at = 0, 0.0
    subscription.owed.extend(events)
    last = events[-1].offset if events else after.offset
    if len(events) < STORE_EVENTS_MAX and head.epoch == after.epoch:
        last = max(last, head.offset)  # nothing else of this destination was there when the store was asked
    subscription.position = after.at(last)
    return True
