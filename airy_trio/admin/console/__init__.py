"""The console: a page for the browser with its files, and the content security policy that is sent with each.

The files are in this folder and are read once. They load nothing from elsewhere. The policy enforces that, and allows
no inline script or style.
"""

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from airy_trio.admin.endpoints import ClientEndpoint
from airy_trio.admin.server import Answer, Page, PageRequest

FOLDER: Final = Path(__file__).parent
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE: Final = "console.html"
PREFIX: Final = "/console/"


def pages(endpoint: ClientEndpoint) -> Mapping[str, Page]:
    """Make the page and its files. ``endpoint``: the port for clients, which the policy allows."""

    def of(file: Path) -> Page:
        body, type_ = file.read_bytes(), MEDIA_TYPES[file.suffix]

        def page(request: PageRequest) -> Answer:
            return Answer(HTTPStatus.OK, body, {"content-type": type_, **_headers(endpoint.origin(request.host))})

        return page

    files = {file.name: of(file) for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES}
    return {"/" if name == PAGE else PREFIX + name: page for name, page in files.items()}


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
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
