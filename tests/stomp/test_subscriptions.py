"""The open subscriptions of a connection: numbers, ids, limits."""

import pytest
from attrs import evolve

from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.subscriptions import OpenSubscription, OpenSubscriptions


def to(destination: str, subscription_id: str | None = None) -> OpenSubscription:
    return OpenSubscription(id=subscription_id, destination=destination)


def test_numbers_rise_from_one_and_are_never_used_twice() -> None:
    subscriptions = OpenSubscriptions(subscriptions_max=2, in_flight_max=99)
    assert [subscriptions.open(to("/a", "1")), subscriptions.open(to("/a", "2"))] == [1, 2]
    subscriptions.end(2)
    assert subscriptions.open(to("/a", "2")) == 3
    assert subscriptions.number_of("2") == 3


def test_subscriptions_are_bounded_in_number() -> None:
    subscriptions = OpenSubscriptions(subscriptions_max=2, in_flight_max=99)
    subscriptions.open(to("/a"))
    subscriptions.open(to("/a"))
    with pytest.raises(RemoteProtocolError) as caught:
        subscriptions.open(to("/a"))
    assert caught.value.token == "429-too-many-subscriptions"
    assert len(subscriptions) == 2


def test_prefetch_is_bounded_over_all_subscriptions() -> None:
    subscriptions = OpenSubscriptions(subscriptions_max=9, in_flight_max=10)
    first = evolve(to("/a"), prefetch=4)
    for one in (first, evolve(first, prefetch=6), to("/a")):
        subscriptions.open(one)
    with pytest.raises(RemoteProtocolError) as caught:
        subscriptions.open(evolve(first, prefetch=1))
    assert caught.value.token == "400-too-much-prefetch"
    subscriptions.end(1)
    subscriptions.open(first)


def test_an_open_id_cannot_be_used_again() -> None:
    subscriptions = OpenSubscriptions(subscriptions_max=2, in_flight_max=99)
    subscriptions.open(to("/a", "x"))
    with pytest.raises(RemoteProtocolError) as caught:
        subscriptions.open(to("/b", "x"))
    assert caught.value.token == "400-duplicate-subscription"


def test_destination_finds_all_open_subscriptions() -> None:
    subscriptions = OpenSubscriptions(subscriptions_max=9, in_flight_max=99)
    for one in (to("/a"), to("/b"), to("/a", "x"), to("/a")):
        subscriptions.open(one)
    subscriptions.end(1)
    assert subscriptions.numbers_to("/a") == (3, 4)
    assert subscriptions.numbers_to("/c") == ()


def test_ended_subscription_is_not_open() -> None:
    subscriptions = OpenSubscriptions(subscriptions_max=9, in_flight_max=99)
    subscriptions.end(subscriptions.open(to("/a", "x")))
    assert subscriptions.number_of("x") is None
    assert len(subscriptions) == 0
