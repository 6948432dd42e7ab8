"""One session: from its socket over the upgrade and the conversation to its farewell.

It ends for one reason, a ``Farewell``, which the conversation gives or whoever dismisses the client; only the session
says it, and only the session closes the socket. What fails in a session ends that session.

The HTTP upgrade: which request becomes a WebSocket, and what the others are told; nothing of STOMP frames.

Wire contract, "The connection". The request is read and judged here (``request``, ``admission``), before
trio-websocket sees anything: it does not tell Host, answers what it cannot read in its own way, and keeps all headers
in memory for as long as the connection lasts. It is given a request with nothing in it but what the handshake needs.
"""

import secrets
from collections import Counter
from http import HTTPStatus
from typing import Final, cast

import structlog
import trio
from attrs import evolve, field, frozen
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from airy_trio.auth import Authenticator
from airy_trio.delivery.client import Client, ClientState, ReplayOptions
from airy_trio.delivery.disconnects import CONNECT_TIMEOUT, GONE, REFUSED, TOO_SLOW, reason_after
from airy_trio.delivery.durables import PER_USER_MAX, Durables
from airy_trio.delivery.fanout import FanOut, Senders
from airy_trio.delivery.tasks import Tasks
from airy_trio.log.event_log import EventLog
from airy_trio.options import at_least, matching, more_than, satisfying
from airy_trio.sessions.closing import HANG_UP_S, EarlyEnds, closed_by_protocol, hang_up, say_goodbye
from airy_trio.sessions.conversation import Conversation, Message, MessageQueue
from airy_trio.sessions.heartbeats import Wheel
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.websocket.admission import AdmissionOptions, Visitor
from airy_trio.websocket.fair_queue import FairQueue
from airy_trio.websocket.request import Request, RequestRefusedError, Upgrade, read_head, upgrade_in
from airy_trio.websocket.stream import RECEIVE_BYTES_MAX, FramedStream
from airy_trio.websocket.transport import HandshakeError, Transport

SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
"""The newest first."""
MESSAGE_QUEUE_SIZE: Final = 1
_HANDSHAKE: Final = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
)


@frozen
class Upgraded:
    """A WebSocket, and the request that has become one, with the credentials that it may hold."""

    ws: WebSocketConnection
    request: Request


async def upgrade(
    tasks: Tasks, stream: FramedStream, visitor: Visitor | None, *, path: str, message_bytes_max: int
) -> Upgraded | None:
    """Wait for the request and answer it; None where the peer left before it was whole.

    ``visitor`` decides whether the request is admitted; None admits all. Raises ``RequestRefusedError`` if the request
    did not become a WebSocket; it has been answered then.
    """
    asked = await _asked(stream, visitor, path)
    if asked is None:
        return None
    if isinstance(asked, RequestRefusedError):
        await stream.write(asked.answer)
        raise asked
    request, wanted = asked
    ws = await _handshake(tasks, stream, wanted.key, wanted.subprotocols, message_bytes_max)
    return None if ws is None else Upgraded(ws, request)


async def _asked(
    stream: FramedStream, visitor: Visitor | None, path: str
) -> tuple[Request, Upgrade] | RequestRefusedError | None:
    """What is asked for, or why that is refused; None where the peer left."""
    try:
        request = await _request(stream)
        return None if request is None else (request, _judged(request, visitor, path))
    except RequestRefusedError as refused:
        return refused


def _judged(request: Request, visitor: Visitor | None, path: str) -> Upgrade:
    if request.path != path:
        raise RequestRefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
    asked = upgrade_in(request)
    if visitor is not None:
        visitor.examine(request, asked)
    return asked


async def _request(stream: FramedStream) -> Request | None:
    """Read the head of a request; None at the end of the stream. Raises ``RequestRefusedError``."""
    data = bytearray()
    while True:
        some = await stream.receive_some(RECEIVE_BYTES_MAX)
        if not some:
            return None
        seen = len(data)
        data += some
        request = read_head(data, seen)
        if request is not None:
            return request


async def _handshake(
    tasks: Tasks, stream: FramedStream, key: str, offered: tuple[str, ...], message_bytes_max: int
) -> WebSocketConnection | None:
    subprotocol = next((known for known in SUBPROTOCOLS if known in offered), None)
    chosen = "" if subprotocol is None else f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    stream.put_back(f"{_HANDSHAKE}Sec-WebSocket-Key: {key}\r\n{chosen}\r\n".encode("ascii"))
    asking = await wrap_server_stream(
        cast("trio.Nursery", tasks),  # of a nursery it uses start_soon, no more
        stream,
        message_queue_size=MESSAGE_QUEUE_SIZE,
        max_message_size=message_bytes_max,
        receive_buffer_size=RECEIVE_BYTES_MAX,
    )
    try:
        return await asking.accept(subprotocol=subprotocol)
    except ConnectionClosed:
        return None


logger = structlog.get_logger(__name__)

SESSION_NAME_BYTES: Final = 8
BYTES_BEFORE_CONNECT_MAX: Final = 8192
"""What is read of a client before CONNECT was accepted: twice the largest frame that it may send then."""
HEARTBEAT_MS_MIN: Final = 500
"""The wheel is not exact enough for less."""


@frozen(kw_only=True)
class SessionOptions(AdmissionOptions):
    """What a session allows (settings, ``[listener]``).

    ``away_max_s``: for how long clients stay connected while the event store cannot be read; 0: for any time.
    """

    path: str = field(default="/ws.communication", validator=matching(r"/[!-~]*", 'a path that begins with "/"'))
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


@frozen(kw_only=True)
class Shared:
    """What all sessions of a process have in common. ``counts``: see ``Sessions.statistics``."""

    eventlog: EventLog
    options: SessionOptions
    connections: ConnectionOptions
    replay: ReplayOptions
    authenticator: Authenticator
    senders: Senders
    fanout: FanOut
    wheel: Wheel
    durables: Durables
    fair_queue: FairQueue
    counts: Counter[str]
    early_ends: EarlyEnds


class Session:
    """One connection, from its socket to its farewell; ``run``, once, does all.

    ``client``: its state, with the farewell at the end. ``conversation``: with its counts. Owns the transport;
    its tasks run in ``connections``.
    """

    __slots__ = ("_shared", "_tasks", "_transport", "_visitor", "client", "conversation")

    def __init__(
        self, shared: Shared, connections: trio.Nursery, transport: Transport, visitor: Visitor | None, *, number: int
    ) -> None:
        connection = Connection(shared.connections, secrets.token_hex(SESSION_NAME_BYTES))
        self.client = client = Client(connection, number=number, begun_at=trio.current_time())
        client.visitor = visitor
        client.address = None if visitor is None else visitor.name
        turn = shared.fair_queue.enter if visitor is None else visitor.turn
        client.stream = FramedStream(transport, send_timeout_s=shared.options.send_timeout_s, turn=turn)
        self.conversation = Conversation(
            client,
            client.stream,
            shared.eventlog,
            shared.wheel,
            shared.replay,
            authenticator=shared.authenticator,
            fanout=shared.fanout,
            durables=shared.durables,
            early_ends=shared.early_ends,
        )
        self.conversation.turn = turn
        self._shared = shared
        self._tasks = Tasks(connections, client)
        self._transport = transport
        self._visitor = visitor

    async def run(self) -> None:
        """Serve the client until its farewell was said and its tasks have ended."""
        client = self.client
        client.scope.deadline = trio.current_time() + self._shared.options.connect_timeout_s
        reader_fails = orderly = False
        try:
            try:
                with client.scope:
                    await self._meet()
                    inbox = self.conversation.inbox
                    while inbox is not None and client.farewell is None:
                        # Idle sessions wait here: each coroutine between would take memory in all of them.
                        await self._hear(await inbox.next())
            except ConnectionClosed as closed:
                if closed.reason is None:
                    reader_fails = True  # its exception would be dropped if it were cancelled now
                client.dismiss(TOO_SLOW if client.stream.stalled else closed_by_protocol(client.stream, closed.reason))
            except Exception as fault:  # noqa: BLE001 - ends this session, and is told to its client
                client.dismiss(reason_after(fault, client.session))
            client.dismiss(CONNECT_TIMEOUT)  # where nobody else did
            await self.conversation.turn()  # many may be cut at once
            self._release()
            if self.conversation.inbox is None:  # there was no upgrade
                orderly = client.farewell is not None and client.farewell.name == REFUSED.name  # let the answer arrive
            else:
                reader = None if reader_fails else self._tasks
                orderly = await say_goodbye(client, client.stream, self.conversation.turn, reader=reader)
        except Exception as fault:  # noqa: BLE001 - beyond this the nursery of all sessions would end
            client.dismiss(reason_after(fault, client.session))
        finally:
            self._release()
            with trio.move_on_after(HANG_UP_S, shield=True):
                await hang_up(client, self._tasks, self._transport, self.conversation.turn, orderly=orderly)

    def tell_end(self) -> None:
        """Log how the session ended: its disconnect reason, and nothing that the client sent but its Host and Origin.

        ``address``: of the client, or the one that a trusted proxy forwarded. ``error``: the token of the ERROR frame.
        ``refused``: the answer in HTTP. ``reason``: what decided, see ``Farewell``.
        """
        client = self.client
        farewell = client.farewell or GONE
        refused = farewell.prose if farewell.name == REFUSED.name else None
        fields = {
            "session": client.session,
            "address": self._address,
            "user": client.user.name,
            "farewell": farewell.name,
            "error": farewell.token,
            "refused": refused,
            "reason": farewell.reason or None,
            "lasted_s": round(trio.current_time() - client.begun_at, 3),
        }
        if client.connected:
            logger.info("connection closed", **fields)
        else:
            self._shared.early_ends.log("connection closed", refused or farewell.token or farewell.name, **fields)

    @property
    def _address(self) -> str | None:
        """The client's address for the log, as far as it is known by now."""
        return None if self._visitor is None else self._visitor.name

    async def _meet(self) -> None:
        """Upgrade. Where there was no upgrade, the client has its farewell.

        What the transport agrees on with the peer before counts against ``connect_timeout_s`` as well.
        """
        client, options = self.client, self._shared.options
        try:
            await client.stream.transport.handshake()
            upgraded = await upgrade(
                self._tasks,
                client.stream,
                self._visitor,
                path=options.path,
                message_bytes_max=options.frame_bytes_max,
            )
        except HandshakeError as error:
            self._shared.early_ends.log(
                "TLS handshake failed", "TLS", session=client.session, address=self._address, reason=str(error)
            )
            client.dismiss(GONE)
        except RequestRefusedError as refused:
            self._shared.counts[f"requests refused {refused.status.value}"] += 1
            client.dismiss(evolve(REFUSED, prose=f"{refused.status.value}: {refused.words}", reason=refused.details))
        else:
            if upgraded is not None:
                self._welcome(upgraded.ws, upgraded.request)
            else:
                client.dismiss(GONE)

    def _welcome(self, ws: WebSocketConnection, request: Request) -> None:
        """Let messages come, and note what the request tells, which is not kept: it holds credentials."""
        client, visitor, conversation = self.client, self._visitor, self.conversation
        conversation.upgrade_token = self._shared.authenticator.token_of_upgrade(request.headers)
        if visitor is not None:
            client.peer, client.address = visitor.counted_as, visitor.name
        client.stream.limit(BYTES_BEFORE_CONNECT_MAX)
        self._shared.senders.register(client, self._tasks)
        conversation.inbox = MessageQueue(ws.get_message, bytes_max=self._shared.options.frame_bytes_max)

    async def _hear(self, message: Message) -> None:
        """Answer one message, which may be the client's last."""
        client = self.client
        client.occupied = True  # to the end of the conversation's ``hear``: it is we who do not listen
        if client.stream.admitted:
            client.stream.admitted = False
        else:
            await self.conversation.turn()
        farewell = await self.conversation.hear(message)
        if farewell is not None:
            client.dismiss(farewell)

    def _release(self) -> None:
        """Let go of all that reads for the client or keeps watch over it. Idempotent."""
        self.client.state = ClientState.CLOSING
        self.conversation.end()
        self._shared.senders.forget(self.client)
        self._shared.wheel.forget(self.client)
