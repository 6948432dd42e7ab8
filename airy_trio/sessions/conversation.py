"""What a client asks for, answered: requests in, frames and cursors out, until one of them ends the session.

Each request takes effect before its RECEIPT is written. Events are written by the fan-out, whose ``serve`` is
called where a request makes a subscription hungry; how the session ends is only named here, not said.
"""

from collections.abc import Awaitable, Callable
from typing import Final, assert_never

import structlog
import trio
from attrs import evolve

from airy_trio.log.eventlog import EventLog
from airy_trio.log.position import Position
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.faults import TOO_MANY_SUBSCRIPTIONS
from airy_trio.stomp.requests import Ack, Acknowledge, Connect, Disconnect, Request, Subscribe, Unsubscribe
from airy_trio.websocket.auth import Authenticator
from airy_trio.websocket.durables import Durables
from airy_trio.websocket.early_ends import EarlyEnds
from airy_trio.websocket.entry import Pause, admit
from airy_trio.websocket.fanout import FanOut
from airy_trio.websocket.farewells import DONE, Farewell, with_token
from airy_trio.websocket.heartbeats import Wheel
from airy_trio.websocket.inbox import Inbox
from airy_trio.websocket.receipts import write_receipt
from airy_trio.websocket.subscribing import subscribe
from airy_trio.websocket.subscriptions import Client, ReplayOptions, Subscription
from airy_trio.websocket.wire import Wire

logger = structlog.get_logger(__name__)

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
        "_unwritten",
        "_wheel",
        "_wire",
        "acks_ignored",
        "inbox",
        "nacks",
        "turn",
        "upgrade_token",
    )

    def __init__(  # noqa: PLR0913 - it is where all of them meet
        self,
        client: Client,
        wire: Wire,
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
        self._wire = wire
        self._eventlog = eventlog
        self._wheel = wheel
        self._options = options
        self._authenticator = authenticator
        self._fanout = fanout
        self._durables = durables
        self._early_ends = early_ends
        self._unwritten = False
        self.inbox: Inbox | None = None
        self.turn: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self.upgrade_token: str | None = None
        self.acks_ignored = 0
        self.nacks = 0

    @property
    def pause(self) -> Pause:
        """How some seconds are waited for: listening to the client meanwhile, so that it is noticed when it leaves."""
        return trio.sleep if self.inbox is None else self.inbox.listen

    async def hear(self, message: bytes | str) -> Farewell | None:
        """Read one message and answer all that it holds; the farewell, if something in it ends the session."""
        self._client.occupied = True
        try:
            return await self._answer_all(message)
        finally:
            self._client.occupied = False
            self._wire.read_at = trio.current_time()

    def end(self) -> None:
        """Let go of all views. Idempotent."""
        for number in tuple(self._client.subscriptions):
            self._unsubscribe(number)

    async def _answer_all(self, message: bytes | str) -> Farewell | None:
        for begin in range(0, len(message), PIECE_BYTES):
            if begin:
                await trio.lowlevel.checkpoint()
                await self.turn()
            farewell = await self._answer_piece(message[begin : begin + PIECE_BYTES])
            if farewell is not None:
                return farewell
        return None

    async def _answer_piece(self, piece: bytes | str) -> Farewell | None:
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

    async def _answer(self, request: Request) -> Farewell | None:
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

    async def _connect(self, request: Connect) -> Farewell | None:
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

    async def _subscribe(self, request: Subscribe) -> Farewell | None:
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
