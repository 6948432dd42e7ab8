"""What a client asks for, answered: requests in, frames and cursors out, until one of them ends the session.

Each request takes effect before its RECEIPT is written. Events are written by the fan-out, whose ``serve`` is
called where a request makes a subscription hungry; how the session ends is only named here, not said.

RECEIPT, with which each request that asks for one is answered once it has taken effect.

The answer to SUBSCRIBE: check that it is allowed, decide where it starts, and hand it to the fan-out.

While SUBSCRIBE waits for the store (the channel of a conversation, acknowledged positions, the recent window), the
server still listens to the client, so that it notices if the client leaves.

The answer to CONNECT: an accepted client is live and watched from then on, a refused one waits and gets an ERROR.

The messages of one client in their order: the next one, and those that came while it was not yet their turn.

Who waits for something else than the client, perhaps for long, listens meanwhile: a client that leaves is noticed
then, and not when the wait is over. Knows nothing of what the messages say.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, assert_never

import structlog
import trio
from attrs import evolve

from airy_trio.auth import Authenticator, Refusal, RefusalKind, User
from airy_trio.delivery.client import Client, ClientState, ReplayOptions, Subscription, Window
from airy_trio.delivery.disconnects import (
    DONE,
    GONE,
    KEYS_AWAY,
    NOT_FOUND,
    TOKEN_EXPIRED,
    TOO_MANY,
    UNAUTHORIZED,
    DisconnectReason,
    with_token,
)
from airy_trio.delivery.durables import DurableClaim, Durables, refusal
from airy_trio.delivery.fanout import FanOut
from airy_trio.delivery.start import LIVE, Start, Wish, answered, at_once
from airy_trio.delivery.start import start as start_after
from airy_trio.events.destinations import Destination, OfConversation, UnknownDestinationError, Within, parse
from airy_trio.log.event_log import EventLog
from airy_trio.log.position import Position
from airy_trio.sessions.closing import EarlyEnds
from airy_trio.sessions.heartbeats import Pulse, Wheel
from airy_trio.stomp.encoder import header
from airy_trio.stomp.errors import TOO_MANY_SUBSCRIPTIONS, RemoteProtocolError
from airy_trio.stomp.requests import Ack, AckMode, Acknowledge, Connect, Disconnect, Request, Subscribe, Unsubscribe
from airy_trio.websocket.stream import FramedStream, text_message


async def write_receipt(client: Client, receipt_id: str | None, headers: tuple[tuple[str, str], ...] = ()) -> None:
    """Write a RECEIPT with further headers; nothing where none is asked for."""
    if receipt_id is not None:
        await client.stream.write(text_message(client.connection.receipt(receipt_id, headers)))


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
) -> DisconnectReason | None:
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
    if start.verdict != LIVE:
        subscription.verdict = header("resume", start.verdict, None)
    if hold is not None:
        await durables.start(hold).wait(pause)
    await write_receipt(client, request.receipt, (("position", str(start.position)), ("resume", start.verdict)))
    subscription.started = True
    fanout.serve(subscription, trio.current_time())
    return None


def _not_granted(request: Subscribe, reason: str) -> DisconnectReason:
    """Refuse a destination. The client receives the same words for each reason: they must not say what exists."""
    prose = "The credentials of this client do not grant this destination."
    return evolve(with_token("403-destination", prose, receipt_id=request.receipt), reason=reason)


async def _foreign_conversation(
    client: Client, request: Subscribe, granted: Destination, eventlog: EventLog, pause: Pause
) -> DisconnectReason | None:
    """Refuse a conversation if its newest event belongs to a channel that is not granted; None if it may be read.

    The view of the subscription keeps events of other channels from the client in any case. This only spares the client
    a subscription on which nothing would ever arrive. So a conversation whose channel is unknown is not refused: its
    first event may still come. Reads the log only for a user who is limited to channels.
    """
    if not (isinstance(granted, Within) and isinstance(granted.destination, OfConversation)):
        return None
    look_up = partial(eventlog.channels_of, granted.destination, address=client.peer or "")
    channels = await _attended(client, partial(answered, look_up, pause))
    if channels is None:
        return GONE
    if channels <= granted.channels:
        return None
    reason = "the claim of auth.jwt_channels_claim does not list the channel of this conversation's newest event"
    return _not_granted(request, reason)


def _refused(client: Client, request: Subscribe, durables: Durables, name: str) -> DisconnectReason | None:
    """Refuse a durable subscription that is not allowed; None if it is."""
    refused = refusal(request, client.user)
    if refused is not None or durables.admits(client.user.name or "", name):
        return refused
    prose = "This user has used as many names of durable subscriptions lately as are allowed."
    reason = "listener.durables_per_user_max is reached"
    return evolve(TOO_MANY, prose=prose, receipt_id=request.receipt, reason=reason)


async def _hold(
    subscription: Subscription, request: Subscribe, durables: Durables, pause: Pause
) -> DurableClaim | None:
    """DurableClaim the durable subscription that is asked for; what was acknowledged of it is known then."""
    owner = subscription.client.user.name
    if request.durable is None or owner is None:
        return None
    hold = durables.claim(subscription, owner, request.durable)
    await hold.claimed.wait(pause)
    return hold


def _wish(client: Client, request: Subscribe, acknowledged: Position | None) -> Wish:
    """Start after the position that the client sends, or else after what it has acknowledged."""
    told = request.last_event_id
    if told is None and acknowledged is not None:
        told = str(acknowledged)
    return Wish(told, request.replay, client.peer or "")


async def _start(
    subscription: Subscription, wish: Wish, eventlog: EventLog, options: ReplayOptions, pause: Pause
) -> Start | None:
    """Decide where a subscription starts; None where the client has left meanwhile."""
    found = at_once(eventlog, subscription.view, wish)
    if found is not None:
        return found  # for most who come, and without a scope, which costs more than all the rest
    return await _attended(subscription.client, partial(start_after, eventlog, subscription.view, wish, options, pause))


async def _attended(client: Client, work: Callable[[], Awaitable[T]]) -> T | None:
    """Do work that may wait for the store; None if the client leaves before it is done."""
    stream = client.stream
    try:
        with stream.attending():
            return await work()
    finally:
        stream.attended()
    return None


logger = structlog.get_logger(__name__)

"""How some seconds are waited for (``Conversation.pause``)."""

_REFUSED: Final = {
    RefusalKind.UNAUTHORIZED: UNAUTHORIZED,
    RefusalKind.EXPIRED: TOKEN_EXPIRED,
    RefusalKind.UNAVAILABLE: KEYS_AWAY,
}


async def admit(  # noqa: PLR0913 - the client, its credentials, and the services of the process
    client: Client,
    request: Connect,
    token: str | None,
    *,
    authenticator: Authenticator,
    early_ends: EarlyEnds,
    wheel: Wheel,
    pause: Pause,
) -> DisconnectReason | None:
    """Send CONNECTED and begin to watch the client's heart-beats; or return the farewell that refuses it.

    ``token``: the one in the upgrade request, if it has one.
    """
    user = await authenticator.authenticate(request, token)
    if isinstance(user, Refusal):
        return await _refuse(client, user, authenticator, early_ends, pause)
    client.user = user
    await client.stream.write(text_message(client.connection.connected()))
    if not authenticator.accepts(user):
        return UNAUTHORIZED  # they were taken back meanwhile, and only clients that are connected were ended
    client.connected = True
    logger.info("connection opened", session=client.session, address=client.address, user=user.name)
    if client.state is ClientState.CONNECTING:
        client.state = ClientState.LIVE
        client.scope.deadline = math.inf
        client.stream.limit(None)
        wheel.watch(Pulse(client, client.stream, request.heartbeat, _expires_at(user)))
    return None


async def _refuse(
    client: Client, refusal: Refusal, authenticator: Authenticator, early_ends: EarlyEnds, pause: Pause
) -> DisconnectReason:
    reason = refusal.reason
    early_ends.log("credentials refused", reason, session=client.session, address=client.address, reason=reason)
    if refusal.kind is not RefusalKind.UNAVAILABLE:  # which is no doing of the client's
        client.scope.deadline = math.inf  # it came in time
        await pause(authenticator.delay_s(client.peer))
    return _REFUSED[refusal.kind]


def _expires_at(user: User) -> float:
    """When the user's credentials stop to count, in Trio's time."""
    return math.inf if user.expires_at is None else trio.current_time() + user.expires_at - time.time()


Message = bytes | str

MESSAGE_BYTES: Final = 64
"""What one message counts beyond its own octets: many empty ones must not pass for nothing."""


class MessageQueue:
    """Reads ahead up to ``bytes_max``, about; then the client has to wait. ``receive`` gives the next message.

    It raises what ``receive`` raises, where the client has left. For one task.
    """

    __slots__ = (
        "_ahead",
        "_bytes",
        "_bytes_max",
        "_receive",
    )

    def __init__(self, receive: Callable[[], Awaitable[Message]], *, bytes_max: int) -> None:
        self._receive = receive
        self._bytes_max = bytes_max
        self._bytes = 0
        self._ahead: deque[Message] | None = None  # an empty deque takes 600 bytes, in each of many thousand sessions

    def next(self) -> Awaitable[Message]:
        """Give the next message, awaited. No coroutine of its own: every idle session waits here, and would keep it."""
        if self._ahead:
            return self._read_before(self._ahead)
        self._ahead = None
        return self._receive()

    async def listen(self, seconds: float) -> None:
        """Take what comes in this time, for ``next``; raise what tells that nothing more can come, at once."""
        if self._ahead is None:
            self._ahead = deque()
        with trio.move_on_after(seconds):
            while self._bytes < self._bytes_max:
                message = await self._receive()
                self._ahead.append(message)
                self._bytes += _size(message)
            await trio.sleep_forever()

    async def _read_before(self, ahead: deque[Message]) -> Message:
        await trio.lowlevel.checkpoint()
        message = ahead.popleft()
        self._bytes -= _size(message)
        return message


def _size(message: Message) -> int:
    return MESSAGE_BYTES + len(message)


PIECE_BYTES: Final = 512
"""Of a message, looked at in one turn: it can hold thousands of frames, which nobody has to wait for."""
ACKS_PER_TURN: Final = 64
"""One acknowledgement can concern all subscriptions of the connection."""

_REASONS: Final = {TOO_MANY_SUBSCRIPTIONS.token: "listener.subscriptions_max is reached"}
"""For the log, by the token of a fault in STOMP, if the token is not reason enough."""


class Conversation:
    """The requests of one client. ``hear`` is called by one task, with what came in one WebSocket message.

    ``upgrade_token``: the one that came with the upgrade, if any did; it counts where CONNECT brings none.
    ``inbox``: the messages that are still to come, where somebody has them. ``turn``: how others are let in between two
    answers. ``acks_ignored``: of unknown or already acknowledged messages. ``nacks``: messages that the client refused.
    """

    __slots__ = (
        "_authenticator",
        "_client",
        "_durables",
        "_early_ends",
        "_eventlog",
        "_fanout",
        "_options",
        "_stream",
        "_unwritten",
        "_wheel",
        "acks_ignored",
        "inbox",
        "nacks",
        "turn",
        "upgrade_token",
    )

    def __init__(  # noqa: PLR0913 - it is where all of them meet
        self,
        client: Client,
        stream: FramedStream,
        eventlog: EventLog,
        wheel: Wheel,
        options: ReplayOptions,
        *,
        authenticator: Authenticator,
        fanout: FanOut,
        durables: Durables,
        early_ends: EarlyEnds,
    ) -> None:
        self._client = client
        self._stream = stream
        self._eventlog = eventlog
        self._wheel = wheel
        self._options = options
        self._authenticator = authenticator
        self._fanout = fanout
        self._durables = durables
        self._early_ends = early_ends
        self._unwritten = False
        self.inbox: MessageQueue | None = None
        self.turn: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self.upgrade_token: str | None = None
        self.acks_ignored = 0
        self.nacks = 0

    @property
    def pause(self) -> Pause:
        """How some seconds are waited for: listening to the client meanwhile, so that it is noticed when it leaves."""
        return trio.sleep if self.inbox is None else self.inbox.listen

    async def hear(self, message: bytes | str) -> DisconnectReason | None:
        """Read one message and answer all that it holds; the farewell, if something in it ends the session."""
        self._client.occupied = True
        try:
            return await self._answer_all(message)
        finally:
            self._client.occupied = False
            self._stream.read_at = trio.current_time()

    def end(self) -> None:
        """Let go of all views. Idempotent."""
        for number in tuple(self._client.subscriptions):
            self._unsubscribe(number)

    async def _answer_all(self, message: bytes | str) -> DisconnectReason | None:
        for begin in range(0, len(message), PIECE_BYTES):
            if begin:
                await trio.lowlevel.checkpoint()
                await self.turn()
            farewell = await self._answer_piece(message[begin : begin + PIECE_BYTES])
            if farewell is not None:
                return farewell
        return None

    async def _answer_piece(self, piece: bytes | str) -> DisconnectReason | None:
        fault: RemoteProtocolError | None = None
        try:
            requests = self._client.connection.receive(piece)
        except RemoteProtocolError as error:
            requests, fault = error.fulfilled, error
        answered = False
        for request in requests:
            if answered:
                await self.turn()  # each answer is a piece of work like another message, and so is each replay
            farewell = await self._answer(request)
            if farewell is not None:
                return farewell
            answered = isinstance(request, Subscribe) or (
                not isinstance(request, Connect) and request.receipt is not None
            )
        if fault is None:
            return None
        farewell = with_token(fault.token, fault.prose, receipt_id=fault.receipt_id, headers=fault.headers)
        return evolve(farewell, reason=_REASONS.get(fault.token, ""))

    async def _answer(self, request: Request) -> DisconnectReason | None:
        match request:
            case Connect():
                return await self._connect(request)
            case Subscribe():
                return await self._subscribe(request)
            case Unsubscribe():
                for number in request.numbers:
                    self._unsubscribe(number)
                await self._receipt_when_written(request.receipt)
            case Acknowledge():
                for count, ack in enumerate(request.acks, 1):
                    self._acknowledge(ack)
                    if count % ACKS_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
                        await self.turn()
                await self._receipt_when_written(request.receipt)
            case Disconnect():
                self.end()
                await self._receipt_when_written(request.receipt)
                return DONE
            case _:
                assert_never(request)
        return None

    async def _connect(self, request: Connect) -> DisconnectReason | None:
        token, self.upgrade_token = self.upgrade_token, None
        return await admit(
            self._client,
            request,
            token,
            authenticator=self._authenticator,
            early_ends=self._early_ends,
            wheel=self._wheel,
            pause=self.pause,
        )

    async def _subscribe(self, request: Subscribe) -> DisconnectReason | None:
        return await subscribe(
            self._client,
            request,
            eventlog=self._eventlog,
            options=self._options,
            fanout=self._fanout,
            durables=self._durables,
            pause=self.pause,
        )

    def _unsubscribe(self, number: int) -> None:
        subscription = self._client.subscriptions.pop(number, None)
        if subscription is not None:
            subscription.end()
            if self._client.visitor is not None:
                self._client.visitor.unsubscribe()
            self._eventlog.detach(subscription.view, subscription)
            self._unwritten |= self._durables.release(subscription)

    def _acknowledge(self, ack: Ack) -> None:
        position = Position.parse(ack.message_id)
        known: list[Subscription] = []
        for subscription in self._acknowledging(ack.number):
            if subscription.window is None or position is None or position.epoch != subscription.position.epoch:
                continue
            if subscription.window.acknowledge(position.offset):
                known.append(subscription)
        if not known:
            self.acks_ignored += 1
            return
        if not ack.accepted:
            self.nacks += 1
            logger.info("event refused", message_id=str(position), session=self._client.session)
        for subscription in known:
            self._unwritten |= self._durables.acknowledged(subscription)
            self._fanout.serve(subscription, trio.current_time())

    def _acknowledging(self, number: int | None) -> list[Subscription]:
        if number is None:
            return list(self._client.subscriptions.values())
        subscription = self._client.subscriptions.get(number)
        return [] if subscription is None else [subscription]

    async def _receipt_when_written(self, receipt_id: str | None) -> None:
        """Acknowledgements have taken effect when the store keeps them."""
        if receipt_id is not None and self._unwritten:
            await self._durables.written().wait(self.pause)
            self._unwritten = False
        await write_receipt(self._client, receipt_id)
