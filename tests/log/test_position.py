"""Positions: the text form of the wire contract, and the order within an epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.log.store import EPOCH_LENGTH, ForeignEpochError, Position, new_epoch

epochs = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=EPOCH_LENGTH, max_size=EPOCH_LENGTH)
offsets = st.integers(0, 10**18 - 1)


@given(epochs, offsets)
def test_text_form_round_trips(epoch: str, offset: int) -> None:
    position = Position(epoch, offset)
    assert Position.parse(str(position)) == position


def test_text_form() -> None:
    assert str(Position("k7f3q9", 1042)) == "k7f3q9-1042"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k7f3q9",
        "k7f3q9-",
        "k7f3q9--1",
        "k7f3q9-+1",
        "k7f3q9-01",
        "k7f3q9-1 ",
        "k7f3q9-1\n",
        "k7f3q9-1.0",
        "K7F3Q9-1",
        "k7f3q-1",
        "k7f3q99-1",
        "k7f3qé-1",
        "k7f3q9-١",
        f"k7f3q9-{10**18}",
    ],
)
def test_invalid_text_is_none(text: str) -> None:
    assert Position.parse(text) is None


def test_the_largest_offset_fits_a_signed_64_bit_column() -> None:
    largest = Position.parse("k7f3q9-" + "9" * 18)
    assert largest is not None
    assert largest.offset < 2**63


@given(epochs, offsets, offsets)
def test_offsets_order_within_an_epoch(epoch: str, one: int, two: int) -> None:
    first, second = Position(epoch, one), Position(epoch, two)
    assert (first < second, first <= second, first > second, first >= second, first == second) == (
        one < two,
        one <= two,
        one > two,
        one >= two,
        one == two,
    )
    assert max(first, second).offset == max(one, two)


@pytest.mark.parametrize("compare", ["__lt__", "__le__", "__gt__", "__ge__"])
def test_positions_of_different_epochs_have_no_order(compare: str) -> None:
    with pytest.raises(ForeignEpochError, match="k7f3q9-1 and aaaaaa-1"):
        getattr(Position("k7f3q9", 1), compare)(Position("aaaaaa", 1))


def test_positions_of_different_epochs_are_not_equal() -> None:
    assert Position("k7f3q9", 1) != Position("aaaaaa", 1)
    assert len({Position("k7f3q9", 1), Position("aaaaaa", 1), Position("k7f3q9", 1)}) == 2


def test_at_returns_another_offset() -> None:
    assert Position("k7f3q9", 1).at(7) == Position("k7f3q9", 7)


def test_new_epochs_are_distinct_and_valid() -> None:
    made = {new_epoch() for _ in range(100)}
    assert len(made) == 100
    assert all(Position.parse(f"{epoch}-0") for epoch in made)
