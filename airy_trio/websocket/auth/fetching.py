"""One GET over HTTPS, for keys: bounded in time and size, and never in the way of others.

The server's certificate is verified by the certificate authorities of the system, or those that ``SSL_CERT_FILE``
names. No redirect is followed, no proxy is used, and no error has the path or the query of the URL.
"""

import ssl
from typing import Final, Self
from urllib.parse import quote, urlsplit

import h11
import trio
from attrs import frozen

from airy_trio.websocket.auth.keys import KeysFault, bounded

FETCH_TIMEOUT_S: Final = 5.0
"""From the look-up of the name to the last byte."""
HTTPS_PORT: Final = 443
HTTP_OK: Final = 200
_RECEIVE_BYTES_MAX: Final = 16_384
_KEPT: Final = "/%:@!$&'()*+,;=~?"
"""What stands for itself in a path or a query (RFC 3986), and what is encoded already."""


async def fetch(url: str) -> bytes:
    """Give the body of the answer, which must have status 200. ``url``: ``https://``. Raises ``KeysFault``."""
    try:
        with trio.fail_after(FETCH_TIMEOUT_S):
            return await _fetch(url)
    except trio.TooSlowError:
        message = f"the server of the keys took more than {FETCH_TIMEOUT_S:g} s"
    except h11.RemoteProtocolError:
        message = "the server of the keys cannot be understood: it did not answer in HTTP"
    except (OSError, ValueError, trio.BrokenResourceError) as error:
        message = f"the keys cannot be fetched: {_reason(error)}"
    raise KeysFault(message)


@frozen
class Place:
    """A URL as it is asked for: ``host`` without brackets, for look-up and certificate; ``name`` is the Host header."""

    host: str
    port: int
    name: str
    target: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Read a URL, a name or a path in other letters than ASCII too. Raises ``ValueError`` where it cannot be."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" not in host:  # an IPv6 address has no labels
            host = host.encode("idna").decode()
        name = f"[{host}]" if ":" in host else host
        port = parts.port or HTTPS_PORT
        target = quote(parts.path or "/", safe=_KEPT) + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else "")
        return cls(host, port, name if port == HTTPS_PORT else f"{name}:{port}", target)


async def _fetch(url: str) -> bytes:
    place = Place.of(url)
    context = await trio.to_thread.run_sync(ssl.create_default_context)  # reads all certificate authorities
    stream = await trio.open_ssl_over_tcp_stream(place.host, place.port, https_compatible=True, ssl_context=context)
    try:
        http = h11.Connection(h11.CLIENT)
        headers = [("Host", place.name), ("Accept", "application/json, */*"), ("Connection", "close")]
        request = http.send(h11.Request(method="GET", target=place.target, headers=headers))
        await stream.send_all((request or b"") + (http.send(h11.EndOfMessage()) or b""))
        return await _answer(stream, http)
    finally:
        await trio.aclose_forcefully(stream)


async def _answer(stream: trio.abc.ReceiveStream, http: h11.Connection) -> bytes:
    data = b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES_MAX)))
            case h11.Response(status_code=status) if status != HTTP_OK:
                message = f"the server of the keys answered with status {status}"
                raise KeysFault(message)
            case h11.Data(data=part):
                data = bounded(data + bytes(part))
            case h11.EndOfMessage():
                return data
            case _:
                pass  # interim answers, and the head of the one that counts


def _reason(error: BaseException) -> str:
    """The words of the system or of TLS, which may be the cause of an error of Trio's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        of_addresses = cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
        cause = of_addresses[0] if of_addresses else cause.__cause__ or cause.__context__
    return type(error).__name__
