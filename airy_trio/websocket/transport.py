"""Where bytes leave for one peer, and come from it: the seam under which a socket, any Trio stream or memory stands.

Two things are known here and nowhere above: what the peer has not taken yet, and how to wait until it takes more.
What the bytes mean, who may write them, and for how long one waits is the stream's.
"""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

_NOTSENT_LOWAT_BYTES: Final = 16 * 1024
_LINGER_NONE: Final = struct.pack("ii", 1, 0)
_NOTHING: Final = memoryview(b"")


class HandshakeError(trio.BrokenResourceError):
    """The peer does not speak as this transport needs it to. The message is plain words, with nothing of the peer's."""


class Transport(Protocol):
    """A way out that never takes half of what it is given: what the peer does not take at once is *pending*.

    Errors are ``trio.BrokenResourceError`` (the peer is gone) and ``trio.ClosedResourceError`` (we closed it). After
    ``drain`` was cancelled a transport goes on where it stopped, or is broken if it cannot.
    """

    async def handshake(self) -> None:
        """Agree with the peer on how octets are sent; before anything else. Raises ``HandshakeError``."""
        ...

    @property
    def pending(self) -> bool:
        """Whether something that was taken has not left yet."""
        ...

    def offer(self, data: bytes) -> bool:
        """Take all of ``data``, or nothing and say False; never waits. Refuses while something is pending."""
        ...

    def push(self, data: bytes) -> None:
        """Take all of ``data`` in any case; never waits. Nothing may be pending."""
        ...

    async def drain(self) -> None:
        """Return when some more of what is pending has left; at once where nothing is."""
        ...

    async def receive_some(self, bytes_max: int) -> bytes:
        """The next bytes of the peer, at least one; none at the end of its stream."""
        ...

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes, where the medium can; it can still be read."""
        ...

    async def aclose(self) -> None:
        """Close in order: what the peer has not taken yet may still arrive. Idempotent."""
        ...

    async def abort(self) -> None:
        """Close at once: drop what has not left, and let the kernel forget the peer. Idempotent."""
        ...


class SocketTransport:
    """A connected, non-blocking stream socket of the standard library, written to without a detour.

    Direct ``send`` costs a third of ``SocketStream.send_all``. Owns the socket.
    ``pending``, asked at each delivery, is kept beside what it tells of: a property would be a call.
    """

    __slots__ = ("_heard", "_rest", "_send", "_socket", "pending")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self._rest = _NOTHING
        self._heard = False  # who has connected has mostly sent its request by now: the first time it is just tried
        self.pending = False
        sock.settimeout(0)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Data waits here, where it can be batched, rather than in the kernel.
            lowat = getattr(trio.socket, "TCP_NOTSENT_LOWAT", None)
            if lowat is not None:
                with suppress(OSError):  # an old kernel: slower, not wrong
                    sock.setsockopt(socket.IPPROTO_TCP, lowat, _NOTSENT_LOWAT_BYTES)

    async def handshake(self) -> None:
        """See ``Transport.handshake``: there is nothing to agree on, and reading comes next, which waits."""

    def offer(self, data: bytes) -> bool:
        """See ``Transport.offer``. Each delivery comes through here: the call of ``_try_send`` is spared."""
        if self.pending:
            return False
        try:
            sent = self._send(data)
        except BlockingIOError:
            return not data
        except OSError as error:
            raise self._fault_of(error) from error
        if sent < len(data):
            self._keep(memoryview(data)[sent:])
        return True

    def push(self, data: bytes) -> None:
        """See ``Transport.push``."""
        if self.pending:
            message = "something is pending"
            raise RuntimeError(message)
        self._keep(memoryview(data)[self._try_send(data) :])

    async def drain(self) -> None:
        """See ``Transport.drain``."""
        while self.pending:
            self._check_open()
            await trio.lowlevel.wait_writable(self._socket)
            sent = self._try_send(self._rest)
            if sent:
                self._keep(self._rest[sent:])
                return

    async def receive_some(self, bytes_max: int) -> bytes:
        """See ``Transport.receive_some``."""
        while True:
            self._check_open()
            if self._heard:
                await trio.lowlevel.wait_readable(self._socket)
            self._heard = True
            try:
                return self._socket.recv(bytes_max)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def send_eof(self) -> None:
        """See ``Transport.send_eof``."""
        self._check_open()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See ``Transport.aclose``."""
        self._close()
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """See ``Transport.abort``. With linger 0 the kernel drops its buffer and resets the peer."""
        if self._socket.fileno() != -1:
            with suppress(OSError):  # the peer was faster: there is nothing left to reset
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._close()
        await trio.lowlevel.checkpoint()

    def _keep(self, rest: memoryview) -> None:
        self.pending = len(rest) > 0
        self._rest = rest if self.pending else _NOTHING  # an empty view would still hold all of its run

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._fault_of(error) from error

    def _fault_of(self, error: OSError) -> Exception:
        """What is raised instead of an error of the socket: whether the peer broke it, or we closed it."""
        if self._socket.fileno() == -1:
            return trio.ClosedResourceError("the socket is closed")
        return trio.BrokenResourceError(str(error))

    def _check_open(self) -> None:
        if self._socket.fileno() == -1:
            message = "the socket is closed"
            raise trio.ClosedResourceError(message)

    def _close(self) -> None:
        self._keep(_NOTHING)
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
