"""The admin port on a loopback address answers under loopback names only; knows nothing of its pages.

A page of any site can make its own name point to 127.0.0.1 (DNS rebinding), and its scripts may then read whatever a
server there tells to everybody.
"""

from http import HTTPStatus
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


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
