"""Frames to octets by the rules of a version, and the parts of which a MESSAGE is made; nothing of when to send which.

A MESSAGE is ``message_prefix`` + ``message_head`` + further ``header`` lines + ``EOL`` + body + NUL. The prefix is
made once for a subscription, the head once for an event. What cannot be written as asked raises
``LocalProtocolError``: nothing is repaired in silence.
"""

import re

from airy_trio.stomp.errors import LocalProtocolError
from airy_trio.stomp.escaping import escape
from airy_trio.stomp.frames import UNESCAPED_COMMANDS, Frame, Version

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
