"""The listening socket and the accept loop: every connection becomes a session.

Clients never get the last file descriptors of the process (``within_files``): during a connection flood the databases
and the admin port still need theirs. If descriptors run out all the same, accepting pauses. An error of the listening
socket itself ends the server, because it would never accept again.
"""

import errno
import math
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

import structlog
import trio
from attrs import evolve, field, frozen

from airy_trio.errors import AiryTrioError, StartError
from airy_trio.options import PORT_MAX, at_least, between, matching
from airy_trio.retry import Backoff, Outage
from airy_trio.sessions.conversation import SessionOptions
from airy_trio.sessions.session import LINGER_S, Sessions, accept_request, read_to_end
from airy_trio.websocket.admission import is_loopback
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.request import Request, RequestRefusedError
from airy_trio.websocket.stream import FramedStream, InputEnded
from airy_trio.websocket.tls import Encryption, TlsTransport
from airy_trio.websocket.transport import SocketTransport, Transport

logger = structlog.get_logger(__name__)

# A session takes about 0.3 ms to begin, and other tasks wait for the same pass of the event loop.
ACCEPTS_PER_TURN: Final = 8
BACKLOG: Final = 1024
WORKERS_MAX: Final = 256
EXHAUSTED_PAUSE_S: Final = 0.1
# The system breaks a connection if its peer shows no sign of life for this long, neither to data nor to a probe.
VANISHED_AFTER_S: Final = 120
# The longest timeout that the operating system accepts: its milliseconds have 31 bits.
PATIENCE_S_MAX: Final = 24 * 60 * 60
# Between two probes of a peer that sends nothing, by the system.
PROBE_EVERY_S: Final = 30
# Unsent data that the kernel accepts for each connection. More waits in the server, where it can still be batched.
UNSENT_BYTES_MAX: Final = 16 * 1024
# A shortage of descriptors or memory is over when it was not met for this long.
SHORTAGE_OVER_S: Final = 5.0
# Rejections answered concurrently, each for up to LINGER_S; further connections are closed without a response.
REJECTIONS_MAX: Final = 256
# File descriptors that clients never get: two pools of connections to databases, with SQLite two or three files for
# each connection (up to 50), the admin port (32), other sockets, and the connections accepted in one turn.
FILES_RESERVED: Final = 96
# If the limit is hardly above the reserve, clients get one descriptor in four.
_FILES_SHARE: Final = 4
# Of the descriptors for clients, one in eight is reserved for the responses to rejected connections.
_REJECTIONS_SHARE: Final = 8
# The address of all rejected connections in the fair queue: together they get the share of one address.
_REJECTED: Final = "rejected"
_FILE: Final = matching(r"(?!-----)[^\x00-\x1f\x7f]*", 'the name of a file, or ""')
_PERMANENT: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT})
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@frozen(kw_only=True)
class ListenerOptions(SessionOptions):
    """Where clients connect, and their limits (settings, ``[listener]``).

    ``port`` 0: any free one. ``message_bytes_max``: bounds the body of a MESSAGE when events are encoded.
    ``tls_certificate``, ``tls_key``: files; both empty: no TLS. ``workers``: above 1, the port is shared by as many
    processes (``app.supervisor``).
    """

    port: int = field(default=8080, validator=between(0, PORT_MAX))
    message_bytes_max: int = field(default=61_440, validator=at_least(1024))
    drain_s: float = field(default=10, validator=at_least(0))
    tls_certificate: str = field(default="", validator=_FILE)
    tls_key: str = field(default="", repr=False, validator=_FILE)  # the key itself may be put there by mistake
    workers: int = field(default=1, validator=between(1, WORKERS_MAX))

    def contradictions(self) -> Iterator[str]:
        """Yield a line for options that contradict each other."""
        if bool(self.tls_certificate) != bool(self.tls_key):
            yield f"only {'tls_certificate' if self.tls_certificate else 'tls_key'} is set, but TLS needs both"

    @property
    def recorder(self) -> int | None:
        """The number of the process that only records, for several workers; None: there is none."""
        return self.workers if self.workers > 1 else None

    @property
    def processes(self) -> int:
        """The number of workers and recorder together; they are numbered from 0."""
        return self.workers if self.recorder is None else self.workers + 1


@frozen(kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    path: str
    tls: bool = False

    @property
    def url(self) -> str:
        """The WebSocket URL for a client on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.tls else 'ws'}://{host}:{self.port}{self.path}"


class BrokenListenerError(AiryTrioError):
    """The listening socket is broken."""


def within_files(options: ListenerOptions) -> ListenerOptions:
    """Lower ``connections_max`` to fit the limit of open files; log a warning if it is lowered."""
    room = _descriptors_for_clients()
    fitting = room - _rejections_max(room)
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


def _rejections_max(room: int) -> int:
    return min(REJECTIONS_MAX, room // _REJECTIONS_SHARE)


async def open_listening_socket(options: ListenerOptions) -> socket.socket:
    """Bind and listen on the first address of the host; the caller owns the socket. Raises ``StartError``."""
    try:
        found = await trio.socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError([f"listener.host: cannot use {options.host!r}: {error.strerror or error}"]) from error
    try:
        # Without this option, connections that a former server has closed (TIME_WAIT) would keep the port for a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_for_connections(sock, options.send_timeout_s)
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


def _set_for_connections(sock: socket.socket, send_timeout_s: float) -> None:
    """Set the options that accepted sockets inherit.

    Three system calls for each connection would take as long as parsing its request. A peer that merely does not read
    is left to ``send_timeout_s``, even if that is longer than ``VANISHED_AFTER_S``.
    """
    # The system probes only a connection that has nothing unacknowledged. If data is unacknowledged, TCP_USER_TIMEOUT
    # decides. It also breaks a connection whose peer keeps its window closed, so it must not be shorter than
    # `send_timeout_s`.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The fan-out already writes as much at once as there is. Nagle's algorithm would only make an event that closely
    # follows another one wait for an ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    patience_s = max(VANISHED_AFTER_S, math.ceil(min(send_timeout_s, PATIENCE_S_MAX)))
    for name, value in (
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES_MAX),
        ("TCP_KEEPIDLE", PROBE_EVERY_S),
        ("TCP_KEEPINTVL", PROBE_EVERY_S),
        ("TCP_KEEPCNT", VANISHED_AFTER_S // PROBE_EVERY_S),
        ("TCP_USER_TIMEOUT", patience_s * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # a system may know the name but not support the option
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def accept(
    listening: socket.socket, sessions: Sessions, connections: trio.Nursery, encryption: Encryption | None = None
) -> None:
    """Start a session in ``connections`` for each connection, over TLS if ``encryption`` is given.

    Runs until cancelled. Raises ``BrokenListenerError``.
    """
    acceptor = _Acceptor(listening, sessions, connections, encryption)
    # At the limit each client that leaves lets one other in. So a shortage is over when it was not met for a while.
    shortage = Outage(logger, "cannot accept connections", backoff=Backoff(EXHAUSTED_PAUSE_S, EXHAUSTED_PAUSE_S))
    over_at = math.inf
    while True:
        # A checkpoint for each group of connections, even if more are waiting, so that other tasks run in between.
        with trio.move_on_at(over_at) as over:
            await trio.lowlevel.wait_readable(listening)
        if shortage.since is not None and trio.current_time() >= over_at:
            lasted_s = over_at - SHORTAGE_OVER_S - shortage.since
            logger.info("connections are accepted again", lasted_s=round(lasted_s, 1))
            shortage.end()
            over_at = math.inf
        out_of = None if over.cancelled_caught else acceptor.accept_some()
        if out_of is not None:
            over_at = trio.current_time() + SHORTAGE_OVER_S
            # The connection that could not be accepted stays in the backlog and keeps the socket readable, so without
            # this pause the loop would spin.
            await trio.sleep(shortage.begin(out_of))


class _Acceptor:
    """Starts a session for each connection that is admitted, and rejects the others: there are too many."""

    def __init__(
        self, listening: socket.socket, sessions: Sessions, connections: trio.Nursery, encryption: Encryption | None
    ) -> None:
        self._listening = listening
        self._loopback = is_loopback(str(listening.getsockname()[0]))
        self._sessions = sessions
        self._connections = connections
        self._encryption = encryption
        self._rejecting = 0
        self._rejections_max = _rejections_max(_descriptors_for_clients())

    def accept_some(self) -> str | None:
        """Accept up to ``ACCEPTS_PER_TURN`` connections; return which resource is exhausted, if one is."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listening.accept()
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
            self._accepted(SocketTransport(sock), str(address[0]))
        return None

    def _accepted(self, transport: SocketTransport, peer: str) -> None:
        admission = self._sessions.admission
        try:
            slot = admission.arrive(peer, loopback=self._loopback)
        except RequestRefusedError as refused:
            # Trio runs each new task up to its first checkpoint, even if it is cancelled before. So two `finally`
            # always run: that of `_reject`, which counts this down, and that of `Sessions.serve`, which releases the
            # slot.
            self._rejecting += 1
            answered = refused if self._rejecting <= self._rejections_max else None
            handshake_turn = partial(admission.handshakes.enter, _REJECTED)
            turn = partial(admission.fair_queue.enter, _REJECTED)
            self._connections.start_soon(self._reject, self._encrypted(transport, handshake_turn), answered, turn)
        else:
            encrypted = self._encrypted(transport, slot.handshake_turn)
            self._connections.start_soon(self._sessions.serve, encrypted, slot)

    def _encrypted(self, transport: SocketTransport, turn: Turn) -> Transport:
        return transport if self._encryption is None else TlsTransport(transport, self._encryption.context, turn)

    async def _reject(self, transport: Transport, refused: RequestRefusedError | None, turn: Turn) -> None:
        """Answer the request, if it is to be answered, read the peer's input to its end, and close."""
        try:
            if refused is not None:
                with trio.move_on_after(LINGER_S):
                    await self._refuse(transport, refused, turn)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("connection lost while it was rejected")
        except Exception:  # it would end the nursery of all sessions
            logger.exception("a connection could not be rejected")
        finally:
            self._rejecting -= 1
            with trio.move_on_after(LINGER_S, shield=True):
                await transport.abort()

    async def _refuse(self, transport: Transport, refused: RequestRefusedError, turn: Turn) -> None:
        def examine(_request: Request, host: str, origin: str | None) -> NoReturn:
            # If this check raises, the client gets `refused` as well, but without the headers that let a page read it.
            self._sessions.admission.rules.check(host, origin, loopback=self._loopback)
            raise refused

        await transport.handshake()
        stream = FramedStream(transport, send_timeout_s=LINGER_S, turn=turn)
        try:
            await accept_request(stream, self._sessions.services.options, examine, refused)
        except RequestRefusedError:
            pass  # the refusal was written
        except InputEnded:  # before the request was complete
            await stream.write(refused.answer())
        await transport.send_eof()
        await read_to_end(transport, turn)
