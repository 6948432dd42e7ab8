"""Transactions: their order, their limits, and that none outlives its end."""

import pytest

from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.requests import Ack
from airy_trio.stomp.transactions import Transactions

FIRST, SECOND, THIRD = (Ack(number=1, message_id=f"k-{n}", accepted=True) for n in (1, 2, 3))


def transactions(transactions_max: int = 2, acks_max: int = 2) -> Transactions:
    return Transactions(transactions_max=transactions_max, acks_max=acks_max)


def token_of(caught: pytest.ExceptionInfo[RemoteProtocolError]) -> str:
    return caught.value.token


def test_what_waited_comes_in_its_order() -> None:
    ours = transactions(acks_max=3)
    ours.begin("t")
    for ack in (SECOND, FIRST, THIRD):
        ours.add("t", ack)
    assert ours.end("t") == (SECOND, FIRST, THIRD)


def test_transactions_do_not_mix() -> None:
    ours = transactions()
    ours.begin("t")
    ours.begin("u")
    ours.add("t", FIRST)
    ours.add("u", SECOND)
    assert ours.end("u") == (SECOND,)
    assert ours.end("t") == (FIRST,)


def test_a_name_is_free_again_after_its_end() -> None:
    ours = transactions()
    ours.begin("t")
    with pytest.raises(RemoteProtocolError) as caught:
        ours.begin("t")
    assert token_of(caught) == "400-transaction-begun-twice"
    ours.end("t")
    ours.begin("t")
    assert len(ours) == 1


def test_the_last_allowed_is_allowed_and_one_more_is_not() -> None:
    ours = transactions(transactions_max=2)
    ours.begin("t")
    ours.begin("u")
    with pytest.raises(RemoteProtocolError) as caught:
        ours.begin("v")
    assert token_of(caught) == "400-too-many-transactions"


def test_acks_are_bounded_over_all_transactions() -> None:
    ours = transactions(acks_max=2)
    ours.begin("t")
    ours.begin("u")
    ours.add("t", FIRST)
    ours.add("u", SECOND)
    with pytest.raises(RemoteProtocolError) as caught:
        ours.add("t", THIRD)
    assert token_of(caught) == "400-too-many-transaction-acks"
    ours.end("u")
    ours.add("t", THIRD)
    assert ours.acks_held == 2


def test_an_unknown_one_cannot_be_added_to_nor_ended() -> None:
    ours = transactions()
    with pytest.raises(RemoteProtocolError) as added:
        ours.add("t", FIRST)
    with pytest.raises(RemoteProtocolError) as ended:
        ours.end("t")
    assert token_of(added) == token_of(ended) == "400-unknown-transaction"


def test_clear_drops_all() -> None:
    ours = transactions()
    ours.begin("t")
    ours.add("t", FIRST)
    ours.clear()
    assert (len(ours), ours.acks_held) == (0, 0)
    ours.begin("t")
    assert ours.end("t") == ()
