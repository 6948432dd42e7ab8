"""Any text comes back from a column that takes no NUL."""

from hypothesis import given
from hypothesis import strategies as st

from airy_trio.log.sql.tables import escaped, unescaped

TEXTS = st.text(alphabet="\0\x010a", max_size=8)


@given(TEXTS)
def test_what_is_written_can_be_read_and_holds_no_nul(text: str) -> None:
    assert "\0" not in escaped(text)
    assert unescaped(escaped(text)) == text


@given(st.text(alphabet=st.characters(exclude_characters="\0\x01")))
def test_other_text_stands_as_it_is(text: str) -> None:
    assert escaped(text) == text == unescaped(text)


def test_none_is_none() -> None:
    assert (escaped(None), unescaped(None)) == (None, None)
