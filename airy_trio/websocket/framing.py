"""The bytes of WebSocket frames as a server writes them: unmasked, unfragmented; nothing of who gets them.

RFC 6455, section 5.2. One text message carries exactly one STOMP frame, because most STOMP clients read one frame
per message and drop or mix up a second one; many complete messages go into one write instead, which no client can
tell (wire contract, "How it is written").
"""

import re
from typing import Final

_FIN_TEXT: Final = 0x81
CLOSE_FIRST_BYTE: Final = b"\x88"
_LENGTH_7_MAX: Final = 125
_LENGTH_7_MASK: Final = 0x7F
_LENGTH_16: Final = 126
_LENGTH_16_MAX: Final = 0xFFFF
_LENGTH_64: Final = 127
CLOSE_REASON_BYTES_MAX: Final = 123
CLOSE_BYTES_MAX: Final = 131
"""Of a client's Close frame."""
_KEY_BYTES: Final = 4
_MASKED_CLOSE: Final = re.compile(rb"(?=\x88([\x80-\xfd]))")
"""The first two octets of a client's Close frame, wherever they stand. The second one holds the length."""


def text_message(payload: bytes) -> bytes:
    """Frame UTF-8 octets as one complete text message."""
    size = len(payload)
    if size <= _LENGTH_7_MAX:
        return bytes((_FIN_TEXT, size)) + payload
    if size <= _LENGTH_16_MAX:
        return bytes((_FIN_TEXT, _LENGTH_16)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN_TEXT, _LENGTH_64)) + size.to_bytes(8, "big") + payload


HEART_BEAT: Final = text_message(b"\n")
"""A message of exactly one LF: some clients take anything else for a frame."""

PING: Final = b"\x89\x00"
"""Without content: a client is known to fail at a PING that has some."""


def close_frame(code: int, reason: str) -> bytes:
    """Make a Close frame. ``reason`` is cut at 123 octets, which is all that a control frame can carry."""
    payload = code.to_bytes(2, "big") + reason.encode()[:CLOSE_REASON_BYTES_MAX]
    return CLOSE_FIRST_BYTE + bytes((len(payload),)) + payload


def ends_with_close(data: bytes) -> bool:
    """Whether the last octets of what a client has sent look like its Close frame, after which nothing follows.

    Content of another frame looks like one about twice in a thousand times: for a reader that may stop too early.
    """
    tail = data[-CLOSE_BYTES_MAX:]
    return any(
        found.start() + 2 + _KEY_BYTES + (found[1][0] & _LENGTH_7_MASK) == len(tail)
        for found in _MASKED_CLOSE.finditer(tail)
    )
