"""References to environment variables: each is replaced once, or all faults are reported."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.settings.reader import SettingFault, expanded

ENVIRON = {"NAME": "value", "EMPTY": "", "TRICKY": "${NAME}", "_A1": "a", "BYTES": "caf\udce9"}


@pytest.mark.parametrize(
    "text, result",
    [
        ("", ""),
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a${NAME}b${_A1}c", "avaluebac"),
        ("${NAME:-other}", "value"),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${UNSET:-other}", "other"),
        ("${UNSET:-}", ""),
        ("${UNSET:-postgresql://a:b@c/d?e=f}", "postgresql://a:b@c/d?e=f"),
        ("${UNSET:-:-}", ":-"),
        ("$NAME {NAME} $ {NAME} $$", "$NAME {NAME} $ {NAME} $$"),
        ("${TRICKY}", "${NAME}"),
    ],
)
def test_references_are_replaced_once(text: str, result: str) -> None:
    assert expanded(text, ENVIRON) == result


def test_an_unset_variable_is_named() -> None:
    with pytest.raises(SettingFault, match=r"^not set in the environment: UNSET$"):
        expanded("a${UNSET}", ENVIRON)


def test_all_unset_variables_are_named_once() -> None:
    with pytest.raises(SettingFault, match=r"^not set in the environment: B, A$"):
        expanded("${B}${A}${B}${NAME}", ENVIRON)


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A B}", "${A:default}", "${A:-${B}}", "${NAME", "${ NAME}"])
def test_incomplete_reference_is_refused(text: str) -> None:
    with pytest.raises(SettingFault, match="begins neither") as caught:
        expanded(f"hunter2{text}", os.environ)  # unlike a dict, it rejects keys that are not text
    assert "hunter2" not in str(caught.value)


def test_a_value_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(SettingFault, match=r"^not UTF-8 in the environment: BYTES$"):
        expanded("${BYTES}", ENVIRON)


@given(st.text(), st.dictionaries(st.sampled_from("ABC"), st.text()))
def test_any_text_is_expanded_or_refused(text: str, environ: dict[str, str]) -> None:
    try:
        result = expanded(text, environ)
    except SettingFault:
        assert "${" in text
    else:
        assert result == text or "${" in text


@given(st.text(), st.text())
def test_text_around_a_reference_is_unchanged(before: str, after: str) -> None:
    before, after = before.replace("$", ""), after.replace("$", "")
    assert expanded(f"{before}${{NAME}}{after}", ENVIRON) == f"{before}value{after}"
