"""Row faults on one line; a long key is cut with a mark."""

import pytest

from airy_trio.capture.feed import Value
from airy_trio.events.values import PRINTABLE_CHARACTERS_MAX, UnfitValueError, printable


@pytest.mark.parametrize(
    "value,shown",
    [
        ("m1", "m1"),
        ("Grüße", "Grüße"),
        (42, "42"),
        (-1, "-1"),
        (None, "NULL"),
        (1.5, "1.5"),
        (True, "True"),
        (b"\xff\x00", r"b'\xff\x00'"),
        ("two\nlines", r"'two\nlines'"),
        ("\ud800", r"'\ud800'"),
        ("", ""),
        (10**5000, "an integer of 16610 bits"),
    ],
)
def test_a_key_is_shown_on_one_line(value: Value, shown: str) -> None:
    assert printable(value) == shown


@pytest.mark.parametrize("value", ["x" * 10**6, "\n" * 10**6, "😀" * 10**6, "\U000e0001" * 10**6, b"\xff" * 10**6])
def test_a_long_key_is_cut_with_a_mark(value: Value) -> None:
    shown = printable(value)
    assert len(shown) == PRINTABLE_CHARACTERS_MAX
    assert shown.isprintable()
    assert shown[-1] == "…"


def test_key_of_maximum_length_is_not_cut() -> None:
    assert printable("x" * PRINTABLE_CHARACTERS_MAX) == "x" * PRINTABLE_CHARACTERS_MAX
    assert printable("x" * (PRINTABLE_CHARACTERS_MAX + 1)) == "x" * (PRINTABLE_CHARACTERS_MAX - 1) + "…"


def test_an_error_names_column_and_problem() -> None:
    assert str(UnfitValueError("sent_at", "is NULL")) == "sent_at is NULL"
