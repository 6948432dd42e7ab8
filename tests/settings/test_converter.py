"""The converter alone, with the options classes of these tests."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest
from attrs import field, frozen
from cattrs.errors import ClassValidationError

from airy_trio.options import at_least
from airy_trio.settings.reader import (
    ConversionError,
    SettingFault,
    StrictConverter,
)


@frozen(kw_only=True)
class Options:
    text: str = ""
    flag: bool = False
    whole: int = 0
    number: float = 0
    choice: Literal["a", "b"] = "a"
    texts: list[str] = field(factory=list)
    named: Mapping[str, str] = field(factory=dict)
    either: str | list[str] | None = None
    scalars: Mapping[str, Mapping[str, str | int | bool | float]] = field(factory=dict)
    measure: float | str = 0.0
    bounded: int = field(default=1, validator=at_least(1))


def convert(document: dict[str, Any], cls: type = Options) -> Any:  # noqa: ANN401 - an instance of cls
    environ = {"NAME": "a", "PORT": "8080", "NEGATIVE": "-5", "HALF": "0.5", "LARGE": str(2**63), "EMPTY": ""}
    return StrictConverter().read(document, cls, environ)


@pytest.mark.parametrize(
    "key, value, result",
    [
        ("text", "x", "x"),
        ("text", "${NAME}", "a"),
        ("flag", True, True),
        ("whole", 5, 5),
        ("whole", 2**63 - 1, 2**63 - 1),
        ("whole", -(2**63), -(2**63)),
        ("number", 5, 5.0),
        ("number", 0.5, 0.5),
        ("whole", "${PORT}", 8080),
        ("whole", "${NEGATIVE}", -5),
        ("whole", "${UNSET:-7}", 7),
        ("whole", "${EMPTY:-7}", 7),
        ("number", "${HALF}", 0.5),
        ("number", "${PORT}", 8080.0),
        ("number", "${UNSET:-1e3}", 1000.0),
        ("measure", "${PORT}", "8080"),
        ("bounded", "${PORT}", 8080),
        ("choice", "b", "b"),
        ("choice", "${NAME}", "a"),
        ("texts", ["x", "${NAME}"], ["x", "a"]),
        ("named", {"k": "${NAME}"}, {"k": "a"}),
        ("either", "x", "x"),
        ("either", ["x", "${NAME}"], ["x", "a"]),
        (
            "scalars",
            {"f": {"0": True, "1": 1, "2": 1.5, "3": "${NAME}"}},
            {"f": {"0": True, "1": 1, "2": 1.5, "3": "a"}},
        ),
        ("measure", 3, 3.0),
        ("bounded", 1, 1),
    ],
)
def test_value_of_the_right_type_is_accepted(key: str, value: object, result: object) -> None:
    taken = getattr(convert({key: value}), key)
    assert taken == result
    assert type(taken) is type(result)


def test_scalars_keep_their_type() -> None:
    taken = convert({"scalars": {"f": {"t": True, "i": 1}}}).scalars["f"]
    assert (taken["t"] is True, type(taken["i"])) == (True, int)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("text", 5, "a string"),
        ("text", True, "a string"),
        ("text", ["x"], "a string"),
        ("flag", 1, "true or false"),
        ("flag", "true", "true or false"),
        ("whole", True, "an integer"),
        ("whole", 1.0, "an integer"),
        ("whole", "8080", "an integer"),
        ("whole", "${NAME}", "an integer in the environment"),
        ("whole", "${EMPTY}", "an integer in the environment"),
        ("whole", "${HALF}", "an integer in the environment"),
        ("whole", "${LARGE}", "an integer of at most 64 bits"),
        ("number", "${NAME}", "a finite number in the environment"),
        ("number", "${UNSET:-1e999}", "a finite number"),
        ("number", "${UNSET:-nan}", "a finite number in the environment"),
        ("flag", "${NAME}", "true or false"),
        ("bounded", "${NEGATIVE}", "a number of at least 1"),
        ("whole", 2**63, "an integer of at most 64 bits"),
        ("whole", -(2**63) - 1, "an integer of at most 64 bits"),
        ("number", True, "a finite number"),
        ("number", "1", "a finite number"),
        ("number", float("inf"), "a finite number"),
        ("number", float("nan"), "a finite number"),
        ("number", 10**400, "an integer of at most 64 bits"),
        ("choice", "c", '"a" or "b"'),
        ("choice", 1, '"a" or "b"'),
        ("choice", ["a"], '"a" or "b"'),
        ("texts", "abc", "an array"),
        ("texts", {"a": "b"}, "an array"),
        ("named", ["a"], "a table"),
        ("named", "a", "a table"),
        ("either", 5, "a string, an array of strings"),
        ("either", {"a": "b"}, "a string, an array of strings"),
        ("bounded", 0, "a number of at least 1"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ClassValidationError) as caught:
        convert({key: value})
    (refusal,) = caught.value.exceptions
    assert isinstance(refusal, ConversionError)
    assert (refusal.written, refusal.allowed) == (value, allowed)


def test_error_has_the_value_as_written() -> None:
    with pytest.raises(ClassValidationError) as caught:
        StrictConverter().read({"choice": "${NAME}"}, Options, {"NAME": "hunter2"})
    (refusal,) = caught.value.exceptions
    assert isinstance(refusal, ConversionError)
    assert refusal.written == "${NAME}"


def test_each_document_has_its_own_environment() -> None:
    converter = StrictConverter()
    assert converter.read({"text": "${NAME:-c}"}, Options, {"NAME": "a"}).text == "a"
    assert converter.read({"text": "${NAME:-c}"}, Options, {"NAME": "b"}).text == "b"
    assert converter.read({"text": "${NAME:-c}"}, Options, {}).text == "c"


def test_all_errors_of_a_class_are_raised_together() -> None:
    with pytest.raises(ClassValidationError) as caught:
        convert({"text": 1, "flag": 1, "bounded": 0, "named": "${UNSET}", "either": "${UNSET}", "other": 1})
    assert len(caught.value.exceptions) == 6
    assert any(isinstance(error, SettingFault) for error in caught.value.exceptions)
