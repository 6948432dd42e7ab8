"""All sessions of one process: they are counted, shown, sent away; what they share is made here.

What becomes of one of them is the session's own.

Who is connected now, a page at a time: what the console shows of each connection, as plain values.

Read from the clients' own state when somebody asks; nothing is kept for it but a number for each connection, which
pages go on after. Credentials are no part of it, nor is anything that was sent.

Who of the clients connected now has been sent an event, who will be, and who never will, and why.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
import trio

from airy_trio.auth import Authenticator, AuthOptions, Key
from airy_trio.delivery.batches import Batches
from airy_trio.delivery.client import Client, ClientState, ReplayOptions, Subscription
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
from airy_trio.delivery.durables import Durables
from airy_trio.delivery.fanout import FanOut, Senders
from airy_trio.events.destinations import Addressed, covers, destinations_of, text
from airy_trio.log.event_log import EventLog
from airy_trio.log.latency import Latencies
from airy_trio.log.position import Position
from airy_trio.sessions.closing import GOODBYE_S, HANG_UP_S, EarlyEnds, cut
from airy_trio.sessions.heartbeats import Wheel
from airy_trio.sessions.session import Session, SessionOptions, Shared
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.websocket.admission import Admission, Console, Visitor
from airy_trio.websocket.fair_queue import FairQueue
from airy_trio.websocket.request import STATUSES
from airy_trio.websocket.transport import Transport

PAGE_MAX: Final = 200
"""Connections in one page."""
DESTINATION_CHARS_MAX: Final = 128
"""What is shown of a destination; clients may choose longer ones."""


def page(clients: Iterable[Client], now: float, *, after: int, limit: int, behind: bool) -> dict[str, Any]:
    """Describe the first ``limit`` connections numbered above ``after``, in the order in which they came.

    ``clients``: the oldest first. ``now``: in Trio's time. ``behind``: only those with events still to be sent.
    ``next``: what to go on after; None where that was all.
    """
    found: list[dict[str, Any]] = []
    last: int | None = None
    for client in clients:
        if client.number <= after or (behind and not _is_behind(client)):
            continue
        if len(found) == min(limit, PAGE_MAX):
            return {"connections": found, "next": last}
        found.append(_described(client, now))
        last = client.number
    return {"connections": found, "next": None}


def _is_behind(client: Client) -> bool:
    """Whether there is something to send, for whatever reason it has not been: also a window of acks that is full."""
    return client.state is ClientState.BEHIND or any(_waiting(one)[0] for one in client.subscriptions.values())


def _described(client: Client, now: float) -> dict[str, Any]:
    subscriptions = [_subscription(one) for one in client.subscriptions.values()]
    return {
        "number": client.number,
        "session": client.session,
        "user": client.user.name,
        "address": client.address,
        "state": client.state.value,
        "connected_s": round(max(0.0, now - client.begun_at), 1),
        "behind": sum(one["behind"] for one in subscriptions),
        "behind_exactly": all(one["behind_exactly"] for one in subscriptions),
        "subscriptions": subscriptions,
    }


def _subscription(subscription: Subscription) -> dict[str, Any]:
    behind, exactly = _waiting(subscription)
    return {
        "destination": _shown(text(subscription.view.destination)),
        "position": str(subscription.position),
        "behind": behind,
        "behind_exactly": exactly,
        "waits_for_acks": subscription.window is not None and subscription.window.room <= 0,
    }


def _shown(destination: str) -> str:
    return destination if len(destination) <= DESTINATION_CHARS_MAX else destination[: DESTINATION_CHARS_MAX - 1] + "…"


def _waiting(subscription: Subscription) -> tuple[int, bool]:
    """How many events of its view a subscription has not had, and whether that is all: the tail may hold too few."""
    view, offset = subscription.view, subscription.position.offset
    owed = len(subscription.owed)
    if offset >= view.last:
        return owed, True
    if offset >= view.evicted:
        return owed + len(view.offsets) - bisect_right(view.offsets, offset), True
    return owed + len(view.offsets) + 1, False


PASSED: Final = "passed"
"""A subscription that wants the event stands at it or after it: it was sent, or it is older than the subscription."""
WAITING: Final = "waiting"
"""A subscription that wants it has not got so far."""
FILTERED: Final = "filtered"
"""None of its subscriptions is to a destination of the event, though one could be."""
NOT_GRANTED: Final = "not_granted"
"""Its credentials keep the event from it, whatever it subscribes to."""
NO_SUBSCRIPTION: Final = "no_subscription"
CLIENTS_TOLD_MAX: Final = 100


def audience(clients: Iterable[Client], position: Position, event: Addressed) -> Mapping[str, object]:
    """How many clients there are of each verdict, and of the first ``CLIENTS_TOLD_MAX`` each one, fit for JSON.

    Of several subscriptions of a client the most favourable counts. Costs the number of subscriptions; never waits.
    """
    counts = Counter({PASSED: 0, WAITING: 0, FILTERED: 0, NOT_GRANTED: 0, NO_SUBSCRIPTION: 0})
    told: list[Mapping[str, object]] = []
    for client in clients:
        verdict = _verdict(client, position, event)
        counts[verdict] += 1
        if len(told) < CLIENTS_TOLD_MAX:
            told.append({"session": client.session, "user": client.user.name, "verdict": verdict})
    return {"position": str(position), "clients": counts.total(), **counts, "sessions": told}


def _verdict(client: Client, position: Position, event: Addressed) -> str:
    if not _may_read(client, event):
        return NOT_GRANTED
    started = [found for found in client.subscriptions.values() if found.started]
    if not started:
        return NO_SUBSCRIPTION
    wanted = [found for found in started if covers(found.view.destination, event)]
    if not wanted:
        return FILTERED
    return PASSED if any(_has_passed(found, position) for found in wanted) else WAITING


def _may_read(client: Client, event: Addressed) -> bool:
    granted = (client.user.grant.of(destination) for destination in destinations_of(event))
    return any(destination is not None and covers(destination, event) for destination in granted)


def _has_passed(subscription: Subscription, position: Position) -> bool:
    at = subscription.position
    if at.epoch != position.epoch or at.offset < position.offset:
        return False
    return all(owed.offset != position.offset for owed in subscription.owed)


logger = structlog.get_logger(__name__)

SPREAD_S: Final = 0.01
"""Between two clients that are sent away at shutdown, where the drain time allows."""
AWAY_PERIOD_S: Final = 1.0
"""Between two looks at how long the event store has been unreadable."""
_COUNTED: Final = (
    "acks_ignored",
    "nacks",
    *(f"farewell {row.name}" for row in CATALOGUE),
    *(f"refused {token}" for token in CLIENT_FAULT_TOKENS),
    *(f"requests refused {status.value}" for status in STATUSES),
)
"""They begin at 0: an alert on the rate of a counter misses an increase that creates the counter."""


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
        self.fair_queue = FairQueue()
        self.admission = Admission(options, self.fair_queue, console)
        self._authenticator = authenticator
        self._runs = runs = Batches(eventlog)
        self._senders = senders = Senders(eventlog, runs)
        self._fanout = FanOut(eventlog, runs, senders)
        self.wheel = Wheel(senders)
        self.durables = Durables(eventlog, per_user_max=options.durables_per_user_max)
        self._counts = Counter(dict.fromkeys(_COUNTED, 0))
        self._shared = Shared(
            eventlog=eventlog,
            options=options,
            connections=ConnectionOptions(
                server=server,
                heartbeat_ms=options.heartbeat_ms,
                frame_bytes_max=options.frame_bytes_max,
                subscriptions_max=options.subscriptions_max,
            ),
            replay=replay,
            authenticator=authenticator,
            senders=senders,
            fanout=self._fanout,
            wheel=self.wheel,
            durables=self.durables,
            fair_queue=self.fair_queue,
            counts=self._counts,
            early_ends=EarlyEnds(),
        )
        self._clients: dict[Client, None] = {}  # the oldest first
        self._met = 0
        self._ended = trio.Event()
        self._dismissing = False

    def statistics(self) -> dict[str, int]:
        """What there is now, and what there was since the start.

        Now: ``clients``, their ``subscriptions``, and the clients ``behind``, which have a send task. Since the
        start: ``deliveries`` and ``bytes`` (see ``Batches``), ``acks_ignored``, ``nacks``, ended sessions by
        ``farewell NAME``, ``refused TOKEN`` where what a client sent has ended its session, and ``requests refused
        STATUS`` where a request did not become a WebSocket; how often somebody has ``waited`` at the fair queue. See
        ``Admission.statistics`` for the rest. Now as well: ``durables`` that are held, and ``durables_unwritten``, of
        which the store does not yet have all that is acknowledged.
        """
        subscriptions = behind = 0
        for client in self._clients:
            subscriptions += len(client.subscriptions)
            behind += client.state is ClientState.BEHIND
        now = {"clients": len(self._clients), "subscriptions": subscriptions, "behind": behind}
        durables = self.durables.statistics()
        now |= {"durables": durables["held"], "durables_unwritten": durables["unwritten"]}
        now |= {"waited": self.fair_queue.statistics().waited}
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
        return page(self._clients, trio.current_time(), after=after, limit=limit, behind=behind)

    async def fan_out(self) -> None:
        """Write to the clients for whom the log has grown, and start send tasks for those behind, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._senders.run)
            nursery.start_soon(self._senders.watch)
            nursery.start_soon(self._fanout.run)
            nursery.start_soon(self.fair_queue.run)
            nursery.start_soon(self.admission.handshakes.run)

    async def serve(
        self, connections: trio.Nursery, transport: Transport, visitor: Visitor | None = None
    ) -> DisconnectReason:
        """Serve one connection until its farewell was said. Its tasks run in ``connections`` and end before it.

        ``visitor``: who has connected, which leaves at the end; None: no rule applies. Owns the transport.
        Raises nothing but cancellation, which cuts the connection.
        """
        try:
            self._met += 1
            session = Session(self._shared, connections, transport, visitor, number=self._met)
            self._clients[session.client] = None
            if self._dismissing:
                session.client.dismiss(SHUTTING_DOWN)
            try:
                await session.run()
            finally:  # also of who is cut off as the server ends
                self._count(session)
                session.tell_end()
        except Exception as fault:  # noqa: BLE001 - a session that could not begin, or not be counted, is no other's
            with trio.move_on_after(HANG_UP_S, shield=True):
                await cut(transport, session="")
            return reason_after(fault, session="")
        else:
            return session.client.farewell or GONE
        finally:
            if visitor is not None:
                visitor.leave()

    def renew(self, options: AuthOptions, file_keys: tuple[Key, ...] | None = None) -> None:
        """Replace the credentials; disconnect clients whose own are no longer accepted, with ``401-unauthorized``.

        ``file_keys`` and errors: see ``Authenticator.renew``.
        """
        self._authenticator.renew(options, file_keys)
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
            if client.state in {ClientState.LIVE, ClientState.BEHIND} and not self._authenticator.accepts(client.user)
        ]
        for client in refused:
            client.dismiss(UNAUTHORIZED)
        logger.info("credentials renewed", ended=len(refused))

    async def leave_unread_store(self, drain_s: float) -> None:
        """Disconnect the clients once the event store has been unreadable for ``away_max_s``. Batches until cancelled.

        They come back through the balancer to a server that can read it, if there is one, and resume there. Until this
        server can read it again it refuses new ones. Shorter outages disconnect no one: the clients miss nothing.
        """
        away_max_s = self._shared.options.away_max_s
        while away_max_s:
            await trio.sleep(min(AWAY_PERIOD_S, away_max_s))
            was_suspended = self.admission.suspended
            self.admission.suspended = self._shared.eventlog.away_s > away_max_s
            if self.admission.suspended and not was_suspended:
                logger.warning(
                    "event store unavailable for too long; clients are disconnected and come back elsewhere",
                    away_max_s=away_max_s,
                    clients=len(self._clients),
                )
                await self._dismiss(drain_s, STORE_UNAVAILABLE)

    async def dismiss_all(self, drain_s: float, farewell: DisconnectReason = SHUTTING_DOWN) -> None:
        """Send everybody away, spread over at most ``drain_s``, new ones too; return when the last has gone.

        Returns ``GOODBYE_S`` after ``drain_s`` in any case: whoever is left then is for the caller to cancel.
        """
        self._dismissing = True
        with trio.move_on_after(drain_s + GOODBYE_S):
            await self._dismiss(drain_s, farewell)
            while self._clients:
                self._ended = trio.Event()
                await self._ended.wait()

    async def _dismiss(self, drain_s: float, farewell: DisconnectReason) -> None:
        """Dismiss the clients that are connected now, spread over at most ``drain_s``."""
        clients = tuple(self._clients)
        pause_s = min(SPREAD_S, drain_s / max(1, len(clients)))
        begun_at = trio.current_time()
        for count, client in enumerate(clients):
            await trio.sleep_until(begun_at + count * pause_s)
            client.dismiss(farewell)

    def _count(self, session: Session) -> None:
        client = session.client
        del self._clients[client]
        self._ended.set()
        farewell = client.farewell or GONE
        self._counts[f"farewell {farewell.name}"] += 1
        self._counts["acks_ignored"] += session.conversation.acks_ignored
        self._counts["nacks"] += session.conversation.nacks
        if farewell.token is not None and farewell.token.startswith(CLIENT_FAULT):
            self._counts[f"refused {farewell.token}"] += 1
