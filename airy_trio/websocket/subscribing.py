"""The answer to SUBSCRIBE: check that it is allowed, decide where it starts, and hand it to the fan-out.

While SUBSCRIBE waits for the store (the channel of a conversation, acknowledged positions, the recent window), the
server still listens to the client, so that it notices if the client leaves.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio
from attrs import evolve

from airy_trio.events.destinations import Destination, OfConversation, UnknownDestinationError, Within, parse
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

T = TypeVar("T")

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
        return _not_granted(request, client.user.grant.why_not(destination))
    refused = await _foreign_conversation(client, request, granted, eventlog, pause)
    if refused is None and request.durable is not None:
        refused = _refused(client, request, durables, request.durable)
    if refused is not None:
        return refused
    if client.visitor is not None and not client.visitor.subscribe():
        prose = "The clients of this address have as many subscriptions as are allowed."
        reason = "listener.subscriptions_per_address_max is reached"
        return evolve(TOO_MANY, prose=prose, receipt_id=request.receipt, reason=reason)
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
    wish = _wish(client, request, None if hold is None else hold.position)
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


def _not_granted(request: Subscribe, reason: str) -> Farewell:
    """Refuse a destination. The client receives the same words for each reason: they must not say what exists."""
    prose = "The credentials of this client do not grant this destination."
    return evolve(with_token("403-destination", prose, receipt_id=request.receipt), reason=reason)


async def _foreign_conversation(
    client: Client, request: Subscribe, granted: Destination, eventlog: EventLog, pause: Pause
) -> Farewell | None:
    """Refuse a conversation if its newest event belongs to a channel that is not granted; None if it may be read.

    The view of the subscription keeps events of other channels from the client in any case. This only spares the client
    a subscription on which nothing would ever arrive. So a conversation whose channel is unknown is not refused: its
    first event may still come. Reads the log only for a user who is limited to channels.
    """
    if not (isinstance(granted, Within) and isinstance(granted.destination, OfConversation)):
        return None
    look_up = partial(eventlog.channels_of, granted.destination, address=client.peer or "")
    channels = await _attended(client, partial(replay.answered, look_up, pause))
    if channels is None:
        return GONE
    if channels <= granted.channels:
        return None
    reason = "the claim of auth.jwt_channels_claim does not list the channel of this conversation's newest event"
    return _not_granted(request, reason)


def _refused(client: Client, request: Subscribe, durables: Durables, name: str) -> Farewell | None:
    """Refuse a durable subscription that is not allowed; None if it is."""
    refused = refusal(request, client.user)
    if refused is not None or durables.admits(client.user.name or "", name):
        return refused
    prose = "This user has used as many names of durable subscriptions lately as are allowed."
    reason = "listener.durables_per_user_max is reached"
    return evolve(TOO_MANY, prose=prose, receipt_id=request.receipt, reason=reason)


async def _hold(subscription: Subscription, request: Subscribe, durables: Durables, pause: Pause) -> Hold | None:
    """Hold the durable subscription that is asked for; what was acknowledged of it is known then."""
    owner = subscription.client.user.name
    if request.durable is None or owner is None:
        return None
    hold = durables.claim(subscription, owner, request.durable)
    await hold.claimed.wait(pause)
    return hold


def _wish(client: Client, request: Subscribe, acknowledged: Position | None) -> replay.Wish:
    """Start after the position that the client sends, or else after what it has acknowledged."""
    told = request.last_event_id
    if told is None and acknowledged is not None:
        told = str(acknowledged)
    return replay.Wish(told, request.replay, client.peer or "")


async def _start(
    subscription: Subscription, wish: replay.Wish, eventlog: EventLog, options: ReplayOptions, pause: Pause
) -> replay.Start | None:
    """Decide where a subscription starts; None where the client has left meanwhile."""
    found = replay.at_once(eventlog, subscription.view, wish)
    if found is not None:
        return found  # for most who come, and without a scope, which costs more than all the rest
    return await _attended(
        subscription.client, partial(replay.start, eventlog, subscription.view, wish, options, pause)
    )


async def _attended(client: Client, work: Callable[[], Awaitable[T]]) -> T | None:
    """Do work that may wait for the store; None if the client leaves before it is done."""
    wire = client.wire
    try:
        with wire.attending():
            return await work()
    finally:
        wire.attended()
    return None
