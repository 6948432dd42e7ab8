"""Escapes of the three versions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.stomp.codec import escape, unescape
from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import Version

RAW = [None, Version.V1_0]
ESCAPED = [Version.V1_1, Version.V1_2]
UNWRITABLE = {None: "\0\r\n", Version.V1_0: "\0\r\n", Version.V1_1: "\0\r", Version.V1_2: "\0"}


@pytest.mark.parametrize("version", RAW)
def test_version_without_escapes_does_not_change_text(version: Version | None) -> None:
    assert escape("a:\\n\\c", version) == "a:\\n\\c"
    assert unescape("a:\\n\\c\\r\\t\\", version) == "a:\\n\\c\\r\\t\\"


@pytest.mark.parametrize("version", ESCAPED)
def test_three_characters_are_escaped_from_1_1_on(version: Version) -> None:
    assert escape("a\nb:c\\d", version) == "a\\nb\\cc\\\\d"
    assert unescape("a\\nb\\cc\\\\d", version) == "a\nb:c\\d"


def test_carriage_return_is_escaped_in_1_2_only() -> None:
    assert escape("a\rb", Version.V1_2) == "a\\rb"
    assert unescape("a\\rb", Version.V1_2) == "a\rb"
    with pytest.raises(RemoteProtocolError):
        unescape("a\\rb", Version.V1_1)


@pytest.mark.parametrize("version", ESCAPED)
@pytest.mark.parametrize("text", ["\\t", "\\", "a\\", "\\N", "\\\\\\", "\\\n", "\\0", "\\ü"])
def test_an_undefined_escape_is_fatal(version: Version, text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unescape(text, version)
    assert caught.value.token == "400-malformed-frame"


@pytest.mark.parametrize("version", ESCAPED)
@pytest.mark.parametrize(
    "escaped, text", [("\\\\n", "\\n"), ("\\\\c", "\\c"), ("\\\\\\n", "\\\n"), ("\\\\\\\\c", "\\\\c")]
)
def test_a_backslash_before_a_letter_is_read_from_the_left(version: Version, escaped: str, text: str) -> None:
    assert unescape(escaped, version) == text


@pytest.mark.parametrize("version, character", [(v, c) for v, cs in UNWRITABLE.items() for c in cs])
def test_unwritable_character_is_a_local_error(version: Version | None, character: str) -> None:
    with pytest.raises(LocalProtocolError):
        escape(f"a{character}b", version)


@given(version=st.sampled_from([*RAW, *ESCAPED]), data=st.data())
def test_unescape_inverts_escape(version: Version | None, data: st.DataObject) -> None:
    characters = st.one_of(st.sampled_from("\\:\n\rncr "), st.characters(exclude_categories=["Cs"]))
    text = data.draw(st.text(characters.filter(lambda c: c not in UNWRITABLE[version])))
    written = escape(text, version)
    assert unescape(written, version) == text
    assert "\n" not in written
    assert "\r" not in written
