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
