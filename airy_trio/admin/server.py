"""The admin port: an ASGI application on HTTP, served by Hypercorn's worker for Trio, one task for each connection.

The ports are opened here, once, and the connections counted: Hypercorn is given each as a stream that never waits
for long. It shields its writes from cancellation, and a peer that takes nothing would keep the server from ending.

Probes get an answer whatever other peers do: a new connection takes the place of an old one of the address that has
most, and pages that cost more than a probe wait for each other, not the probe for them.

The admin port on a loopback address answers under loopback names only; knows nothing of its pages.

A page of any site can make its own name point to 127.0.0.1 (DNS rebinding), and its scripts may then read whatever a
server there tells to everybody.
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


class LoopbackNames:
    """An ASGI application before another one: requests whose Host is no loopback name are answered with 403."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the other application do so."""
        if scope["type"] == "http" and not is_loopback(_host_of(Headers(scope=scope).get("host", ""))):
            refused = PlainTextResponse("This port is for this machine only.\n", HTTPStatus.FORBIDDEN)
            await refused(scope, receive, send)
        else:
            await self._application(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without brackets and port, is of this machine itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _host_of(value: str) -> str:
    """The name in the value of Host, in lower case: without its port, and an address of IPv6 without its brackets."""
    name = value[1:].partition("]")[0] if value.startswith("[") else value.partition(":")[0]
    return name.lower().removesuffix(".")


logger = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 32
"""At once, so that a broken scraper takes no descriptors from clients; see ``_Connections.serve``."""
PROBES: Final = frozenset({"/livez", "/readyz"})
REPORT_EVERY_S: Final = 10.0
"""Between two lines of log about connections that had to make room."""
CONNECTION_S: Final = 60.0
"""The life of a connection, whatever goes on in it."""
IDLE_S: Final = 5.0
"""The time until a request is complete, and between two."""
WRITE_S: Final = 1.0
"""The time in which a peer must take an answer, which the kernel's buffers hold whole. Delays a shutdown by as much."""
HEAD_BYTES_MAX: Final = 16 * 1024


@frozen(kw_only=True)
class AdminOptions:
    """Where the admin port is, and what counts as ready (settings, ``[admin]``).

    ``port`` 0: there is none. ``lag_max_s``: a server that is further behind the changes, or behind the event store, is
    not ready. ``websocket_url``: where the console finds the port for clients; "": where the listener is. Worker n has
    ``port`` + n, and the process that records alongside several workers the next one.
    """

    host: str = field(default="127.0.0.1", validator=matching(r"[^\s\x00-\x1f\x7f]+", "a host name or an IP address"))
    port: int = field(default=8081, validator=between(0, 65535))
    lag_max_s: float = field(default=10, validator=more_than(0))
    websocket_url: str = field(
        default="", validator=matching(WEBSOCKET_URL, '"ws://HOST:PORT/PATH" or "wss://HOST/PATH", or ""')
    )

    def ports(self, processes: int) -> range:
        """The admin port of each process, by its number; empty where there is none."""
        return range(self.port, self.port + processes if self.port else 0)


async def open_listeners(options: AdminOptions, worker: int = 0) -> list[trio.SocketListener]:
    """Bind and listen on every address of the host; none where the port is 0. The caller owns them.

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
    """Answer requests, for ever; nothing where there are no listeners, which it closes at its end.

    A fault in one connection ends that connection.
    """
    if listeners:
        if all(is_loopback(str(listener.socket.getsockname()[0])) for listener in listeners):
            application = LoopbackNames(application)
        await trio.serve_listeners(_Connections(_PacedPages(application)).serve, listeners)


class _PacedPages:
    """An ASGI application before another one: it makes one page in each turn of the event loop; probes do not wait.

    Making a page does not wait for anything, so a crowd of requests would be one long turn of the event loop.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._turn = trio.StrictFIFOLock()
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            async with self._turn:
                await trio.lowlevel.checkpoint()
        await self._application(scope, receive, send)


class _Connections:
    """All connections of the port."""

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

        If there are ``CONNECTIONS_MAX`` it takes the place of the oldest one from the address that has most: a peer
        that is slow, or keeps many connections, loses them, and a probe, which is done in a moment, does not.
        """
        try:
            address = str(stream.socket.getpeername()[0])
        except OSError:  # reset meanwhile
            await trio.aclose_forcefully(stream)
            return
        if len(self._addresses) >= CONNECTIONS_MAX:
            self._evict()
        self._addresses[stream] = address
        try:
            with trio.move_on_after(CONNECTION_S):
                # Of a stream it uses what _Stream has; its annotation knows only those over TLS.
                patient = cast("trio.SSLStream[trio.SocketStream]", _Stream(stream))
                await Http1Server(self._application, self._config, self._context, ConnectionState({}), patient)
        except Exception:  # beyond this the whole server would end
            logger.exception("admin connection failed")
        finally:
            self._addresses.pop(stream, None)
            await trio.aclose_forcefully(stream)

    def _evict(self) -> None:
        """Close a connection now, so that its descriptor is free; its tasks find that out and end."""
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
    """Hypercorn's server for one connection, without HTTP/2: it would give a peer many requests at a time to reset."""

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
                self.protocol = cast("Any", protocol)  # Hypercorn's wrapper around it chooses HTTP/2
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        await self._close()  # if we are cancelled, the caller closes the stream


class _Http1(H11Protocol):
    async def _check_protocol(self, _request: object) -> None:
        """Pass over wishes for HTTP/2: they are requests of HTTP/1.1 as well, and answered as such."""


class _Stream(trio.abc.HalfCloseableStream):
    """A connection whose writes take ``WRITE_S`` at most, also in a shielded scope; then it is broken."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._broken = False
        self.socket = stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self._broken:
            with trio.move_on_after(WRITE_S) as patience:
                await self._stream.send_all(data)
            self._broken = patience.cancelled_caught
        if self._broken:
            message = f"the peer has not taken an answer in {WRITE_S} s"
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
    """What Hypercorn has to say, in our log: faults of the application. Requests are not logged."""

    async def access(self, *_facts: Any) -> None:  # noqa: ANN401 - not looked at
        """Say nothing: probes and scrapes come every few seconds."""

    async def exception(self, message: str, *_arguments: Any, **_options: Any) -> None:  # noqa: ANN401 - Hypercorn's
        logger.error("admin request failed", reason=message, exc_info=sys.exception())

    async def warning(self, message: str, *arguments: Any, **_options: Any) -> None:  # noqa: ANN401 - Hypercorn's
        logger.warning("admin request", reason=message % arguments)
