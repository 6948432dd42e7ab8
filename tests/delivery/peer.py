"""The peer's end of a transport in memory, as a stream for a client that reads slowly."""

from random import Random

import trio

from tests.memory_transport import MemoryTransport

POLL_S = 0.01


class PeerStream(trio.abc.Stream):
    """Takes at most ``bytes_max`` bytes every ``pause_s`` seconds."""

    def __init__(self, transport: MemoryTransport, chance: Random, *, bytes_max: int, pause_s: float) -> None:
        self._transport = transport
        self._chance = chance
        self._bytes_max = bytes_max
        self._pause_s = pause_s
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed or self._transport.closed:
            raise trio.BrokenResourceError
        self._transport.feed(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep(self._chance.uniform(0, self._pause_s))
        size = self._chance.randint(1, min(self._bytes_max, max_bytes or self._bytes_max))
        while not (data := self._transport.take(size)):
            if self._transport.closed or self._transport.ended:
                return b""
            await trio.sleep(POLL_S)  # in the time of the autojump clock
        return data

    async def aclose(self) -> None:
        if not self._closed:  # before the checkpoint: a forced close is cancelled there
            self._closed = True
            self._transport.capacity_bytes = None  # data for a closed peer vanishes
            self._transport.take()
            self._transport.feed_eof()
        await trio.lowlevel.checkpoint()
