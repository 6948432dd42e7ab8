"""One WebSocket connection over a transport: the client's messages are read, and messages of the server are written.

Only the session's task reads. ``receive`` may be cancelled at any await and called again: no message and no answer is
lost. Several tasks write complete messages: the fan-out, the send task, the timer wheel and the session.

- A task that may have to wait while writing holds ``lock``, and waits only while data is pending. So frames are never
  interleaved, and a task that was cancelled while waiting leaves nothing half written: the next holder of the lock
  drains first.
- Nothing is written after a Close frame.
- A peer that takes nothing for ``send_timeout_s`` is reported with ``StalledError``.

An event stream is written in the same way. Its client sends nothing after its request, which ``receive_some`` reads.

One text message carries exactly one STOMP frame, because most STOMP clients read one frame per message and drop or
garble a second one. Many complete messages go into one write instead (wire contract, "How it is written").
"""

from typing import Final

import trio
from attrs import define, field

from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.frames import (
    CLOSE,
    MESSAGES,
    PING,
    TOO_LARGE,
    FrameError,
    FrameReader,
    close_answer,
    pong_frame,
)
from airy_trio.websocket.transport import Transport

RECEIVE_BYTES_MAX: Final = 4096
CONTROLS_PER_S: Final = 20
CONTROLS_BURST: Final = 100
"""Control frames of one client. After a burst of this size they are read at the rate above. Clients send one in some
seconds."""


class StalledError(trio.BrokenResourceError):
    """The peer took nothing for ``send_timeout_s``."""


class InputEnded(trio.BrokenResourceError):
    """The client's input has ended: by a Close frame, which was answered, by its end, or because it broke."""


class TooMuchInputError(FrameError):
    """The client has sent more than ``FramedStream.limit`` allows."""

    def __init__(self) -> None:
        super().__init__(TOO_LARGE, "more input than allowed")


@define(eq=False, weakref_slot=False)
class FramedStream:
    """The stream of one connection. The session owns ``transport`` and closes it.

    ``turn`` waits for a turn in the fair queue. Each read needs one, and each further frame in the same input another.
    ``closing``: a Close frame was written, or is about to be. ``stalled``: the peer took nothing for
    ``send_timeout_s``. ``ended``: the client has ended its input, with a Close frame or with the stream.
    ``reading``: the session is awaiting the client's next input, since ``read_at``. Otherwise it is writing an answer,
    waiting for its turn, or handling earlier input. ``written_at``: the last output; ``drained_at``: the last time the
    peer took pending data. All times are Trio's.
    """

    # Slots, here and in the transport: every delivery reads these attributes, and memory that is not together is slow.
    transport: Transport
    _send_timeout_s: float = field(kw_only=True)
    _turn: Turn = field(default=trio.lowlevel.checkpoint, kw_only=True)
    closing: bool = field(default=False, init=False)
    stalled: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    reading: bool = field(default=False, init=False)
    read_at: float = field(factory=trio.current_time, init=False)
    written_at: float = field(factory=trio.current_time, init=False)
    drained_at: float = field(factory=trio.current_time, init=False)
    _lock: trio.StrictFIFOLock | None = field(default=None, init=False)  # half a KiB, and most peers never need it
    _closed: bool = field(default=False, init=False)  # whether the transport has the Close frame
    _admitted: bool = field(default=False, init=False)  # the last read has had its turn, and no frame was taken since
    _bytes_left: int | None = field(default=None, init=False)
    _controls_at: float = field(default=0.0, init=False)  # when the control frames so far were due at the allowed rate
    _pong: bytes | None = field(default=None, init=False)  # content of an answer that is not written yet
    _undrained: bool = field(default=False, init=False)  # an answer may have left in part only
    _close_answer: bytes | None = field(default=None, init=False)  # the same for the client's Close frame
    _frames: FrameReader | None = field(default=None, init=False)  # none until the upgrade is answered

    @property
    def unread(self) -> bytes:
        """Input that has arrived and was not read as frames."""
        return b"" if self._frames is None else self._frames.unread

    @property
    def lock(self) -> trio.StrictFIFOLock:
        """The lock of a task that may wait while writing."""
        if self._lock is None:
            self._lock = trio.StrictFIFOLock()
        return self._lock

    def offer(self, data: bytes, now: float) -> bool:
        """Write complete messages without waiting, or return False and write nothing. ``now``: in Trio's time."""
        # The lock is not tested. While its holder waits for the peer, something is pending, and the transport refuses.
        # At other times this data goes before the holder's. That does no harm, because both are complete messages.
        if self.closing or not self.transport.offer(data):
            return False
        self.written_at = now
        return True

    async def write(self, data: bytes) -> None:
        """Write complete messages and wait until the peer has taken them. After a Close frame nothing is written.

        Has no checkpoint if no other task is writing and the peer takes the data at once. Raises
        ``trio.BrokenResourceError`` (``StalledError`` is one) and ``trio.ClosedResourceError``.
        """
        # The lock may be held although nothing is pending, because its holder has not continued yet. Writing now would
        # overtake the holder, and all tasks that wait behind it.
        if self.transport.pending or (self._lock is not None and self._lock.locked()):
            async with self.lock:
                if not self.closing:
                    await self.push(data)
        # No lock: there is no checkpoint from the test above to the end of this write.
        elif not self.closing and self._push_now(data):
            async with self.lock:  # free: there was no checkpoint since it was tested
                await self.drain()

    async def close(self, frame: bytes) -> None:
        """Write the Close frame, unless one was written before, and wait until it has left."""
        self.closing = True  # before waiting for the lock: no other task may write after this frame
        async with self.lock:
            # If this wait is cancelled, `_closed` is still unset, and the next call writes its frame. After `_push_now`
            # the transport has all of the frame, whatever is cancelled.
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
            # The limit begins again when a part has left: a slow peer that goes on reading is not stalled, however long
            # it takes for all.
            with trio.move_on_after(self._send_timeout_s) as patience:
                await self.transport.drain()
            if patience.cancelled_caught:
                self.stalled = True
                raise StalledError(f"nothing was taken for {self._send_timeout_s} s")
            # For the timers: any bytes that leave count as a heart-beat, and any that the peer takes show that it is
            # alive.
            self.written_at = self.drained_at = trio.current_time()

    async def upgrade(self, answer: bytes, message_bytes_max: int) -> None:
        """Write the answer to the upgrade request. All further input is read as frames of messages up to the limit."""
        self._frames = FrameReader(message_bytes_max)
        await self.write(answer)

    def limit(self, bytes_max: int | None) -> None:
        """Read at most ``bytes_max`` from now on; None: no limit. For the time until CONNECT was accepted."""
        self._bytes_left = bytes_max

    async def receive(self) -> bytes:
        """Return the content of the client's next message, text or binary; answer its control frames meanwhile.

        Raises ``InputEnded`` or another ``trio.BrokenResourceError`` at the end of the connection, and ``FrameError``
        for a violation of the protocol or of a limit.
        """
        frames = self._frames
        if frames is None:
            raise RuntimeError("the connection was not upgraded")
        while True:
            # Answers are written here, not right after the frame was read: if a call is cancelled while it waits to
            # write, the next call writes them. Nothing more is read before they have left, so a client that sends PINGs
            # and reads nothing blocks only itself.
            await self._answer()
            found = None
            if frames.has_unread:
                if not self._admitted:
                    await self._wait_turn()
                try:
                    found = frames.next()
                finally:
                    # Also for an invalid Close frame, which raises: the session must not wait for another one.
                    self.ended |= frames.closed
            if found is None:
                await self.receive_some()
                continue
            self._admitted = False
            opcode, content = found
            if opcode in MESSAGES:
                return content
            # Answers are stored before `_pace`, which may be cancelled. A PONG has no answer: it only shows that the
            # client is alive, and the next read sets `read_at`.
            if opcode == CLOSE:
                self._close_answer = close_answer(content)
            elif opcode == PING:
                self._pong = content
            await self._pace()

    async def receive_some(self) -> bytes:
        """Return the client's next bytes after their turn: for the upgrade request, and for ``receive``.

        Raises ``InputEnded`` at the end, also if the connection is broken, and ``TooMuchInputError``.
        """
        self.reading, self.read_at = True, trio.current_time()
        try:
            data = await self.transport.receive_some(RECEIVE_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self.reading = False
        if not data:
            self.ended = True
        elif self._frames is not None:
            # Before the first wait, so that nothing is lost if this is cancelled. Without frames the input is lost
            # then. It is a part of a request, whose connection then ends, or comes from the client of an event stream,
            # which must send nothing.
            self._frames.feed(data)
        await self._wait_turn()  # also for the end, because hundreds of connections may end together
        if not data:
            raise InputEnded
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                raise TooMuchInputError
        return data

    async def _answer(self) -> None:
        """Write the answers that are due. Raises ``InputEnded`` after that to a Close frame."""
        if self._pong is not None or self._undrained:
            await self._write_pong()
        if self._close_answer is not None:
            await self.close(self._close_answer)
            raise InputEnded

    async def _write_pong(self) -> None:
        if self._pong is not None and self.offer(pong_frame(self._pong), trio.current_time()):
            self._pong = None
            if not self.transport.pending:
                return
        self._undrained = True  # until the end: if this is cancelled, the next call continues
        async with self.lock:
            await self.drain()
            if self._pong is not None and not self.closing:
                self._push_now(pong_frame(self._pong))
                self._pong = None
                await self.drain()
        self._pong, self._undrained = None, False

    async def _pace(self) -> None:
        """Wait if control frames arrive faster than any client sends them: each PING costs the server an answer."""
        now = trio.current_time()
        self._controls_at = max(self._controls_at, now) + 1 / CONTROLS_PER_S
        wait_s = self._controls_at - now - CONTROLS_BURST / CONTROLS_PER_S
        if wait_s > 0:
            await trio.sleep(wait_s)

    async def _wait_turn(self) -> None:
        self._admitted = False
        await self._turn()
        self._admitted = True

    def _push_now(self, data: bytes) -> bool:
        """Write while nothing is pending; return whether something is pending then."""
        self.transport.push(data)
        self.written_at = trio.current_time()
        return self.transport.pending
