"""JSON that every client can parse: accepted text is strictly valid, and deep nesting is a fault, not a crash."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.events import values
from airy_trio.events.models import Json
from airy_trio.events.values import NESTING_MAX, InvalidJsonError, check, is_deeper, members
from tests.events.rows import ANY_TEXT, JSON_TEXT, strictly_read


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        ' {"b": 1.50, "a": [1e400, -0]}\r\n\t',
        "null",
        "0",
        '"\\ud800"',
        '"\u2028"',
        "[" + "9" * 10_000 + "]",
        "1." + "0" * 10_000,
        '{"a":1,"a":2}',
    ],
)
def test_valid_json_is_returned_unchanged(text: str) -> None:
    assert check(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "{'a':1}",
        "[1,]",
        "[1] 2",
        "01",
        "1.",
        ".5",
        "+1",
        "tru",
        '"a\nb"',
        '"\\x41"',
        "\ufeff{}",
        "\xa0{}",
        "[1",
        "{",
        '"',
        "1_000",
        "٣",
        "[\x0b1]",
        '"\\u12"',
        "// a\n1",
    ],
)
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidJsonError, match=r"^is not valid JSON$"):
        check(text)


@pytest.mark.parametrize("opening,closing", [("[", "]"), ('{"a":', "}")])
def test_nesting_is_limited(opening: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    assert check(nested(NESTING_MAX)) == nested(NESTING_MAX)
    with pytest.raises(InvalidJsonError, match=r"^is nested deeper than 500$"):
        check(nested(NESTING_MAX + 1))
    with pytest.raises(InvalidJsonError, match=r"^is nested deeper than 500$"):
        check(opening * 1_000_000)


def test_wide_is_not_deep() -> None:
    text = "[" + ",".join(['{"a]":[]}', '"[[[{{\\"["'] * 1000) + "]"
    assert check(text) == text
    assert not is_deeper(text, 3)
    assert is_deeper(text, 2)


def test_small_recursion_limit_is_a_fault() -> None:
    def from_below(depth: int) -> str:
        return from_below(depth - 1) if depth else check("[" * NESTING_MAX + "]" * NESTING_MAX)

    limit = sys.getrecursionlimit()
    frames = 0
    frame = sys._getframe()  # noqa: SLF001 - the only way to measure the stack that is left
    while frame.f_back:
        frame = frame.f_back
        frames += 1
    try:
        assert from_below(limit - frames - 60).startswith("[[")  # an interpreter that counts only its own frames
    except InvalidJsonError as error:
        assert str(error) == "is nested deeper than this interpreter can read"  # noqa: PT017 - one of the two


@pytest.mark.parametrize("text", ['"' + '\\"' * 300_000, '["' * 300_000, "\\" * 300_000 + "[" * 600, '"\\'])
def test_depth_check_is_linear(text: str) -> None:
    is_deeper(text, 5)  # a quadratic pattern takes minutes, and the test has a time limit


@given(JSON_TEXT, st.integers(0, 6))
def test_depth_equals_that_of_the_value(text: str, limit: int) -> None:
    def depth(value: object) -> int:
        match value:
            case list():
                return 1 + max(map(depth, value), default=0)
            case dict():
                return 1 + max(map(depth, value.values()), default=0)
            case _:
                return 0

    assert is_deeper(text, limit) == (depth(json.loads(text)) > limit)


@given(ANY_TEXT | JSON_TEXT)
def test_accepted_json_is_read_by_a_strict_parser(text: str) -> None:
    try:
        accepted = check(text)
    except InvalidJsonError:
        with pytest.raises((ValueError, AssertionError)):
            strictly_read(text)
    else:
        strictly_read(accepted)


def test_members_are_as_in_the_text() -> None:
    text = Json(' { "a" : 1.50 ,"b":{ "c" : [1, 2] },\n"\\u0064" : "}" , "a" : -0e1 } ')
    assert members(text) == {"a": "-0e1", "b": '{ "c" : [1, 2] }', "d": '"}"'}
    assert members(Json("{ }")) == {}


@given(st.dictionaries(st.text(max_size=5), JSON_TEXT.filter(lambda text: "NaN" not in text and "Inf" not in text)))
def test_members_are_those_of_the_object(written: dict[str, str]) -> None:
    text = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in written.items()) + "}"
    assert members(check(text)) == written


@pytest.mark.parametrize("name", ["a", "é", 'q"\\', "\ud800", "é\udfff", "\x00"])
def test_any_name_can_be_written(name: str) -> None:
    written = values.quoted_name(name)
    written.encode()
    assert strictly_read(written) == name


@given(st.text())
def test_a_quoted_text_reads_as_itself(text: str) -> None:
    assert strictly_read(values.quoted(text)) == text


def test_quoting_does_not_escape_non_ascii() -> None:
    assert values.quoted('é\u2028😀"\x00\n') == '"é\u2028😀\\"\\u0000\\n"'


@pytest.mark.parametrize(
    "text,expected", [("a", True), ("é😀", True), ("", True), ("\ud83d", False), ("a\udc80", False)]
)
def test_lone_surrogate_cannot_be_encoded(text: str, *, expected: bool) -> None:
    assert values.is_encodable(text) is expected


@pytest.mark.parametrize(
    "text,is_object,is_array",
    [("{", True, False), (" \n\r\t[", False, True), ("1", False, False), ("", False, False), ("\xa0{", False, False)],
)
def test_object_and_array_by_first_character(text: str, *, is_object: bool, is_array: bool) -> None:
    assert values.is_object(text) is is_object
    assert values.is_array(text) is is_array
