"""What the console asks for while it is open, as JSON: ``/api/figures`` and ``/api/connections``.

Counts are told as they stand; whoever asks twice knows the rate. Nothing of events is here: the console gets those as
a client. Knows no page.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airy_trio.admin.door import Door
from airy_trio.admin.endpoints import is_addressed_by_number
from airy_trio.admin.metrics import Sources
from airy_trio.log.latencies import BOUNDS_S
from airy_trio.version import __version__

NEVER_STORED: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200
NUMBER_DIGITS_MAX: Final = 18


class BadQueryError(ValueError):
    """A query that is not understood, in plain words."""


def routes(sources: Sources, door: Door) -> list[Route]:
    """Make the two pages. ``door``: where the console finds the port for clients."""

    async def figures(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        url = door.url(request.headers.get("host", ""))
        return _json(HTTPStatus.OK, {"clients": {"url": url, "token": door.token}, **_figures(sources)})

    async def connections(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        if not is_addressed_by_number(request.headers.get("host", "")):
            return _json(HTTPStatus.FORBIDDEN, {"error": "ask by an IP address or as localhost"})
        try:
            after = _number(request, "after", 0, least=0)
            limit = _number(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
            behind = bool(_number(request, "behind", 0, least=0, most=1))
        except BadQueryError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        page = sources.sessions.connections(after=after, limit=limit, behind=behind)
        return _json(HTTPStatus.OK, {"total": sources.sessions.statistics()["clients"], **page})

    return [Route("/api/figures", figures), Route("/api/connections", connections)]


def _figures(sources: Sources) -> Mapping[str, Any]:
    found, recorder = sources.sessions.statistics(), sources.recorder
    latencies, recorded, log = sources.sessions.latencies, recorder.statistics(), sources.log
    conditions = sources.conditions()
    return {
        "version": __version__,
        "connections": found["clients"],
        "subscriptions": found["subscriptions"],
        "behind": found["behind"],
        "deliveries": found["deliveries"],
        "bytes": found["bytes"],
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


def _json(status: HTTPStatus, body: Mapping[str, object]) -> Response:
    return Response(json.dumps(body) + "\n", status, NEVER_STORED, media_type="application/json")
