"""The validators of the options classes, at each limit and one beyond it. Their messages contain no value."""

import math
from typing import Any

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.options import NotAllowedError, Validator, at_least, between, matching, more_than, satisfying


def options(validator: Validator) -> type[Any]:
    @frozen
    class Options:
        option: Any = field(validator=validator)

    return Options


@pytest.mark.parametrize(
    "validator, good, bad",
    [
        (at_least(1), [1, 1.0, 2, 10**400], [0, 0.999, -1, True, "1", None, math.inf, math.nan]),
        (more_than(0), [1, 0.001, 10**400], [0, 0.0, -1, True, "1", None, math.inf, math.nan]),
        (between(1, 5), [1, 5, 2.5], [0, 6, 5.001, True, "3", None, math.inf, -math.inf, math.nan, 10**400]),
        (matching("[a-z]+", "small letters"), ["a", "abc"], ["", "a1", "abc\n", None, 1]),
        (satisfying(lambda value: value == 3, "three"), [3], [4, "3"]),
    ],
)
def test_validators_at_the_limit_and_beyond(validator: Validator, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert options(validator)(value).option == value
    for value in bad:
        with pytest.raises(NotAllowedError):
            options(validator)(value)


@pytest.mark.parametrize(
    "validator, allowed",
    [
        (at_least(1), "a number of at least 1"),
        (more_than(0), "a number above 0"),
        (between(0, 65535), "a number from 0 to 65535"),
        (matching("x", "an x"), "an x"),
        (satisfying(lambda _: False, "nothing"), "nothing"),
    ],
)
def test_error_describes_the_allowed_values(validator: Validator, allowed: str) -> None:
    with pytest.raises(NotAllowedError) as caught:
        options(validator)("wrong")
    assert caught.value.allowed == allowed
    assert str(caught.value) == f"option: expected {allowed}"


@given(st.text(min_size=3, alphabet="0123456789").map("hunter".__add__))
def test_no_validator_repeats_the_value(value: str) -> None:
    for validator in (at_least(1), more_than(1), between(1, 2), matching("a", "an a")):
        with pytest.raises(NotAllowedError) as caught:
            options(validator)(value)
        assert value not in str(caught.value)


def test_description_of_the_value_is_in_the_message() -> None:
    assert str(NotAllowedError("url", "another", found="a mysql:// URL")) == (
        "url: found a mysql:// URL, expected another"
    )
