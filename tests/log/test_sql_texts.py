"""Any text can be stored in a column that does not accept NUL."""

from hypothesis import given
from hypothesis import strategies as st

from airy_trio.log.sql.tables import escaped, unescaped

TEXTS = st.text(alphabet="\0\x010a", max_size=8)


@given(TEXTS)
def test_escaped_text_has_no_nul_and_can_be_unescaped(text: str) -> None:
    assert "\0" not in escaped(text)
    assert unescaped(escaped(text)) == text


@given(st.text(alphabet=st.characters(exclude_characters="\0\x01")))
def test_text_without_control_characters_is_unchanged(text: str) -> None:
    assert escaped(text) == text == unescaped(text)


def test_none_stays_none() -> None:
    assert (escaped(None), unescaped(None)) == (None, None)
