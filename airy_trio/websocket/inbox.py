"""The messages of one client in their order: the next one, and those that came while it was not yet their turn.

Who waits for something else than the client, perhaps for long, listens meanwhile: a client that leaves is noticed
then, and not when the wait is over. Knows nothing of what the messages say.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio

Message = bytes | str

MESSAGE_BYTES: Final = 64
"""What one message counts beyond its own octets: many empty ones must not pass for nothing."""


class Inbox:
    """Reads ahead up to ``bytes_max``, about; then the client has to wait. ``receive`` gives the next message.

    It raises what ``receive`` raises, where the client has left. For one task.
    """

    __slots__ = (
        "_ahead",
        "_bytes",
        "_bytes_max",
        "_receive",
    )

    def __init__(self, receive: Callable[[], Awaitable[Message]], *, bytes_max: int) -> None:
        self._receive = receive
        self._bytes_max = bytes_max
        self._bytes = 0
        self._ahead: deque[Message] | None = None  # an empty deque takes 600 bytes, in each of many thousand sessions

    def next(self) -> Awaitable[Message]:
        """Give the next message, awaited. No coroutine of its own: every idle session waits here, and would keep it."""
        if self._ahead:
            return self._read_before(self._ahead)
        self._ahead = None
        return self._receive()

    async def listen(self, seconds: float) -> None:
        """Take what comes in this time, for ``next``; raise what tells that nothing more can come, at once."""
        if self._ahead is None:
            self._ahead = deque()
        with trio.move_on_after(seconds):
            while self._bytes < self._bytes_max:
                message = await self._receive()
                self._ahead.append(message)
                self._bytes += _size(message)
            await trio.sleep_forever()

    async def _read_before(self, ahead: deque[Message]) -> Message:
        await trio.lowlevel.checkpoint()
        message = ahead.popleft()
        self._bytes -= _size(message)
        return message


def _size(message: Message) -> int:
    return MESSAGE_BYTES + len(message)
