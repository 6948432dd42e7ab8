"""Requests for event streams, and the octets of the streams: Server-Sent Events (HTML standard, 9.2). Sans-IO.

A stream is the body of the response to one GET. The response has neither a length nor chunks, so it ends with the
connection (RFC 9112, section 6.3), and every response says ``Connection: close``. Chunks would be a second framing
around events that have one already: a reader drops an event without its blank line, so it recognises a truncated
stream. Nothing may follow a request.

A browser's ``EventSource`` reconnects when a stream ends and when the network fails, and gives up after any status but
200. A temporary refusal is therefore a stream too, which ends at once.

Pages of allowed origins may read every response, with credentials (CORS). A page of another origin can send a GET
without Origin in two ways. In the mode ``no-cors``, for an image or a script, it could read nothing, but the user's
cookies would be sent along, so such requests are refused. A navigation, in a window or a frame, is accepted, so that a
user can open a stream: the browser lets no other page read it.
"""

from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from attrs import frozen

from airy_trio.stomp.frames import REPLAYS
from airy_trio.websocket.request import LAST_RESPONSE, Request, RequestRefusedError, response_head

PATH_BYTES_MAX: Final = 512
"""The same limit as for the destination of a SUBSCRIBE."""
FIELDS_MAX: Final = 16
"""The largest number of parameters in a query."""
PREFLIGHT_AGE_S: Final = 600
"""How long a browser may cache the answer to a preflight request."""
RETRY_LATER_MS: Final = 5000
"""The time until a client reconnects after a temporary refusal, like Retry-After."""

COMMENT: Final = b":\n\n"
"""A heart-beat: readers ignore it. The blank line is for proxies and programs that forward whole events."""

_METHODS: Final = "GET, OPTIONS"
_ALLOWED_HEADERS: Final = "Authorization, Cache-Control, Last-Event-ID"
"""The headers that known clients other than ``EventSource`` send."""
_BAD: Final = HTTPStatus.BAD_REQUEST
_STREAM: Final = (
    ("Content-Type", "text/event-stream"),
    # nginx would otherwise hold events back until one of its buffers is full.
    ("X-Accel-Buffering", "no"),
    # A page that loads the stream as a script must not run what an event contains.
    ("X-Content-Type-Options", "nosniff"),
    ("Connection", "close"),
    # As in every last response. `no-transform`: Express's compression, which development servers for pages use, would
    # hold back everything until its buffer is full.
    ("Cache-Control", "no-store, no-transform"),
)

Header = tuple[str, str]


@frozen
class StreamRequest:
    """A request for an event stream.

    ``path``: below that of the settings, empty or with a leading slash. ``last_event_id``: of the header, else of the
    query. ``returning``: the header is present, so the client has had a stream before. ``preflight``: the request only
    asks for permission to send another one.
    """

    host: str
    origin: str | None
    path: str
    last_event_id: str | None = None
    replay: str | None = None
    returning: bool = False
    preflight: bool = False


def is_stream_path(path: str, prefix: str) -> bool:
    """Return whether a path is that of an event stream. ``prefix``: of the settings; empty: there are none."""
    return bool(prefix) and (path == prefix or path.startswith(f"{prefix}/"))


def stream_in(request: Request, prefix: str) -> StreamRequest:
    """Read a request under a stream path. Raises ``RequestRefusedError`` if it cannot have a stream."""
    if request.method not in ("GET", "OPTIONS"):
        words = "Event streams are read with GET."
        raise RequestRefusedError(HTTPStatus.METHOD_NOT_ALLOWED, words, ("Allow", _METHODS))
    request.refuse_body("events")
    host, origin = request.host(), request.one("origin")
    path = request.path.removeprefix(prefix)
    # Path and query are checked in the request that follows: a page can read its answer, but not this one.
    if request.method == "OPTIONS":
        return StreamRequest(host, origin, path, preflight=True)
    if origin is None and request.one("sec-fetch-mode") == "no-cors":
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "A page reads events with EventSource or fetch.")
    if len(path) > PATH_BYTES_MAX:
        raise RequestRefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, f"A path has at most {PATH_BYTES_MAX} bytes.")
    query = _query(request.query)
    replay = query.get("replay")
    if replay is not None and replay not in REPLAYS:
        raise RequestRefusedError(_BAD, "The parameter replay has a value that is not known.")
    returned_with = request.one("last-event-id")
    return StreamRequest(
        host=host,
        origin=origin,
        path=path,
        last_event_id=returned_with or query.get("last-event-id") or None,
        replay=replay,
        returning=returned_with is not None,
    )


def _query(text: str) -> dict[str, str]:
    """Return the parameters of a query. Raises ``RequestRefusedError`` for a repeated one, and for too many."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError:
        raise RequestRefusedError(_BAD, "The query cannot be read.") from None
    query = dict(pairs)
    if len(query) < len(pairs):
        raise RequestRefusedError(_BAD, "A parameter of the query is repeated.")
    return query


def sharing(origin: str | None) -> tuple[Header, ...]:
    """Return the headers that let a page of an allowed origin read a response; none if the client is not a page."""
    if origin is None:
        return ()
    # The origin itself, because "*" is not valid for requests with credentials (Fetch standard, "CORS protocol and
    # credentials"). Hence Vary: a cache must not give the answer for one origin to a page of another.
    return ("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Credentials", "true"), ("Vary", "Origin")


def preflight_answer(origin: str | None) -> bytes:
    """Return the whole response to a preflight request of an allowed origin."""
    return response_head(
        HTTPStatus.NO_CONTENT,
        *LAST_RESPONSE,
        ("Allow", _METHODS),
        ("Access-Control-Allow-Methods", "GET"),
        ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
        ("Access-Control-Max-Age", str(PREFLIGHT_AGE_S)),
        *sharing(origin),
    )


def stream_head(origin: str | None, retry_ms: int) -> bytes:
    """Return the head of a response with a stream, and the time after which the client is to reconnect."""
    return response_head(HTTPStatus.OK, *_STREAM, *sharing(origin)) + retry(retry_ms)


def retry(retry_ms: int) -> bytes:
    """Encode the time after which a client is to reconnect."""
    return b"retry: %d\n\n" % retry_ms


def later(origin: str | None, refused: RequestRefusedError) -> bytes:
    """Return a whole stream for a temporary refusal. Its text is a comment."""
    return stream_head(origin, RETRY_LATER_MS) + f": {refused.status.value} {refused.words}\n\n".encode("ascii")


def named_event(name: str, data: bytes, event_id: str | None = None) -> bytes:
    """Encode an event with a type of its own. ``event_id``: where its reader resumes from now on; None: as before."""
    id_line = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    return b"event: %s\n%sdata: %s\n\n" % (name.encode(), id_line, data)


def event(event_id: str, body: bytes) -> bytes:
    """Encode an event without a type of its own.

    A data line cannot contain a line end, but JSON from a database may have some between its tokens. Each of them
    starts a further data line, and readers join the lines with LF.
    """
    if b"\n" in body or b"\r" in body:
        body = b"\ndata: ".join(body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    return b"id: %s\ndata: %s\n\n" % (event_id.encode(), body)
