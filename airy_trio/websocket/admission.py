"""Who is let in: how many connections there may be, in total and from one address, and under which names they come.

Counts visitors, from the accept loop until their session has ended. A limit is applied as early as it can be: the
total, and the address of who connects directly, before a session costs anything; the address behind a proxy when the
request tells it. Nothing is written or closed here.

Who a connection comes from: the address that counts, behind proxies too; what is done with it is not known here.

X-Forwarded-For is what anybody may write. Only a configured proxy is believed, and only what it wrote itself, which
stands at the right: the rightmost address that is not of a proxy again is the client's.

From which pages and under which names a client may come: the rules for Origin and Host.

A browser lets any page open a WebSocket to any server, and says only from where: whoever does not look at Origin lends
its users' cookies and network to every page. On a loopback address the name in Host counts as well, because a page
can make its own name point there (DNS rebinding), and is then of the same origin. Wire contract, "The connection".
"""

import re
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import structlog
import trio
from attrs import Attribute, define, field, frozen

from airy_trio.options import NotAllowedError, at_least, matching
from airy_trio.websocket.fair_queue import HANDSHAKES_PER_TURN, FairQueue
from airy_trio.websocket.request import Request, RequestRefusedError, Upgrade, quoted

CACHED_MAX: Final = 256
"""Many connections come from few addresses where there is a proxy: one address, and its name, serve all of them."""
IPV6_PREFIX: Final = 64
"""The bits of an IPv6 address that count: a single host is given all addresses below them."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""The prefix under which gateways write IPv4 addresses into IPv6 (RFC 6052, section 2.1)."""
_IPV4: Final = 0xFFFF_FFFF
_WITH_PORT: Final = re.compile(r"\[([^\]]+)\](?::\d+)?|([0-9.]+):\d+")
_WORDS: Final = "IP addresses and networks such as 10.0.0.0/8"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def check_networks(_instance: object, option: "Attribute[Any]", networks: list[str]) -> None:
    """Validate ``trusted_proxies``. Raises ``NotAllowedError``."""
    for text in networks:
        try:
            ip_network(text)
        except ValueError as error:
            raise NotAllowedError(option.name, _WORDS, ascii(text)) from error


@lru_cache(CACHED_MAX)
def address_of(text: str) -> Address | None:
    """Read an address as sockets and proxies write it: with a zone, in brackets, with a port; None where it is none.

    An IPv4 address that was mapped into IPv6 is the IPv4 address.
    """
    found = _WITH_PORT.fullmatch(text)
    bare = text if found is None else found[1] or found[2]
    try:
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@lru_cache(CACHED_MAX)
def counted(address: Address) -> str:
    """What connections are counted by: the address of IPv4, the network of 64 bits of IPv6.

    Behind a NAT64 gateway all clients of IPv4 share one such network: they are counted by their own addresses.
    """
    if isinstance(address, IPv4Address):
        return str(address)
    if address in _NAT64:
        return str(IPv4Address(int(address) & _IPV4))
    return str(IPv6Network((address, IPV6_PREFIX), strict=False))


class Proxies:
    """The proxies that are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ip_network(text) for text in networks)

    def has(self, address: Address) -> bool:
        """Whether the address is of a proxy that is believed."""
        return any(address in network for network in self._networks)

    def client_of(self, proxy: Address, forwarded: Sequence[str]) -> Address:
        """The client for whom a believed proxy speaks; itself where it does not say.

        ``forwarded``: the values of X-Forwarded-For in their order. What cannot be read ends the search: nothing to
        the left of it was written by somebody whom we know.
        """
        found = proxy
        for text in reversed([part.strip(" \t") for value in forwarded for part in value.split(",")]):
            address = address_of(text)
            if address is None:
                break
            found = address
            if not self.has(address):
                break
        return found


ANY: Final = "*"
"""Clients come under few names and from few pages, and reading one costs as much as all the rest of a request."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_](?:[0-9A-Za-z_.-]{0,252}[0-9A-Za-z_.])?"
_AUTHORITY: Final = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?")
_ORIGIN: Final = re.compile(rf"([A-Za-z][0-9A-Za-z+.-]{{0,31}})://({_HOST})(?::([0-9]{{1,5}}))?")
_NAME: Final = re.compile(_HOST)
_ORIGINS_WORDS: Final = '"SCHEME://HOST" or "SCHEME://HOST:PORT", without a path; or "*" alone'
_HOSTS_WORDS: Final = "names of hosts, or IP addresses, without ports"


def check_origins(_instance: object, option: "Attribute[Any]", origins: list[str]) -> None:
    """Validate ``allowed_origins``. Raises ``NotAllowedError``."""
    wrong = [origin for origin in origins if origin != ANY and _ORIGIN.fullmatch(origin) is None]
    if wrong:
        raise NotAllowedError(option.name, _ORIGINS_WORDS, ascii(wrong[0]))
    if ANY in origins and len(origins) > 1:
        raise NotAllowedError(option.name, _ORIGINS_WORDS, '"*" beside others')


def check_hosts(_instance: object, option: "Attribute[Any]", hosts: list[str]) -> None:
    """Validate ``hosts``. Raises ``NotAllowedError``."""
    wrong = [host for host in hosts if _NAME.fullmatch(host) is None and not _is_address(host)]
    if wrong:
        raise NotAllowedError(option.name, _HOSTS_WORDS, ascii(wrong[0]))


@frozen
class Console:
    """Where the pages of the admin ports are, from which a browser may come too: their address and the ports.

    There is one for each worker, and any worker may be given the connection of any page.
    """

    host: str
    ports: range


class OriginRules:
    """Tells whether a request may come under this Host and from this Origin.

    ``host``: where the listener was told to listen. ``hosts``: names beside it. ``allowed_origins``: empty means the
    same host and port as in Host, or the console's.
    """

    def __init__(
        self, *, host: str, hosts: Iterable[str], allowed_origins: Iterable[str], console: Console | None = None
    ) -> None:
        self._hosts = frozenset({_host(host), *map(_host, hosts)})
        self._any_host = not list(hosts)
        self._origins = frozenset(ANY if origin == ANY else _parsed(origin) for origin in allowed_origins)
        self._console = console

    def check(self, upgrade: Upgrade, *, loopback: bool) -> None:
        """Raise ``RequestRefusedError`` where the request may not come in.

        ``loopback``: whether the listening socket is bound to this machine only.
        """
        authority = _AUTHORITY.fullmatch(upgrade.host)
        if authority is None:
            details = f"Host is {quoted(upgrade.host)}"
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "The header host is no name of a host.", details=details)
        host, port = _host(authority[1]), authority[2]
        known = host in self._hosts or (is_loopback(host) if loopback else self._any_host)
        if not known:
            details = f"Host is {quoted(upgrade.host)}; to allow it, add its name to listener.hosts"
            raise RequestRefusedError(
                HTTPStatus.FORBIDDEN, "Clients may not come under this name of a host.", details=details
            )
        if upgrade.origin is not None and not self._allows(upgrade.origin, host, port):
            details = f"Origin is {quoted(upgrade.origin)}, Host is {quoted(upgrade.host)}; {_remedy(upgrade.origin)}"
            raise RequestRefusedError(HTTPStatus.FORBIDDEN, "Clients may not come from this origin.", details=details)

    def _allows(self, origin: str, host: str, port: str | None) -> bool:
        parsed = _parsed(origin)
        if parsed is None:  # "null", or no origin at all
            return False
        if self._origins:
            return ANY in self._origins or parsed in self._origins
        scheme, origin_host, origin_port = parsed
        here = int(port) if port else _DEFAULT_PORTS.get(scheme)
        if (origin_host, origin_port) == (host, here) and here is not None:
            return True
        return scheme == "http" and self._is_console(origin_host, origin_port, host)

    def _is_console(self, origin_host: str, origin_port: int | None, host: str) -> bool:
        console = self._console
        if console is None or origin_port not in console.ports:
            return False
        return is_loopback(origin_host) if is_loopback(_host(console.host)) else origin_host == host


def _remedy(origin: str) -> str:
    if _parsed(origin) is None:
        return "no setting allows this"
    return "to allow it, list it and all other allowed origins in listener.allowed_origins"


@lru_cache(CACHED_MAX)
def is_loopback(host: str) -> bool:
    """Whether a name or an address, without brackets, is of this machine itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@lru_cache(CACHED_MAX)
def _parsed(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of an origin, the default port filled in; None where it is none."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return None
    scheme = found[1].lower()
    return scheme, _host(found[2]), int(found[3]) if found[3] else _DEFAULT_PORTS.get(scheme)


@lru_cache(CACHED_MAX)
def _host(text: str) -> str:
    """One spelling of a host: lower case, no brackets, no dot at its end, addresses as Python writes them."""
    name = text.lower().strip("[]").removesuffix(".")
    return str(ip_address(name)) if _is_address(name) else name


def _is_address(text: str) -> bool:
    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


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

    def __init__(self, options: AdmissionOptions, turnstile: FairQueue, console: Console | None = None) -> None:
        self.turnstile = turnstile
        self.handshakes = FairQueue(HANDSHAKES_PER_TURN)
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

    def arrive(self, peer: str, *, loopback: bool) -> "ConnectionSlot":
        """Count somebody who has connected; who gets the visitor calls its ``leave``.

        ``peer``: the address of the socket. ``loopback``: whether the listening socket is bound to this machine only.
        Raises ``RequestRefusedError`` where a limit is reached.
        """
        if self._visitors >= self._options.connections_max:
            raise self._beyond(_TOTAL, peer)
        address = address_of(peer)
        visitor = ConnectionSlot(self, peer, loopback, address)
        if address is not None and not self._proxies.has(address):
            self._take(visitor, address)
        self._visitors += 1
        return visitor

    def examine(self, visitor: "ConnectionSlot", request: Request, upgrade: Upgrade) -> None:
        """Let a visitor's request in. Raises ``RequestRefusedError`` where its Host, its Origin or a limit forbids it.

        So it does while admission is ``suspended``.
        """
        if self.suspended:
            raise RequestRefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE, "The event store is unavailable.", ("Retry-After", str(RETRY_AFTER_S))
            )
        self._rules.check(upgrade, loopback=visitor.loopback)
        if visitor.counted_as is None and visitor.address is not None:
            client = self._proxies.client_of(visitor.address, request.headers.get("x-forwarded-for", ()))
            self._take(visitor, client)
            visitor.address = client
            visitor.name = str(client)

    def leave(self, visitor: "ConnectionSlot") -> None:
        """Count a visitor and its subscriptions no more."""
        self._visitors -= 1
        if visitor.counted_as is not None:
            self.unsubscribe(visitor, visitor.subscriptions)
            _subtract(self._by_address, visitor.counted_as, 1)

    def subscribe(self, visitor: "ConnectionSlot") -> bool:
        """Count one more subscription of a visitor; False if its address has as many as it may."""
        key = visitor.counted_as
        if key is not None:
            if self._subscriptions[key] >= self._subscriptions_max:
                return False
            self._subscriptions[key] += 1
            visitor.subscriptions += 1
        return True

    def unsubscribe(self, visitor: "ConnectionSlot", count: int = 1) -> None:
        """Count so many subscriptions of a visitor no more."""
        if visitor.counted_as is not None:
            visitor.subscriptions -= count
            _subtract(self._subscriptions, visitor.counted_as, count)

    def _take(self, visitor: "ConnectionSlot", address: Address) -> None:
        key = counted(address)
        if self._by_address[key] >= self._options.connections_per_address_max:
            raise self._beyond(_PER_ADDRESS, key)
        self._by_address[key] += 1
        visitor.counted_as = key

    def _beyond(self, limit: str, address: str) -> RequestRefusedError:
        self._turned_away[limit] += 1
        self._untold += 1
        now = trio.current_time()
        if now >= self._tell_at:
            logger.warning("connections turned away", setting=f"listener.{limit}", address=address, count=self._untold)
            self._tell_at, self._untold = now + TELL_EVERY_S, 0
        retry = ("Retry-After", str(RETRY_AFTER_S))
        details = f"listener.{limit} is {getattr(self._options, limit)}"
        words = "There are too many connections."
        return RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, words, retry, details=details)


@define(eq=False)
class ConnectionSlot:
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
