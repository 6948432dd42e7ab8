"""All sessions of one process: the parts that they share, their counts, and the ways to disconnect many of them.

Two views of the connected clients are for operators: the connection list and the recipients of one event. Both read the
clients' own state when they are called, and never wait. Neither contains credentials, or data that was sent to a
client. The keys are those of the JSON on the admin port.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import structlog
import trio

from airy_trio.auth import AuthOptions, Key
from airy_trio.delivery.client import Client, ClientState, Subscription
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
from airy_trio.events.destinations import Addressed, covers, destinations_of, text
from airy_trio.log.store import Position
from airy_trio.sessions.conversation import Services
from airy_trio.sessions.session import ABORT_TIMEOUT_S, CLOSE_TIMEOUT_S, Session, abort
from airy_trio.websocket.admission import Admission, ConnectionSlot, Console
from airy_trio.websocket.transport import Transport

logger = structlog.get_logger(__name__)

# The interval between two disconnects at shutdown, if the drain time allows it.
SPREAD_S: Final = 0.01
# How often `leave_unread_store` checks how long the event store has been unavailable.
CHECK_STORE_EVERY_S: Final = 1.0

# Clients may choose longer destinations; the rest is not shown.
DESTINATION_CHARS_MAX: Final = 128
# Clients that are listed as recipients; all are counted.
LISTED_MAX: Final = 100

# The verdicts on one client, the most favourable first. A client gets the most favourable verdict of its subscriptions.
PASSED: Final = "passed"  # the event was sent, or is older than the subscription
WAITING: Final = "waiting"  # the cursor has not reached the event
FILTERED: Final = "filtered"  # the client may subscribe to a destination of the event, but has not
NOT_GRANTED: Final = "not_granted"  # the credentials exclude the event
NO_SUBSCRIPTION: Final = "no_subscription"


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

    def connections(self, *, after: int, limit: int, behind: bool) -> dict[str, Any]:
        """Describe the first ``limit`` connections with numbers above ``after``, the oldest first.

        ``behind``: only those with events still to be sent. ``next`` is the number after which the next page begins;
        None if this is the last one.
        """
        now = trio.current_time()
        found: list[dict[str, Any]] = []
        last: int | None = None
        for client in self.clients:
            if client.number <= after or (behind and not _is_behind(client)):
                continue
            if len(found) == limit:
                return {"connections": found, "next": last}
            found.append(_describe(client, now))
            last = client.number
        return {"connections": found, "next": None}

    def recipients(self, position: Position, event: Addressed) -> Mapping[str, object]:
        """Count the clients by their verdict on an event, and list the first ``LISTED_MAX``, as values for JSON."""
        counts = Counter({PASSED: 0, WAITING: 0, FILTERED: 0, NOT_GRANTED: 0, NO_SUBSCRIPTION: 0})
        listed: list[Mapping[str, object]] = []
        for client in self.clients:
            verdict = _verdict(client, position, event)
            counts[verdict] += 1
            if len(listed) < LISTED_MAX:
                listed.append({"session": client.session, "user": client.user.name, "verdict": verdict})
        return {"position": str(position), "clients": counts.total(), **counts, "sessions": listed}

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


def _is_behind(client: Client) -> bool:
    """Whether there are events to send, for any reason; a full ack window is one."""
    return client.state is ClientState.BEHIND or any(_unsent(one)[0] for one in client.subscriptions.values())


def _describe(client: Client, now: float) -> dict[str, Any]:
    subscriptions = [_describe_subscription(one) for one in client.subscriptions.values()]
    return {
        "number": client.number,
        "session": client.session,
        "user": client.user.name,
        "address": client.slot.address,
        "state": client.state.value,
        "connected_s": round(max(0.0, now - client.begun_at), 1),
        "behind": sum(one["behind"] for one in subscriptions),
        "behind_exactly": all(one["behind_exactly"] for one in subscriptions),
        "subscriptions": subscriptions,
    }


def _describe_subscription(subscription: Subscription) -> dict[str, Any]:
    unsent, exact = _unsent(subscription)
    destination = text(subscription.view.destination)
    if len(destination) > DESTINATION_CHARS_MAX:
        destination = destination[: DESTINATION_CHARS_MAX - 1] + "…"
    return {
        "destination": destination,
        "position": str(subscription.position),
        "behind": unsent,
        "behind_exactly": exact,
        "waits_for_acks": subscription.window is not None and subscription.window.room <= 0,
    }


def _unsent(subscription: Subscription) -> tuple[int, bool]:
    """Count the events still to be sent, and whether the number is exact: the tail may not hold all of them."""
    view, offset = subscription.view, subscription.position.offset
    if subscription.replay is not None:
        return len(view.offsets) + 1, False
    if offset >= view.last:
        return 0, True
    if offset >= view.evicted:
        return len(view.offsets) - bisect_right(view.offsets, offset), True
    return len(view.offsets) + 1, False


def _verdict(client: Client, position: Position, event: Addressed) -> str:
    granted = (client.user.grant.of(destination) for destination in destinations_of(event))
    if not any(destination is not None and covers(destination, event) for destination in granted):
        return NOT_GRANTED
    started = [found for found in client.subscriptions.values() if found.started]
    if not started:
        return NO_SUBSCRIPTION
    matching = [found for found in started if covers(found.view.destination, event)]
    if not matching:
        return FILTERED
    return PASSED if any(_has_passed(found, position) for found in matching) else WAITING


def _has_passed(subscription: Subscription, position: Position) -> bool:
    at = subscription.position
    return at.epoch == position.epoch and at.offset >= position.offset
