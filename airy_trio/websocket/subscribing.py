"""The answer to SUBSCRIBE: whether it may be, where it starts, and that the fan-out serves it from then on.

What it waits for (the store, for what was acknowledged and what is sent again) is waited for while the client is
listened to. Refuses to know how a subscription goes on.
"""

from collections.abc import Awaitable, Callable

import trio
from attrs import evolve

from airy_trio.events.destinations import UnknownDestinationError, parse
from airy_trio.log.eventlog import EventLog
from airy_trio.log.position import Position
from airy_trio.stomp.encoder import header
from airy_trio.stomp.requests import AckMode, Subscribe
from airy_trio.websocket import replay
from airy_trio.websocket.durables import Durables
from airy_trio.websocket.fanout import FanOut
from airy_trio.websocket.farewells import GONE, NOT_FOUND, TOO_MANY, Farewell, with_token
from airy_trio.websocket.holds import Hold, refusal
from airy_trio.websocket.receipts import write_receipt
from airy_trio.websocket.subscriptions import Client, ReplayOptions, Subscription, Window

Pause = Callable[[float], Awaitable[object]]
"""How some seconds are waited for (``Conversation.pause``)."""


async def subscribe(  # noqa: PLR0913 - who asks, for what, of whom, and who goes on with it
    client: Client,
    request: Subscribe,
    *,
    eventlog: EventLog,
    options: ReplayOptions,
    fanout: FanOut,
    durables: Durables,
    pause: Pause,
) -> Farewell | None:
    """Begin a subscription and say RECEIPT where one is asked for; or give the farewell that refuses it."""
    try:
        destination = parse(request.destination)
    except UnknownDestinationError:
        return evolve(NOT_FOUND, receipt_id=request.receipt)
    granted = client.user.grant.of(destination)
    if granted is None:
        prose = "The credentials of this client do not grant this destination."
        return with_token("403-destination", prose, receipt_id=request.receipt)
    refused = None if request.durable is None else _refused(client, request, durables, request.durable)
    if refused is not None:
        return refused
    subscription = Subscription(
        client=client,
        number=request.number,
        prefix=client.connection.message_prefix(request.number),
        position=eventlog.head,
        live_after=eventlog.head.offset,
        window=None if request.ack is AckMode.AUTO else Window(request.ack, request.prefetch),
    )
    subscription.view = eventlog.attach(granted, subscription)
    client.subscriptions[request.number] = subscription
    hold = await _hold(subscription, request, durables, pause)
    wish = _wish(request, None if hold is None else hold.position)
    start = await _start(subscription, wish, eventlog, options, pause)
    if start is None:
        return GONE
    subscription.position = start.position
    subscription.owe(start.owed)
    if start.verdict != replay.LIVE:
        subscription.verdict = header("resume", start.verdict, None)
    if hold is not None:
        await durables.start(hold).wait(pause)
    await write_receipt(client, request.receipt, (("position", str(start.position)), ("resume", start.verdict)))
    subscription.started = True
    fanout.serve(subscription, trio.current_time())
    return None


def _refused(client: Client, request: Subscribe, durables: Durables, name: str) -> Farewell | None:
    """Why a durable subscription cannot be; None where it can."""
    refused = refusal(request, client.user)
    if refused is not None or durables.admits(client.user.name or "", name):
        return refused
    prose = "This user has used as many names of durable subscriptions lately as are allowed."
    return evolve(TOO_MANY, prose=prose, receipt_id=request.receipt)


async def _hold(subscription: Subscription, request: Subscribe, durables: Durables, pause: Pause) -> Hold | None:
    """Hold the durable subscription that is asked for; what was acknowledged of it is known then."""
    owner = subscription.client.user.name
    if request.durable is None or owner is None:
        return None
    hold = durables.claim(subscription, owner, request.durable)
    await hold.claimed.wait(pause)
    return hold


def _wish(request: Subscribe, acknowledged: Position | None) -> replay.Wish:
    """What the client itself says that it has had counts before what it has acknowledged."""
    told = request.last_event_id
    if told is None and acknowledged is not None:
        told = str(acknowledged)
    return replay.Wish(told, request.replay)


async def _start(
    subscription: Subscription, wish: replay.Wish, eventlog: EventLog, options: ReplayOptions, pause: Pause
) -> replay.Start | None:
    """Decide where a subscription starts; None where the client has left meanwhile."""
    found = replay.at_once(eventlog, subscription.view, wish)
    if found is not None:
        return found  # for most who come, and without a scope, which costs more than all the rest
    wire = subscription.client.wire
    try:
        with wire.attending():
            return await replay.start(eventlog, subscription.view, wish, options, pause)
    finally:
        wire.attended()
    return None
