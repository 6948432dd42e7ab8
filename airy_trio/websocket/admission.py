"""Who is let in: how many connections there may be, in total and from one address, and under which names they come.

Counts visitors, from the accept loop until their session has ended. A limit is applied as early as it can be: the
total, and the address of who connects directly, before a session costs anything; the address behind a proxy when the
request tells it. Nothing is written or closed here.
"""

from collections import Counter
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Final

import structlog
import trio
from attrs import define, field, frozen

from airy_trio.options import at_least, matching
from airy_trio.websocket.addresses import Address, Proxies, address_of, check_networks, counted
from airy_trio.websocket.origins import Console, OriginRules, check_hosts, check_origins
from airy_trio.websocket.request import RefusedError, Request, Upgrade
from airy_trio.websocket.turnstile import HANDSHAKES_PER_TURN, Turnstile

logger = structlog.get_logger(__name__)

RETRY_AFTER_S: Final = 5
"""What who comes beyond a limit is told to wait."""
TELL_EVERY_S: Final = 10.0
"""Between two lines of log about connections that were turned away: a flood must not become one of the log."""

SUBSCRIPTIONS_PER_CONNECTION: Final = 10
"""By default an address may have so many subscriptions for each connection that it may have."""

_TOTAL: Final = "connections_max"
_PER_ADDRESS: Final = "connections_per_address_max"


@frozen(kw_only=True)
class AdmissionOptions:
    """Who may come in (settings, ``[listener]``).

    ``hosts``: names in Host beside ``host``; ``allowed_origins``: see ``OriginRules``; ``trusted_proxies``: addresses
    and networks whose X-Forwarded-For counts. ``subscriptions_per_address_max`` 0: ten for each connection that an
    address may have.
    """

    host: str = field(  # "" would be every address
        default="127.0.0.1", validator=matching(r"[^\s\x00-\x1f\x7f]+", "a host name or an IP address")
    )
    hosts: list[str] = field(factory=list, validator=check_hosts)
    allowed_origins: list[str] = field(factory=list, validator=check_origins)
    trusted_proxies: list[str] = field(factory=list, validator=check_networks)
    connections_max: int = field(default=20_000, validator=at_least(1))
    connections_per_address_max: int = field(default=200, validator=at_least(1))
    subscriptions_per_address_max: int = field(default=0, validator=at_least(0))


class Admission:
    """The connections of one process, by address."""

    def __init__(self, options: AdmissionOptions, turnstile: Turnstile, console: Console | None = None) -> None:
        self.turnstile = turnstile
        self.handshakes = Turnstile(HANDSHAKES_PER_TURN)
        """Where a step of a TLS handshake waits for its turn; ``run`` is a task of its own."""
        self._options = options
        self._proxies = Proxies(options.trusted_proxies)
        self._rules = OriginRules(
            host=options.host, hosts=options.hosts, allowed_origins=options.allowed_origins, console=console
        )
        self._visitors = 0
        self._by_address: Counter[str] = Counter()
        self._subscriptions: Counter[str] = Counter()  # by address as well
        self._subscriptions_max = (
            options.subscriptions_per_address_max or SUBSCRIPTIONS_PER_CONNECTION * options.connections_per_address_max
        )
        self._turned_away = Counter({_TOTAL: 0, _PER_ADDRESS: 0})
        self._untold = 0
        self._tell_at = -TELL_EVERY_S
        self.suspended = False
        """Whether requests are refused for now, because this server has nothing to serve them with."""

    def statistics(self) -> dict[str, int]:
        """What there is now, and what there was since the start.

        Now: ``visitors``, from how many ``addresses``. Since the start, the connections turned away, by the limit:
        ``turned away connections_max``, ``turned away connections_per_address_max``.
        """
        away = {f"turned away {limit}": count for limit, count in self._turned_away.items()}
        return {"visitors": self._visitors, "addresses": len(self._by_address), **away}

    def arrive(self, peer: str, *, loopback: bool) -> "Visitor":
        """Count somebody who has connected; who gets the visitor calls its ``leave``.

        ``peer``: the address of the socket. ``loopback``: whether the listening socket is bound to this machine only.
        Raises ``RefusedError`` where a limit is reached.
        """
        if self._visitors >= self._options.connections_max:
            raise self._beyond(_TOTAL, peer)
        address = address_of(peer)
        visitor = Visitor(self, peer, loopback, address)
        if address is not None and not self._proxies.has(address):
            self._take(visitor, address)
        self._visitors += 1
        return visitor

    def examine(self, visitor: "Visitor", request: Request, upgrade: Upgrade) -> None:
        """Let a visitor's request in. Raises ``RefusedError`` where its Host, its Origin or a limit forbids it.

        So it does while admission is ``suspended``.
        """
        if self.suspended:
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE, "The event store is unavailable.", ("Retry-After", str(RETRY_AFTER_S))
            )
        self._rules.check(upgrade, loopback=visitor.loopback)
        if visitor.counted_as is None and visitor.address is not None:
            client = self._proxies.client_of(visitor.address, request.headers.get("x-forwarded-for", ()))
            self._take(visitor, client)
            visitor.address = client
            visitor.name = str(client)

    def leave(self, visitor: "Visitor") -> None:
        """Count a visitor and its subscriptions no more."""
        self._visitors -= 1
        if visitor.counted_as is not None:
            self.unsubscribe(visitor, visitor.subscriptions)
            _subtract(self._by_address, visitor.counted_as, 1)

    def subscribe(self, visitor: "Visitor") -> bool:
        """Count one more subscription of a visitor; False if its address has as many as it may."""
        key = visitor.counted_as
        if key is not None:
            if self._subscriptions[key] >= self._subscriptions_max:
                return False
            self._subscriptions[key] += 1
            visitor.subscriptions += 1
        return True

    def unsubscribe(self, visitor: "Visitor", count: int = 1) -> None:
        """Count so many subscriptions of a visitor no more."""
        if visitor.counted_as is not None:
            visitor.subscriptions -= count
            _subtract(self._subscriptions, visitor.counted_as, count)

    def _take(self, visitor: "Visitor", address: Address) -> None:
        key = counted(address)
        if self._by_address[key] >= self._options.connections_per_address_max:
            raise self._beyond(_PER_ADDRESS, key)
        self._by_address[key] += 1
        visitor.counted_as = key

    def _beyond(self, limit: str, address: str) -> RefusedError:
        self._turned_away[limit] += 1
        self._untold += 1
        now = trio.current_time()
        if now >= self._tell_at:
            logger.warning("connections turned away", setting=f"listener.{limit}", address=address, count=self._untold)
            self._tell_at, self._untold = now + TELL_EVERY_S, 0
        retry = ("Retry-After", str(RETRY_AFTER_S))
        details = f"listener.{limit} is {getattr(self._options, limit)}"
        words = "There are too many connections."
        return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, words, retry, details=details)


@define(eq=False)
class Visitor:
    """One connection. ``peer``: the socket's address. ``address``: the client's, once the request has told it.

    ``name``: the client's address for the log. ``counted_as``: what it is counted by; None: not yet.
    ``subscriptions``: how many of its address are its own.
    """

    admission: Admission
    peer: str
    loopback: bool
    address: Address | None
    name: str = field(init=False)
    counted_as: str | None = None
    subscriptions: int = 0

    def __attrs_post_init__(self) -> None:
        """The socket's address is the client's as long as no proxy has said another."""
        self.name = self.peer

    def examine(self, request: Request, upgrade: Upgrade) -> None:
        """See ``Admission.examine``."""
        self.admission.examine(self, request, upgrade)

    def turn(self) -> Awaitable[None]:
        """Wait at the turnstile, among those from its address; among those of its proxy until the request was read."""
        return self.admission.turnstile.enter(self.counted_as or self.peer)

    def handshake_turn(self) -> Awaitable[None]:
        """Wait for the turn of a step of a TLS handshake, among those from its address, or of its proxy."""
        return self.admission.handshakes.enter(self.counted_as or self.peer)

    def subscribe(self) -> bool:
        """See ``Admission.subscribe``."""
        return self.admission.subscribe(self)

    def unsubscribe(self) -> None:
        """See ``Admission.unsubscribe``."""
        self.admission.unsubscribe(self)

    def leave(self) -> None:
        """See ``Admission.leave``. To be called once."""
        self.admission.leave(self)


def _subtract(counts: Counter[str], key: str, count: int) -> None:
    counts[key] -= count
    if not counts[key]:
        del counts[key]
