"""Options of different sections that do not go together; those of one section are in ``bounds``."""

from collections.abc import Iterator
from typing import Final, Protocol

from airy_trio.admin.server import AdminOptions
from airy_trio.log.options import LogOptions
from airy_trio.websocket.listener import ListenerOptions

PORT_MAX: Final = 65535


class Sections(Protocol):
    """As much of the settings as is looked at here."""

    @property
    def log(self) -> LogOptions:
        """``[log]``."""
        ...

    @property
    def listener(self) -> ListenerOptions:
        """``[listener]``."""
        ...

    @property
    def admin(self) -> AdminOptions:
        """``[admin]``."""
        ...


def contradictions(settings: Sections) -> Iterator[str]:
    """Give a line for each pair, with the path of both options."""
    workers, port, last = settings.listener.workers, settings.admin.port, settings.listener.processes - 1
    if workers == 1:
        return
    if settings.log.store == "memory":
        yield f'listener.workers is {workers}, but log.store is "memory", which one process alone can have'
    if port and port + last > PORT_MAX:
        yield f"listener.workers is {workers}, but admin.port + {last}, of the process that records, is no port"
    if port and port <= settings.listener.port <= port + last:
        yield (
            f"listener.port is {settings.listener.port}, but admin.port to admin.port + {last} are the admin ports of "
            f"the {workers} of listener.workers and of the process that records"
        )
