"""A transport in memory, whose peer takes only what a test lets it take. It fits ``websocket.transport.Transport``.

A transport over any Trio stream, such as those in memory. It fits ``websocket.transport.Transport``.
"""

from random import Random
from typing import Final

import trio

CHUNK_BYTES: Final = 16 * 1024
"""What is written at once, and waited for."""


class StreamTransport:
    """Any Trio stream. It can only be written to by waiting, so whatever is offered is pending first.

    A stream whose ``send_all`` was cancelled may have sent any part: it is broken from then on. Owns the stream.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._rest: memoryview | None = None
        self._broken = False

    async def handshake(self) -> None:
        """See ``Transport.handshake``: there is nothing to agree on."""
        await trio.lowlevel.checkpoint()

    @property
    def pending(self) -> bool:
        """See ``Transport.pending``."""
        return self._rest is not None

    def offer(self, data: bytes) -> bool:
        """See ``Transport.offer``."""
        if self._rest is not None:
            return False
        self.push(data)
        return True

    def push(self, data: bytes) -> None:
        """See ``Transport.push``."""
        if self._rest is not None:
            message = "something is pending"
            raise RuntimeError(message)
        if data:
            self._rest = memoryview(data)

    async def drain(self) -> None:
        """See ``Transport.drain``."""
        if self._rest is None:
            return
        if self._broken:
            message = "a write was cut off in its middle"
            raise trio.BrokenResourceError(message)
        self._broken = True
        await self._stream.send_all(self._rest[:CHUNK_BYTES])
        self._broken = False
        self._rest = self._rest[CHUNK_BYTES:] if len(self._rest) > CHUNK_BYTES else None

    async def receive_some(self, bytes_max: int) -> bytes:
        """See ``Transport.receive_some``."""
        return bytes(await self._stream.receive_some(bytes_max))

    async def send_eof(self) -> None:
        """See ``Transport.send_eof``."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        else:
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See ``Transport.aclose``."""
        await self._stream.aclose()

    async def abort(self) -> None:
        """See ``Transport.abort``."""
        await trio.aclose_forcefully(self._stream)


class MemoryTransport:
    """Bytes that left, for a test to take.

    ``capacity_bytes``: how many may stand between the two, as in a kernel's buffers; None: any number. ``moods``: a
    source of chance that makes ``offer`` refuse, or the buffer take only a part, every now and then.
    """

    def __init__(
        self, capacity_bytes: int | None = None, *, moods: Random | None = None, moody_share: float = 0.15
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.offers_refused = 0
        self.aborted = self.closed = self.ended = False
        self._moods = moods
        self._moody_share = moody_share
        self._left = bytearray()
        self._rest = b""
        self._room = trio.Event()
        self._to_read, self._from_peer = trio.open_memory_channel[bytes](1000)

    async def handshake(self) -> None:
        """There is nothing to agree on."""
        await trio.lowlevel.checkpoint()

    @property
    def pending(self) -> bool:
        """Whether something that was taken has not left yet."""
        return bool(self._rest)

    def offer(self, data: bytes) -> bool:
        """Take all of ``data``, or nothing and say False."""
        self._check()
        if self._rest or self._moody() or (data and not self._free()):
            self.offers_refused += 1
            return False
        self._take(data)
        return True

    def push(self, data: bytes) -> None:
        """Take all of ``data`` in any case."""
        self._check()
        if self._rest:
            message = "something is pending"
            raise RuntimeError(message)
        self._take(data)

    async def drain(self) -> None:
        """Return when some more of what is pending has left."""
        while self._rest:
            self._check()
            if self._free():
                self._take(self._rest)
                await trio.lowlevel.checkpoint()
                return
            self._room = trio.Event()
            await self._room.wait()

    async def receive_some(self, bytes_max: int) -> bytes:
        """Give what the peer sent; nothing at its end. ``bytes_max`` is not looked at."""
        del bytes_max
        try:
            return await self._from_peer.receive()
        except trio.EndOfChannel:
            return b""

    async def send_eof(self) -> None:
        """Note that nothing more comes."""
        self.ended = True
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close in order."""
        self.closed = True
        self._from_peer.close()
        self._room.set()
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Close at once."""
        self.aborted = True
        await self.aclose()

    def take(self, bytes_max: int | None = None) -> bytes:
        """For the peer: take what has left, at most so many bytes, and make room for more."""
        size = len(self._left) if bytes_max is None else bytes_max
        taken = bytes(self._left[:size])
        del self._left[:size]
        self._room.set()
        return taken

    def feed(self, data: bytes) -> None:
        """For the peer: send."""
        self._to_read.send_nowait(data)

    def feed_eof(self) -> None:
        """For the peer: end its stream."""
        self._to_read.close()

    def _take(self, data: bytes) -> None:
        size = min(len(data), self._free())
        if size > 1 and self._moody() and self._moods is not None:
            size = self._moods.randrange(1, size)
        self._left += data[:size]
        self._rest = data[size:]

    def _free(self) -> int:
        return 2**62 if self.capacity_bytes is None else max(0, self.capacity_bytes - len(self._left))

    def _moody(self) -> bool:
        return self._moods is not None and self._moods.random() < self._moody_share

    def _check(self) -> None:
        if self.closed:
            message = "the transport is closed"
            raise trio.ClosedResourceError(message)
