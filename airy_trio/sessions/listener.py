"""The listening socket and the accept loop: every connection becomes a session.

A plain socket of the standard library, because ``SocketTransport`` writes to it directly. Clients never get
the last file descriptors of the process (``within_files``): databases and the admin port need theirs when a crowd of
clients has come. If descriptors run out all the same, accepting pauses. An error of the listening socket itself ends
the server: it would never accept again.
"""

import errno
import math
import resource
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio
from attrs import evolve, field, frozen

from airy_trio.errors import AiryTrioError, StartError
from airy_trio.options import at_least, between, matching
from airy_trio.sessions.closing import LINGER_S, read_to_end
from airy_trio.sessions.registry import Sessions
from airy_trio.sessions.session import SessionOptions
from airy_trio.websocket.admission import is_loopback
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.request import RequestRefusedError
from airy_trio.websocket.tls import Encryption, TlsTransport
from airy_trio.websocket.transport import SocketTransport, Transport

logger = structlog.get_logger(__name__)

ACCEPTS_PER_TURN: Final = 8
"""A session costs some 0.3 ms to begin, and in the same turn of the event loop others wait for theirs."""
BACKLOG: Final = 1024
WORKERS_MAX: Final = 256
EXHAUSTED_PAUSE_S: Final = 0.1
VANISHED_AFTER_S: Final = 120
"""How long the system may get no sign of a peer, to data or to a probe, before the connection is broken."""
PATIENCE_S_MAX: Final = 24 * 60 * 60
"""The longest time-out that the operating system takes: its milliseconds have 31 bits."""
PROBE_EVERY_S: Final = 30
"""Between two probes of a peer that sends nothing, by the system."""
SHORTAGE_OVER_S: Final = 5.0
"""Without another one a shortage of descriptors or memory is over."""
TURNING_AWAY_MAX: Final = 256
"""Refusals answered at once, each for up to ``LINGER_S``; further connections are closed without an answer."""
FILES_RESERVED: Final = 96
"""File descriptors that clients never get: two pools of connections to databases, with SQLite two or three files for
each connection (up to 50), the admin port (32), sockets of our own and what is accepted in one turn."""
_FILES_SHARE: Final = 4
"""Of a limit that is hardly above the reserve, clients get one part in so many."""
_ANSWERS_SHARE: Final = 8
"""Of the descriptors for clients, one in so many is kept for answers to refused connections."""
_TURNED_AWAY: Final = "turned away"
"""Who all of them are at the fair queue: together they get what one address gets."""
_SESSION: Final = "session"
"""The name of its task, made once, where Trio would make one for each."""
_FILE: Final = matching(r"(?!-----)[^\x00-\x1f\x7f]*", 'the name of a file, or ""')
_PERMANENT: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT})
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@frozen(kw_only=True)
class ListenerOptions(SessionOptions):
    """Where clients connect and what each may do (settings, ``[listener]``).

    ``port`` 0: any free one. ``message_bytes_max``: the body of one outgoing MESSAGE, for who encodes events.
    ``tls_certificate``, ``tls_key``: files (``certificate``); both empty: no TLS.
    ``workers``: above 1 the port can be shared, with as many processes as one starts (``app.workers``).
    """

    port: int = field(default=8080, validator=between(0, 65535))
    message_bytes_max: int = field(default=61_440, validator=at_least(1024))
    drain_s: float = field(default=10, validator=at_least(0))
    tls_certificate: str = field(default="", validator=_FILE)
    tls_key: str = field(default="", validator=_FILE)
    workers: int = field(default=1, validator=between(1, WORKERS_MAX))

    @property
    def recorder(self) -> int | None:
        """The number of the process that records for several workers and serves nobody; None: there is none."""
        return self.workers if self.workers > 1 else None

    @property
    def processes(self) -> int:
        """How many there are of workers and recorder together, whose numbers start at 0."""
        return self.workers if self.recorder is None else self.workers + 1


class BrokenListenerError(AiryTrioError):
    """The listening socket cannot accept any more."""


def within_files(options: ListenerOptions) -> ListenerOptions:
    """Lower ``connections_max`` to what the limit of open files leaves room for; log a warning if it is lowered."""
    room = _descriptors_for_clients()
    fitting = room - _answers_max(room)
    if options.connections_max <= fitting:
        return options
    logger.warning(
        "fewer connections than listener.connections_max fit; raise the limit of open files",
        connections_max=options.connections_max,
        fitting=fitting,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )
    return evolve(options, connections_max=fitting)


def _descriptors_for_clients() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files - FILES_RESERVED, files // _FILES_SHARE)


def _answers_max(room: int) -> int:
    return min(TURNING_AWAY_MAX, room // _ANSWERS_SHARE)


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
        _watch_for_vanished_peers(sock, options.send_timeout_s)
        if options.workers > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.settimeout(0)
    except OSError as error:
        sock.close()
        where = f"{options.host}:{options.port}"
        raise StartError([f"listener: cannot listen on {where}: {error.strerror or error}"]) from error
    return sock


def _watch_for_vanished_peers(sock: socket.socket, send_timeout_s: float) -> None:
    """Let the system break connections whose peer is gone; accepted sockets inherit this from the listening one.

    A peer that only reads nothing has ``send_timeout_s``, also where that is longer.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    patience_s = max(VANISHED_AFTER_S, math.ceil(min(send_timeout_s, PATIENCE_S_MAX)))
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_EVERY_S),
        ("TCP_KEEPINTVL", PROBE_EVERY_S),
        ("TCP_KEEPCNT", VANISHED_AFTER_S // PROBE_EVERY_S),
        ("TCP_USER_TIMEOUT", patience_s * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # a system that knows the name and not the option has its own times
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def accept(
    listening: socket.socket, sessions: Sessions, connections: trio.Nursery, encryption: Encryption | None = None
) -> None:
    """Start a session in ``connections`` for each connection, until cancelled; over TLS where there is encryption.

    Raises ``BrokenListenerError``.
    """
    loopback = is_loopback(str(listening.getsockname()[0]))
    reception = _Reception(sessions, connections, encryption, loopback=loopback)
    shortage = _Shortage()
    while True:
        with trio.move_on_at(shortage.over_at) as over:
            await trio.lowlevel.wait_readable(listening)
        shortage.look()
        out_of = None if over.cancelled_caught else _accept_some(listening, reception)
        if out_of is not None:
            shortage.met(out_of)
            await trio.sleep(EXHAUSTED_PAUSE_S)


def _accept_some(listening: socket.socket, reception: "_Reception") -> str | None:
    """Accept who is waiting, up to ``ACCEPTS_PER_TURN``; what the process or the machine is out of, if it is."""
    for _ in range(ACCEPTS_PER_TURN):
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _EXHAUSTED:
                return error.strerror or str(error)
            if error.errno in _PERMANENT:
                message = f"listener: the listening socket is broken: {error.strerror or error}"
                raise BrokenListenerError(message) from None
            logger.debug("connection lost before it was accepted", reason=error.strerror)
            continue
        try:
            transport = SocketTransport(sock)
        except OSError as error:  # reset meanwhile; some systems say so here
            sock.close()
            logger.debug("connection lost as it was accepted", reason=error.strerror)
            continue
        reception.receive(transport, str(address[0]))
    return None


class _Shortage:
    """Tells that connections cannot be accepted once when that begins, and once when it is over.

    It is over when it was not met for ``SHORTAGE_OVER_S``: at the limit each client that leaves lets one other in.
    ``over_at``: in Trio's time, where nothing more is met.
    """

    def __init__(self) -> None:
        self.over_at = math.inf
        self._began_at = self._met_at = 0.0

    def met(self, out_of: str) -> None:
        """Take note that nobody could be accepted."""
        self._met_at = trio.current_time()
        if math.isinf(self.over_at):
            self._began_at = self._met_at
            logger.warning("cannot accept connections", reason=out_of)
        self.over_at = self._met_at + SHORTAGE_OVER_S

    def look(self) -> None:
        """Tell where it is over."""
        if trio.current_time() >= self.over_at:
            self.over_at = math.inf
            logger.info("connections are accepted again", lasted_s=round(self._met_at - self._began_at, 1))


class _Reception:
    """Starts a session for who is let in, and tells the others that there are too many."""

    def __init__(
        self, sessions: Sessions, connections: trio.Nursery, encryption: Encryption | None, *, loopback: bool
    ) -> None:
        self._sessions = sessions
        self._connections = connections
        self._encryption = encryption
        self._loopback = loopback
        self._turning_away = 0
        self._answers_max = _answers_max(_descriptors_for_clients())

    def receive(self, transport: SocketTransport, peer: str) -> None:
        """Take over the transport of somebody who has connected."""
        try:
            visitor = self._sessions.admission.arrive(peer, loopback=self._loopback)
        except RequestRefusedError as refused:
            self._turning_away += 1
            answer = refused.answer if self._turning_away <= self._answers_max else b""
            step = partial(self._sessions.admission.handshakes.enter, _TURNED_AWAY)
            turn = partial(self._sessions.fair_queue.enter, _TURNED_AWAY)
            self._connections.start_soon(self._turn_away, self._encrypted(transport, step), answer, turn)
        else:
            encrypted = self._encrypted(transport, visitor.handshake_turn)
            self._connections.start_soon(self._sessions.serve, self._connections, encrypted, visitor, name=_SESSION)

    def _encrypted(self, transport: SocketTransport, turn: Turn) -> Transport:
        return transport if self._encryption is None else TlsTransport(transport, self._encryption.context, turn)

    async def _turn_away(self, transport: Transport, answer: bytes, turn: Turn) -> None:
        """Write an answer and close, after reading what the peer has sent."""
        try:
            if answer:
                with trio.move_on_after(LINGER_S):
                    await transport.handshake()
                    transport.push(answer)
                    await transport.send_eof()
                    await read_to_end(transport, turn)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("connection lost as it was turned away")
        except Exception:  # beyond this the nursery of all sessions would end
            logger.exception("a connection could not be turned away")
        finally:
            self._turning_away -= 1
            with trio.move_on_after(LINGER_S, shield=True):
                await transport.abort()
