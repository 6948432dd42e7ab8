"""Frames to octets by the rules of a version, and the parts of which a MESSAGE is made; nothing of when to send which.

A MESSAGE is ``message_prefix`` + ``message_head`` + further ``header`` lines + ``EOL`` + body + NUL. The prefix is
made once for a subscription, the head once for an event. What cannot be written as asked raises
``LocalProtocolError``: nothing is repaired in silence.

Escapes in header names and values, by version; it does not know which frames are exempt.

Version None stands for "as it is": the frames that are never escaped, and every frame before a version is agreed.
STOMP 1.0 has no escapes either. What the version has no way to write is refused rather than written differently.
"""

import re
from collections.abc import Mapping

from airy_trio.stomp import errors
from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import UNESCAPED_COMMANDS, Frame, Version

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
            raise RemoteProtocolError(*errors.UNDEFINED_ESCAPE) from None

    return _SEQUENCE.sub(character, text)


EOL = b"\n"
"""The end of a line, the end of a head, and a heart-beat."""
NUL = b"\0"

_COMMAND = re.compile(r"[!-~]+")
_PLAIN_VALUE = re.compile(r"[!-9;-\[\]-~]+")  # without colon and backslash


def encode(frame: Frame, version: Version | None) -> bytes:
    """Write a whole frame exactly as it is given; no header is added. Version None: none is agreed yet.

    Raises ``LocalProtocolError`` for a command or header that cannot be written, and for a body that the reader
    would cut at another place: a NUL in it without ``content-length``, or a ``content-length`` that is wrong.
    """
    if not _COMMAND.fullmatch(frame.command):
        message = "not a command"
        raise LocalProtocolError(message)
    length = frame.get("content-length")
    if length != str(len(frame.body)) and (length is not None or NUL in frame.body):
        message = "the body does not have the length that its headers tell"
        raise LocalProtocolError(message)
    rules = None if frame.command in UNESCAPED_COMMANDS else version
    head = b"".join(header(name, value, rules) for name, value in frame.headers)
    return frame.command.encode() + EOL + head + EOL + frame.body + NUL


def own_frame(command: str, *headers: tuple[str, str], first: bytes = b"") -> bytes:
    """Write a whole frame without a body, of names of our own and ``plain`` values, which every version writes alike.

    ``first``: header lines that were made by ``header`` and come before the others. Raises what ``plain`` does.
    """
    lines = "".join([f"{name}:{plain(value)}\n" for name, value in headers])
    return b"%s\n%s%s\n\0" % (command.encode(), first, lines.encode())


def header(name: str, value: str, version: Version | None) -> bytes:
    """Write one header line with its end.

    Raises ``LocalProtocolError`` for what the version cannot write.
    """
    written = escape(name, version)
    if not written or ":" in written:
        message = "not a header name"
        raise LocalProtocolError(message)
    return f"{written}:{escape(value, version)}\n".encode()


def message_prefix(version: Version, destination: str, subscription: str | None) -> bytes:
    """Write the lines of a MESSAGE that are the same for a whole subscription, the command included.

    ``subscription`` None: a client of 1.0 gave no id, and there is no such header.
    """
    lines = b"MESSAGE\n" + header("destination", destination, version)
    return lines if subscription is None else lines + header("subscription", subscription, version)


def message_head(message_id: str, length: int, *, truncated: bool) -> bytes:
    """Write the lines of a MESSAGE that are the same for all who get the event. ``length``: octets of the body.

    ``message_id`` must be ``plain``: it is written as it is, in every version.
    """
    lines = f"message-id:{message_id}\ncontent-type:application/json\ncontent-length:{length}\n"
    return (lines + "truncated:true\n" if truncated else lines).encode()


def plain(value: str) -> str:
    """Give back a header value of our own, which every known client must be able to read.

    That is printable ASCII without space, colon or backslash, never empty (wire contract, "How it is written"). Raises
    ``LocalProtocolError`` for another.
    """
    if not _PLAIN_VALUE.fullmatch(value):
        message = f"not a header value that every client can read: {value!a}"
        raise LocalProtocolError(message)
    return value
