"""Transactions: order, limits, and that nothing remains after the end."""

import tracemalloc

import pytest

from airy_trio.log.store import Position
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.frames import NO_SUBSCRIPTION, Ack
from airy_trio.stomp.subscriptions import Transactions

FIRST, SECOND, THIRD = (Ack(number=1, message_id=f"k7f3q9-{n}", accepted=True) for n in (1, 2, 3))


def transactions(transactions_max: int = 2, acks_max: int = 2) -> Transactions:
    return Transactions(transactions_max=transactions_max, acks_max=acks_max)


def token_of(caught: pytest.ExceptionInfo[RemoteProtocolError]) -> str:
    return caught.value.token


def test_transactions_do_not_mix() -> None:
    ours = transactions()
    ours.begin("t")
    ours.begin("u")
    ours.add("t", FIRST)
    ours.add("u", SECOND)
    assert tuple(ours.end("u")) == (SECOND,)
    assert tuple(ours.end("t")) == (FIRST,)


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


@pytest.mark.parametrize("number", [None, NO_SUBSCRIPTION, 1, 2**32 - 2])
@pytest.mark.parametrize("position", [Position("000000", 0), Position("zzzzzz", 10**18 - 1)], ids=str)
@pytest.mark.parametrize("accepted", [True, False])
def test_every_position_fits_into_a_transaction(number: int | None, position: Position, accepted: bool) -> None:
    ack = Ack(number=number, message_id=str(position), accepted=accepted)
    ours = transactions()
    ours.begin("t")
    ours.add("t", ack)
    assert ack in ours.end("t")


@pytest.mark.parametrize("number, message_id", [(1, "x" * 8000), (None, "k-1"), (1, "k7f3q9-01"), (2**32, "k7f3q9-1")])
def test_ack_with_a_foreign_id_is_only_counted(number: int | None, message_id: str) -> None:
    ours = transactions(acks_max=1)
    ours.begin("t")
    ours.add("t", Ack(number=number, message_id=message_id, accepted=True))
    assert ours.acks_held == 1
    assert [ack.number for ack in ours.end("t")] == [NO_SUBSCRIPTION]


@pytest.mark.parametrize(
    "message_id", ["k7f3q9-1".ljust(8000, "1"), "zzzzzz-" + "9" * 18], ids=["long", "longest known"]
)
def test_all_waiting_acks_fit_into_256_kib(message_id: str) -> None:
    acks_max = ConnectionOptions(server="test").transaction_acks_max
    ours = transactions(acks_max=acks_max)
    ours.begin("t")
    tracemalloc.start()
    try:
        for number in range(acks_max):
            ours.add("t", Ack(number=number, message_id=message_id[:-1] + str(number % 10), accepted=True))
        assert tracemalloc.get_traced_memory()[0] < 256 * 1024
        assert sum(1 for _ in ours.end("t")) == acks_max
        assert tracemalloc.get_traced_memory()[1] < 512 * 1024
    finally:
        tracemalloc.stop()
