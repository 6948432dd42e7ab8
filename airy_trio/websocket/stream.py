"""The byte stream under one WebSocket connection, shared by trio-websocket and by the delivery of events.

trio-websocket reads from it and writes its own frames to it (pong, Close). Events, receipts and heart-beats are written
by us, as complete text messages that were framed once for many clients (``text_message``). ``FramedStream`` keeps the
two apart:

- A task that may have to wait while writing holds ``lock``, and waits only while data is pending. So frames are never
  interleaved, and a task that was cancelled while waiting leaves nothing half written: the next holder of the lock
  drains first.
- Nothing is written after a Close frame.
- A peer that takes nothing for ``send_timeout_s`` is reported with ``StalledError``.

It also guards what trio-websocket does not. trio-websocket limits the octets of a message, but stores each piece of it
as an object of its own, and answers each PING: a frame without content costs a client six octets, and the server an
entry in a list or an answer. ``Fragments`` therefore follows the headers of the client's frames and counts both.

One text message carries exactly one STOMP frame, because most STOMP clients read one frame per message and drop or
garble a second one. Many complete messages go into one write instead, which no client can notice (wire contract,
"How it is written"). Frames of a server are neither masked nor fragmented here (RFC 6455, section 5.2).
"""

import re
from typing import Final

import trio

from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.transport import Transport

RECEIVE_BYTES_MAX: Final = 4096
CONTROLS_PER_S: Final = 20
CONTROLS_BURST: Final = 100
"""Control frames of one client. After a burst of this size they are read at the rate above. Clients send one in some
seconds."""
PIECES_MAX: Final = 4096
"""Pieces of one message: its frames, and further reads within a frame. Browsers send a message in one frame."""
SMALL_OCTETS: Final = 16
SMALL_MAX: Final = 256
"""Frames of one message with less content than ``SMALL_OCTETS``: each costs the server as much as a large one."""
CLOSE_REASON_BYTES_MAX: Final = 123
"""All that a control frame can carry besides the code."""
CLOSE_BYTES_MAX: Final = 131
"""The Close frame of a client: header, masking key, code and reason."""

# The first octet of a frame is FIN and opcode, the second MASK and a length of 7 bits. Lengths 126 and 127 announce
# that the length follows, in two or eight octets; then follows the masking key of a client.
_FIN: Final = 0x80
_OPCODE: Final = 0x0F
_TEXT: Final = 0x01
_CLOSE: Final = 0x08
_CONTROL: Final = 0x08  # this bit of the opcode
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_7_MAX: Final = 125
_LENGTH_16: Final = 126
_LENGTH_16_MAX: Final = 0xFFFF
_LENGTH_64: Final = 127
_LENGTH_OCTETS: Final = {_LENGTH_16: 2, _LENGTH_64: 8}
_FIXED_OCTETS: Final = 2
_KEY_OCTETS: Final = 4

CLOSE_FIRST_BYTE: Final = bytes((_FIN | _CLOSE,))
_MASKED_CLOSE: Final = re.compile(rb"(?=\x88([\x80-\xfd]))")
"""The first two octets of a client's Close frame, at any index. The second one holds the length."""
_SWITCHING_PROTOCOLS: Final = b"HTTP/1.1 101"


def text_message(payload: bytes) -> bytes:
    """Frame UTF-8 octets as one complete text message."""
    size = len(payload)
    if size <= _LENGTH_7_MAX:
        return bytes((_FIN | _TEXT, size)) + payload
    if size <= _LENGTH_16_MAX:
        return bytes((_FIN | _TEXT, _LENGTH_16)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN | _TEXT, _LENGTH_64)) + size.to_bytes(8, "big") + payload


HEART_BEAT: Final = text_message(b"\n")
"""A message of exactly one LF: some clients take anything else for a frame."""

PING: Final = b"\x89\x00"
"""Without content: a client is known to fail at a PING that has some."""


def close_frame(code: int, reason: str) -> bytes:
    """Make a Close frame. ``reason`` is cut to ``CLOSE_REASON_BYTES_MAX``."""
    payload = code.to_bytes(2, "big") + reason.encode()[:CLOSE_REASON_BYTES_MAX]
    return CLOSE_FIRST_BYTE + bytes((len(payload),)) + payload


def ends_with_close(data: bytes) -> bool:
    """Return whether the last octets of a client's input look like its Close frame, which nothing follows.

    The content of another frame looks like one about twice in a thousand times, so this is only for a reader that may
    stop too early.
    """
    tail = data[-CLOSE_BYTES_MAX:]
    return any(
        found.start() + _FIXED_OCTETS + _KEY_OCTETS + (found[1][0] & _LENGTH) == len(tail)
        for found in _MASKED_CLOSE.finditer(tail)
    )


class StalledError(trio.BrokenResourceError):
    """The peer took nothing for ``send_timeout_s``."""


class FramedStream(trio.abc.Stream):
    """The stream of one connection. The session closes ``transport``; closing this object does not.

    Times are in Trio's clock: ``read_at`` and ``written_at`` of the last input and output, ``drained_at`` of the last
    time the peer took pending data.

    ``closing``: a Close frame was written, or is about to be.
    ``stalled``: the peer took nothing for ``send_timeout_s``.
    ``flooded``, ``oversized``: the client sent a message in too many pieces, or more than ``limit`` allows; nothing
    more is read from it.
    ``input_queued``: input has arrived and waits for its turn. ``turn`` waits for it; None: there are no turns.
    ``admitted``: input has had its turn, which covers one message in it. The reader resets it when it takes that
    message; each further message needs a turn of its own.
    """

    # Slots, here and in the transport: every delivery reads these attributes, and memory that is not together is slow.
    __slots__ = (
        "_bytes_left",
        "_closed",
        "_controls_at",
        "_fragments",
        "_input_ended",
        "_lock",
        "_put_back",
        "_send_timeout_s",
        "_turn",
        "admitted",
        "closing",
        "drained_at",
        "flooded",
        "input_queued",
        "oversized",
        "read_at",
        "stalled",
        "transport",
        "written_at",
    )

    def __init__(self, transport: Transport, *, send_timeout_s: float, turn: Turn | None = None) -> None:
        self.transport = transport
        self.closing = False
        self.stalled = False
        self.flooded = False
        self.oversized = False
        self.input_queued = False
        self.admitted = False
        self.read_at = self.written_at = self.drained_at = trio.current_time()
        self._lock: trio.StrictFIFOLock | None = None  # half a KiB, and most peers take everything at once
        self._closed = False  # whether the transport has the Close frame
        self._input_ended = False
        self._send_timeout_s = send_timeout_s
        self._turn = turn
        self._put_back = b""
        self._bytes_left: int | None = None
        self._controls_at = 0.0  # when the control frames so far would have been read at the permitted rate
        self._fragments: Fragments | None = None  # there are no frames until the upgrade was answered

    @property
    def ended(self) -> bool:
        """Whether the client has ended its input, with a Close frame or with the stream."""
        return self._input_ended or (self._fragments is not None and self._fragments.closed)

    @property
    def lock(self) -> trio.StrictFIFOLock:
        """The lock of a task that may wait while writing."""
        if self._lock is None:
            self._lock = trio.StrictFIFOLock()
        return self._lock

    def offer(self, data: bytes, now: float) -> bool:
        """Write complete messages without waiting, or return False and write nothing. ``now``: in Trio's time."""
        if self.closing or not self.transport.offer(data):
            return False
        self.written_at = now
        return True

    async def write(self, data: bytes) -> bool:
        """Write complete messages and wait until the peer has taken them. False after a Close frame.

        Has no checkpoint if no other task is writing and the peer takes the data at once. Raises
        ``trio.BrokenResourceError`` (``StalledError`` is one) and ``trio.ClosedResourceError``.
        """
        if self.transport.pending or (self._lock is not None and self._lock.locked()):
            async with self.lock:
                if self.closing:
                    return False
                await self.push(data)
            return True
        if self.closing:
            return False
        if self._push_now(data):
            async with self.lock:  # free: there was no checkpoint since it was tested
                await self.drain()
        return True

    async def close(self, frame: bytes) -> None:
        """Write the Close frame, unless one was written before, and wait until it has left."""
        self.closing = True  # before waiting for the lock: no other task may write after this frame
        async with self.lock:
            await self.drain()
            if not self._closed:
                self._closed = True
                self._push_now(frame)
                await self.drain()

    async def push(self, data: bytes) -> None:
        """Write complete messages and wait until they have left. For the holder of ``lock``.

        If nothing is pending, the transport has all of ``data`` before the first wait, so it is sent even if this is
        cancelled.
        """
        await self.drain()
        self._push_now(data)
        await self.drain()

    async def drain(self) -> None:
        """Wait until nothing is pending; no checkpoint if nothing is. For the holder of ``lock``."""
        while self.transport.pending:
            with trio.move_on_after(self._send_timeout_s) as patience:
                await self.transport.drain()
            if patience.cancelled_caught:
                self.stalled = True
                message = f"nothing was taken for {self._send_timeout_s} s"
                raise StalledError(message)
            self.written_at = self.drained_at = trio.current_time()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write a frame of trio-websocket, or its answer to the upgrade. After a Close frame it is dropped."""
        frame = bytes(data)
        if self._fragments is None and frame.startswith(_SWITCHING_PROTOCOLS):
            self._fragments = Fragments()  # before any wait: from now on wsproto reads all input as frames
        if frame.startswith(CLOSE_FIRST_BYTE):
            await self.close(frame)
        else:
            await self.write(frame)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until nothing is pending."""
        async with self.lock:
            await self.drain()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the client's next bytes after their turn; empty at the end of its stream.

        Raises ``trio.BrokenResourceError`` if the connection is broken, and beyond a limit (``flooded``,
        ``oversized``).
        """
        if self._put_back:  # without a checkpoint: the reader has only just started
            data, self._put_back = self._put_back, b""
            return data
        data, fault = b"", None
        try:
            data = await self.transport.receive_some(max_bytes or RECEIVE_BYTES_MAX)
            self._check_limits(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            fault = error  # raised after its turn, because hundreds of connections may be reset together
        if fault is not None or not data:
            self._input_ended = True
        if fault is None and self._fragments is not None and self._fragments.controls:
            await self._pace(self._fragments)
        if self._turn is not None:
            self.input_queued = True
            await self._turn()
            self.admitted = True
            self.input_queued = False
        if fault is not None:
            raise fault
        self.read_at = trio.current_time()
        return data

    def limit(self, bytes_max: int | None) -> None:
        """Read at most ``bytes_max`` from now on; None: no limit.

        Until CONNECT a smaller limit applies than trio-websocket's, which is the same for the whole connection.
        """
        self._bytes_left = bytes_max

    def put_back(self, data: bytes) -> None:
        """Let the next read return ``data``: for trio-websocket, instead of the request that was read before it."""
        self._put_back = data

    async def aclose(self) -> None:
        """Record that trio-websocket has ended. The session closes the transport."""
        self._input_ended = True
        await trio.lowlevel.checkpoint()

    async def _pace(self, fragments: "Fragments") -> None:
        """Delay reading if control frames arrive faster than any client sends them.

        Each PING is answered, so without this a few clients that send nothing else would keep the server busy.
        """
        now = trio.current_time()
        self._controls_at = max(self._controls_at, now) + fragments.controls / CONTROLS_PER_S
        fragments.controls = 0
        await trio.sleep(max(0, self._controls_at - now - CONTROLS_BURST / CONTROLS_PER_S))

    def _push_now(self, data: bytes) -> bool:
        """Write while nothing is pending; return whether something is pending then."""
        self.transport.push(data)
        self.written_at = trio.current_time()
        return self.transport.pending

    def _check_limits(self, data: bytes) -> None:
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                self.oversized = True
                message = "more bytes than allowed"
                raise trio.BrokenResourceError(message)
        if self._fragments is not None and not self._fragments.feed(data):
            self.flooded = True
            message = "a message in too many pieces"
            raise trio.BrokenResourceError(message)


class Fragments:
    """Counts the pieces of the client's current message, and its control frames, from the headers of its frames.

    ``controls``: control frames that have begun since the reader last set it to 0. ``closed``: one was a Close frame.
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
        self._content = 0  # octets of the current frame that are still missing
        self._counted = False  # whether the current frame belongs to a message; control frames do not
        self._last = False  # whether the message ends with the current frame
        self._pieces = 0
        self._small = 0

    def feed(self, data: bytes) -> bool:
        """Follow the client's input after the upgrade. False if a message exceeds ``PIECES_MAX`` or ``SMALL_MAX``."""
        at = 0
        while at < len(data):
            at = self._skip_content(data, at) if self._content else self._read_header(data, at)
            if self._pieces > PIECES_MAX or self._small > SMALL_MAX:
                return False
        return True

    def _skip_content(self, data: bytes, at: int) -> int:
        """Skip the content of the current frame; return the index after it, or the end of the data."""
        end = min(len(data), at + self._content)
        self._content -= end - at
        self._count_piece()
        return end

    def _read_header(self, data: bytes, at: int) -> int:
        """Read more of a header; return the index after it, or the end of the data."""
        header = self._header
        while at < len(data):
            end = at + _header_octets(header) - len(header)
            header += data[at:end]
            at = min(end, len(data))
            if len(header) == _header_octets(header):
                self._begin_frame(header)
                header = b""
                break
        self._header = header
        return at

    def _begin_frame(self, header: bytes) -> None:
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
            self._count_piece()

    def _count_piece(self) -> None:
        if self._counted:
            self._pieces = 0 if self._last and not self._content else self._pieces + 1


def _header_octets(header: bytes) -> int:
    """Return the length of a header, as far as its first octets determine it."""
    if len(header) < _FIXED_OCTETS:
        return _FIXED_OCTETS
    masked = _KEY_OCTETS if header[1] & _MASKED else 0
    return _FIXED_OCTETS + _LENGTH_OCTETS.get(header[1] & _LENGTH, 0) + masked
