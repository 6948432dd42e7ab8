"""Read the output of a server: WebSocket messages from bytes that arrive in any pieces."""

from airy_trio.stomp.codec import Decoder, Limits
from airy_trio.stomp.frames import Frame, Version
from airy_trio.websocket.frames import EMPTY_PING

LIMITS = Limits(frame_bytes_max=2**24, header_count_max=100, header_line_bytes_max=2**16, command_bytes_max=100)


class Reader:
    """Returns complete text messages, and counts empty ``pings``.

    Anything but an unfragmented, unmasked text is an error.
    """

    def __init__(self) -> None:
        self._data = b""
        self.pings = 0

    def feed(self, data: bytes) -> list[bytes]:
        self._data += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    @property
    def incomplete(self) -> bool:
        return bool(self._data)

    def _next(self) -> bytes | None:
        while self._data.startswith(EMPTY_PING):
            self._data = self._data.removeprefix(EMPTY_PING)
            self.pings += 1
        if len(self._data) < 2:
            return None
        assert self._data[0] == 0x81, f"not a whole text message: {self._data[:20]!r}"
        size, start = self._data[1], 2
        assert size < 128, "masked"
        if size > 125:
            start = 4 if size == 126 else 10
            if len(self._data) < start:
                return None
            size = int.from_bytes(self._data[2:start], "big")
        if len(self._data) < start + size:
            return None
        message, self._data = self._data[start : start + size], self._data[start + size :]
        return message


def stomp(message: bytes, version: Version | None = Version.V1_2) -> Frame | None:
    """Return the one frame in a message; None for a heart-beat."""
    if message == b"\n":
        return None
    (frame,) = Decoder(LIMITS, version).feed(message)
    assert message.endswith(b"\0")
    return frame
