"""The admin port: serve an ASGI application over HTTP/1.1.

This module opens the ports and limits the connections; ``connection`` answers the requests of one.

Probes are answered whatever other peers do. A new connection replaces the oldest one from the address that has the
most. Pages other than probes wait for each other, but a probe waits for none of them.

On a loopback address, requests with another host name are refused. Otherwise a page of any site could make its own host
name resolve to 127.0.0.1 (DNS rebinding), and its scripts could read the answers.
"""

from collections import Counter
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import structlog
import trio
from attrs import field, frozen
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from airy_trio.admin.connection import HttpConnection
from airy_trio.admin.endpoints import WEBSOCKET_URL
from airy_trio.errors import StartError
from airy_trio.options import between, matching, more_than

logger = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 32
"""Open at the same time, so that a broken scraper takes no descriptors from clients; see ``_Connections.serve``."""
PROBES: Final = frozenset({"/livez", "/readyz"})
PAGE_PAUSE_S: Final = 0.01
"""Before each page but the probes. Without it, twenty peers that request pages without end take 0.84 of a core (2,400
pages a second); with it 0.08 (85 pages)."""
REPORT_EVERY_S: Final = 10.0
"""Between two log lines about replaced connections."""
CONNECTION_S: Final = 60.0
"""The maximum life of a connection."""


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
    """ASGI middleware: one page every ``PAGE_PAUSE_S``. Probes do not wait.

    Making a page has no checkpoint. Pages without a pause would leave clients and the recorder's threads little of the
    interpreter.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._turn = trio.StrictFIFOLock()
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it is its turn."""
        if scope["path"] not in PROBES:
            async with self._turn:
                await trio.sleep(PAGE_PAUSE_S)
        await self._application(scope, receive, send)


class _Connections:
    """The connections of the port."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application
        self._addresses: dict[trio.CancelScope, str] = {}  # of the peers, the oldest connection first
        self._evicted = 0
        self._report_at = -REPORT_EVERY_S

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
        scope = trio.CancelScope(deadline=trio.current_time() + CONNECTION_S)
        self._addresses[scope] = address
        try:
            with scope:
                await HttpConnection(self._application, stream).serve()
        except Exception:  # it must not end the whole server
            logger.exception("admin connection failed")
        finally:
            self._addresses.pop(scope, None)
            await trio.aclose_forcefully(stream)

    def _evict(self) -> None:
        """Cancel a connection, which closes it at once."""
        [(most, _)] = Counter(self._addresses.values()).most_common(1)
        oldest = next(scope for scope, address in self._addresses.items() if address == most)
        del self._addresses[oldest]
        oldest.cancel()
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


class LoopbackNames:
    """ASGI middleware: requests whose Host is not a loopback name are answered with 403."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if not is_loopback(_host_of(Headers(scope=scope).get("host", ""))):
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
