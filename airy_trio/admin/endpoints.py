"""The pages of the admin port for programs. None of them waits.

Probes, ``/metrics`` and ``/api/clients`` are in ``application``. ``routes`` has the statistics that the console polls:
``/api/figures`` and ``/api/connections``. Counts are cumulative, so two answers give a rate. The console receives
events as a client. ``ClientEndpoint`` is where a browser finds the port for clients.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airy_trio.admin.metrics import Sources
from airy_trio.admin.readiness import Condition
from airy_trio.events.destinations import Addressed
from airy_trio.events.models import TYPES
from airy_trio.log.latency import BOUNDS_S
from airy_trio.log.position import Position
from airy_trio.version import __version__

HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200
NUMBER_DIGITS_MAX: Final = 18

Audience = Callable[[Position, Addressed], Mapping[str, object]]
"""Returns, for JSON, which connected clients have been sent an event, by its position."""


def application(
    conditions: Callable[[], Mapping[str, Condition]],
    registry: CollectorRegistry,
    audience: Audience,
    others: Iterable[Route] = (),
) -> Starlette:
    """Make the ASGI application.

    ``conditions`` returns the condition of each part; it is called for every request, as are the registry's collectors.
    ``others``: further pages.
    """

    async def metrics(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type, **HEADERS})

    async def clients(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        if not is_addressed_by_number(request.headers.get("host", "")):
            return _json(HTTPStatus.FORBIDDEN, {"error": "use an IP address or localhost as the host name"})
        query = request.query_params
        position = Position.parse(query.get("position", ""))
        if position is None or query.get("type") not in TYPES:
            return _json(HTTPStatus.BAD_REQUEST, {"error": "position=EPOCH-OFFSET and type=TYPE are needed"})
        event = _QueriedEvent(query["type"], query.get("channel"), query.get("conversation"))
        return _json(HTTPStatus.OK, audience(position, event))

    return Starlette(
        routes=[
            *_probes(conditions),
            Route("/metrics", metrics),
            Route("/api/clients", clients),
            *others,
        ]
    )


def starting_application(conditions: Callable[[], Mapping[str, Condition]]) -> Starlette:
    """Make the ASGI application of a server that is starting: probes are answered, all other pages are 503."""

    async def later(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "this server is starting"})

    return Starlette(routes=[*_probes(conditions), Route("/{path:path}", later)])


def _probes(conditions: Callable[[], Mapping[str, Condition]]) -> Iterable[Route]:
    async def livez(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return _json(HTTPStatus.OK, {"alive": True})

    async def readyz(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        found = conditions()
        ready = all(condition.well for condition in found.values())
        parts = {name: {"well": condition.well, "reason": condition.reason} for name, condition in found.items()}
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, {"ready": ready, **parts})

    return Route("/livez", livez), Route("/readyz", readyz)


@frozen
class _QueriedEvent:
    """An event as the query of a request describes it."""

    type: str
    channel_id: str | None
    conversation_id: str | None


def is_addressed_by_number(host: str) -> bool:
    """Return whether a Host header is an IP address or ``localhost``.

    This prevents DNS rebinding, by which a foreign page could read the connections: it needs a host name of its own.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _json(status: HTTPStatus, body: Mapping[str, object]) -> Response:
    return Response(json.dumps(body) + "\n", status, HEADERS, media_type="application/json")


class BadQueryError(ValueError):
    """A query that cannot be parsed."""


def routes(sources: Sources, endpoint: "ClientEndpoint") -> list[Route]:
    """Make the pages of the statistics, one of which has the URL of the port for clients."""

    async def figures(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        url = endpoint.url(request.headers.get("host", ""))
        return _json(HTTPStatus.OK, {"clients": {"url": url, "token": endpoint.token}, **_figures(sources)})

    async def connections(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        if not is_addressed_by_number(request.headers.get("host", "")):
            return _json(HTTPStatus.FORBIDDEN, {"error": "use an IP address or localhost as the host name"})
        try:
            after = _number(request, "after", 0, least=0)
            limit = _number(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
            behind = bool(_number(request, "behind", 0, least=0, most=1))
        except BadQueryError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        page = sources.sessions.connections(after=after, limit=limit, behind=behind)
        return _json(HTTPStatus.OK, {"total": sources.sessions.statistics().clients, **page})

    return [Route("/api/figures", figures), Route("/api/connections", connections)]


def _figures(sources: Sources) -> Mapping[str, Any]:
    found, recorder = sources.sessions.statistics(), sources.recorder
    latencies, recorded, log = sources.sessions.latencies, recorder.statistics(), sources.log
    conditions = sources.conditions()
    return {
        "version": __version__,
        "connections": found.clients,
        "subscriptions": found.subscriptions,
        "behind": found.behind,
        "deliveries": found.deliveries,
        "bytes": found.bytes,
        "latency": {"bounds_s": BOUNDS_S, "counts": latencies.counts, "total_s": latencies.total_s},
        "recording": recorder.recording,
        "lag_s": recorder.lag_s,
        "events": recorded["events"],
        "row_faults": recorded["faults"],
        "head": str(log.head),
        "ready": all(condition.well for condition in conditions.values()),
        "parts": {name: {"well": one.well, "reason": one.reason} for name, one in conditions.items()},
    }


def _number(request: Request, name: str, default: int, *, least: int, most: int | None = None) -> int:
    """Read a whole number from the query. Raises ``BadQueryError``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    plain = text.isascii() and text.isdecimal() and len(text) <= NUMBER_DIGITS_MAX
    if not plain or int(text) < least or (most is not None and int(text) > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        message = f"{name} must be a whole number, {allowed}"
        raise BadQueryError(message)
    return int(text)


_NAME: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253}")
_ORIGIN: Final = re.compile(r"wss?://[^/]+")
WEBSOCKET_URL: Final = r"(?:wss?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253})(?::[0-9]{1,5})?/[!-~]*)?"
"""The allowed values of ``[admin] websocket_url``."""


class ClientEndpoint:
    """The port for clients as a browser reaches it.

    ``url``: its WebSocket URL if it differs from the listener's (a proxy, a certificate for a name), otherwise "".
    ``token``: whether CONNECT needs one. ``host``, ``port``: as configured, until ``opened``.
    """

    def __init__(  # noqa: PLR0913 - the parts of an address
        self, url: str, *, host: str, port: int, path: str, tls: bool, token: bool
    ) -> None:
        self._url = url
        self._host = host
        self._port = port
        self._path = path
        self._scheme = "wss" if tls else "ws"
        self.token = token

    def opened(self, host: str, port: int) -> None:
        """Note where the listener is bound."""
        self._host, self._port = host, port

    def url(self, host: str) -> str | None:
        """Return the WebSocket URL for a page that was requested with the Host header ``host``.

        It has the listener's address, or the page's host if the listener is on all addresses. None: there is no port
        yet, or ``host`` is not a host name.
        """
        if self._url:
            return self._url
        here = _NAME.match(host)
        if not self._port or here is None:
            return None
        name = here[0] if self._host in {"0.0.0.0", "::", ""} else self._host  # noqa: S104 - only compared
        if ":" in name and not name.startswith("["):
            name = f"[{name}]"
        return f"{self._scheme}://{name}:{self._port}{self._path}"

    def origin(self, host: str) -> str | None:
        """Return scheme, host and port of that URL, for a Content-Security-Policy."""
        url = self.url(host)
        found = None if url is None else _ORIGIN.match(url)
        return None if found is None else found[0]
