"""Frames in, octets out, and the escapes of each version.

A MESSAGE is ``message_prefix`` + ``message_head`` + further ``header`` lines + ``EOL`` + body + NUL. The prefix is
encoded once for a subscription and the head once for an event; only the ``ack`` line depends on both.

A name or value that the version cannot represent raises ``LocalProtocolError``; nothing is repaired silently. Version
None means without escapes: it is used for the frames that are never escaped, and before a version is agreed. STOMP 1.0
has no escapes either.
"""

import re
from collections.abc import Mapping
from typing import Final

from airy_trio.stomp import errors
from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import UNESCAPED_COMMANDS, Frame, Version

EOL: Final = b"\n"
"""The end of a line, the end of a head, and a heart-beat."""
NUL: Final = b"\0"

_COMMAND: Final = re.compile(r"[!-~]+")
_PLAIN_VALUE: Final = re.compile(r"[!-9;-\[\]-~]+")  # without colon and backslash

_ESCAPES_1_1 = {"\\": "\\\\", "\n": "\\n", ":": "\\c"}
ESCAPES: Mapping[Version | None, Mapping[str, str]] = {
    None: {},
    Version.V1_0: {},
    Version.V1_1: _ESCAPES_1_1,
    Version.V1_2: {**_ESCAPES_1_1, "\r": "\\r"},
}
"""The escape sequences of each version, by character."""

_ESCAPING = {version: str.maketrans(dict(escapes)) for version, escapes in ESCAPES.items()}
_UNESCAPING = {
    version: {escaped: character for character, escaped in escapes.items()} for version, escapes in ESCAPES.items()
}
_UNWRITABLE = {
    version: re.compile("[" + "".join(re.escape(c) for c in "\0\r\n" if c not in escapes) + "]")
    for version, escapes in ESCAPES.items()
}
_SEQUENCE = re.compile(r"\\.?", re.DOTALL)
_SPECIAL = re.compile(r"[\0\r\n\\:]")  # escaped by some version, or not writable in it


def escape(text: str, version: Version | None) -> str:
    """Escape the name or value of a header.

    Raises ``LocalProtocolError`` for a character that the version cannot write: NUL; CR before 1.2; LF before 1.1.
    """
    if not _SPECIAL.search(text):
        return text
    if _UNWRITABLE[version].search(text):
        message = "a header contains a character that this version of STOMP cannot write"
        raise LocalProtocolError(message)
    return text.translate(_ESCAPING[version])


def unescape(text: str, version: Version | None) -> str:
    """Unescape the name or value of a header.

    Raises ``RemoteProtocolError`` for an escape sequence that the version does not define: fatal in 1.1 and 1.2.
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


def encode(frame: Frame, version: Version | None) -> bytes:
    """Encode a whole frame without adding headers. Version None: none is agreed yet.

    Raises ``LocalProtocolError`` for a command or header that cannot be written, and for a body that the reader would
    end at another place: one with a NUL but without ``content-length``, or with a wrong ``content-length``.
    """
    if not _COMMAND.fullmatch(frame.command):
        message = "not a command"
        raise LocalProtocolError(message)
    length = frame.get("content-length")
    if length != str(len(frame.body)) and (length is not None or NUL in frame.body):
        message = "the body does not have the length that content-length states"
        raise LocalProtocolError(message)
    rules = None if frame.command in UNESCAPED_COMMANDS else version
    head = b"".join(header(name, value, rules) for name, value in frame.headers)
    return frame.command.encode() + EOL + head + EOL + frame.body + NUL


def own_frame(command: str, *headers: tuple[str, str], first: bytes = b"") -> bytes:
    """Encode a frame without a body from our own header names and ``plain`` values, equal in every version.

    ``first``: encoded ``header`` lines to put before the others. Raises ``LocalProtocolError`` as ``plain`` does.
    """
    lines = "".join([f"{name}:{plain(value)}\n" for name, value in headers])
    return b"%s\n%s%s\n\0" % (command.encode(), first, lines.encode())


def header(name: str, value: str, version: Version | None) -> bytes:
    """Encode one header line with its end. Raises ``LocalProtocolError`` if the version cannot write it."""
    written = escape(name, version)
    if not written or ":" in written:
        message = "not a header name"
        raise LocalProtocolError(message)
    return f"{written}:{escape(value, version)}\n".encode()


def message_prefix(version: Version, destination: str, subscription: str | None) -> bytes:
    """Encode the lines of a MESSAGE that all messages of a subscription share, command included.

    ``subscription`` None: a client of 1.0 gave no id, so the header is omitted.
    """
    lines = b"MESSAGE\n" + header("destination", destination, version)
    return lines if subscription is None else lines + header("subscription", subscription, version)


def message_head(message_id: str, length: int, *, truncated: bool) -> bytes:
    """Encode the lines of a MESSAGE that all recipients of an event share. ``length``: octets of the body.

    ``message_id`` must be ``plain``, because it is not escaped.
    """
    lines = f"message-id:{message_id}\ncontent-type:application/json\ncontent-length:{length}\n"
    return (lines + "truncated:true\n" if truncated else lines).encode()


def plain(value: str) -> str:
    """Return a header value of our own if every known client can read it, else raise ``LocalProtocolError``.

    Allowed is printable ASCII without space, colon or backslash, not empty (wire contract, "How it is written").
    """
    if not _PLAIN_VALUE.fullmatch(value):
        message = f"not a header value that every client can read: {value!a}"
        raise LocalProtocolError(message)
    return value
