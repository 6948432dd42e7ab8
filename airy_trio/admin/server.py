"""The admin port: serve an ASGI application over HTTP with Hypercorn's connection class for Trio.

This module opens the ports and limits the connections. Hypercorn gets each connection as a stream whose writes time
out, because it shields its writes from cancellation: a peer that reads nothing would otherwise keep the server from
shutting down.

Probes are answered whatever other peers do. A new connection replaces the oldest one from the address that has the
most. Pages other than probes wait for each other, but a probe waits for none of them.

On a loopback address, requests with another host name are refused. Otherwise a page of any site could make its own host
name resolve to 127.0.0.1 (DNS rebinding), and its scripts could read the answers.
"""

import sys
from collections import Counter
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, cast

import structlog
import trio
from attrs import field, frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import parse_socket_addr
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from airy_trio.admin.endpoints import WEBSOCKET_URL
from airy_trio.errors import StartError
from airy_trio.options import between, matching, more_than

logger = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 32
"""Open at the same time, so that a broken scraper takes no descriptors from clients; see ``_Connections.serve``."""
PROBES: Final = frozenset({"/livez", "/readyz"})
REPORT_EVERY_S: Final = 10.0
"""Between two log lines about replaced connections."""
CONNECTION_S: Final = 60.0
"""The maximum life of a connection."""
IDLE_S: Final = 5.0
"""The maximum time until a request is complete, and between two requests."""
WRITE_S: Final = 1.0
"""The time in which a peer must accept an answer; the kernel's buffers can hold it. It may delay a shutdown."""
HEAD_BYTES_MAX: Final = 16 * 1024


@frozen(kw_only=True)
class AdminOptions:
    """The admin port, and the lag that still counts as ready (settings, ``[admin]``).

    ``port`` 0: there is none. ``lag_max_s``: a server that is further behind the changes, or behind the event store, is
    not ready. ``websocket_url``: the port for clients as the console reaches it; "": the listener's own address. Worker
    n has ``port`` + n, and the recorder process the port after the last worker.
    """

    host: str = field(default="127.0.0.1", validator=matching(r"[^\s\x00-\x1f\x7f]+", "a host name or an IP address"))
    port: int = field(default=8081, validator=between(0, 65535))
    lag_max_s: float = field(default=10, validator=more_than(0))
    websocket_url: str = field(
        default="", validator=matching(WEBSOCKET_URL, '"ws://HOST:PORT/PATH" or "wss://HOST/PATH", or ""')
    )

    def ports(self, processes: int) -> range:
        """Return the admin port of each process, by its number; empty if there is none."""
        return range(self.port, self.port + processes if self.port else 0)


async def open_listeners(options: AdminOptions, worker: int = 0) -> list[trio.SocketListener]:
    """Bind and listen on every address of the host; on none if the port is 0. The caller owns the listeners.

    ``worker``: its number, from 0. Raises ``StartError``.
    """
    if options.port == 0:
        return []
    port = options.port + worker
    try:
        listeners = await trio.open_tcp_listeners(port, host=options.host)
    except OSError as error:
        reason = (error.__cause__ or error) if error.strerror is None else error.strerror
        raise StartError([f"admin: cannot listen on {options.host}:{port}: {reason}"]) from error
    logger.info("admin port open", host=options.host, port=port)
    return listeners


async def serve(listeners: list[trio.SocketListener], application: ASGIApp) -> None:
    """Answer requests until cancelled, then close the listeners. Returns at once if there are none.

    An exception in one connection ends that connection.
    """
    if listeners:
        if all(is_loopback(str(listener.socket.getsockname()[0])) for listener in listeners):
            application = LoopbackNames(application)
        await trio.serve_listeners(_Connections(_PacedPages(application)).serve, listeners)


class _PacedPages:
    """ASGI middleware: at most one page per pass of the event loop. Probes do not wait.

    Making a page has no checkpoint, so many requests at once would otherwise be one long pass of the loop.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._turn = trio.StrictFIFOLock()
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it is its turn."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            async with self._turn:
                await trio.lowlevel.checkpoint()
        await self._application(scope, receive, send)


class _Connections:
    """The connections of the port."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = ASGIWrapper(cast("ASGIFramework", application))  # the same interface, typed more loosely
        self._context = WorkerContext(None)
        self._addresses: dict[trio.SocketStream, str] = {}  # of the peers, the oldest connection first
        self._evicted = 0
        self._report_at = -REPORT_EVERY_S
        config = Config()
        config.logger_class = _Log
        config.errorlog = None
        config.include_server_header = False
        config.keep_alive_timeout = IDLE_S
        config.h11_max_incomplete_size = HEAD_BYTES_MAX
        self._config = config

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Owns the stream.

        If there are ``CONNECTIONS_MAX`` already, it replaces the oldest one of the address with the most connections. A
        peer that is slow or keeps many connections loses them; a probe, which is short, does not.
        """
        try:
            address = str(stream.socket.getpeername()[0])
        except OSError:  # reset by the peer
            await trio.aclose_forcefully(stream)
            return
        if len(self._addresses) >= CONNECTIONS_MAX:
            self._evict()
        self._addresses[stream] = address
        try:
            with trio.move_on_after(CONNECTION_S):
                # Hypercorn uses only what _Stream has; its annotation allows only TLS streams.
                bounded = cast("trio.SSLStream[trio.SocketStream]", _Stream(stream))
                await Http1Server(self._application, self._config, self._context, ConnectionState({}), bounded)
        except Exception:  # it must not end the whole server
            logger.exception("admin connection failed")
        finally:
            self._addresses.pop(stream, None)
            await trio.aclose_forcefully(stream)

    def _evict(self) -> None:
        """Close a connection at once to free its descriptor; its tasks notice and end."""
        [(most, _)] = Counter(self._addresses.values()).most_common(1)
        oldest = next(stream for stream, address in self._addresses.items() if address == most)
        del self._addresses[oldest]
        oldest.socket.close()
        self._evicted += 1
        now = trio.current_time()
        if now >= self._report_at:
            logger.warning(
                "admin connections closed to make room for new ones",
                address=most,
                count=self._evicted,
                connections_max=CONNECTIONS_MAX,
            )
            self._report_at, self._evicted = now + REPORT_EVERY_S, 0


class Http1Server(TCPServer):
    """Hypercorn's server for one connection, without HTTP/2, whose peers can open and reset many requests at once."""

    async def run(self) -> None:
        """Serve until the connection ends."""
        sock = self.stream.socket
        try:
            client, server = (parse_socket_addr(sock.family, name()) for name in (sock.getpeername, sock.getsockname))
            async with TaskGroup() as self._task_group:
                protocol = _Http1(
                    self.app,
                    self.config,
                    self.context,
                    self._task_group,
                    ConnectionState(self.state),
                    ssl=False,
                    client=client,
                    server=server,
                    send=self.protocol_send,
                )
                self.protocol = cast("Any", protocol)  # Hypercorn's usual wrapper would choose HTTP/2
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        await self._close()  # if we are cancelled, the caller closes the stream


class _Http1(H11Protocol):
    async def _check_protocol(self, _request: object) -> None:
        """Ignore upgrades to HTTP/2; such a request is answered over HTTP/1.1."""


class _Stream(trio.abc.HalfCloseableStream):
    """A stream whose writes time out after ``WRITE_S``, also in a shielded scope; then it is broken."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._broken = False
        self.socket = stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self._broken:
            with trio.move_on_after(WRITE_S) as timeout:
                await self._stream.send_all(data)
            self._broken = timeout.cancelled_caught
        if self._broken:
            message = f"the peer did not accept an answer within {WRITE_S} s"
            raise trio.BrokenResourceError(message)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Log(Logger):
    """Hypercorn's messages in our log. Requests are not logged."""

    async def access(self, *_facts: Any) -> None:  # noqa: ANN401 - ignored
        """Log nothing, because probes and scrapes come every few seconds."""

    async def exception(self, message: str, *_arguments: Any, **_options: Any) -> None:  # noqa: ANN401 - Hypercorn's
        logger.error("admin request failed", reason=message, exc_info=sys.exception())

    async def warning(self, message: str, *arguments: Any, **_options: Any) -> None:  # noqa: ANN401 - Hypercorn's
        logger.warning("admin request", reason=message % arguments)


class LoopbackNames:
    """ASGI middleware: requests whose Host is not a loopback name are answered with 403."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] == "http" and not is_loopback(_host_of(Headers(scope=scope).get("host", ""))):
            refused = PlainTextResponse("This port is for this machine only.\n", HTTPStatus.FORBIDDEN)
            await refused(scope, receive, send)
        else:
            await self._application(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address, without brackets and port, is loopback."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _host_of(value: str) -> str:
    """Return the host of a Host header in lower case, without the port, and IPv6 without brackets."""
    name = value[1:].partition("]")[0] if value.startswith("[") else value.partition(":")[0]
    return name.lower().removesuffix(".")
