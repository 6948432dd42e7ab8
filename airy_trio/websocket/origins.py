"""From which pages and under which names a client may come: the rules for Origin and Host.

A browser lets any page open a WebSocket to any server, and says only from where: whoever does not look at Origin lends
its users' cookies and network to every page. On a loopback address the name in Host counts as well, because a page
can make its own name point there (DNS rebinding), and is then of the same origin. Wire contract, "The connection".
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final

from attrs import Attribute, frozen

from airy_trio.options import NotAllowedError
from airy_trio.websocket.request import RefusedError, Upgrade, quoted

ANY: Final = "*"
CACHED_MAX: Final = 256
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
        """Raise ``RefusedError`` where the request may not come in.

        ``loopback``: whether the listening socket is bound to this machine only.
        """
        authority = _AUTHORITY.fullmatch(upgrade.host)
        if authority is None:
            details = f"Host is {quoted(upgrade.host)}"
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The header host is no name of a host.", details=details)
        host, port = _host(authority[1]), authority[2]
        known = host in self._hosts or (is_loopback(host) if loopback else self._any_host)
        if not known:
            details = f"Host is {quoted(upgrade.host)}; to allow it, add its name to listener.hosts"
            raise RefusedError(HTTPStatus.FORBIDDEN, "Clients may not come under this name of a host.", details=details)
        if upgrade.origin is not None and not self._allows(upgrade.origin, host, port):
            details = f"Origin is {quoted(upgrade.origin)}, Host is {quoted(upgrade.host)}; {_remedy(upgrade.origin)}"
            raise RefusedError(HTTPStatus.FORBIDDEN, "Clients may not come from this origin.", details=details)

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
