"""One session: from an accepted transport, over the HTTP request and the conversation, to the closed connection.

A session ends for exactly one reason. The conversation returns it, or any task disconnects the client with it; only the
session sends it, and only the session closes the transport. An exception in a session ends that session and no other.

Every step of closing has a time limit, so a peer cannot delay the end of its connection; a peer that does not take its
disconnect reason in time is cut off (``abort``).

One task reads the request and then the client's messages, and answers them. With a second one, as trio-websocket has, a
connection took 21.5 instead of 8.4 KiB, and 1,300 instead of 2,281 clients connected in a second (5,000 clients,
medians of three interleaved rounds). A request for an event stream is the only one of its connection; after it only the
framing differs (``delivery.framing``).

``Sessions`` holds all sessions of one process, counts them, and disconnects many of them at once.
"""

import secrets
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog
import trio
from attrs import evolve

from airy_trio.auth.keys import Key
from airy_trio.auth.users import AuthOptions
from airy_trio.delivery.client import Client, ClientState
from airy_trio.delivery.disconnects import (
    CATALOGUE,
    CLIENT_FAULT,
    CLIENT_FAULT_TOKENS,
    CONNECT_TIMEOUT,
    GONE,
    REFUSED,
    SHUTTING_DOWN,
    STORE_UNAVAILABLE,
    UNAUTHORIZED,
    DisconnectReason,
    reason_after,
)
from airy_trio.delivery.framing import EventStreamFraming, StompFraming, requests_of
from airy_trio.sessions.conversation import Conversation, Inbox, Services, SessionOptions
from airy_trio.websocket.admission import Admission, ConnectionSlot, Console
from airy_trio.websocket.event_stream import StreamRequest, is_stream_path, later, preflight_answer, stream_in
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.frames import CLOSE_BYTES_MAX, ends_with_close
from airy_trio.websocket.request import Request, RequestRefusedError, read_head, upgrade_in
from airy_trio.websocket.stream import FramedStream
from airy_trio.websocket.transport import HandshakeError, Transport

logger = structlog.get_logger(__name__)

# The newest first.
SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
SESSION_NAME_BYTES: Final = 8
# Read from a client before CONNECT is accepted: twice the largest frame that it may send until then.
BYTES_BEFORE_CONNECT_MAX: Final = 8192
# How long ERROR, Close frame and the client's answer may take together; then the connection is aborted.
CLOSE_TIMEOUT_S: Final = 1.0
# How long the peer's last bytes are read before the transport is closed. If they were not, the kernel would reset the
# connection and discard what the peer has not received yet.
LINGER_S: Final = 1.0
# In addition to LINGER_S, for ending the tasks and aborting, which should take no time.
ABORT_TIMEOUT_S: Final = 2.0
# Of input that is dropped, in one read.
DROPPED_BYTES_MAX: Final = 65_536
# The interval between two disconnects at shutdown, if the drain time allows it.
SPREAD_S: Final = 0.01
# How often `leave_unread_store` checks how long the event store has been unavailable.
CHECK_STORE_EVERY_S: Final = 1.0


class Session:
    """One connection; ``run``, called once, does everything.

    Owns the transport. ``client``: its state, with the disconnect reason at the end. ``slot``: counts the connection
    against the limits.
    """

    __slots__ = ("_services", "client", "conversation")

    def __init__(self, services: Services, transport: Transport, slot: ConnectionSlot, number: int) -> None:
        self._services = services
        stream = FramedStream(transport, send_timeout_s=services.options.send_timeout_s, turn=slot.turn)
        framing = StompFraming(services.connections, secrets.token_hex(SESSION_NAME_BYTES))
        self.client = Client(framing, stream, slot, number=number, begun_at=trio.current_time())
        self.conversation: Conversation | None = None  # from the accepted request on

    async def run(self) -> None:
        """Serve the client until the connection is closed and the session's tasks have ended."""
        # A session ends in one of four ways. In three of them the client gets the reason: a request returns one or
        # raises, another task calls `Client.disconnect`, which cancels `client.scope`, or the deadline of the scope
        # passes. The scope catches its own cancellation, so what follows it is not cancelled. The fourth way is that
        # the server cancels all sessions, because its drain time is over. That cancellation passes through the scope,
        # and only the `finally` runs: the connection is aborted.
        #
        # `_release` comes before the reason is written, so that no event and no heart-beat can follow it, and again in
        # the `finally`, which may be reached without the first call. The waits after the first call are shielded,
        # because a connection that is closing when the drain time ends should still be closed in order. Their limits
        # keep them short.
        client = self.client
        client.scope.deadline = trio.current_time() + self._services.options.connect_timeout_s
        orderly = False
        try:
            try:
                with client.scope:
                    await self._open()
                    conversation = self.conversation
                    # The reason is tested because `next` may have no checkpoint if the next message has arrived
                    # already. Without the test, the cancellation would take effect only after further messages.
                    while conversation is not None and client.reason is None:
                        # Idle sessions wait here: each coroutine in between would take memory in all of them.
                        reason = await conversation.handle(await conversation.inbox.next())
                        if reason is not None:
                            client.disconnect(reason)
            except Exception as fault:  # noqa: BLE001 - it ends this session
                client.disconnect(reason_after(fault, client.session))
            client.disconnect(CONNECT_TIMEOUT)  # the first reason wins: without any, the deadline has passed
            await client.slot.turn()  # many sessions may end at once
            self._release()
            if self.conversation is None:  # no request was accepted; an answer over HTTP must still reach the client
                orderly = client.reason is not None and client.reason.name == REFUSED.name
            else:
                orderly = await self._close_handshake()
        except Exception as fault:  # noqa: BLE001 - it would end the nursery of all sessions
            client.disconnect(reason_after(fault, client.session))
        finally:
            self._release()
            with trio.move_on_after(ABORT_TIMEOUT_S, shield=True):
                await self._close(orderly=orderly)

    def log_end(self) -> None:
        """Log how the session ended: its disconnect reason, and nothing that the client sent except Host and Origin.

        ``address``: of the client, or the one that a trusted proxy forwarded. ``error``: the token of the ERROR frame.
        ``refused``: the answer over HTTP. ``reason``: the details of the disconnect reason.
        """
        client = self.client
        ended = client.reason or GONE
        refused = ended.prose if ended.name == REFUSED.name else None
        fields = {
            "session": client.session,
            "address": client.slot.address,
            "user": client.user.name,
            "disconnect": ended.name,
            "error": ended.token,
            "refused": refused,
            "reason": ended.details or None,
            "lasted_s": round(trio.current_time() - client.begun_at, 3),
        }
        if client.connected:
            logger.info("connection closed", **fields)
        else:
            self._services.sampled_log.log("connection closed", refused or ended.token or ended.name, **fields)

    async def _open(self) -> None:
        """Accept the request and begin the conversation; disconnect the client if there is none."""
        client, services = self.client, self._services
        try:
            await client.stream.transport.handshake()
            request, wanted = await accept_request(client.stream, services.options, client.slot.examine)
        except HandshakeError as error:
            services.sampled_log.log(
                "TLS handshake failed", "TLS", session=client.session, address=client.slot.address, reason=str(error)
            )
            client.disconnect(GONE)
            return
        except RequestRefusedError as refused:
            services.requests_refused[refused.status.value] += 1
            prose = f"{refused.status.value}: {refused.words}"
            client.disconnect(evolve(REFUSED, prose=prose, details=refused.details))
            return
        if wanted is not None and wanted.preflight:
            await client.stream.write(preflight_answer(wanted.origin))
            client.disconnect(evolve(REFUSED, prose="204: This was a preflight request."))
            return
        client.stream.limit(BYTES_BEFORE_CONNECT_MAX)
        receive = client.stream.receive if wanted is None else client.stream.receive_some
        # The request itself is not kept: it contains credentials.
        conversation = self.conversation = Conversation(
            client,
            services,
            Inbox(receive, client.slot.turn, bytes_max=services.options.frame_bytes_max),
            upgrade_token=services.authenticator.token_of_upgrade(request.headers),
        )
        if wanted is not None:
            client.framing = EventStreamFraming(client.session, origin=wanted.origin, returning=wanted.returning)
            await client.slot.turn()  # as for the message with CONNECT
            reason = await conversation.answer(requests_of(wanted, services.options.heartbeat_ms))
            if reason is not None:
                client.disconnect(reason)

    def _release(self) -> None:
        """Release everything that reads or writes for the client. Idempotent."""
        self.client.close()
        if self.conversation is not None:
            self.conversation.end()
        self._services.wheel.forget(self.client)

    async def _close_handshake(self) -> bool:
        """Send the reason and the end of the stream, then wait for the client's Close frame, if one is expected.

        Return False if the connection must be aborted.

        Further input is dropped without being parsed: 100,000 small messages of ten clients each would otherwise use
        all of the processor.
        """
        client = self.client
        reason, stream = client.reason, client.stream
        if reason is None or stream.stalled:  # a stalled peer takes no reason
            return False
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            try:
                if last_words := client.framing.last_words(reason):
                    await stream.write(last_words)
                end = client.framing.end(reason)
                if end is not None:
                    await stream.close(end)
                # The client answers only a Close frame: `end` is then neither None nor empty. Its own Close frame may
                # have arrived before.
                if end and not stream.ended:
                    await read_to_end(stream.transport, client.slot.turn, or_close_after=stream.unread)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            return True
        return False

    async def _close(self, *, orderly: bool) -> None:
        """Stop the send task and close the transport: in order if ``orderly`` and the peer is in time, else abort."""
        client, transport = self.client, self.client.stream.transport
        with trio.move_on_after(LINGER_S):
            try:
                await self._services.senders.stop(client)
                if orderly:
                    await transport.send_eof()
                    await read_to_end(transport, client.slot.turn)
                    await transport.aclose()
                    return
            except Exception as fault:  # noqa: BLE001 - the connection is aborted in any case
                reason_after(fault, client.session)  # which logs an unexpected one
        await abort(transport, client.session)


async def accept_request(
    stream: FramedStream,
    options: SessionOptions,
    examine: Callable[[Request, str, str | None], None],
    refusal: RequestRefusedError | None = None,
) -> tuple[Request, StreamRequest | None]:
    """Read the request of a connection and accept it: an upgrade, or an event stream, which is returned too.

    ``examine``: called with the request, its Host and its Origin; see ``ConnectionSlot.examine``. ``refusal``: written
    instead of any other refusal. Raises ``RequestRefusedError`` after a refusal was written, and ``InputEnded``.
    """
    request: Request | None = None
    wanted: StreamRequest | None = None
    try:
        request = await _read_request(stream)
        if is_stream_path(request.path, options.sse_path):
            wanted = stream_in(request, options.sse_path)
            examine(request, wanted.host, wanted.origin)
            return request, wanted
        if request.path != options.path:
            raise RequestRefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")  # noqa: TRY301 - see below
        upgrade = upgrade_in(request)
        examine(request, upgrade.host, upgrade.origin)
    except RequestRefusedError as error:
        if wanted is not None and error.status is HTTPStatus.SERVICE_UNAVAILABLE:
            answer = later(wanted.origin, error)
        else:
            answer = (refusal or error).answer(empty=request is not None and request.method == "HEAD")
        await stream.write(answer)  # noqa: ASYNC120 - if this is cancelled, the connection ends anyway
        raise
    subprotocol = next((known for known in SUBPROTOCOLS if known in upgrade.subprotocols), None)
    await stream.upgrade(upgrade.answer(subprotocol), options.frame_bytes_max)
    return request, None


async def _read_request(stream: FramedStream) -> Request:
    data = bytearray()
    while True:
        parsed_before = len(data)
        data += await stream.receive_some()
        request = read_head(data, parsed_before)
        if request is not None:
            return request


async def read_to_end(transport: Transport, turn: Turn, *, or_close_after: bytes | None = None) -> None:
    """Read and drop input to its end. Each read takes a turn in the fair queue.

    ``or_close_after``: the input that was read before; if it is not None, a Close frame also ends the reading.
    """
    tail = or_close_after or b""
    while or_close_after is None or not ends_with_close(tail):
        data = await transport.receive_some(DROPPED_BYTES_MAX)
        if not data:
            return
        # With the end of the earlier input, because the Close frame may arrive in parts.
        tail = (tail + data)[-CLOSE_BYTES_MAX:]
        await turn()


async def abort(transport: Transport, session: str) -> None:
    """Close the transport at once; an exception is logged, not raised."""
    try:
        await transport.abort()
    except Exception as fault:  # noqa: BLE001 - it would end the nursery of all sessions
        reason_after(fault, session)


class Sessions:
    """All sessions of one process. ``fan_out``, ``wheel.run`` and ``durables.run`` run as tasks alongside them.

    ``durables.run`` must outlive them: their last acknowledgements are written when they have ended.

    ``clients``: the current ones, the oldest first. ``disconnects``: ended sessions, by the name of their disconnect
    reason. ``client_faults``: those that a fault of the client has ended, by the token of the fault.
    """

    def __init__(self, services: Services, console: Console | None = None) -> None:
        self.services = services
        self.wheel, self.durables = services.wheel, services.durables
        self.admission = Admission(services.options, console)
        # These counters begin at 0 as well.
        self.disconnects = Counter({reason.name: 0 for reason in CATALOGUE})
        self.client_faults = Counter(dict.fromkeys(CLIENT_FAULT_TOKENS, 0))
        self.clients: dict[Client, None] = {}
        self._accepted = 0
        self._ended = trio.Event()
        self._disconnecting = False

    @property
    def subscriptions(self) -> int:
        """The number of current subscriptions."""
        return sum(len(client.subscriptions) for client in self.clients)

    @property
    def behind(self) -> int:
        """The number of current clients in the state BEHIND."""
        return sum(client.state is ClientState.BEHIND for client in self.clients)

    async def fan_out(self, connections: trio.Nursery) -> None:
        """Run the fan-out, the dispatcher of send tasks and the fair queues until cancelled.

        The send tasks run in ``connections``.
        """
        async with trio.open_nursery() as nursery:
            # The dispatcher ends with this nursery, at the beginning of a shutdown. The send tasks must not: until
            # their clients are disconnected they go on writing to them.
            nursery.start_soon(self.services.senders.run, connections)
            nursery.start_soon(self.services.senders.watch)
            nursery.start_soon(self.services.fanout.run)
            nursery.start_soon(self.admission.fair_queue.run)
            nursery.start_soon(self.admission.handshakes.run)

    async def serve(self, transport: Transport, slot: ConnectionSlot) -> DisconnectReason:
        """Serve one connection until it is closed; return why it ended.

        The connection's send task ends before this returns. Owns the transport, and the slot, which it releases at
        the end. Raises nothing but cancellation, which aborts the connection.
        """
        try:
            self._accepted += 1
            session = Session(self.services, transport, slot, self._accepted)
            self.clients[session.client] = None
            # It was accepted just before the accept loop was cancelled, and begins after `disconnect_all` has made its
            # list.
            if self._disconnecting:
                session.client.disconnect(SHUTTING_DOWN)
            try:
                await session.run()
            finally:  # also if the server is cancelled
                self._count(session)
                session.log_end()
        except Exception as fault:  # noqa: BLE001 - a session that failed to begin, or to be counted, affects no other
            with trio.move_on_after(ABORT_TIMEOUT_S, shield=True):
                await abort(transport, session="")
            return reason_after(fault, session="")
        else:
            return session.client.reason or GONE
        finally:
            slot.leave()

    def renew(self, options: AuthOptions, file_keys: tuple[Key, ...] = ()) -> None:
        """Replace the credentials; disconnect clients whose own are no longer accepted, with ``401-unauthorized``.

        ``file_keys``: see ``Authenticator.renew``.
        """
        self.services.authenticator.renew(options, file_keys)
        self._disconnect_revoked()

    async def follow_keys(self) -> None:
        """Refresh the keys of web tokens, and disconnect clients whose key was revoked. Runs until cancelled."""
        while True:
            if await self.services.authenticator.refresh_keys():
                self._disconnect_revoked()

    def _disconnect_revoked(self) -> None:
        authenticator = self.services.authenticator
        revoked = [
            client
            for client in self.clients
            # A client that is still connecting is tested with the new credentials when its CONNECT is handled.
            if client.state in {ClientState.LIVE, ClientState.BEHIND} and not authenticator.accepts(client.user)
        ]
        for client in revoked:
            client.disconnect(UNAUTHORIZED)
        logger.info("credentials renewed", ended=len(revoked))

    async def leave_unread_store(self, drain_s: float) -> None:
        """Disconnect the clients once the event store has been unavailable for ``away_max_s``. Runs until cancelled.

        They reconnect through the load balancer to a server that can read the store, if there is one, and resume there.
        Until this server can read the store again, it refuses new clients. During shorter outages the clients stay
        connected; they miss nothing.
        """
        away_max_s = self.services.options.away_max_s
        while away_max_s:
            await trio.sleep(CHECK_STORE_EVERY_S)
            was_suspended = self.admission.suspended
            # Before the clients are disconnected, so that this server refuses those that come back to it, and they try
            # another.
            self.admission.suspended = self.services.eventlog.away_s > away_max_s
            if self.admission.suspended and not was_suspended:
                logger.warning(
                    "event store unavailable for too long; clients are disconnected and come back elsewhere",
                    away_max_s=away_max_s,
                    clients=len(self.clients),
                )
                await self._disconnect_spread(drain_s, STORE_UNAVAILABLE)

    async def disconnect_all(self, drain_s: float, reason: DisconnectReason = SHUTTING_DOWN) -> None:
        """Disconnect all clients, spread over at most ``drain_s``, and every new one; return when all have ended.

        Returns ``CLOSE_TIMEOUT_S`` after ``drain_s`` in any case; the caller cancels the sessions that are left.
        """
        self._disconnecting = True
        with trio.move_on_after(drain_s + CLOSE_TIMEOUT_S):
            await self._disconnect_spread(drain_s, reason)
            while self.clients:
                self._ended = trio.Event()
                await self._ended.wait()

    async def _disconnect_spread(self, drain_s: float, reason: DisconnectReason) -> None:
        # Clients that are disconnected together reconnect together, to the servers that are left. The times are counted
        # from the beginning, so that all fit into `drain_s` however long each step takes.
        clients = tuple(self.clients)
        interval_s = min(SPREAD_S, drain_s / max(1, len(clients)))
        begun_at = trio.current_time()
        for count, client in enumerate(clients):
            await trio.sleep_until(begun_at + count * interval_s)
            client.disconnect(reason)

    def _count(self, session: Session) -> None:
        client = session.client
        del self.clients[client]
        self._ended.set()
        reason = client.reason or GONE
        self.disconnects[reason.name] += 1
        if reason.token is not None and reason.token.startswith(CLIENT_FAULT):
            self.client_faults[reason.token] += 1
