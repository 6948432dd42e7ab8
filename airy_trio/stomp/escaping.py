"""Escapes in header names and values, by version; it does not know which frames are exempt.

Version None stands for "as it is": the frames that are never escaped, and every frame before a version is agreed.
STOMP 1.0 has no escapes either. What the version has no way to write is refused rather than written differently.
"""

import re
from collections.abc import Mapping

from airy_trio.stomp import faults
from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import Version

_ESCAPES_1_1 = {"\\": "\\\\", "\n": "\\n", ":": "\\c"}
ESCAPES: Mapping[Version | None, Mapping[str, str]] = {
    None: {},
    Version.V1_0: {},
    Version.V1_1: _ESCAPES_1_1,
    Version.V1_2: {**_ESCAPES_1_1, "\r": "\\r"},
}
"""What each version writes for the characters that it escapes."""

_ESCAPING = {version: str.maketrans(dict(escapes)) for version, escapes in ESCAPES.items()}
_UNESCAPING = {
    version: {escaped: character for character, escaped in escapes.items()} for version, escapes in ESCAPES.items()
}
_UNWRITABLE = {
    version: re.compile("[" + "".join(re.escape(c) for c in "\0\r\n" if c not in escapes) + "]")
    for version, escapes in ESCAPES.items()
}
_SEQUENCE = re.compile(r"\\.?", re.DOTALL)
_SPECIAL = re.compile(r"[\0\r\n\\:]")  # what any version escapes or cannot write


def escape(text: str, version: Version | None) -> str:
    """Write a header's name or value as the version does.

    Raises ``LocalProtocolError`` for what the version cannot write: NUL; CR before 1.2; LF before 1.1.
    """
    if not _SPECIAL.search(text):
        return text
    if _UNWRITABLE[version].search(text):
        message = "a header holds an octet that this version of STOMP cannot write"
        raise LocalProtocolError(message)
    return text.translate(_ESCAPING[version])


def unescape(text: str, version: Version | None) -> str:
    """Read a header's name or value as the version does.

    Raises ``RemoteProtocolError`` for an escape that the version does not define, which is fatal in 1.1 and 1.2.
    """
    defined = _UNESCAPING[version]
    if not defined or "\\" not in text:
        return text

    def character(sequence: re.Match[str]) -> str:
        try:
            return defined[sequence[0]]
        except KeyError:
            raise RemoteProtocolError(*faults.UNDEFINED_ESCAPE) from None

    return _SEQUENCE.sub(character, text)
