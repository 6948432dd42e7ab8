"""Addresses: their notations, how they are counted, and the client behind a chain of proxies."""

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.websocket.admission import Admission, AdmissionOptions, address_of, counted


@pytest.mark.parametrize(
    "text, expected",
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:5678", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:5678", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_address_is_parsed_as_proxies_write_it(text: str, expected: str) -> None:
    assert address_of(text) == ip_address(expected)


@pytest.mark.parametrize("text", ["unknown", "_hidden", "", "192.0.2.256", "192.0.2.1:x", "localhost"])
def test_other_text_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        address_of(text)


@given(st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    with suppress(ValueError):
        address_of(text)


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ],
)
def test_ipv6_counts_by_its_network(one: str, other: str, *, same: bool) -> None:
    assert (counted(address_of(one)) == counted(address_of(other))) is same


@pytest.mark.parametrize(
    "text, expected",
    [
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("64:ff9b::c000:202", "192.0.2.2"),
        ("64:ff9b:1::192.0.2.1", "64:ff9b:1::/64"),
        ("64:ff9b::1:c000:201", "64:ff9b::/64"),
    ],
)
def test_nat64_counts_by_the_ipv4_address_within(text: str, expected: str) -> None:
    assert counted(address_of(text)) == expected


def behind(*proxies: str) -> Admission:
    return Admission(AdmissionOptions(trusted_proxies=list(proxies)))


@pytest.mark.parametrize(
    "forwarded, expected",
    [
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (["192.0.2.1"], "192.0.2.1"),
        (["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
        (["198.51.100.7", "192.0.2.1"], "192.0.2.1"),
        (["198.51.100.7, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1,10.0.0.3", "10.0.0.2"], "192.0.2.1"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        (["192.0.2.1, unknown"], "10.0.0.1"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
    ],
)
def test_rightmost_address_that_is_not_a_proxy_is_the_client(forwarded: list[str], expected: str) -> None:
    assert behind("10.0.0.0/8").client_of(ip_address("10.0.0.1"), forwarded) == ip_address(expected)


def test_ipv4_proxy_is_known_on_an_ipv6_socket() -> None:
    peer = address_of("::ffff:10.0.0.1")
    assert behind("10.0.0.0/8").is_proxy(peer)
    assert not behind().is_proxy(peer)
