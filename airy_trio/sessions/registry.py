"""All sessions of one process: the parts that they share, their counts, and the ways to disconnect many of them."""

from collections import Counter
from typing import Final

import structlog
import trio

from airy_trio.auth import AuthOptions, Key
from airy_trio.delivery.client import Client, ClientState
from airy_trio.delivery.disconnects import (
    CATALOGUE,
    CLIENT_FAULT,
    CLIENT_FAULT_TOKENS,
    GONE,
    SHUTTING_DOWN,
    STORE_UNAVAILABLE,
    UNAUTHORIZED,
    DisconnectReason,
    reason_after,
)
from airy_trio.sessions.conversation import Services
from airy_trio.sessions.session import ABORT_TIMEOUT_S, CLOSE_TIMEOUT_S, Session, abort
from airy_trio.websocket.admission import Admission, ConnectionSlot, Console
from airy_trio.websocket.transport import Transport

logger = structlog.get_logger(__name__)

# The interval between two disconnects at shutdown, if the drain time allows it.
SPREAD_S: Final = 0.01
# How often `leave_unread_store` checks how long the event store has been unavailable.
CHECK_STORE_EVERY_S: Final = 1.0


class Sessions:
    """All sessions of one process. ``fan_out``, ``wheel.run`` and ``durables.run`` run as tasks alongside them.

    ``durables.run`` must outlive them: their last acknowledgements are written when they have ended.

    ``clients``: the current ones, the oldest first. ``disconnects``: ended sessions, by the name of their disconnect
    reason. ``client_faults``: those that a fault of the client has ended, by the token of the fault.
    """

    def __init__(self, services: Services, console: Console | None = None) -> None:
        self.services = services
        self.fair_queue, self.wheel, self.durables = services.fair_queue, services.wheel, services.durables
        self.admission = Admission(services.options, services.fair_queue, console)
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
            nursery.start_soon(self.fair_queue.run)
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

    def renew(self, options: AuthOptions, file_keys: tuple[Key, ...] | None = None) -> None:
        """Replace the credentials; disconnect clients whose own are no longer accepted, with ``401-unauthorized``.

        ``file_keys`` and errors: see ``Authenticator.renew``.
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
