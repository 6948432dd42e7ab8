"""The stream that trio-websocket is given: its frames and complete messages of ours on one way, never mixed.

Whoever waits while writing holds ``lock``, and waits only while something is pending. Nothing is written after a
Close frame. Notes when bytes went and came. What the messages are, and who may send events, is known above.

The bytes of WebSocket frames as a server writes them: unmasked, unfragmented; nothing of who gets them.

RFC 6455, section 5.2. One text message carries exactly one STOMP frame, because most STOMP clients read one frame
per message and drop or mix up a second one; many complete messages go into one write instead, which no client can
tell (wire contract, "How it is written").

In how many pieces a client's message has come so far: the bound on what trio-websocket keeps until it is complete.

trio-websocket bounds the octets of a message, but keeps each piece of it as an object of its own: a frame without
content costs a client six octets and the server an entry in a list, for ever. Follows the frames' headers (RFC 6455,
section 5.2), and refuses to know what is in the frames.
"""

import re
from typing import Final

import trio

from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.transport import Transport

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


RECEIVE_BYTES_MAX: Final = 4096
CONTROLS_PER_S: Final = 20
CONTROLS_BURST: Final = 100
"""Control frames of one client: beyond so many at once they are read at this rate. Clients send one in some seconds."""
_SWITCHING_PROTOCOLS: Final = b"HTTP/1.1 101"


class StalledError(trio.BrokenResourceError):
    """The peer took nothing for ``send_timeout_s``."""


class FramedStream(trio.abc.Stream):
    """One connection's way out and in.

    ``read_at``, ``written_at``: when the last bytes came and went, in Trio's time. ``drained_at``: when the peer last
    took some of what was pending. ``closing``: a Close frame was
    written, or is about to be. ``stalled``: the peer took nothing for ``send_timeout_s``. ``flooded``: it sent a
    message in too many pieces, ``oversized``: or more than ``limit`` allows; nothing is read from it any more.
    ``deserted``: nothing more can come. ``unheard``: something has come, and waits for its ``turn``
    at the turnstile, where there is one. ``admitted``: it has had it, and one message of it needs no other; whoever
    takes that up sets it back.
    """

    # Slots, here and in the outlet: each delivery comes by, and what is not together in memory is slow to find.
    __slots__ = (
        "_bytes_left",
        "_closed",
        "_controls_at",
        "_fragments",
        "_lock",
        "_put_back",
        "_send_timeout_s",
        "_turn",
        "admitted",
        "closing",
        "deserted",
        "drained_at",
        "flooded",
        "outlet",
        "oversized",
        "read_at",
        "stalled",
        "unheard",
        "written_at",
    )

    def __init__(self, outlet: Transport, *, send_timeout_s: float, turn: Turn | None = None) -> None:
        self.outlet = outlet
        self._lock: trio.StrictFIFOLock | None = None  # half a kibibyte, and most peers take all at once
        self.closing = False
        self._closed = False  # whether the Close frame has been given to the outlet
        self.stalled = False
        self.flooded = False
        self.deserted = False
        self.admitted = False
        self.unheard = False
        self.oversized = False
        self.read_at = self.written_at = self.drained_at = trio.current_time()
        self._send_timeout_s = send_timeout_s
        self._turn = turn
        self._put_back = b""
        self._bytes_left: int | None = None
        self._controls_at = 0.0
        self._fragments: Fragments | None = None  # until the upgrade is answered there are no frames

    @property
    def ended(self) -> bool:
        """Whether the peer has said that nothing more comes: with a Close frame, or by ending the stream."""
        return self.deserted or (self._fragments is not None and self._fragments.closed)

    @property
    def lock(self) -> trio.StrictFIFOLock:
        """What everybody holds who waits while writing."""
        if self._lock is None:
            self._lock = trio.StrictFIFOLock()
        return self._lock

    def offer(self, data: bytes, now: float) -> bool:
        """Write complete messages without waiting: all of them, or nothing and say False."""
        if self.closing or not self.outlet.offer(data):
            return False
        self.written_at = now
        return True

    async def write(self, data: bytes) -> bool:
        """Write complete messages, waiting for the peer to take them; False where a Close frame came before.

        Without a checkpoint where nobody else is writing and the peer takes them at once. Raises
        ``trio.BrokenResourceError`` (``StalledError`` is one) and ``trio.ClosedResourceError``.
        """
        if self.outlet.pending or (self._lock is not None and self._lock.locked()):
            async with self.lock:
                if self.closing:
                    return False
                await self.push(data)
            return True
        if self.closing:
            return False
        if self._give(data):
            async with self.lock:  # nobody can have it: there was no checkpoint since it was free
                await self.drain()
        return True

    async def close(self, frame: bytes) -> None:
        """Write the Close frame, the last that this wire carries, unless one was written before; wait until it left."""
        self.closing = True  # before the lock is waited for: who comes between must not write after it
        async with self.lock:
            await self.drain()
            if not self._closed:
                self._closed = True
                self._give(frame)
                await self.drain()

    async def push(self, data: bytes) -> None:
        """Give complete messages to the outlet and wait until they have left. For the holder of ``lock``.

        Where nothing is pending they are given whole before the first wait: who is cancelled then has sent them.
        """
        await self.drain()
        self._give(data)
        await self.drain()

    async def drain(self) -> None:
        """Wait until nothing is pending. For the holder of ``lock``; no checkpoint where nothing is."""
        while self.outlet.pending:
            with trio.move_on_after(self._send_timeout_s) as patience:
                await self.outlet.drain()
            if patience.cancelled_caught:
                self.stalled = True
                message = f"nothing was taken for {self._send_timeout_s} s"
                raise StalledError(message)
            self.written_at = self.drained_at = trio.current_time()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write one frame of trio-websocket, or its answer to the upgrade. Dropped after a Close frame."""
        frame = bytes(data)
        if self._fragments is None and frame.startswith(_SWITCHING_PROTOCOLS):
            self._fragments = Fragments()  # before any wait: from now on wsproto takes what comes for frames
        if frame.startswith(CLOSE_FIRST_BYTE):
            await self.close(frame)
        else:
            await self.write(frame)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until nothing is pending."""
        async with self.lock:
            await self.drain()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The peer's next bytes; none at its end. Raises ``trio.BrokenResourceError`` where it floods us."""
        if self._put_back:  # without a checkpoint: its reader has only just begun
            data, self._put_back = self._put_back, b""
            return data
        data, fault = b"", None
        try:
            data = await self.outlet.receive_some(max_bytes or RECEIVE_BYTES_MAX)
            self._follow(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            fault = error  # raised when it is its turn: hundreds may be reset at once
        if fault is not None or not data:
            self.deserted = True
        if fault is None and self._fragments is not None and self._fragments.controls:
            await self._pace(self._fragments)
        if self._turn is not None:
            self.unheard = True
            await self._turn()
            self.admitted = True
            self.unheard = False
        if fault is not None:
            raise fault
        self.read_at = trio.current_time()
        return data

    def limit(self, bytes_max: int | None) -> None:
        """Read at most so many bytes from now on; None: any number.

        trio-websocket keeps a message until it is complete, and has one limit for all the life of a connection.
        """
        self._bytes_left = bytes_max

    def put_back(self, data: bytes) -> None:
        """Give these bytes to who reads next: trio-websocket, in place of the request that was read before it."""
        self._put_back = data

    async def aclose(self) -> None:
        """Take note that trio-websocket has ended. Only the session closes the outlet."""
        self.deserted = True
        await trio.lowlevel.checkpoint()

    async def _pace(self, fragments: Fragments) -> None:
        """Wait where control frames come faster than any client sends them, and let the peer wait too.

        Each PING is answered: a few clients that send nothing else would be served before all others.
        """
        now = trio.current_time()
        self._controls_at = max(self._controls_at, now) + fragments.controls / CONTROLS_PER_S
        fragments.controls = 0
        await trio.sleep(max(0, self._controls_at - now - CONTROLS_BURST / CONTROLS_PER_S))

    def _give(self, data: bytes) -> bool:
        """Write, nothing being pending; whether something is now."""
        self.outlet.push(data)
        self.written_at = trio.current_time()
        return self.outlet.pending

    def _follow(self, data: bytes) -> None:
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                self.oversized = True
                message = "more has come than is allowed"
                raise trio.BrokenResourceError(message)
        if self._fragments is not None and not self._fragments.feed(data):
            self.flooded = True
            message = "a message came in too many pieces"
            raise trio.BrokenResourceError(message)
