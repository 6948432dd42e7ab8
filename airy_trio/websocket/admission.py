"""Admission of connections: how many there may be, and under which host names and from which pages.

Limits. Each is applied as early as possible, before a connection has cost anything: the total, and the address of a
client that connects directly, when the connection is accepted; the address of a client behind a proxy when its request
has been read.

Addresses. Anyone can write X-Forwarded-For. Only a configured proxy is believed, and only the part that it wrote
itself, which is the rightmost. So the client is the rightmost address that is not that of a configured proxy.

Origin and Host. A browser lets any page open a WebSocket to any server, and states only the page's origin. A server
that does not check Origin makes the cookies and the network of its users available to every page. On a loopback
address Host is checked as well: a page can let its own host name resolve to 127.0.0.1 (DNS rebinding), and is then of
the same origin. Wire contract, "The connection".
"""

import re
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import structlog
from attrs import Attribute, define, field, frozen

from airy_trio.options import NotAllowedError, at_least, matching
from airy_trio.retry import Sample
from airy_trio.websocket.fair_queue import HANDSHAKES_PER_PASS, FairQueue
from airy_trio.websocket.request import Request, RequestRefusedError, quoted

logger = structlog.get_logger(__name__)

ANY: Final = "*"
"""In ``allowed_origins``: any origin."""
RETRY_AFTER_S: Final = 5
SUBSCRIPTIONS_PER_CONNECTION: Final = 10
"""Times ``connections_per_address_max``: the subscriptions of one address, unless set."""
CACHED_MAX: Final = 256
"""Parsed addresses, hosts and origins. Clients use few of them, and behind a proxy there is one address for all;
parsing one costs as much as the rest of a request."""
IPV6_PREFIX: Final = 64
"""The bits of an IPv6 address that are counted: a single host usually has the whole network below them."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""The prefix under which gateways embed IPv4 addresses in IPv6 (RFC 6052, section 2.1)."""
_IPV4: Final = 0xFFFF_FFFF

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_](?:[0-9A-Za-z_.-]{0,252}[0-9A-Za-z_.])?"
_AUTHORITY: Final = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?")
_ORIGIN: Final = re.compile(rf"([A-Za-z][0-9A-Za-z+.-]{{0,31}})://({_HOST})(?::([0-9]{{1,5}}))?")
_NAME: Final = re.compile(_HOST)
_WITH_PORT: Final = re.compile(r"\[([^\]]+)\](?::\d+)?|([0-9.]+):\d+")

_RETRY: Final = ("Retry-After", str(RETRY_AFTER_S))
_TOTAL: Final = "connections_max"
_PER_ADDRESS: Final = "connections_per_address_max"

Address = IPv4Address | IPv6Address


def check_origins(_instance: object, option: "Attribute[Any]", origins: list[str]) -> None:
    """Validate ``allowed_origins``. Raises ``NotAllowedError``."""
    allowed = '"SCHEME://HOST" or "SCHEME://HOST:PORT", without a path; or "*" alone'
    wrong = [origin for origin in origins if origin != ANY and _ORIGIN.fullmatch(origin) is None]
    if wrong:
        raise NotAllowedError(option.name, allowed, ascii(wrong[0]))
    if ANY in origins and len(origins) > 1:
        raise NotAllowedError(option.name, allowed, '"*" together with others')


def check_hosts(_instance: object, option: "Attribute[Any]", hosts: list[str]) -> None:
    """Validate ``hosts``. Raises ``NotAllowedError``."""
    wrong = [host for host in hosts if _NAME.fullmatch(host) is None and not _is_address(host)]
    if wrong:
        raise NotAllowedError(option.name, "names of hosts, or IP addresses, without ports", ascii(wrong[0]))


def check_networks(_instance: object, option: "Attribute[Any]", networks: list[str]) -> None:
    """Validate ``trusted_proxies``. Raises ``NotAllowedError``."""
    for text in networks:
        try:
            ip_network(text)
        except ValueError as error:
            raise NotAllowedError(option.name, "IP addresses and networks such as 10.0.0.0/8", ascii(text)) from error


@frozen(kw_only=True)
class AdmissionOptions:
    """Settings of ``[listener]`` about admission.

    ``hosts``: names allowed in Host in addition to ``host``. ``allowed_origins``: see ``OriginRules``.
    ``trusted_proxies``: addresses and networks whose X-Forwarded-For is believed. ``subscriptions_per_address_max`` 0:
    ten for each connection that an address may have.
    """

    host: str = field(  # "" would mean every address
        default="127.0.0.1", validator=matching(r"[^\s\x00-\x1f\x7f]+", "a host name or an IP address")
    )
    hosts: list[str] = field(factory=list, validator=check_hosts)
    allowed_origins: list[str] = field(factory=list, validator=check_origins)
    trusted_proxies: list[str] = field(factory=list, validator=check_networks)
    connections_max: int = field(default=20_000, validator=at_least(1))
    connections_per_address_max: int = field(default=200, validator=at_least(1))
    subscriptions_per_address_max: int = field(default=0, validator=at_least(0))


@frozen
class Console:
    """Address and ports of the admin pages, which are allowed as origins.

    Each worker has a port, and any worker may get the connection of any page.
    """

    host: str
    ports: range


class Admission:
    """The connections of one process. ``fair_queue`` and ``handshakes`` each need a task for their ``run``.

    While ``suspended`` is set, requests are refused, because the event store is unavailable.
    """

    def __init__(self, options: AdmissionOptions, console: Console | None = None) -> None:
        self.fair_queue = FairQueue()
        self.handshakes = FairQueue(HANDSHAKES_PER_PASS)
        self.suspended = False
        self.rules = OriginRules(options, console)
        self.subscriptions_max = (
            options.subscriptions_per_address_max or SUBSCRIPTIONS_PER_CONNECTION * options.connections_per_address_max
        )
        self.by_address: Counter[str] = Counter()
        """Current connections, by address or network (see ``counted``)."""
        self.subscriptions: Counter[str] = Counter()
        """Current subscriptions, by the same keys."""
        self.connections = 0
        """The number of current connections."""
        self.turned_away = Counter({_TOTAL: 0, _PER_ADDRESS: 0})
        """Connections turned away since the start, by limit."""
        self._options = options
        self._proxies = tuple(ip_network(text) for text in options.trusted_proxies)
        self._logged = Sample()

    def arrive(self, peer: str, *, loopback: bool) -> "ConnectionSlot":
        """Count a new connection; the caller must call ``leave`` of the slot when it ends.

        ``peer`` is the address of the socket. ``loopback``: whether the listening socket is bound to this machine only.
        Raises ``RequestRefusedError`` if a limit is reached.
        """
        if self.connections >= self._options.connections_max:
            raise self._beyond(_TOTAL, peer)
        slot = ConnectionSlot(self, loopback, address=peer, key=peer)
        address = address_of(peer)
        if not self.is_proxy(address):
            slot.key = self.take_place(address)
            slot.counted = True
        # Last, because `take_place` may raise: a refused connection has no slot, so nothing would count it down.
        self.connections += 1
        return slot

    def take_place(self, address: Address) -> str:
        """Count a connection by its address; return the key. Raises ``RequestRefusedError`` at the limit."""
        key = counted(address)
        if self.by_address[key] >= self._options.connections_per_address_max:
            raise self._beyond(_PER_ADDRESS, key)
        self.by_address[key] += 1
        return key

    def is_proxy(self, address: Address) -> bool:
        """Return whether an address is a trusted proxy's."""
        return any(address in network for network in self._proxies)

    def client_of(self, proxy: Address, forwarded: Sequence[str]) -> Address:
        """Return the client behind a trusted proxy; the proxy itself if the header names none.

        ``forwarded``: the values of X-Forwarded-For in order. An entry that is not an address ends the search, because
        nothing to its left was written by a trusted proxy.
        """
        found = proxy
        for text in reversed([part.strip(" \t") for value in forwarded for part in value.split(",")]):
            try:
                found = address_of(text)
            except ValueError:
                break
            if not self.is_proxy(found):
                break
        return found

    def _beyond(self, limit: str, address: str) -> RequestRefusedError:
        self.turned_away[limit] += 1
        if count := self._logged.take():
            logger.warning("connections turned away", setting=f"listener.{limit}", address=address, count=count)
        details = f"listener.{limit} is {getattr(self._options, limit)}"
        words = "There are too many connections."
        return RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, words, _RETRY, details=details)


@define(eq=False)
class ConnectionSlot:
    """One connection, from the accept loop until its session has ended.

    ``address``: the client's, or a proxy's until the request was read. ``key``: the address or network by which it is
    queued and counted. ``counted``: whether it is counted by ``key`` yet; until the request was read, a connection from
    a proxy is not. ``subscriptions``: its share of the subscriptions of that key.
    """

    admission: Admission
    loopback: bool
    address: str
    key: str
    counted: bool = False
    subscriptions: int = 0

    def examine(self, request: Request, host: str, origin: str | None) -> None:
        """Admit the request. Raises ``RequestRefusedError`` if its Host, its Origin or a limit forbids it.

        The limits come last: their refusals may be shown to the page that has sent the request.
        """
        self.admission.rules.check(host, origin, loopback=self.loopback)
        if self.admission.suspended:
            raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The event store is unavailable.", _RETRY)
        if not self.counted:
            forwarded = request.headers.get("x-forwarded-for", ())
            client = self.admission.client_of(address_of(self.address), forwarded)
            self.key = self.admission.take_place(client)
            self.counted = True
            self.address = str(client)

    def turn(self) -> Awaitable[None]:
        """Wait for a turn in the fair queue, among connections of the same address, or proxy if not yet known."""
        return self.admission.fair_queue.enter(self.key)

    def handshake_turn(self) -> Awaitable[None]:
        """Wait in the same way for a step of a TLS handshake."""
        return self.admission.handshakes.enter(self.key)

    def subscribe(self) -> bool:
        """Count one more subscription; return False if the address has as many as allowed."""
        if self.admission.subscriptions[self.key] >= self.admission.subscriptions_max:
            return False
        self.admission.subscriptions[self.key] += 1
        self.subscriptions += 1
        return True

    def unsubscribe(self, count: int = 1) -> None:
        """Stop counting subscriptions."""
        self.subscriptions -= count
        _subtract(self.admission.subscriptions, self.key, count)

    def leave(self) -> None:
        """Stop counting the connection and its subscriptions. Call it once."""
        self.unsubscribe(self.subscriptions)
        self.admission.connections -= 1
        if self.counted:
            _subtract(self.admission.by_address, self.key, 1)


@lru_cache(CACHED_MAX)
def address_of(text: str) -> Address:
    """Parse an address as sockets and proxies write it: with a zone, in brackets, with a port. Raises ``ValueError``.

    An IPv4 address mapped into IPv6 becomes the IPv4 address.
    """
    found = _WITH_PORT.fullmatch(text)
    bare = text if found is None else found[1] or found[2]
    address = ip_address(bare.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@lru_cache(CACHED_MAX)
def counted(address: Address) -> str:
    """Return what connections are counted by: an IPv4 address, or the /64 network of an IPv6 address.

    All IPv4 clients behind a NAT64 gateway share one such network, so they are counted by their embedded address.
    """
    if isinstance(address, IPv4Address):
        return str(address)
    if address in _NAT64:
        return str(IPv4Address(int(address) & _IPV4))
    return str(IPv6Network((address, IPV6_PREFIX), strict=False))


class OriginRules:
    """The rules for Host and Origin of a request.

    Without ``allowed_origins``, an origin must have the same host and port as the header Host, or be the console's.
    """

    def __init__(self, options: AdmissionOptions, console: Console | None) -> None:
        self._hosts = frozenset(map(_host, (options.host, *options.hosts)))
        self._any_host = not options.hosts
        self._origins = frozenset(ANY if origin == ANY else _parsed(origin) for origin in options.allowed_origins)
        self._console = console

    def check(self, named_host: str, origin: str | None, *, loopback: bool) -> None:
        """Raise ``RequestRefusedError`` if Host and Origin are not allowed. ``loopback``: see ``Admission.arrive``."""
        authority = _AUTHORITY.fullmatch(named_host)
        if authority is None:
            details = f"Host is {quoted(named_host)}"
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "The header host is not a host name.", details=details)
        host, port = _host(authority[1]), authority[2]
        # Unless the listening socket is bound to loopback only, any name is allowed if the settings list none: the
        # server cannot know the names under which clients reach it.
        if host not in self._hosts and not (is_loopback(host) if loopback else self._any_host):
            details = f"Host is {quoted(named_host)}; to allow it, add its name to listener.hosts"
            raise RequestRefusedError(HTTPStatus.FORBIDDEN, "This host name is not allowed.", details=details)
        if origin is not None and not self._allows(origin, host, port):
            remedy = "to allow it, list it and all other allowed origins in listener.allowed_origins"
            if _parsed(origin) is None:
                remedy = "no setting allows this"
            details = f"Origin is {quoted(origin)}, Host is {quoted(named_host)}; {remedy}"
            raise RequestRefusedError(HTTPStatus.FORBIDDEN, "This origin is not allowed.", details=details)

    def _allows(self, origin: str, host: str, port: str | None) -> bool:
        parsed = _parsed(origin)
        if parsed is None:  # "null", or malformed
            return False
        if self._origins:
            return ANY in self._origins or parsed in self._origins
        scheme, origin_host, origin_port = parsed
        # The schemes are not compared: behind a proxy that ends TLS the page is https:, and this server sees plain
        # HTTP. But for a Host without a port, the default port of the page's scheme is compared.
        here = int(port) if port else _DEFAULT_PORTS.get(scheme)
        # Both are None if the origin's scheme has no default port, as that of an extension, and Host has no port. Two
        # unknown ports do not match.
        if (origin_host, origin_port) == (host, here) and here is not None:
            return True
        return scheme == "http" and self._is_console(origin_host, origin_port, host)

    def _is_console(self, origin_host: str, origin_port: int | None, host: str) -> bool:
        console = self._console
        if console is None or origin_port not in console.ports:
            return False
        return is_loopback(origin_host) if is_loopback(_host(console.host)) else origin_host == host


@lru_cache(CACHED_MAX)
def is_loopback(host: str) -> bool:
    """Return whether a name or an address, without brackets, is a loopback name or address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@lru_cache(CACHED_MAX)
def _parsed(origin: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of an origin, with the default port; None if it is malformed."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return None
    scheme = found[1].lower()
    return scheme, _host(found[2]), int(found[3]) if found[3] else _DEFAULT_PORTS.get(scheme)


@lru_cache(CACHED_MAX)
def _host(text: str) -> str:
    """Normalise a host: lower case, no brackets, no dot at its end, addresses as Python writes them."""
    name = text.lower().strip("[]").removesuffix(".")
    return str(ip_address(name)) if _is_address(name) else name


def _is_address(text: str) -> bool:
    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _subtract(counts: Counter[str], key: str, count: int) -> None:
    # The keys are addresses of clients, so a Counter that keeps zeros would grow without limit.
    counts[key] -= count
    if not counts[key]:
        del counts[key]
