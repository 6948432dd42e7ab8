"""The head of a client's HTTP request, read strictly, and the response if it is refused. Sans-IO.

RFC 9112, and RFC 6455, section 4.2.1. Rejects more than HTTP has to: bare line feeds, folded lines, a body, repeated
headers. No WebSocket client sends these, and two programs on the way could read them differently.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from attrs import field, frozen

HEAD_BYTES_MAX: Final = 16 * 1024
"""The request line and the headers. Cookies and tokens of some KiB must fit."""
HEADERS_MAX: Final = 100
SUBPROTOCOLS_MAX: Final = 16
LAST_RESPONSE: Final = (("Connection", "close"), ("Cache-Control", "no-store"))
"""In every response but the one that accepts an upgrade: the connection ends after it, and without ``no-store`` a cache
may keep some refusals and give them to other clients (RFC 9110, section 15.1)."""
QUOTED_CHARS_MAX: Final = 255
"""A header's value in the log: as long as the name of a host may be."""
_BAD: Final = HTTPStatus.BAD_REQUEST
_END: Final = b"\r\n\r\n"
_KEY_BYTES: Final = 16
_ACCEPT_SUFFIX: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""The constant of RFC 6455, section 1.3, which proves that the server has understood the request."""
_VERSION: Final = "13"

# Only HTTP/1.1, because an upgrade needs it. Only paths: the absolute form (RFC 9112, section 3.2.2) is for proxies,
# and would name a second host next to the header Host.
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (/[!-~]*) HTTP/1\.1\r\n")
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_BARE_LINE_END: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKENS: Final = re.compile(rf"[ \t,]*(?:{_TOKEN.pattern}[ \t]*(?:,[ \t,]*|\Z))*")


STATUSES: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_URI_TOO_LONG,
    HTTPStatus.UPGRADE_REQUIRED,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""Every status of a refusal, so that their counters exist before the first one occurs."""


class RequestRefusedError(Exception):
    """The request is answered with ``status`` instead of an upgrade or an event stream.

    ``words`` are the body. They are from a small, fixed set, because the log counts refusals by them. ``headers`` are
    further headers of the response. ``details`` are for the log only: the setting or the value of a header that
    decided, or "".
    """

    def __init__(self, status: HTTPStatus, words: str, *headers: tuple[str, str], details: str = "") -> None:
        super().__init__(f"{status.value}: {words}" + (details and f" {details}"))
        self.status = status
        self.words = words
        self.details = details
        self.headers = headers

    def answer(self, *, empty: bool = False) -> bytes:
        """Return the whole response, after which the connection is closed. ``empty``: to a HEAD."""
        return response(self.status, self.words, *self.headers, empty=empty)


def response_head(status: HTTPStatus, *headers: tuple[str, str]) -> bytes:
    """Return the head of a response with these headers alone."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1")


def response(status: HTTPStatus, words: str, *headers: tuple[str, str], empty: bool = False) -> bytes:
    """Return a whole response with a line of text, after which the connection is closed. ``empty``: to a HEAD."""
    body = f"{words}\n".encode("latin-1")
    own = (*LAST_RESPONSE, ("Content-Type", "text/plain"), ("Content-Length", str(len(body))))
    return response_head(status, *own, *headers) + (b"" if empty else body)


@frozen
class Request:
    """A complete request. ``headers`` has the values of each header in order, by its name in lower case.

    ``query``: after the first question mark, or empty.
    """

    method: str
    path: str
    query: str = field(repr=False)  # a client may put anything there, even a token
    headers: Mapping[str, tuple[str, ...]] = field(repr=False)  # they hold credentials

    def one(self, name: str) -> str | None:
        """Return the value of a header, if present. Raises ``RequestRefusedError`` if it is repeated."""
        values = self.headers.get(name, ())
        if len(values) > 1:
            raise RequestRefusedError(_BAD, f"The header {name} is repeated.")
        return values[0] if values else None

    def refuse_body(self, subject: str) -> None:
        """Raise ``RequestRefusedError`` if the request has a body. ``subject``: what it requests."""
        if "transfer-encoding" in self.headers or self.one("content-length") not in (None, "0"):
            raise RequestRefusedError(_BAD, f"A request for {subject} must not have a body.")

    def host(self) -> str:
        """Return the value of Host. Raises ``RequestRefusedError`` if it is missing or repeated."""
        host = self.one("host")
        if host is None:
            raise RequestRefusedError(_BAD, "The header host is missing.")
        return host

    def tokens(self, name: str) -> tuple[str, ...]:
        """Return the tokens of a list header, over all its lines. Raises ``RequestRefusedError`` for other text."""
        text = ",".join(self.headers.get(name, ()))
        if not _TOKENS.fullmatch(text):
            raise RequestRefusedError(_BAD, f"The header {name} is not a list of tokens.")
        return tuple(_TOKEN.findall(text))


@frozen
class Upgrade:
    """A request for a WebSocket. ``key`` is Sec-WebSocket-Key."""

    host: str
    origin: str | None
    key: str
    subprotocols: tuple[str, ...]

    def answer(self, subprotocol: str | None) -> bytes:
        """Return the response that accepts the upgrade, with one of ``subprotocols`` or none."""
        digest = hashlib.sha1(self.key.encode("ascii") + _ACCEPT_SUFFIX, usedforsecurity=False).digest()
        return response_head(
            HTTPStatus.SWITCHING_PROTOCOLS,
            ("Upgrade", "WebSocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", base64.b64encode(digest).decode("ascii")),
            *(() if subprotocol is None else (("Sec-WebSocket-Protocol", subprotocol),)),
        )


def read_head(data: bytes | bytearray, seen: int = 0) -> Request | None:
    """Read the head of a request; None if it is incomplete. Raises ``RequestRefusedError`` as soon as it is certain.

    ``seen`` is the length of ``data`` in the previous call, which returned None. Those octets are not searched again;
    otherwise a head that arrives octet by octet would cost the square of its length.
    """
    # The first octets of the separator may have been the last ones of the previous call.
    end = data.find(_END, max(0, seen - len(_END) + 1), HEAD_BYTES_MAX)
    if end < 0:
        _refuse_hopeless(data, seen)
        return None
    if len(data) > end + len(_END):
        raise RequestRefusedError(
            _BAD, "Nothing may follow the request: neither a body, nor a frame before the response."
        )
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise RequestRefusedError(_BAD, "This is not an HTTP/1.1 request that this server accepts.")
    path, _, query = line[2].decode("ascii").partition("?")
    return Request(method=line[1].decode("ascii"), path=path, query=query, headers=_headers(data[line.end() : end]))


def upgrade_in(request: Request) -> Upgrade:
    """Read a request for a WebSocket (RFC 6455, section 4.2.1). Raises ``RequestRefusedError`` if it is not one."""
    if request.method != "GET" or "websocket" not in (token.lower() for token in request.tokens("upgrade")):
        raise RequestRefusedError(_BAD, "This is a WebSocket endpoint; it serves nothing else.")
    if "upgrade" not in (token.lower() for token in request.tokens("connection")):
        raise RequestRefusedError(_BAD, "The header connection does not request an upgrade.")
    request.refuse_body("a WebSocket")
    host, version, key = request.host(), request.one("sec-websocket-version"), request.one("sec-websocket-key")
    if version is None:
        raise RequestRefusedError(_BAD, "The header sec-websocket-version is missing.")
    if version != _VERSION:
        words = f"This server speaks version {_VERSION} of the WebSocket protocol."
        raise RequestRefusedError(HTTPStatus.UPGRADE_REQUIRED, words, ("Sec-WebSocket-Version", _VERSION))
    if key is None or not _is_key(key):
        raise RequestRefusedError(_BAD, "The header sec-websocket-key is missing, or not 16 octets in base64.")
    subprotocols = request.tokens("sec-websocket-protocol")
    if len(subprotocols) > SUBPROTOCOLS_MAX:
        raise RequestRefusedError(_BAD, f"More than {SUBPROTOCOLS_MAX} subprotocols.")
    return Upgrade(host, request.one("origin"), key, subprotocols)


def quoted(value: str) -> str:
    """Quote the value of a header for the log, in ASCII, cut to ``QUOTED_CHARS_MAX`` characters."""
    return ascii(value if len(value) <= QUOTED_CHARS_MAX else f"{value[:QUOTED_CHARS_MAX]}...")


def _refuse_hopeless(data: bytes | bytearray, seen: int) -> None:
    if len(data) >= HEAD_BYTES_MAX:
        words = f"The head of the request is larger than {HEAD_BYTES_MAX} bytes."
        raise RequestRefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, words)
    # True in the one call that completes the request line, so the line is matched only once.
    line_complete = data.find(b"\n") >= seen
    if (
        # TLS on a port without it, and most other binary protocols, are refused at their first octet.
        not data[:1].isalpha()
        or _BARE_LINE_END.search(data, max(0, seen - 1))  # the last seen octet may be a CR without its LF
        or (line_complete and not _REQUEST_LINE.match(data))
    ):
        raise RequestRefusedError(_BAD, "This is not an HTTP/1.1 request that this server accepts.")


def _headers(data: bytes | bytearray) -> Mapping[str, tuple[str, ...]]:
    lines = data.decode("latin-1").split("\r\n") if data else []
    if len(lines) > HEADERS_MAX:
        raise RequestRefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"More than {HEADERS_MAX} headers.")
    headers: dict[str, tuple[str, ...]] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise RequestRefusedError(_BAD, "A header is malformed.")
        name = found[1].lower()
        headers[name] = (*headers.get(name, ()), found[2].rstrip(" \t"))
    return headers


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False
