"""Frames to octets and back, and the escapes of each version.

Writing. A MESSAGE is ``message_prefix`` + ``message_head`` + further ``header`` lines + ``EOL`` + body + NUL. The
prefix is encoded once for a subscription and the head once for an event; only the ``ack`` line depends on both. A name
or value that the version cannot represent raises ``LocalProtocolError``; nothing is repaired silently. Version None
means without escapes: it is used for the frames that are never escaped, and before a version is agreed. STOMP 1.0 has
no escapes either.

Reading. The work is linear in the input, however the octets are cut into pieces: a search continues where the last one
stopped. Memory is bounded by ``frame_bytes_max`` and one piece of input. A head is read when all of it has
arrived. It is refused earlier if a NUL precedes the blank line, if it exceeds the limit of a frame, or if its command
is too long.

A NUL or a bare CR in a line is malformed in every version. Versions 1.0 and 1.1 do not forbid the CR, but they have no
way to write it back to a client that reads CRLF line ends.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import define, field, frozen, validators

from airy_trio.stomp import errors
from airy_trio.stomp.errors import Fault, LocalProtocolError, RemoteProtocolError
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
        raise LocalProtocolError("a header contains a character that this version of STOMP cannot write")
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
        raise LocalProtocolError("not a command")
    length = frame.get("content-length")
    if length != str(len(frame.body)) and (length is not None or NUL in frame.body):
        raise LocalProtocolError("the body does not have the length that content-length states")
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
        raise LocalProtocolError("not a header name")
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
        raise LocalProtocolError(f"not a header value that every client can read: {value!a}")
    return value


_positive: Final = validators.ge(1)


@frozen(kw_only=True)
class Limits:
    """Limits of one frame, in octets as they were sent.

    ``frame_bytes_max`` counts from the first octet of the command to the NUL; ``command_bytes_max`` and
    ``header_line_bytes_max`` count a line without its LF.
    """

    frame_bytes_max: int = field(default=65_536, validator=_positive)
    header_count_max: int = field(default=64, validator=_positive)
    header_line_bytes_max: int = field(default=8_192, validator=_positive)
    command_bytes_max: int = field(default=32, validator=_positive)


_EOLS: Final = re.compile(rb"(?:\r?\n)*+")  # possessive, so that no state is kept for each line end
_HEAD_STOP: Final = re.compile(rb"\n\r?\n|\0")  # the end of the last line and the blank line; or a NUL
_BODY_STOP: Final = re.compile(rb"\0")
_DIGITS: Final = re.compile(r"[0-9]+")
_LENGTH_DIGITS_MAX: Final = 18  # more would be beyond any limit, and is not worth converting
_CR: Final = 13
_NUL: Final = 0
_STOP_BYTES_MAX: Final = 3  # the longest match of both patterns


@define(eq=False, weakref_slot=False)
class Decoder:
    """A stream of frames. ``limits`` and ``version`` may be set between two frames and apply from the next one on.

    After a fault nothing may be fed, because the next frame cannot be found.

    ``version`` None: no version is agreed yet; nothing is unescaped or trimmed. ``searched_bytes``: octets searched for
    the end of a head or body; no more than were fed.
    """

    limits: Limits
    version: Version | None = None
    searched_bytes: int = field(default=0, init=False)
    _data: bytearray = field(factory=bytearray, init=False)
    _at: int = field(default=0, init=False)  # everything before is decoded
    _searched: int = field(default=0, init=False)  # everything before was searched for the current stop
    # Of the current frame, since `_begin`.
    _command: str | None = field(default=None, init=False)
    _headers: list[tuple[str, str]] = field(factory=list, init=False)
    _length: int | None = field(default=None, init=False)  # of the body, if there is a content-length
    _head_bytes: int = field(default=0, init=False)  # 0 until the head is read

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Store octets and return an iterator over the complete frames, each decoded when it is requested.

        Frames that are not requested are returned by the next call. The iterator raises ``RemoteProtocolError`` at a
        malformed or too large frame.
        """
        self._data += data
        return self._frames()

    def clear(self) -> None:
        """Drop everything that was fed."""
        self._data.clear()
        self._at = self._searched = 0
        self._begin()

    @property
    def held_bytes(self) -> int:
        """Octets that are held for the next call."""
        return len(self._data)

    def _begin(self) -> None:
        self._command, self._headers = None, []
        self._length, self._head_bytes = None, 0

    def _frames(self) -> Iterator[Frame]:
        try:
            while (frame := self._next()) is not None:
                yield frame
        except RemoteProtocolError as fault:
            if self._command is not None:
                fault.receipt_id = Frame(self._command, tuple(self._headers)).receipt
            raise
        del self._data[: self._at]
        self._searched -= self._at
        self._at = 0

    def _next(self) -> Frame | None:
        """Continue with the current frame; None if octets are missing."""
        if not self._head_bytes and not self._read_head():
            return None
        body = self._body()
        if body is None or self._command is None:
            return None
        frame = Frame(self._command, tuple(self._headers), body)
        self._begin()
        return frame

    def _read_head(self) -> bool:
        """Read the head of the next frame; False if octets are missing."""
        # The two differ if the earlier input ended within the head, whose octets must not be searched again.
        between_frames = self._searched == self._at
        if between_frames and not self._skip_eols():
            return False
        data, at, limits = self._data, self._at, self.limits
        stop = self._find(_HEAD_STOP, at + limits.frame_bytes_max)
        if stop is not None:
            fault = errors.NO_BLANK_LINE if data[stop] == _NUL else None
        elif len(data) - at >= limits.frame_bytes_max:
            stop, fault = at + limits.frame_bytes_max, errors.FRAME_TOO_LARGE
        elif len(data) - at > limits.command_bytes_max and data.find(EOL, at, at + limits.command_bytes_max + 1) < 0:
            # Reported now, because input of another protocol may have neither line ends nor NULs.
            raise RemoteProtocolError(*errors.COMMAND_TOO_LARGE)
        else:
            return False
        self._read_lines(bytes(data[at:stop]).split(EOL, limits.header_count_max + 2), fault)
        self._head_bytes = self._searched - at
        self._at = self._searched
        self._read_length()
        return True

    def _read_lines(self, lines: list[bytes], fault: Fault | None) -> None:
        """Read the lines of a head. ``fault``: why the last is incomplete; raised unless an earlier one has a fault."""
        limits, headers = self.limits, self._headers
        bytes_max, too_large = limits.command_bytes_max, errors.COMMAND_TOO_LARGE
        version = self.version
        for number, octets in enumerate(lines):
            if len(octets) > bytes_max:
                raise RemoteProtocolError(*too_large)
            if fault is not None and number == len(lines) - 1:
                raise RemoteProtocolError(*fault)
            line = _text(octets)
            if number == 0:
                self._command = line
                bytes_max, too_large = limits.header_line_bytes_max, errors.HEADER_TOO_LARGE
                version = None if line in UNESCAPED_COMMANDS else version
                continue
            if number > limits.header_count_max:
                raise RemoteProtocolError(*errors.TOO_MANY_HEADERS)
            name, colon, value = line.partition(":")
            if not colon or not name:
                raise RemoteProtocolError(*errors.NOT_A_HEADER)
            if version is Version.V1_0:
                value = value.strip(" \t")
            headers.append((unescape(name, version), unescape(value, version)) if "\\" in line else (name, value))

    def _read_length(self) -> None:
        text = next((value for name, value in self._headers if name == "content-length"), None)
        if text is None:
            return
        if not _DIGITS.fullmatch(text):
            raise RemoteProtocolError(*errors.NOT_A_LENGTH)
        # Compared before the body arrives, so that a body that is too large is never held.
        digits = text.lstrip("0") or "0"
        too_long = len(digits) > _LENGTH_DIGITS_MAX
        if too_long or self._head_bytes + int(digits) + 1 > self.limits.frame_bytes_max:
            raise RemoteProtocolError(*errors.FRAME_TOO_LARGE)
        self._length = int(digits)

    def _skip_eols(self) -> bool:
        """Skip line ends between frames, such as heart-beats; return whether a command may follow in the data."""
        data = self._data
        eols = _EOLS.match(data, self._at)
        end = eols.end() if eols else self._at
        self.searched_bytes += end - self._at
        self._at = self._searched = end
        # A CR before anything but LF begins a command, which is refused. At the end of the input it may be half of a
        # CRLF.
        half_an_eol = end + 1 == len(data) and data[end] == _CR
        return end < len(data) and not half_an_eol

    def _body(self) -> bytes | None:
        """Take the body and its NUL; None if they are incomplete."""
        if self._length is not None:
            end = self._at + self._length
            if len(self._data) <= end:
                return None
            if self._data[end] != _NUL:
                raise RemoteProtocolError(*errors.NO_NUL)
            return self._take(end)
        allowed = self.limits.frame_bytes_max - self._head_bytes
        found = self._find(_BODY_STOP, self._at + allowed)
        if found is None:
            if len(self._data) - self._at >= allowed:
                raise RemoteProtocolError(*errors.FRAME_TOO_LARGE)
            return None
        return self._take(found)

    def _find(self, stop: re.Pattern[bytes], limit: int) -> int | None:
        """Continue the search for the end of a head or body, up to a limit; return where the match begins, or None."""
        # The earlier input may have ended within the stop.
        found = stop.search(self._data, max(self._at, self._searched - _STOP_BYTES_MAX + 1), limit)
        end = found.end() if found else max(self._searched, min(len(self._data), limit))
        self.searched_bytes += end - self._searched
        self._searched = end
        return found.start() if found else None

    def _take(self, end: int) -> bytes:
        """Take the octets before ``end``, and skip the one there."""
        taken = bytes(self._data[self._at : end])
        self._at = self._searched = end + 1
        return taken


def _text(line: bytes) -> str:
    """Decode a line of a head, without the CR at its end. Raises ``RemoteProtocolError``."""
    if _CR in line:
        line = line.removesuffix(b"\r")
        if _CR in line:
            raise RemoteProtocolError(*errors.BARE_CR)
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(*errors.NOT_UTF_8) from None
