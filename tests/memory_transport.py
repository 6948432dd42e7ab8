"""Transports for tests, which implement ``airy_trio.websocket.transport.Transport``.

``MemoryTransport`` is in memory; a test decides how much its peer reads. ``StreamTransport`` wraps any Trio stream.
"""

from random import Random
from typing import Final

import trio

CHUNK_BYTES: Final = 16 * 1024
"""The most that one ``drain`` writes."""


class StreamTransport:
    """A transport over any Trio stream, which it owns.

    A Trio stream cannot be written to without waiting, so offered data is always pending first. If ``send_all`` was
    cancelled, any part may have been sent, so the transport is broken from then on.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._rest: memoryview | None = None
        self._broken = False

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def pending(self) -> bool:
        return self._rest is not None

    def offer(self, data: bytes) -> bool:
        if self._rest is not None:
            return False
        self.push(data)
        return True

    def push(self, data: bytes) -> None:
        if self._rest is not None:
            raise RuntimeError("data is pending")
        if data:
            self._rest = memoryview(data)

    async def drain(self) -> None:
        if self._rest is None:
            return
        if self._broken:
            raise trio.BrokenResourceError("an earlier write was cancelled")
        self._broken = True
        await self._stream.send_all(self._rest[:CHUNK_BYTES])
        self._broken = False
        self._rest = self._rest[CHUNK_BYTES:] if len(self._rest) > CHUNK_BYTES else None

    async def receive_some(self, bytes_max: int) -> bytes:
        return bytes(await self._stream.receive_some(bytes_max))

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        else:
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def abort(self) -> None:
        await trio.aclose_forcefully(self._stream)


class MemoryTransport:
    """A transport in memory. Written bytes are buffered until the peer, which is the test, takes them.

    ``capacity_bytes``: the size of the buffer, like a kernel's socket buffer; None: unlimited. With ``moods``, a random
    source, ``offer`` sometimes refuses, or the buffer accepts only a part, each with probability ``moody_share``.
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
        await trio.lowlevel.checkpoint()

    @property
    def pending(self) -> bool:
        return bool(self._rest)

    def offer(self, data: bytes) -> bool:
        self._check()
        if self._rest or self._moody() or (data and not self._free()):
            self.offers_refused += 1
            return False
        self._take(data)
        return True

    def push(self, data: bytes) -> None:
        self._check()
        if self._rest:
            raise RuntimeError("data is pending")
        self._take(data)

    async def drain(self) -> None:
        while self._rest:
            self._check()
            if self._free():
                self._take(self._rest)
                await trio.lowlevel.checkpoint()
                return
            self._room = trio.Event()
            await self._room.wait()

    async def receive_some(self, bytes_max: int) -> bytes:
        """Return what one ``feed`` sent; ``bytes_max`` is ignored."""
        del bytes_max
        try:
            return await self._from_peer.receive()
        except trio.EndOfChannel:
            return b""

    async def send_eof(self) -> None:
        self.ended = True
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True
        self._from_peer.close()
        self._room.set()
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        self.aborted = True
        await self.aclose()

    def take(self, bytes_max: int | None = None) -> bytes:
        """For the peer: read at most ``bytes_max`` bytes, by default all."""
        size = len(self._left) if bytes_max is None else bytes_max
        taken = bytes(self._left[:size])
        del self._left[:size]
        self._room.set()
        return taken

    def feed(self, data: bytes) -> None:
        """For the peer: send data."""
        self._to_read.send_nowait(data)

    def feed_eof(self) -> None:
        """For the peer: end the stream."""
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
            raise trio.ClosedResourceError("the transport is closed")
