"""The pages of the admin port that programs read, from ``/livez`` to ``/api/clients``. None waits or decides.

Where a browser that has a page of the admin port finds the port for clients, and what it needs to come in.

What the console asks for while it is open, as JSON: ``/api/figures`` and ``/api/connections``.

Counts are told as they stand; whoever asks twice knows the rate. Nothing of events is here: the console gets those as
a client. Knows no page.
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

NEVER_STORED = {"Cache-Control": "no-store"}


Audience = Callable[[Position, Addressed], Mapping[str, object]]
"""Tells who of the clients connected now has been sent an event at a position, fit for JSON."""


def application(
    conditions: Callable[[], Mapping[str, Condition]],
    registry: CollectorRegistry,
    audience: Audience,
    others: Iterable[Route] = (),
) -> Starlette:
    """Make the ASGI application.

    ``conditions``: each part's, by name, asked anew by every request; the registry's collectors likewise.
    ``others``: further pages.
    """

    async def metrics(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type, **NEVER_STORED})

    async def clients(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        if not is_addressed_by_number(request.headers.get("host", "")):
            return _json(HTTPStatus.FORBIDDEN, {"error": "ask by an IP address or as localhost"})
        asked = request.query_params
        position = Position.parse(asked.get("position", ""))
        if position is None or asked.get("type") not in TYPES:
            return _json(HTTPStatus.BAD_REQUEST, {"error": "position=EPOCH-OFFSET and type=TYPE are needed"})
        event = _Asked(asked["type"], asked.get("channel"), asked.get("conversation"))
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
    """Make the ASGI application of a server that starts: the probes answer, every other page is 503."""

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
class _Asked:
    """An event as a request describes it."""

    type: str
    channel_id: str | None
    conversation_id: str | None


def is_addressed_by_number(host: str) -> bool:
    """Whether a Host header is an IP address or ``localhost``: a page of elsewhere needs a name of its own for us.

    Against DNS rebinding, where a page that somebody else wrote would read who is connected.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _json(status: HTTPStatus, body: Mapping[str, object]) -> Response:
    return Response(json.dumps(body) + "\n", status, NEVER_STORED, media_type="application/json")


_NAME: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253}")
_ORIGIN: Final = re.compile(r"wss?://[^/]+")
WEBSOCKET_URL: Final = r"(?:wss?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253})(?::[0-9]{1,5})?/[!-~]*)?"
"""What ``[admin] websocket_url`` may be."""


class ClientEndpoint:
    """The port for clients as a browser sees it.

    ``url``: its WebSocket URL, where that is another than the listener's own (a proxy, a certificate for a name); ""
    otherwise. ``token``: whether CONNECT needs one. ``host``, ``port``: what the listener was told; see ``opened``.
    """

    def __init__(  # noqa: PLR0913 - what an address is made of
        self, url: str, *, host: str, port: int, path: str, tls: bool, token: bool
    ) -> None:
        self._url = url
        self._host = host
        self._port = port
        self._rest = path
        self._scheme = "wss" if tls else "ws"
        self.token = token

    def opened(self, host: str, port: int) -> None:
        """Take note of where the listener is really bound."""
        self._host, self._port = host, port

    def url(self, host: str) -> str | None:
        """The WebSocket URL for a page that was asked for under ``host``, a value of the header Host.

        A listener on one address is found there, one on all addresses under the page's own name. None: there is no
        port yet, or no such name.
        """
        if self._url:
            return self._url
        here = _NAME.match(host)
        if not self._port or here is None:
            return None
        name = here[0] if self._host in {"0.0.0.0", "::", ""} else self._host  # noqa: S104 - it is looked at only
        if ":" in name and not name.startswith("["):
            name = f"[{name}]"
        return f"{self._scheme}://{name}:{self._port}{self._rest}"

    def origin(self, host: str) -> str | None:
        """Scheme, host and port of that URL, for a Content-Security-Policy."""
        url = self.url(host)
        found = None if url is None else _ORIGIN.match(url)
        return None if found is None else found[0]


STATS_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200
NUMBER_DIGITS_MAX: Final = 18


class BadQueryError(ValueError):
    """A query that is not understood, in plain words."""


def routes(sources: Sources, door: ClientEndpoint) -> list[Route]:
    """Make the two pages. ``door``: where the console finds the port for clients."""

    async def figures(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        url = door.url(request.headers.get("host", ""))
        return _stats(HTTPStatus.OK, {"clients": {"url": url, "token": door.token}, **_figures(sources)})

    async def connections(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        if not is_addressed_by_number(request.headers.get("host", "")):
            return _stats(HTTPStatus.FORBIDDEN, {"error": "ask by an IP address or as localhost"})
        try:
            after = _number(request, "after", 0, least=0)
            limit = _number(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
            behind = bool(_number(request, "behind", 0, least=0, most=1))
        except BadQueryError as error:
            return _stats(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        page = sources.sessions.connections(after=after, limit=limit, behind=behind)
        return _stats(HTTPStatus.OK, {"total": sources.sessions.statistics().clients, **page})

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
    """Read a whole number of the query. Raises ``BadQueryError``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    plain = text.isascii() and text.isdecimal() and len(text) <= NUMBER_DIGITS_MAX
    if not plain or int(text) < least or (most is not None and int(text) > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        message = f"{name} is a whole number, {allowed}"
        raise BadQueryError(message)
    return int(text)


def _stats(status: HTTPStatus, body: Mapping[str, object]) -> Response:
    return Response(json.dumps(body) + "\n", status, STATS_HEADERS, media_type="application/json")
