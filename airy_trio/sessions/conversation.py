"""The STOMP conversation of one client: requests in, RECEIPTs and cursors out, until a request ends the session.

Every request takes effect before its RECEIPT is written. Events are written by the fan-out; the conversation only calls
``FanOut.serve`` when a request gives a subscription work. A method that returns a disconnect reason ends the session
with it.

Some requests wait for something other than the client: the event store, a durable claim, keys of web tokens, the delay
after wrong credentials. ``Inbox.unless_gone`` reads ahead meanwhile, and ends the wait if the client has left.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final, NoReturn, TypeVar, assert_never

import structlog
import trio
from attrs import define, evolve, field, frozen

from airy_trio.auth.authenticator import Authenticator, UnknownKeyError
from airy_trio.auth.users import Refusal, RefusalKind
from airy_trio.delivery.client import Client, ReplayOptions, Subscription, Window
from airy_trio.delivery.disconnects import (
    DONE,
    KEYS_AWAY,
    NOT_FOUND,
    TOKEN_EXPIRED,
    TOO_MANY,
    UNAUTHORIZED,
    DisconnectReason,
    with_token,
)
from airy_trio.delivery.durables import PER_USER_MAX, DurableClaim, Durables
from airy_trio.delivery.fanout import Batches, FanOut, Senders
from airy_trio.delivery.start import LIVE, RESUMES, Start, StartRequest, start, start_at_once
from airy_trio.events.destinations import Destination, OfConversation, UnknownDestinationError, Within, parse
from airy_trio.log.event_log import EventLog
from airy_trio.log.reads import Reads
from airy_trio.log.store import Position
from airy_trio.options import at_least, matching, more_than, satisfying
from airy_trio.retry import Sample, until_available
from airy_trio.sessions.heartbeats import ClientTimers, TimerWheel
from airy_trio.stomp.codec import Limits, header
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.errors import TOO_MANY_SUBSCRIPTIONS, RemoteProtocolError
from airy_trio.stomp.frames import Ack, AckMode, Acknowledge, Connect, Disconnect, Request, Subscribe, Unsubscribe
from airy_trio.websocket.admission import AdmissionOptions
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.request import STATUSES
from airy_trio.websocket.stream import InputEnded

logger = structlog.get_logger(__name__)

T = TypeVar("T")

# A message may hold thousands of frames. It is parsed in pieces, and other clients get a turn between two of them.
PIECE_BYTES: Final = 512
# One ACK may concern all subscriptions of the connection.
ACKS_PER_TURN: Final = 64
# Counted for each message that is read ahead, in addition to its bytes, so that empty messages are bounded as well.
MESSAGE_BYTES: Final = 64
# The timer wheel is not precise enough for shorter intervals.
HEARTBEAT_MS_MIN: Final = 500

_REFUSED: Final = {
    RefusalKind.UNAUTHORIZED: UNAUTHORIZED,
    RefusalKind.EXPIRED: TOKEN_EXPIRED,
    RefusalKind.UNAVAILABLE: KEYS_AWAY,
}
# For the log: the setting behind a fault in STOMP, by its token, if the token alone does not explain it.
_DETAILS: Final = {TOO_MANY_SUBSCRIPTIONS.token: "listener.subscriptions_max is reached"}


@frozen(kw_only=True)
class SessionOptions(AdmissionOptions):
    """Limits of a session (settings, ``[listener]``).

    ``away_max_s``: for how long clients stay connected while the event store cannot be read; 0: without limit.
    """

    path: str = field(default="/ws.communication", validator=matching(r"/[!-~]*", 'a path that begins with "/"'))
    sse_path: str = field(default="/events", validator=matching(r"(/[!-.0->@-~]+)*", 'a path, or ""'))
    subscriptions_max: int = field(default=16, validator=at_least(1))
    durables_per_user_max: int = field(default=PER_USER_MAX, validator=at_least(1))
    connect_timeout_s: float = field(default=10, validator=more_than(0))
    away_max_s: float = field(default=60, validator=at_least(0))
    send_timeout_s: float = field(default=10, validator=more_than(0))
    heartbeat_ms: int = field(
        default=30_000,
        validator=satisfying(lambda ms: ms == 0 or ms >= HEARTBEAT_MS_MIN, f"0, or at least {HEARTBEAT_MS_MIN}"),
    )
    frame_bytes_max: int = field(default=65_536, validator=at_least(4096))


class SampledLog:
    """Log lines about connections that end before CONNECT is accepted, of which any client can cause thousands.

    For each event and reason, a ``Sample`` of the lines is logged at level info, and the others at level debug.
    ``not_logged`` is the number of lines at level debug since the last one at level info. Memory is kept for each event
    and reason, so a reason must come from a small, fixed set and contain nothing that a client sends.
    """

    def __init__(self) -> None:
        self._samples: defaultdict[tuple[str, str], Sample] = defaultdict(Sample)

    def log(self, event: str, reason: str, /, **fields: object) -> None:
        """Log an event; ``reason`` selects the sample that it belongs to."""
        if count := self._samples[event, reason].take():
            logger.info(event, **fields, not_logged=count - 1)
        else:
            logger.debug(event, **fields)


class Services:
    """The parts of a process that all of its sessions share.

    Counts since the start: ``requests_refused``, by HTTP status; ``started``, subscriptions by the ``resume`` of their
    RECEIPT; ``acks_ignored``, ACKs and NACKs of messages that are unknown or were acknowledged before; ``nacks``, NACKs
    of messages in flight.
    """

    def __init__(
        self,
        eventlog: EventLog,
        options: SessionOptions,
        replay: ReplayOptions,
        authenticator: Authenticator,
        *,
        server: str,
    ) -> None:
        self.eventlog = eventlog
        self.options = options
        self.replay = replay
        self.authenticator = authenticator
        self.connections = ConnectionOptions(
            server=server,
            heartbeat_ms=options.heartbeat_ms,
            limits=Limits(frame_bytes_max=options.frame_bytes_max),
            subscriptions_max=options.subscriptions_max,
        )
        self.batches = Batches(eventlog)
        self.reads = Reads(eventlog)
        self.senders = Senders(self.reads, self.batches)
        self.fanout = FanOut(eventlog, self.batches, self.senders)
        self.wheel = TimerWheel(self.senders)
        self.durables = Durables(eventlog, per_user_max=options.durables_per_user_max)
        # Counters begin at 0: an alert on the rate of a counter misses an increase that creates the counter.
        self.requests_refused = Counter({status.value: 0 for status in STATUSES})
        self.started = Counter(dict.fromkeys(RESUMES, 0))
        self.acks_ignored = self.nacks = 0
        self.sampled_log = SampledLog()


@define(eq=False, weakref_slot=False)
class Inbox:
    """The messages of one client, in order. For one task.

    ``receive``: returns the next message and can be cancelled without loss (``FramedStream.receive``); the methods
    raise what it raises. ``turn``: awaited before a message that was read ahead.
    """

    _receive: Callable[[], Awaitable[bytes]]
    _turn: Turn
    _bytes_max: int = field(kw_only=True)
    _bytes: int = field(default=0, init=False)
    _ahead: list[bytes] = field(factory=list, init=False)  # an empty deque takes 600 bytes, in each idle session
    _fault: Exception | None = field(default=None, init=False)  # of reading ahead; comes after the messages

    def next(self) -> Awaitable[bytes]:
        """Return the next message, to be awaited.

        Not a coroutine, because every idle session waits here and would keep the coroutine's frame in memory.
        """
        if self._ahead:
            return self._read_before()
        return self._receive() if self._fault is None else self._fail()

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """Await work on the client's behalf; if the client leaves first, cancel it and raise what ``receive`` raises.

        Reads ahead up to about ``bytes_max``; beyond, the client's leaving is noticed only after the work.
        """
        # Two tasks run during the wait, and each can end the other. When the work has ended, the one that reads ahead
        # is cancelled; that loses nothing, because `receive` may be cancelled at any await. When the client has left,
        # or breaks the protocol, the reading task cancels the work, and its fault is raised here. If both happen in one
        # pass of the event loop, the work counts: its result is returned, and `next` raises the fault after the
        # messages that came before it. The result is in a list, because None is a result too.
        results: list[T] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_ahead, nursery.cancel_scope)
            # Nothing is raised inside the nursery, because it would wrap the exception in a group.
            try:
                results.append(await work)
            except Exception as fault:  # noqa: BLE001 - raised below
                self._fault = fault
            nursery.cancel_scope.cancel()
        return results[0] if results else await self._fail()

    async def _fail(self) -> NoReturn:
        fault, self._fault = self._fault, None
        try:
            raise fault or InputEnded
        finally:
            del fault  # its traceback refers to this call and its variables: a reference cycle

    def clear(self) -> None:
        """Drop what was read ahead. The traceback of a fault refers to this object, which would be a cycle."""
        self._ahead.clear()
        self._fault = None

    async def _read_ahead(self, work: trio.CancelScope) -> None:
        if self._fault is not None:  # of an earlier wait
            work.cancel()
            return
        try:
            while self._bytes < self._bytes_max:
                message = await self._receive()
                self._ahead.append(message)
                self._bytes += MESSAGE_BYTES + len(message)
        except Exception as fault:  # noqa: BLE001 - raised by `_fail`
            self._fault = fault
            work.cancel()

    async def _read_before(self) -> bytes:
        await trio.lowlevel.checkpoint()
        await self._turn()
        message = self._ahead.pop(0)
        self._bytes -= MESSAGE_BYTES + len(message)
        return message


@define(eq=False, weakref_slot=False)
class Conversation:
    """The requests of one client. One task calls ``handle``, with each WebSocket message from ``inbox`` in its turn.

    ``upgrade_token``: the token of the upgrade request, used if CONNECT has none.
    """

    _client: Client
    _services: Services
    inbox: Inbox
    _upgrade_token: str | None = field(default=None, kw_only=True)
    _unwritten: bool = field(default=False, init=False)  # acknowledgements that the next RECEIPT has to wait for

    async def handle(self, message: bytes) -> DisconnectReason | None:
        """Handle all frames in a message; return the disconnect reason if one of them ends the session."""
        for begin in range(0, len(message), PIECE_BYTES):
            if begin:
                await self._yield()
            reason = await self._handle_piece(message[begin : begin + PIECE_BYTES])
            if reason is not None:
                return reason
        return None

    def end(self) -> None:
        """End all subscriptions, and drop the messages that were read ahead. Idempotent."""
        self.inbox.clear()
        for number in tuple(self._client.subscriptions):
            self._unsubscribe(number)

    async def _yield(self) -> None:
        # A turn alone has no checkpoint as long as the pass has room for this task.
        await trio.lowlevel.checkpoint()
        await self._client.slot.turn()

    async def _handle_piece(self, piece: bytes) -> DisconnectReason | None:
        refused: DisconnectReason | None = None
        try:
            requests = self._client.framing.receive(piece)
        except RemoteProtocolError as fault:
            # The client sent `fulfilled` before the frame at fault, so these requests take effect, with their RECEIPTs,
            # before the ERROR.
            requests, refused = fault.fulfilled, _after_fault(fault)
        return await self.answer(requests) or refused

    async def answer(self, requests: Iterable[Request]) -> DisconnectReason | None:
        """Answer requests in order; return the disconnect reason if one of them ends the session."""
        answered = False
        for request in requests:
            if answered:
                # An answer, and the replay that may follow it, costs as much as a further message.
                await self._client.slot.turn()
            reason = await self._answer(request)
            if reason is not None:
                return reason
            answered = isinstance(request, Subscribe) or (
                not isinstance(request, Connect) and request.receipt is not None
            )
        return None

    async def _answer(self, request: Request) -> DisconnectReason | None:
        match request:
            case Connect():
                return await self._connect(request)
            case Subscribe():
                return await self._subscribe(request)
            case Unsubscribe():
                for number in request.numbers:
                    self._unsubscribe(number)
            case Acknowledge():
                for count, ack in enumerate(request.acks, 1):
                    self._acknowledge(ack)
                    if count % ACKS_PER_TURN == 0:
                        await self._yield()
            case Disconnect():
                self.end()
            case _:
                assert_never(request)
        await self._send_receipt_when_written(request.receipt)
        return DONE if isinstance(request, Disconnect) else None

    async def _connect(self, request: Connect) -> DisconnectReason | None:
        """Send CONNECTED and start the client's timers; or return why the client is refused."""
        client, authenticator = self._client, self._services.authenticator
        client.scope.deadline = math.inf  # CONNECT has arrived in time; the waits below have limits of their own
        # Not kept: it is a secret, and the session may last for days.
        token, self._upgrade_token = self._upgrade_token, None
        user = authenticator.authenticate_at_once(request, token)
        # The tasks of `unless_gone` are started only in this case: most tokens name a key that is known.
        if isinstance(user, UnknownKeyError):
            user = await self.inbox.unless_gone(authenticator.authenticate(request, token))
        if isinstance(user, Refusal):
            return await self._refuse(user)
        client.user = user
        await client.stream.write(client.framing.connected())
        if not authenticator.accepts(user):
            # They were revoked during the write, when only clients that were connected already were disconnected.
            return UNAUTHORIZED
        live = client.go_live()
        logger.debug("connection opened", session=client.session, address=client.slot.address, user=user.name)
        if live:
            end = user.expires_at  # by the clock of the system, not in Trio's time
            expires_at = math.inf if end is None else trio.current_time() + end - time.time()
            self._services.wheel.watch(ClientTimers(client, request.heartbeat, expires_at))
        return None

    async def _refuse(self, refusal: Refusal) -> DisconnectReason:
        client, reason = self._client, refusal.reason
        self._services.sampled_log.log(
            "credentials refused", reason, session=client.session, address=client.slot.address, reason=reason
        )
        if refusal.kind is not RefusalKind.UNAVAILABLE:  # that is not the client's fault, so there is no delay
            delay_s = self._services.authenticator.delay_s(client.slot.key)
            await self.inbox.unless_gone(trio.sleep(delay_s))  # noqa: ASYNC105 - awaited there
        return _REFUSED[refusal.kind]

    async def _subscribe(self, request: Subscribe) -> DisconnectReason | None:
        """Start a subscription, and send a RECEIPT if one is requested; or return why the subscription is refused.

        The order matters: the position is fixed, the RECEIPT is written, the subscription is started and served. So
        the RECEIPT comes before the first MESSAGE, and no event in between is lost.
        """
        client, services = self._client, self._services
        try:
            destination = parse(request.destination)
        except UnknownDestinationError:
            return evolve(NOT_FOUND, receipt_id=request.receipt)
        granted = client.user.grant.of(destination)
        if granted is None:
            return _not_granted(request, client.user.grant.why_not(destination))
        refused = await self._refuse_foreign_conversation(request, granted)
        if refused is None and request.durable is not None:
            refused = services.durables.refusal(request, client.user, request.durable)
        if refused is not None:
            return refused
        # No checkpoint from here until the subscription is in `client.subscriptions`: if a later wait is cancelled,
        # `end` releases only what it finds there.
        if not client.slot.subscribe():
            prose = "The clients of this address have as many subscriptions as are allowed."
            details = "listener.subscriptions_per_address_max is reached"
            return evolve(TOO_MANY, prose=prose, receipt_id=request.receipt, details=details)
        subscription = Subscription(
            client=client,
            number=request.number,
            prefix=client.framing.message_prefix(request),
            position=services.eventlog.head,
            live_after=services.eventlog.head.offset,
            window=None if request.ack is AckMode.AUTO else Window(request.ack, request.prefetch),
        )
        # Before the waits below: from here on the tail reports growth and evictions of this view. The fan-out passes
        # over the subscription until it is started.
        subscription.view = services.eventlog.tail.attach(granted, subscription)
        client.subscriptions[request.number] = subscription
        claim: DurableClaim | None = None
        if request.durable is not None and client.user.name is not None:  # its acknowledged position is known then
            claim = services.durables.claim(subscription, client.user.name, request.durable)
            await self.inbox.unless_gone(claim.claimed.wait())
        begin = await self._find_start(subscription, request, None if claim is None else claim.position)
        services.started[begin.resume] += 1
        has_header = begin.resume != LIVE and client.framing.has_headers
        resume_header = header("resume", begin.resume, None) if has_header else b""
        subscription.begin_after(begin.position, begin.replay, resume_header)
        if claim is not None:
            # The start is stored before the RECEIPT. Otherwise, if this node crashed after the RECEIPT of a new name,
            # the next connection would find no position and miss the events in between.
            services.durables.start(claim)
            await self.inbox.unless_gone(services.durables.wait_written())
        await self._send_receipt(request.receipt, begin.headers)
        subscription.start()
        services.fanout.serve(subscription, trio.current_time())
        return None

    async def _refuse_foreign_conversation(self, request: Subscribe, granted: Destination) -> DisconnectReason | None:
        """Refuse a conversation if its newest event belongs to a channel that is not granted; None if it may be read.

        The view keeps events of other channels from the client in any case; this only spares it a subscription on which
        nothing would ever arrive. So a conversation whose channel is unknown is not refused. Reads the log only for a
        user who is limited to channels.
        """
        if not (isinstance(granted, Within) and isinstance(granted.destination, OfConversation)):
            return None
        reads, address = self._services.reads, self._client.slot.key
        look_up = partial(reads.channels_of, granted.destination, address=address)
        if await self.inbox.unless_gone(until_available(look_up)) <= granted.channels:
            return None
        reason = "the claim of auth.jwt_channels_claim does not list the channel of this conversation's newest event"
        return _not_granted(request, reason)

    async def _find_start(self, subscription: Subscription, request: Subscribe, acknowledged: Position | None) -> Start:
        """Decide where to start: after the position that the client sends, or else after what it has acknowledged."""
        last_event_id = request.last_event_id
        if last_event_id is None and acknowledged is not None:
            last_event_id = str(acknowledged)
        wanted = StartRequest(last_event_id, request.replay, self._client.slot.key)
        services = self._services
        # For most clients, and without the tasks of `unless_gone`, which cost more than all the rest.
        found = start_at_once(services.reads, subscription.view, wanted, services.replay)
        if found is not None:
            return found
        look_up = partial(start, services.reads, subscription.view, wanted, services.replay)
        return await self.inbox.unless_gone(until_available(look_up))

    def _unsubscribe(self, number: int) -> None:
        client, services = self._client, self._services
        subscription = client.subscriptions.pop(number, None)
        if subscription is not None:
            subscription.end()
            client.slot.unsubscribe()
            services.eventlog.tail.detach(subscription.view, subscription)
            self._unwritten |= services.durables.release(subscription)

    def _acknowledge(self, ack: Ack) -> None:
        position = Position.parse(ack.message_id)
        if ack.number is None:  # the client did not name a subscription: all that have the message
            subscriptions = list(self._client.subscriptions.values())
        else:
            one = self._client.subscriptions.get(ack.number)
            subscriptions = [] if one is None else [one]
        known = [
            one
            for one in subscriptions
            if one.window is not None
            and position is not None
            # After a new epoch has begun, the same offset is another event.
            and position.epoch == one.position.epoch
            and one.window.acknowledge(position.offset)
        ]
        if not known:
            self._services.acks_ignored += 1
            return
        if not ack.accepted:
            self._services.nacks += 1
            logger.info("event refused", message_id=str(position), session=self._client.session)
        for subscription in known:
            self._unwritten |= self._services.durables.acknowledged(subscription)
            self._services.fanout.serve(subscription, trio.current_time())

    async def _send_receipt_when_written(self, receipt_id: str | None) -> None:
        """Send a RECEIPT, if one is requested, once the store has all acknowledgements."""
        if receipt_id is not None and self._unwritten:
            await self.inbox.unless_gone(self._services.durables.wait_written())
            self._unwritten = False
        await self._send_receipt(receipt_id)

    async def _send_receipt(self, receipt_id: str | None, headers: tuple[tuple[str, str], ...] = ()) -> None:
        if receipt_id is not None:
            await self._client.stream.write(self._client.framing.receipt(receipt_id, headers))


def _after_fault(fault: RemoteProtocolError) -> DisconnectReason:
    details = _DETAILS.get(fault.token, "")
    return with_token(fault.token, fault.prose, receipt_id=fault.receipt_id, headers=fault.headers, details=details)


def _not_granted(request: Subscribe, details: str) -> DisconnectReason:
    """Refuse a destination. The prose is the same for each reason: it must not reveal whether something exists."""
    prose = "The credentials of this client do not grant this destination."
    return with_token("403-destination", prose, receipt_id=request.receipt, details=details)
