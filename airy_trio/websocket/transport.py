"""A two-way byte transport to one peer: the ``Transport`` protocol, and its implementation for sockets.

``FramedStream`` above it decides what is written, by which task, and how long a peer may accept nothing.
``TlsTransport`` is a transport over another transport.
"""
# ruff: noqa: D102 - the port documents each method

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

_LINGER_NONE: Final = struct.pack("ii", 1, 0)
_NOTHING: Final = memoryview(b"")


class HandshakeError(trio.BrokenResourceError):
    """The peer does not speak the protocol of this transport. The message repeats nothing that the peer sent."""


class Transport(Protocol):
    """A transport that accepts data whole or not at all. Accepted data that has not left yet is *pending*.

    Methods raise ``trio.BrokenResourceError`` if the peer is gone and ``trio.ClosedResourceError`` if this side closed
    the transport. After a cancelled ``drain`` it continues where it stopped, or is broken if it cannot.
    """

    async def handshake(self) -> None:
        """Negotiate with the peer, before anything else is called. Raises ``HandshakeError``."""
        ...

    @property
    def pending(self) -> bool:
        """Whether accepted data has not left yet."""
        ...

    def offer(self, data: bytes) -> bool:
        """Accept all of ``data``, or return False: always so while data is pending. Never waits."""
        ...

    def push(self, data: bytes) -> None:
        """Accept all of ``data`` even if the peer takes none of it. Never waits. Nothing may be pending."""
        ...

    async def drain(self) -> None:
        """Return when more of the pending data has left; at once if none is pending."""
        ...

    async def receive_some(self, bytes_max: int) -> bytes:
        """Return the next bytes of the peer; empty at the end of its stream."""
        ...

    async def send_eof(self) -> None:
        """Signal the end of our data, if the medium can. The peer can still be read."""
        ...

    async def aclose(self) -> None:
        """Close in order: data that has left may still arrive. Idempotent."""
        ...

    async def abort(self) -> None:
        """Close at once and drop all data that has not arrived, in the kernel too. Idempotent."""
        ...


class SocketTransport:
    """A connected stream socket of the standard library, which it owns and makes non-blocking.

    Calls ``send`` directly, which costs a third of ``trio.SocketStream.send_all``. The options of the socket are those
    of the listening socket (``sessions.listener``).
    """

    __slots__ = ("_rest", "_send", "_socket", "_tried", "pending")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self._rest = _NOTHING
        self._tried = False  # to read without waiting, once: most clients have sent their request by now
        self.pending = False  # an attribute instead of a property, because every delivery reads it
        sock.settimeout(0)

    async def handshake(self) -> None:
        """See ``Transport.handshake``: there is nothing to negotiate."""

    def offer(self, data: bytes) -> bool:
        """See ``Transport.offer``. Every delivery calls it, so it repeats ``_try_send`` instead of calling it."""
        if self.pending:
            return False
        try:
            sent = self._send(data)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._converted(error) from error
        if sent < len(data):
            # A view, not a copy: hundreds of clients may have taken a part of the same batch.
            self._set_rest(memoryview(data)[sent:])
        return True

    def push(self, data: bytes) -> None:
        if self.pending:
            raise RuntimeError("data is pending")
        self._set_rest(memoryview(data)[self._try_send(data) :])

    async def drain(self) -> None:
        while self.pending:
            # The only place where a drain can be cancelled: nothing has been sent since `_rest` was cut last.
            await trio.lowlevel.wait_writable(self._socket)
            sent = self._try_send(self._rest)
            if sent:
                self._set_rest(self._rest[sent:])
                return

    async def receive_some(self, bytes_max: int) -> bytes:
        while True:
            if self._socket.fileno() == -1:  # Trio would raise another error
                raise trio.ClosedResourceError("the socket is closed")
            if self._tried:
                await trio.lowlevel.wait_readable(self._socket)
            self._tried = True
            try:
                # The first attempt has no checkpoint if it finds data. That happens once for each connection, so no
                # loop is affected.
                return self._socket.recv(bytes_max)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def send_eof(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._converted(error) from error
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._close()
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """See ``Transport.abort``. With linger 0 the kernel drops its buffer and resets the peer."""
        with suppress(OSError):  # the peer has reset the connection, or this side has closed it
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._close()
        await trio.lowlevel.checkpoint()

    def _set_rest(self, rest: memoryview) -> None:
        self.pending = len(rest) > 0
        self._rest = rest if self.pending else _NOTHING  # an empty view would still reference all of its batch

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._converted(error) from error

    def _converted(self, error: OSError) -> Exception:
        """Return the Trio error for an error of the socket: closed by us, or broken by the peer."""
        if self._socket.fileno() == -1:
            return trio.ClosedResourceError("the socket is closed")
        return trio.BrokenResourceError(str(error))

    def _close(self) -> None:
        self._set_rest(_NOTHING)
        if self._socket.fileno() != -1:
            # Before the descriptor is closed: Trio wakes the tasks that wait for it with `ClosedResourceError`.
            # Otherwise they would wait until cancelled, because the kernel drops a closed descriptor from epoll without
            # a report.
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
