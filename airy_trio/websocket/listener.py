"""The listening socket and the accept loop: every connection becomes a session; nothing ends the loop but its scope.

A plain socket of the standard library, because its connections are written to directly (``outlet``). Running out of
file descriptors pauses accepting, it does not end it.
"""

import errno
import socket
from typing import Final

import structlog
import trio
from attrs import field, frozen

from airy_trio.errors import StartError
from airy_trio.options import at_least, between
from airy_trio.websocket.outlet import SocketOutlet
from airy_trio.websocket.session import SessionOptions, Sessions

logger = structlog.get_logger(__name__)

ACCEPTS_PER_TURN: Final = 32
BACKLOG: Final = 1024
EXHAUSTED_PAUSE_S: Final = 0.1
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@frozen(kw_only=True)
class ListenerOptions(SessionOptions):
    """Where clients connect and what each may do (settings, ``[listener]``).

    ``port`` 0: any free one. ``message_bytes_max``: the body of one outgoing MESSAGE, for who encodes events.
    """

    host: str = "127.0.0.1"
    port: int = field(default=8080, validator=between(0, 65535))
    message_bytes_max: int = field(default=61_440, validator=at_least(1024))
    drain_s: float = field(default=10, validator=at_least(0))


async def open_listening_socket(options: ListenerOptions) -> socket.socket:
    """Bind and listen on the first address of the host; the caller owns the socket. Raises ``StartError``."""
    try:
        found = await trio.socket.getaddrinfo(
            options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError([f"listener.host: cannot use {options.host!r}: {error.strerror or error}"]) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.settimeout(0)
    except OSError as error:
        sock.close()
        where = f"{options.host}:{options.port}"
        raise StartError([f"listener: cannot listen on {where}: {error.strerror or error}"]) from error
    return sock


async def accept(listening: socket.socket, sessions: Sessions, connections: trio.Nursery) -> None:
    """Start a session in ``connections`` for everybody who connects, for ever."""
    while True:
        await trio.lowlevel.wait_readable(listening)
        if not _accept_some(listening, sessions, connections):
            await trio.sleep(EXHAUSTED_PAUSE_S)


def _accept_some(listening: socket.socket, sessions: Sessions, connections: trio.Nursery) -> bool:
    """Accept who is waiting, up to ``ACCEPTS_PER_TURN``; False where the process or the machine is out of something."""
    for _ in range(ACCEPTS_PER_TURN):
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in _EXHAUSTED:
                logger.warning("cannot accept connections", reason=error.strerror)
                return False
            logger.debug("connection lost before it was accepted", reason=error.strerror)
            continue
        try:
            outlet = SocketOutlet(sock)
        except OSError as error:  # reset meanwhile; some systems say so here
            sock.close()
            logger.debug("connection lost as it was accepted", reason=error.strerror)
            continue
        connections.start_soon(sessions.serve, connections, outlet, str(address[0]) if address else None)
    return True
