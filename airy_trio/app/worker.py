"""One of the server processes of a command: what its parent tells it, on its command line and on a socket pair.

Refuses to know how the processes are started and started again.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from attrs import evolve, frozen

from airy_trio.app.serving import Address
from airy_trio.errors import SettingsError
from airy_trio.log.deference import Deference
from airy_trio.settings import Settings

logger = structlog.get_logger(__name__)

RECORDER: Final = "recorder"
"""What logs call the process that records, where they have the number of a worker."""
LISTENING: Final = b"."
"""The worker's word: it listens; of the process that records, that it has started."""
RECORDED: Final = b"+"
"""The parent's word: the process that records is there."""
UNRECORDED: Final = b"-"
"""The parent's word: it is not."""


@frozen(kw_only=True)
class Worker:
    """What one worker is told on its command line, as ``NUMBER:PORT:DESCRIPTOR``.

    ``number``: from 0. ``port``: the shared one. ``descriptor``: of its end of the socket pair.
    """

    number: int
    port: int
    descriptor: int

    def __str__(self) -> str:
        return f"{self.number}:{self.port}:{self.descriptor}"

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """The same, read. Raises ``ValueError``."""
        number, port, descriptor = map(int, text.split(":"))
        return cls(number=number, port=port, descriptor=descriptor)

    def settings(self, settings: Settings) -> Settings:
        """The settings of this worker: the shared port; only who records migrates, and needs no tail for anybody."""
        records = self.number == settings.listener.recorder
        return evolve(
            settings,
            listener=evolve(settings.listener, port=self.port),
            database=evolve(settings.database, migrate=settings.database.migrate and records),
            log=evolve(settings.log, tail_events=1) if records else settings.log,
        )

    def parent(self, deference: Deference) -> Callable[[Address], Awaitable[None]]:
        """What runs beside the server: it tells the parent that it listens, and returns when the parent is gone.

        What it hears of the process that records it tells ``deference``.
        """
        ours = socket.socket(fileno=self.descriptor)

        async def stay(_address: Address) -> None:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                try:
                    await stream.send_all(LISTENING)
                    while word := await stream.receive_some(1):
                        (deference.ask if word == RECORDED else deference.withdraw)()
                except trio.BrokenResourceError:
                    pass  # it went while this server started
            logger.warning("the parent process is gone: stopping")

        return stay


def worker_of(text: str) -> Worker:
    """The worker that a command line tells of. Raises ``SettingsError``: nobody but the parent writes that option."""
    try:
        return Worker.parse(text)
    except ValueError:
        raise SettingsError(["--worker is for the processes that the server starts by itself"]) from None
