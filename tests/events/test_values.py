"""Single column values: their form in the event, or their fault."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.capture.feed import ContentForm, Value
from airy_trio.events import values
from airy_trio.events.values import UnfitValueError
from tests.events.rows import ANY_VALUE, strictly_read

FORMS: tuple[ContentForm, ...] = get_args(ContentForm)
HUGE = 10**5000


@pytest.mark.parametrize(
    "value,expected",
    [
        ("m1", "m1"),
        ("", ""),
        ("0B1C9A52-2C7E-4A5E-9F57-9A7F0D6A1C11", "0B1C9A52-2C7E-4A5E-9F57-9A7F0D6A1C11"),
        ("Grüße 😀", "Grüße 😀"),
        ("a\x00b", "a\x00b"),
        (7, "7"),
        (-(2**63), "-9223372036854775808"),
        (2**70, "1180591620717411303424"),
        (5.0, "5"),
        (float(2**53), "9007199254740992"),
        (-0.0, "0"),
    ],
)
def test_text(value: Value, expected: str) -> None:
    assert values.text(value, "id") == expected


def test_identity_has_no_nul() -> None:
    assert values.identity("a b", "id") == "a b"
    for read in (values.identity, values.optional_identity):
        with pytest.raises(UnfitValueError, match=r"^id has a NUL$"):
            read("a\x00b", "id")


@pytest.mark.parametrize(
    "value,problem",
    [
        (None, "id is NULL"),
        (b"ok", "id is not UTF-8 text"),
        ("\ud800", "id is not UTF-8 text"),
        (True, "id is neither text nor an integer"),
        (1.5, "id is neither text nor an integer"),
        (float(2**53 + 2), "id is neither text nor an integer"),
        (math.nan, "id is neither text nor an integer"),
        (math.inf, "id is neither text nor an integer"),
        (HUGE, "id has too many digits"),
    ],
)
def test_values_that_are_not_text(value: Value, problem: str) -> None:
    with pytest.raises(UnfitValueError) as caught:
        values.text(value, "id")
    assert str(caught.value) == problem


def test_optional_identity() -> None:
    assert values.optional_identity(None, "channel_id") is None
    assert values.optional_identity(5, "channel_id") == "5"
    with pytest.raises(UnfitValueError, match=r"^channel_id is not UTF-8 text$"):
        values.optional_identity(b"", "channel_id")


def test_a_message_without_sender_is_anonymous() -> None:
    assert values.sender(None) == "airy-core-anonymous"
    assert values.sender("") == ""
    assert values.sender(12) == "12"
    with pytest.raises(UnfitValueError, match=r"^sender_id "):
        values.sender(b"\xff")


TRUE: list[Value] = [True, 1, "1", "t", "T", "true", "TRUE", "True"]
FALSE: list[Value] = [False, 0, "0", "f", "F", "false", "FALSE", "False"]
NO_FLAGS: list[Value] = [2, -1, 1.0, 0.0, "", "2", "yes", "on", " true", b"1", math.nan, HUGE, "tru", "\ud800"]


@pytest.mark.parametrize("value,expected", [*((one, True) for one in TRUE), *((one, False) for one in FALSE)])
def test_flags(value: Value, *, expected: bool) -> None:
    assert values.from_contact(value) is expected
    assert values.connected(value) is expected


@pytest.mark.parametrize("value", NO_FLAGS)
def test_invalid_flags(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^from_contact is not a boolean$"):
        values.from_contact(value)
    with pytest.raises(UnfitValueError, match=r"^connected is not a boolean$"):
        values.connected(value)


def test_a_flag_that_is_null() -> None:
    with pytest.raises(UnfitValueError, match=r"^from_contact is NULL$"):
        values.from_contact(None)


@pytest.mark.parametrize("word,expected", [("CONNECTED", True), ("Connected", True), ("DISCONNECTED", False)])
def test_connected_and_disconnected_as_words(word: str, *, expected: bool) -> None:
    assert values.connected(word) is expected
    with pytest.raises(UnfitValueError):
        values.from_contact(word)


@pytest.mark.parametrize("written", ["pending", "failed", "delivered", "PENDING", "Failed"])
def test_delivery_states(written: str) -> None:
    assert values.delivery_state(written) == written.lower()


@pytest.mark.parametrize("value", ["", "sent", "pending ", 1])
def test_a_delivery_state_outside_the_three(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^delivery_state is not pending, failed or delivered$"):
        values.delivery_state(value)


@pytest.mark.parametrize("word", ["conversation", "channel", "message"])
def test_subjects(word: str) -> None:
    assert values.subject(word) == word


@pytest.mark.parametrize("value", ["Conversation", "tag", "", "conversation:1", 1])
def test_a_subject_outside_the_three(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^subject is not conversation, channel or message$"):
        values.subject(value)


@pytest.mark.parametrize(
    "value,expected",
    [
        ("red", "tag-red"),
        ("RED", "tag-red"),
        ("tag-red", "tag-red"),
        ("Tag-Red", "tag-red"),
        ("light-blue", "tag-light-blue"),
        ("light_blue", "tag-light_blue"),
        ("GRÜN", "tag-grün"),
        (7, "tag-7"),
        ("#FF0000", "#ff0000"),
        ("rgb(1, 2, 3)", "rgb(1, 2, 3)"),
        ("dark red", "dark red"),
        ("red\n", "red\n"),
        ("", ""),
        ("tag-", "tag-"),
    ],
)
def test_colors(value: Value, expected: str) -> None:
    assert values.color(value) == expected


@pytest.mark.parametrize("value", [None, b"red", True, 1.5])
def test_invalid_colors(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^color "):
        values.color(value)


@pytest.mark.parametrize(
    "value,expected",
    [
        (None, "null"),
        (' {"b": 1.50,  "a": [ ]}\n', ' {"b": 1.50,  "a": [ ]}\n'),
        ("123", "123"),
        ('"text"', '"text"'),
        ("1" + "0" * 6000, "1" + "0" * 6000),
        (123, "123"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_json_column_is_unchanged(value: Value, expected: str) -> None:
    assert values.content(value, "json") == expected


@pytest.mark.parametrize("value", ["NaN", '{"a":NaN}', "{", "", "hello", math.nan, math.inf])
def test_json_column_with_invalid_json(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^content is not valid JSON$"):
        values.content(value, "json")


def test_a_json_column_that_is_too_deep() -> None:
    with pytest.raises(UnfitValueError, match=r"^content is nested deeper than 500$"):
        values.content("[" * 501 + "]" * 501, "json")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "value,problem", [(b"{}", "is not UTF-8 text"), ('["\ud800"]', "is not UTF-8 text"), (HUGE, "has too many digits")]
)
def test_content_that_is_not_text(value: Value, problem: str, form: ContentForm) -> None:
    with pytest.raises(UnfitValueError) as caught:
        values.content(value, form)
    assert str(caught.value) == f"content {problem}"


@pytest.mark.parametrize("value", ['{"text": "hi"}', ' [1.0, "\\ud800"] ', "\n\t\r {}", '{"a":[' + "9" * 6000 + "]}"])
def test_text_with_an_object_or_array_is_unchanged(value: str) -> None:
    assert values.content(value, "auto") == value


@pytest.mark.parametrize(
    "value",
    [
        "hello",
        "123",
        "null",
        "true",
        '"quoted"',
        "NaN",
        "",
        " ",
        "[1,]",
        '{"a":NaN}',
        "[see below]",
        "{} {}",
        "Grüße 😀",
        "a\x00b",
        "[" * 501 + "]" * 501,
    ],
)
def test_all_other_text_becomes_a_string(value: str) -> None:
    assert strictly_read(values.content(value, "auto")) == value


@pytest.mark.parametrize(
    "value,expected", [(123, '"123"'), (-1.5, '"-1.5"'), (True, '"true"'), (math.inf, '"inf"'), (None, "null")]
)
def test_text_column_with_another_type(value: Value, expected: str) -> None:
    assert values.content(value, "auto") == expected


@pytest.mark.parametrize("value", ['{"text": "hi"}', "[1]", "hello", "", "a\x00b", "[" * 501 + "]" * 501])
def test_text_form_is_always_a_json_string(value: str) -> None:
    assert strictly_read(values.content(value, "text")) == value


@given(ANY_VALUE, st.sampled_from(FORMS))
def test_content_is_json_or_a_fault(value: Value, form: ContentForm) -> None:
    try:
        content = values.content(value, form)
    except UnfitValueError:
        return
    strictly_read(content.encode())
    assert not values.is_deeper(content, values.NESTING_MAX)
