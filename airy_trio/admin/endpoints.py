"""The pages of the admin port: ``/livez``, ``/readyz`` and ``/metrics``. They report; nothing here waits or decides."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airy_trio.admin.readiness import Condition

NEVER_STORED = {"Cache-Control": "no-store"}


def application(conditions: Callable[[], Mapping[str, Condition]], registry: CollectorRegistry) -> Starlette:
    """Make the ASGI application.

    ``conditions``: each part's, by name, asked anew by every request; the registry's collectors likewise.
    """

    async def livez(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return _json(HTTPStatus.OK, {"alive": True})

    async def readyz(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        found = conditions()
        ready = all(condition.well for condition in found.values())
        parts = {name: {"well": condition.well, "reason": condition.reason} for name, condition in found.items()}
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, {"ready": ready, **parts})

    async def metrics(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type, **NEVER_STORED})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


def _json(status: HTTPStatus, body: Mapping[str, object]) -> Response:
    return Response(json.dumps(body) + "\n", status, NEVER_STORED, media_type="application/json")
