"""Who a connection comes from: the address that counts, behind proxies too; what is done with it is not known here.

X-Forwarded-For is what anybody may write. Only a configured proxy is believed, and only what it wrote itself, which
stands at the right: the rightmost address that is not of a proxy again is the client's.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from attrs import Attribute

from airy_trio.options import NotAllowedError

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
