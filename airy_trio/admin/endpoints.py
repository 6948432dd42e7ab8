"""The pages of the admin port that programs read, from ``/livez`` to ``/api/clients``. None waits or decides."""

import ipaddress
import json
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

import trio
from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airy_trio.admin.readiness import Condition
from airy_trio.events.destinations import Addressed
from airy_trio.events.models import TYPES
from airy_trio.log.position import Position

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
