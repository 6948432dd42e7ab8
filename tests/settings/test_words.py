"""Values and paths in messages about the settings; only the type of a secret."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.settings.reader import dotted, found, nearest, shown


@pytest.mark.parametrize(
    "path, text",
    [
        ((), ""),
        (("listener", "port"), "listener.port"),
        (("a", "b", 1, "c"), "a.b[1].c"),
        (("values", "0"), "values.0"),
        (("a", "b c"), 'a."b c"'),
        (("a", ""), 'a.""'),
        (("a", "u:p@h"), "a.(not shown)"),
        (("a", "x\ny"), "a.(not shown)"),
        (("x" * 61,), "(not shown)"),
    ],
)
def test_path_is_written_as_in_toml(path: tuple[str | int, ...], text: str) -> None:
    assert dotted(path) == text


@pytest.mark.parametrize(
    "toml, words",
    [
        ("5", "integer 5"),
        ("true", "boolean true"),
        ("false", "boolean false"),
        ("1.5", "number 1.5"),
        ("nan", "number nan"),
        ("'abc'", 'string "abc"'),
        ("''", 'string ""'),
        ("'${HOST}'", 'string "${HOST}"'),
        ("'Köln'", 'string "Köln"'),
        ("'a=b'", "string (not shown)"),
        ("'u@h'", "string (not shown)"),
        ("'x://y'", "string (not shown)"),
        ('"a\\nb"', "string (not shown)"),
        (f"'{'x' * 60}'", f'string "{"x" * 60}"'),
        (f"'{'x' * 61}'", "string (not shown)"),
        ("1" * 61, "integer"),
        ("[1, 2]", "an array"),
        ("{ a = 1 }", "a table"),
        ("1979-05-27", "a date 1979-05-27"),
        ("07:32:00", "a time of day 07:32:00"),
        ("1979-05-27T07:32:00Z", "a date and time 1979-05-27 07:32:00+00:00"),
    ],
)
def test_every_toml_type_is_described(toml: str, words: str) -> None:
    value: Any = tomllib.loads(f"x = {toml}")["x"]
    assert found(value, secret=False) == words


@pytest.mark.parametrize("value", ["hunter2", 20, 1.5, ["hunter2"], {"a": "hunter2"}])
def test_only_the_type_of_a_secret_is_shown(value: object) -> None:
    assert found(value, secret=True) in {"string", "integer", "number", "an array", "a table"}


@given(st.text())
def test_a_shown_text_is_one_line(text: str) -> None:
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    "key, likely",
    [
        ("prot", "port"),
        ("Port", "port"),
        ("hosts", "host"),
        ("heart_beat_ms", "heartbeat_ms"),
        ("conect_timeout", "connect_timeout_s"),
        ("zzz", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_nearest_key_is_found(key: str, likely: str | None) -> None:
    assert nearest(key, ["host", "port", "heartbeat_ms", "connect_timeout_s", "send_timeout_s"]) == likely
