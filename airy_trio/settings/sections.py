"""Options of different sections that do not go together; those of one section are in ``bounds``."""

from collections.abc import Iterator
from typing import Final, Protocol

from airy_trio.admin.server import AdminOptions
from airy_trio.log.eventlog import LogOptions
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
    workers, port = settings.listener.workers, settings.admin.port
    if workers == 1:
        return
    if settings.log.store == "memory":
        yield f'listener.workers is {workers}, but log.store is "memory", which one process alone can have'
    if port and port + workers - 1 > PORT_MAX:
        yield f"listener.workers is {workers}, but admin.port + {workers - 1}, of the last one, is no port"
    if port and port <= settings.listener.port < port + workers:
        yield (
            f"listener.port is {settings.listener.port}, but admin.port to admin.port + {workers - 1} are the admin "
            f"ports of the {workers} of listener.workers"
        )
