"""Sessions: each from its socket to its farewell (upgrade, conversation, goodbye), and all of them together.

A session ends for one reason, a ``Farewell``, which the conversation gives or whoever dismisses the client; only
the session says it, and only the session closes the socket. What fails in a session ends that session.
"""

import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import structlog
import trio
from attrs import evolve, field, frozen
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection
from wsproto.frame_protocol import CloseReason as CloseCode

from airy_trio.events.destinations import Addressed
from airy_trio.log.eventlog import EventLog
from airy_trio.log.latencies import Latencies
from airy_trio.log.position import Position
from airy_trio.options import at_least, matching, more_than, satisfying
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.websocket import roll
from airy_trio.websocket.admission import Admission, AdmissionOptions, Visitor
from airy_trio.websocket.audience import audience
from airy_trio.websocket.auth import Authenticator, AuthOptions
from airy_trio.websocket.conversation import Conversation
from airy_trio.websocket.durable_names import PER_USER_MAX
from airy_trio.websocket.durables import Durables
from airy_trio.websocket.fanout import FanOut
from airy_trio.websocket.farewells import (
    CONNECT_TIMEOUT,
    GONE,
    INTERNAL,
    PROTOCOL_ERROR,
    REFUSED,
    SHUTTING_DOWN,
    TOO_LARGE,
    TOO_SLOW,
    UNAUTHORIZED,
    Farewell,
    with_token,
)
from airy_trio.websocket.faults import farewell_after
from airy_trio.websocket.fragments import PIECES_MAX, SMALL_MAX
from airy_trio.websocket.framing import close_frame, text_message
from airy_trio.websocket.heartbeats import Wheel
from airy_trio.websocket.inbox import Inbox
from airy_trio.websocket.origins import Console
from airy_trio.websocket.outlet import HandshakeError, Outlet
from airy_trio.websocket.request import RefusedError
from airy_trio.websocket.runs import Runs
from airy_trio.websocket.sender import Senders
from airy_trio.websocket.subscriptions import Client, ReplayOptions, State
from airy_trio.websocket.tasks import Tasks
from airy_trio.websocket.turnstile import Turnstile
from airy_trio.websocket.upgrade import upgrade
from airy_trio.websocket.wire import RECEIVE_BYTES_MAX, Wire

logger = structlog.get_logger(__name__)

GOODBYE_S: Final = 1.0
"""How long a goodbye may take; after that the socket is cut."""
LINGER_S: Final = 1.0
"""How long the peer's last bytes are waited for, so that closing does not destroy ours on their way."""
HANG_UP_S: Final = 2.0
"""Beyond ``LINGER_S``, for what should not take any time: ending tasks and cutting the connection."""
SPREAD_S: Final = 0.01
"""Between two clients that are sent away at shutdown, where the drain time allows."""
SESSION_NAME_BYTES: Final = 8
BYTES_BEFORE_CONNECT_MAX: Final = 8192
"""What is read of a client before CONNECT was accepted: twice the largest frame that it may send then."""
HEARTBEAT_MS_MIN: Final = 500
"""The wheel is not exact enough for less."""


@frozen(kw_only=True)
class SessionOptions(AdmissionOptions):
    """What a session allows (settings, ``[listener]``)."""

    path: str = field(default="/ws.communication", validator=matching(r"/[!-~]*", 'a path that begins with "/"'))
    subscriptions_max: int = field(default=16, validator=at_least(1))
    durables_per_user_max: int = field(default=PER_USER_MAX, validator=at_least(1))
    connect_timeout_s: float = field(default=10, validator=more_than(0))
    send_timeout_s: float = field(default=10, validator=more_than(0))
    heartbeat_ms: int = field(
        default=30_000,
        validator=satisfying(lambda ms: ms == 0 or ms >= HEARTBEAT_MS_MIN, f"0, or at least {HEARTBEAT_MS_MIN}"),
    )
    frame_bytes_max: int = field(default=65_536, validator=at_least(4096))


class Sessions:
    """All sessions of one process. ``fan_out``, ``wheel.turn`` and ``durables.run`` run as tasks beside them.

    ``durables.run`` is to outlive them: what they have acknowledged is written when they have ended.
    """

    def __init__(  # noqa: PLR0913 - what all sessions share comes in here
        self,
        eventlog: EventLog,
        options: SessionOptions,
        replay: ReplayOptions,
        authenticator: Authenticator,
        *,
        server: str,
        console: Console | None = None,
    ) -> None:
        self.admission = Admission(options, console)
        self._eventlog = eventlog
        self._options = options
        self._replay = replay
        self._authenticator = authenticator
        self._connections = ConnectionOptions(
            server=server,
            heartbeat_ms=options.heartbeat_ms,
            frame_bytes_max=options.frame_bytes_max,
            subscriptions_max=options.subscriptions_max,
        )
        self._runs = Runs(eventlog)
        self._senders = Senders(eventlog, self._runs)
        self._fanout = FanOut(eventlog, self._runs, self._senders)
        self.wheel = Wheel(self._senders)
        self.durables = Durables(eventlog, per_user_max=options.durables_per_user_max)
        self._turnstile = Turnstile()
        self._clients: dict[Client, None] = {}  # the oldest first
        self._met = 0
        self._ended = trio.Event()
        self._dismissing = False
        self._counts: Counter[str] = Counter()

    def statistics(self) -> dict[str, int]:
        """What there is now, and what there was since the start.

        Now: ``clients``, their ``subscriptions``, and the clients ``behind``, which have a send task. Since the
        start: ``deliveries`` and ``bytes`` (see ``Runs``), ``acks_ignored``, ``nacks``, ended sessions by
        ``farewell NAME``, ``refused TOKEN`` where what a client sent has ended its session, and ``requests refused
        STATUS`` where a request did not become a WebSocket. See ``Admission.statistics`` for the rest. Now as well:
        ``durables`` that are held, and ``durables_unwritten``, of which the store does not yet have all that is
        acknowledged.
        """
        subscriptions = behind = 0
        for client in self._clients:
            subscriptions += len(client.subscriptions)
            behind += client.state is State.BEHIND
        now = {"clients": len(self._clients), "subscriptions": subscriptions, "behind": behind}
        durables = self.durables.statistics()
        now |= {"durables": durables["held"], "durables_unwritten": durables["unwritten"]}
        return {**self._counts, **self._runs.statistics(), **self.admission.statistics(), **now}

    def audience(self, position: Position, event: Addressed) -> Mapping[str, object]:
        """Who of the clients connected now has been sent an event (see ``audience``)."""
        return audience(self._clients, position, event)

    @property
    def latencies(self) -> Latencies:
        """How long events took from the change in the database to a client's socket; replayed ones are left out."""
        return self._runs.latencies

    def connections(self, *, after: int, limit: int, behind: bool) -> dict[str, Any]:
        """Who is connected now, a page at a time; see ``roll.page``."""
        return roll.page(self._clients, trio.current_time(), after=after, limit=limit, behind=behind)

    async def fan_out(self) -> None:
        """Write to the clients for whom the log has grown, and start send tasks for those behind, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._senders.run)
            nursery.start_soon(self._senders.watch)
            nursery.start_soon(self._fanout.run)
            nursery.start_soon(self._turnstile.run)

    async def serve(self, connections: trio.Nursery, outlet: Outlet, visitor: Visitor | None = None) -> Farewell:
        """Serve one connection until its farewell was said. Its tasks run in ``connections`` and end before it.

        ``visitor``: who has connected, which leaves at the end; None: somebody whom no rule concerns. Owns the outlet.
        Raises nothing but cancellation, which cuts the connection.
        """
        try:
            return await self._serve(connections, outlet, visitor)
        except Exception as fault:  # noqa: BLE001 - a session that could not begin, or not be counted, is no other's
            with trio.move_on_after(HANG_UP_S, shield=True):
                await _cut(outlet, session="")
            return farewell_after(fault, session="")
        finally:
            if visitor is not None:
                visitor.leave()

    async def _serve(self, connections: trio.Nursery, outlet: Outlet, visitor: Visitor | None) -> Farewell:
        self._met += 1
        client = Client(self._connection(), number=self._met, begun_at=trio.current_time())
        client.address = None if visitor is None else visitor.name
        logger.info("connection opened", session=client.session, peer=None if visitor is None else visitor.peer)
        wire = Wire(outlet, send_timeout_s=self._options.send_timeout_s, turnstile=self._turnstile)
        client.wire = wire
        conversation = Conversation(
            client,
            wire,
            self._eventlog,
            self.wheel,
            self._replay,
            authenticator=self._authenticator,
            fanout=self._fanout,
            durables=self.durables,
        )
        tasks = Tasks(connections, client)
        self._clients[client] = None
        if self._dismissing:
            client.dismiss(SHUTTING_DOWN)
        orderly = False
        try:
            ws = await self._meet(client, visitor, conversation, tasks)
            await self._turnstile.enter()  # many may be cut at once
            self._release(client, conversation)
            orderly = await _say_goodbye(client, wire, ws)
        except Exception as fault:  # noqa: BLE001 - beyond this the nursery of all sessions would end
            client.dismiss(farewell_after(fault, client.session))
        finally:
            self._release(client, conversation)
            try:
                with trio.move_on_after(HANG_UP_S, shield=True):
                    await _hang_up(client, tasks, outlet, orderly=orderly)
            finally:
                self._count(client, conversation)
            _tell_end(client, visitor, trio.current_time() - client.begun_at)
        return client.farewell or GONE

    def renew(self, options: AuthOptions) -> None:
        """Go on with other credentials, and send away whose do not count any more, with ``401-unauthorized``.

        Nothing is changed where the options cannot be used; raises what ``Authenticator.renew`` does then.
        """
        self._authenticator.renew(options)
        self._end_refused()

    async def follow_keys(self) -> None:
        """Keep the keys of web tokens fresh, for ever, and send away whose key does not count any more."""
        while True:
            if await self._authenticator.refresh_keys():
                self._end_refused()

    def _end_refused(self) -> None:
        refused = [
            client
            for client in self._clients
            if client.state in {State.LIVE, State.BEHIND} and not self._authenticator.accepts(client.user)
        ]
        for client in refused:
            client.dismiss(UNAUTHORIZED)
        logger.info("credentials renewed", ended=len(refused))

    async def dismiss_all(self, drain_s: float, farewell: Farewell = SHUTTING_DOWN) -> None:
        """Send everybody away, spread over at most ``drain_s``, new ones too; return when the last has gone.

        Returns ``GOODBYE_S`` after ``drain_s`` in any case: whoever is left then is for the caller to cancel.
        """
        self._dismissing = True
        clients = tuple(self._clients)
        pause_s = min(SPREAD_S, drain_s / max(1, len(clients)))
        begun_at = trio.current_time()
        with trio.move_on_after(drain_s + GOODBYE_S):
            for count, client in enumerate(clients):
                await trio.sleep_until(begun_at + count * pause_s)
                client.dismiss(farewell)
            while self._clients:
                self._ended = trio.Event()
                await self._ended.wait()

    def _connection(self) -> Connection:
        return Connection(self._connections, secrets.token_hex(SESSION_NAME_BYTES))

    async def _meet(
        self, client: Client, visitor: Visitor | None, conversation: Conversation, tasks: Tasks
    ) -> WebSocketConnection | None:
        """Upgrade, then answer until there is a farewell, which the client has then; None: there was no upgrade.

        What the outlet agrees on with the peer before counts against ``connect_timeout_s`` as well.
        """
        client.scope.deadline = trio.current_time() + self._options.connect_timeout_s
        ws: WebSocketConnection | None = None
        with client.scope:
            try:
                await client.wire.outlet.handshake()
                upgraded = await upgrade(
                    tasks,
                    client.wire,
                    visitor,
                    path=self._options.path,
                    message_bytes_max=self._options.frame_bytes_max,
                )
            except HandshakeError as error:
                logger.info("TLS handshake failed", session=client.session, reason=str(error))
                client.dismiss(GONE)
            except RefusedError as refused:
                self._counts[f"requests refused {refused.status.value}"] += 1
                client.dismiss(evolve(REFUSED, prose=str(refused)))
            else:
                if upgraded is None:
                    client.dismiss(GONE)
                else:
                    ws = upgraded.ws
                    conversation.upgrade_token = self._authenticator.token_of_upgrade(upgraded.request.headers)
                    del upgraded  # its request holds credentials
                    if visitor is not None:
                        client.peer, client.address = visitor.counted_as, visitor.name
                    client.wire.limit(BYTES_BEFORE_CONNECT_MAX)
                    self._senders.register(client, tasks)
                    inbox = Inbox(ws.get_message, bytes_max=self._options.frame_bytes_max)
                    client.dismiss(await self._converse(client, inbox, conversation))
        client.dismiss(CONNECT_TIMEOUT)  # where nobody else did
        return ws

    async def _converse(self, client: Client, inbox: Inbox, conversation: Conversation) -> Farewell:
        conversation.pause, conversation.turn = inbox.listen, self._turnstile.enter
        try:
            while True:
                message = await inbox.next()
                await self._turnstile.enter()
                farewell = await conversation.hear(message)
                if farewell is not None:
                    return farewell
        except ConnectionClosed as closed:
            return TOO_SLOW if client.wire.stalled else _closed_by_protocol(client.wire, closed.reason)
        except Exception as fault:  # noqa: BLE001 - ends this session, and is told to its client
            return farewell_after(fault, client.session)

    def _release(self, client: Client, conversation: Conversation) -> None:
        """Let go of all that reads for the client or keeps watch over it. Idempotent."""
        client.state = State.CLOSING
        conversation.end()
        self._senders.forget(client)
        self.wheel.forget(client)

    def _count(self, client: Client, conversation: Conversation) -> None:
        del self._clients[client]
        self._ended.set()
        farewell = client.farewell or GONE
        self._counts[f"farewell {farewell.name}"] += 1
        self._counts["acks_ignored"] += conversation.acks_ignored
        self._counts["nacks"] += conversation.nacks
        if farewell.token is not None and farewell.token.startswith("4"):
            self._counts[f"refused {farewell.token}"] += 1


def _tell_end(client: Client, visitor: Visitor | None, lasted_s: float) -> None:
    """Log how a session has ended: with which farewell, and nothing of what was said before.

    ``client``: the address of the peer, or of whom a believed proxy spoke for. ``refused``: what was answered in HTTP.
    """
    farewell = client.farewell or GONE
    logger.info(
        "connection closed",
        session=client.session,
        client=None if visitor is None else visitor.name,
        user=client.user.name,
        farewell=farewell.name,
        token=farewell.token,
        refused=farewell.prose if farewell.name == REFUSED.name else None,
        lasted_s=round(lasted_s, 3),
    )


def _closed_by_protocol(wire: Wire, reason: CloseReason | None) -> Farewell:
    """Tell why trio-websocket has ended: the client left, or it broke the WebSocket protocol."""
    if wire.oversized or wire.flooded:
        pieces = f"A message came in more than {PIECES_MAX} pieces, or in more than {SMALL_MAX} small ones."
        return TOO_LARGE if wire.oversized else with_token("413-too-many-fragments", pieces)
    if reason is None:
        return INTERNAL  # its reader failed, which is logged where that was caught, perhaps after this
    if reason.code == CloseCode.ABNORMAL_CLOSURE:
        return GONE
    if reason.code == CloseCode.MESSAGE_TOO_BIG:
        return evolve(TOO_LARGE, token=None)  # its Close frame has been written
    if wire.closing:
        return GONE  # the client's Close frame has been answered
    return evolve(PROTOCOL_ERROR, token=None, close_code=reason.code)


async def _say_goodbye(client: Client, wire: Wire, ws: WebSocketConnection | None) -> bool:
    """Say the client's farewell, if it can still hear; False: it did not take it, and has to be cut.

    The Close frame is written here, not by ``ws.aclose``: that waits for the answer even where its reader has ended.
    """
    farewell = client.farewell
    if ws is None or farewell is None:
        return farewell is not None and farewell.name == REFUSED.name  # let the answer arrive
    if farewell is TOO_SLOW or wire.stalled:
        return False
    with trio.move_on_after(GOODBYE_S, shield=True):
        try:
            if farewell.token is not None:
                error = client.connection.error(farewell.token, farewell.prose, farewell.receipt_id, farewell.headers)
                await wire.write(text_message(error))
            if farewell.close_code is not None:
                await wire.close(close_frame(farewell.close_code, farewell.token or farewell.name))
            while True:
                await ws.get_message()
        except ConnectionClosed:  # the answer to our Close frame, or the end of the stream
            return True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
    return False


async def _hang_up(client: Client, tasks: Tasks, outlet: Outlet, *, orderly: bool) -> None:
    """End the tasks, then the connection: in order where the peer also ends it in time, else cut."""
    with trio.move_on_after(LINGER_S):
        try:
            await tasks.stop()
            if orderly:
                await outlet.send_eof()
                while await outlet.receive_some(RECEIVE_BYTES_MAX):
                    pass  # what came after the farewell; unread it would make the kernel reset the connection
                await outlet.aclose()
                return
        except Exception as fault:  # noqa: BLE001 - the connection is cut in any case
            farewell_after(fault, client.session)  # which logs what is no peer's doing
    await _cut(outlet, client.session)


async def _cut(outlet: Outlet, session: str) -> None:
    try:
        await outlet.abort()
    except Exception as fault:  # noqa: BLE001 - beyond this the nursery of all sessions would end
        farewell_after(fault, session)
