"""In how many pieces a client's message has come so far: the bound on what trio-websocket keeps until it is complete.

trio-websocket bounds the octets of a message, but keeps each piece of it as an object of its own: a frame without
content costs a client six octets and the server an entry in a list, for ever. Follows the frames' headers (RFC 6455,
section 5.2), and refuses to know what is in the frames.
"""

from typing import Final

PIECES_MAX: Final = 4096
"""Of one message: frames, and further reads within a frame. Browsers send a message in one frame."""
SMALL_OCTETS: Final = 16
SMALL_MAX: Final = 256
"""Frames of one message with less content than that: each costs the server as much as one of many octets."""
_FIN: Final = 0x80
_CONTROL: Final = 0x08
_OPCODE: Final = 0x0F
_CLOSE: Final = 0x08
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_OCTETS: Final = {126: 2, 127: 8}
_FIXED_OCTETS: Final = 2
_KEY_OCTETS: Final = 4


class Fragments:
    """Counts the pieces of the message that is under way, from all that comes after the answer to the upgrade.

    ``controls``: control frames that have begun; whoever paces them sets it back. ``closed``: one was a Close frame.
    """

    __slots__ = (
        "_content",
        "_counted",
        "_header",
        "_last",
        "_pieces",
        "_small",
        "closed",
        "controls",
    )

    def __init__(self) -> None:
        self.controls = 0
        self.closed = False
        self._header = b""
        self._content = 0  # octets of the frame that are still to come
        self._counted = False  # whether the frame is of a message, and not a control frame
        self._last = False  # whether the message ends with the frame
        self._pieces = 0
        self._small = 0

    def feed(self, data: bytes) -> bool:
        """Follow what has come; False where a message has too many pieces: ``PIECES_MAX``, or ``SMALL_MAX`` small."""
        at = 0
        while at < len(data):
            at = self._skip(data, at) if self._content else self._begin(data, at)
            if self._pieces > PIECES_MAX or self._small > SMALL_MAX:
                return False
        return True

    def _skip(self, data: bytes, at: int) -> int:
        """Pass over the content of a frame; give where it, or the data, ends."""
        end = min(len(data), at + self._content)
        self._content -= end - at
        self._count()
        return end

    def _begin(self, data: bytes, at: int) -> int:
        """Read on in the header of a frame; give where it, or the data, ends."""
        header = self._header
        while at < len(data):
            end = at + _header_octets(header) - len(header)
            header += data[at:end]
            at = min(end, len(data))
            if len(header) == _header_octets(header):
                self._enter(header)
                header = b""
                break
        self._header = header
        return at

    def _enter(self, header: bytes) -> None:
        length = header[1] & _LENGTH
        octets = _LENGTH_OCTETS.get(length, 0)
        self._content = int.from_bytes(header[_FIXED_OCTETS : _FIXED_OCTETS + octets]) if octets else length
        self._counted = not header[0] & _CONTROL
        self.controls += not self._counted
        self.closed |= header[0] & _OPCODE == _CLOSE
        self._last = bool(header[0] & _FIN)
        if self._counted:
            self._small = 0 if self._last else self._small + (self._content < SMALL_OCTETS)
        if not self._content:
            self._count()

    def _count(self) -> None:
        if self._counted:
            self._pieces = 0 if self._last and not self._content else self._pieces + 1


def _header_octets(header: bytes) -> int:
    """How long a header is, as far as its beginning tells."""
    if len(header) < _FIXED_OCTETS:
        return _FIXED_OCTETS
    masked = _KEY_OCTETS if header[1] & _MASKED else 0
    return _FIXED_OCTETS + _LENGTH_OCTETS.get(header[1] & _LENGTH, 0) + masked
