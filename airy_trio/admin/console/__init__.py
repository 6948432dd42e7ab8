"""The console: a page for the browser with its files, and the content security policy that is sent with each.

The files are in this folder and are read once. They load nothing from elsewhere. The policy enforces that, and allows
no inline script or style.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airy_trio.admin.endpoints import ClientEndpoint

FOLDER: Final = Path(__file__).parent
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE: Final = "console.html"
PREFIX: Final = "/console/"


def routes(endpoint: ClientEndpoint) -> list[Route]:
    """Make the page and its files. ``endpoint``: the port for clients, which the policy allows."""
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}

    def answer(name: str, request: Request) -> Response:
        origin = endpoint.origin(request.headers.get("host", ""))
        return Response(files[name], headers=_headers(origin), media_type=MEDIA_TYPES[Path(name).suffix])

    async def page(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return answer(PAGE, request)

    async def file(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return answer(request.url.path.removeprefix(PREFIX), request)

    return [Route("/", page), *(Route(PREFIX + name, file) for name in files if name != PAGE)]


def _headers(clients: str | None) -> Mapping[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'" if clients is None else f"'self' {clients}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
