"""An outlet over any Trio stream, such as those in memory. It fits ``websocket.outlet.Outlet``."""

from typing import Final

import trio

CHUNK_BYTES: Final = 16 * 1024
"""What is written at once, and waited for."""


class StreamOutlet:
    """Any Trio stream. It can only be written to by waiting, so whatever is offered is pending first.

    A stream whose ``send_all`` was cancelled may have sent any part: it is broken from then on. Owns the stream.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._rest: memoryview | None = None
        self._broken = False

    async def handshake(self) -> None:
        """See ``Outlet.handshake``: there is nothing to agree on."""
        await trio.lowlevel.checkpoint()

    @property
    def pending(self) -> bool:
        """See ``Outlet.pending``."""
        return self._rest is not None

    def offer(self, data: bytes) -> bool:
        """See ``Outlet.offer``."""
        if self._rest is not None:
            return False
        self.push(data)
        return True

    def push(self, data: bytes) -> None:
        """See ``Outlet.push``."""
        if self._rest is not None:
            message = "something is pending"
            raise RuntimeError(message)
        if data:
            self._rest = memoryview(data)

    async def drain(self) -> None:
        """See ``Outlet.drain``."""
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
        """See ``Outlet.receive_some``."""
        return bytes(await self._stream.receive_some(bytes_max))

    async def send_eof(self) -> None:
        """See ``Outlet.send_eof``."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        else:
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See ``Outlet.aclose``."""
        await self._stream.aclose()

    async def abort(self) -> None:
        """See ``Outlet.abort``."""
        await trio.aclose_forcefully(self._stream)
