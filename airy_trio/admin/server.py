"""The admin port: pages over HTTP/1.1 for operators, probes and scrapers. h11 parses the requests.

Probes are answered whatever other peers do. A new connection replaces the oldest one from the address that has the
most. Pages other than probes wait for each other, but a probe waits for none of them.

If ``[admin] token`` is set, every request except a probe needs it: as a bearer token, or as the password of basic
authentication, which a browser asks for. The settings require a token on an address that is not loopback.

On a loopback address, requests with another host name are refused unless they have the token. Otherwise a page of any
site could make its own host name resolve to 127.0.0.1 (DNS rebinding), and its scripts could read the answers.

The requests of a connection are answered one after another, in one task. When it ends, it leaves no task and no
reference cycle, so its memory is free at once: peers that connect and end as fast as they can grow the server by
nothing. There is no HTTP/2, whose peers can open and reset many requests at once. The pages take no request body. A
body is not read, and its connection is closed after the answer.
"""

import base64
import hmac
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import IPv6Address
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import h11
import structlog
import trio
from attrs import Attribute, define, field, frozen

from airy_trio.errors import StartError
from airy_trio.options import PORT_MAX, NotAllowedError, between, matching, more_than, satisfying
from airy_trio.retry import Sample
from airy_trio.websocket.admission import is_loopback

logger = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 32
"""Open at the same time, so that a broken scraper takes no descriptors from clients; see ``_Port.serve``."""
PROBES: Final = frozenset({"/livez", "/readyz"})
PAGE_PAUSE_S: Final = 0.01
"""Before each page but the probes. Making a page has no checkpoint, so pages without a pause would leave clients and
the recorder's threads little of the interpreter: twenty peers that request pages without end take 0.84 of a core (2,400
pages a second); with it 0.08 (85 pages)."""
CONNECTION_S: Final = 60.0
"""The maximum life of a connection."""
IDLE_S: Final = 5.0
"""The maximum time until a request is complete, and between two requests."""
WRITE_S: Final = 1.0
"""The time in which a peer must accept an answer; the kernel's buffers can hold it."""
HEAD_BYTES_MAX: Final = 16 * 1024
READ_BYTES_MAX: Final = 4 * 1024
"""Received at once. With ``HEAD_BYTES_MAX`` it bounds what is buffered of a peer that sends without end."""
_URL: Final = re.compile(
    r"(?P<scheme>[a-z]+)://(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|[0-9A-Za-z_.-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!-~]*)?"
)
TOKEN_PATTERN: Final = r"(?:[!-~]{16,})?"  # noqa: S105 - the allowed values of a token
TEXT: Final[Mapping[str, str]] = {"content-type": "text/plain; charset=utf-8"}
ASK_FOR_TOKEN: Final = {"www-authenticate": 'Basic realm="airy-trio", charset="UTF-8"'}


def _is_url(text: str, *schemes: str, with_path: bool = False) -> bool:
    """Return whether ``text`` is a URL that a browser can open, with a valid host and port, and without a user."""
    found = _URL.fullmatch(text)
    if found is None or found["scheme"] not in schemes or int(found["port"] or 0) > PORT_MAX:
        return False
    try:
        IPv6Address(found["address"] or "::")
    except ValueError:
        return False
    return not with_path or found["path"] is not None


def _check_others(_instance: object, option: "Attribute[Any]", urls: list[str]) -> None:
    """Raise ``NotAllowedError`` for the first URL that no browser can open."""
    for index, url in enumerate(urls):
        if not _is_url(url, "http", "https"):
            allowed = 'a list of "http://HOST:PORT" or "https://HOST/PATH"'
            raise NotAllowedError(option.name, allowed, f"an invalid URL at [{index}]")


@frozen(kw_only=True)
class AdminOptions:
    """The admin port, and the lag that still counts as ready (settings, ``[admin]``).

    ``port`` 0: there is no admin port. ``lag_max_s``: a server that is further behind the changes, or behind the event
    store, is not ready. ``websocket_url``: the port for clients as the console reaches it; "": the listener's own
    address. ``others``: URLs of further consoles, to which the console links. Worker n has ``port`` + n, and the
    recorder process the port after the last worker. ``token``: every request except a probe needs it; "": no request
    needs it, which the settings allow only on a loopback address.
    """

    host: str = field(default="127.0.0.1", validator=matching(r"[^\s\x00-\x1f\x7f]+", "a host name or an IP address"))
    port: int = field(default=8081, validator=between(0, PORT_MAX))
    token: str = field(
        default="",
        repr=False,
        validator=matching(TOKEN_PATTERN, 'at least 16 printable ASCII characters without a space, or ""'),
    )
    lag_max_s: float = field(default=10, validator=more_than(0))
    websocket_url: str = field(
        default="",
        validator=satisfying(
            lambda url: url == "" or _is_url(url, "ws", "wss", with_path=True),
            '"ws://HOST:PORT/PATH" or "wss://HOST/PATH", or ""',
        ),
    )
    others: list[str] = field(factory=list, validator=_check_others)

    def contradictions(self) -> Iterator[str]:
        """Yield a line for options that contradict each other."""
        if self.port and not self.token and not is_loopback(self.host):
            yield "host is not a loopback address, so set a token: every client that reaches the port could read it"

    def ports(self, processes: int) -> range:
        """Return the admin port of each process, by its number; empty if there is none."""
        return range(self.port, self.port + processes if self.port else 0)


@frozen
class PageRequest:
    """A request. ``query`` has the last value of each name; the names in ``headers`` are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def host(self) -> str:
        """The Host header."""
        return self.headers.get("host", "")


@frozen
class Answer:
    """An answer to a request. ``headers``: in addition to length and date, in lower case."""

    status: HTTPStatus
    body: bytes
    headers: Mapping[str, str] = TEXT


Page = Callable[[PageRequest], Answer]
"""Makes an answer, and never waits."""


def not_found(_request: PageRequest) -> Answer:
    """Answer a request for a page that does not exist."""
    return Answer(HTTPStatus.NOT_FOUND, b"Not Found")


@define(eq=False)
class Pages:
    """The pages by their paths; ``other`` answers all other paths. Both are replaced once the server has started."""

    pages: Mapping[str, Page]
    other: Page = not_found

    def of(self, path: str) -> Page:
        """Return the page at a path, with or without a slash at its end."""
        return self.pages.get(path) or self.pages.get(path.rstrip("/"), self.other)


async def open_listeners(options: AdminOptions, worker: int = 0) -> list[trio.SocketListener]:
    """Bind and listen on every address of the host; on none if the port is 0. The caller owns the listeners.

    ``worker``: its number, from 0. Raises ``StartError``.
    """
    if options.port == 0:
        return []
    port = options.port + worker
    try:
        listeners = await trio.open_tcp_listeners(port, host=options.host)
    except OSError as error:
        reason = (error.__cause__ or error) if error.strerror is None else error.strerror
        raise StartError([f"admin: cannot listen on {options.host}:{port}: {reason}"]) from error
    logger.info("admin port open", host=options.host, port=port)
    return listeners


async def serve(listeners: list[trio.SocketListener], pages: Pages, token: str = "") -> None:
    """Answer requests until cancelled, then close the listeners. Returns at once if there are none.

    ``token``: see ``AdminOptions``. An exception in one connection ends that connection.
    """
    if listeners:
        loopback = all(is_loopback(str(listener.socket.getsockname()[0])) for listener in listeners)
        await trio.serve_listeners(_Port(pages, token, loopback=loopback).serve, listeners)


class _Port:
    """The connections of the port. ``loopback``: it has only loopback addresses."""

    def __init__(self, pages: Pages, token: str, *, loopback: bool) -> None:
        self._pages = pages
        self._token = token
        self._loopback = loopback
        self._turn = trio.StrictFIFOLock()
        self._addresses: dict[trio.CancelScope, str] = {}  # of the peers, the oldest connection first
        self._evicted = Sample()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection, which ``trio.serve_listeners`` closes afterwards.

        If there are ``CONNECTIONS_MAX`` already, it replaces the oldest one of the address with the most connections. A
        peer that is slow or keeps many connections loses them; a probe, which is short, does not.
        """
        try:
            address = str(stream.socket.getpeername()[0])
        except OSError:  # reset by the peer
            return
        if len(self._addresses) >= CONNECTIONS_MAX:
            self._evict()
        scope = trio.CancelScope(deadline=trio.current_time() + CONNECTION_S)
        self._addresses[scope] = address
        try:
            with scope:
                await HttpConnection(self._answer, stream).serve()
        except Exception:  # it must not end the whole server
            logger.exception("admin connection failed")
        finally:
            self._addresses.pop(scope, None)

    def _evict(self) -> None:
        """Cancel a connection, which closes it at once."""
        [(most, _)] = Counter(self._addresses.values()).most_common(1)
        oldest = next(scope for scope, address in self._addresses.items() if address == most)
        # Not only in the `finally` of that connection, which runs later: connections that arrive in the same pass must
        # not evict it again.
        del self._addresses[oldest]
        oldest.cancel()
        if count := self._evicted.take():
            logger.warning(
                "admin connections closed to make room for new ones",
                address=most,
                count=count,
                connections_max=CONNECTIONS_MAX,
            )

    async def _answer(self, request: PageRequest) -> Answer:
        if request.path not in PROBES:
            # Before the token is compared, so that requests without it are slowed down too.
            async with self._turn:
                await trio.sleep(PAGE_PAUSE_S)
        if refusal := self._refusal(request):
            return refusal
        page = self._pages.of(request.path)
        if request.method not in {"GET", "HEAD"} and page is not not_found:
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"Method Not Allowed", {**TEXT, "allow": "GET, HEAD"})
        try:
            return page(request)
        except Exception:
            logger.exception("admin request failed")
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error")

    def _refusal(self, request: PageRequest) -> Answer | None:
        """Return the refusal of a request that may not read its page; None if it may."""
        # First, so that a request with the token may use any host name: a page of another site cannot send it.
        if self._token and hmac.compare_digest(_token_of(request).encode(), self._token.encode()):
            return None
        if self._token and request.path not in PROBES:
            return Answer(HTTPStatus.UNAUTHORIZED, b"[admin] token is needed.\n", {**TEXT, **ASK_FOR_TOKEN})
        # A browser always sends the header; a balancer's check may not, because HTTP/1.0 does not require it.
        if self._loopback and "host" in request.headers and not is_loopback(_host_of(request.host)):
            return Answer(HTTPStatus.FORBIDDEN, b"This port is for this machine only.\n")
        return None


class HttpConnection:
    """HTTP/1.1 on one connection. The caller owns the stream."""

    def __init__(self, answer: Callable[[PageRequest], Awaitable[Answer]], stream: trio.abc.Stream) -> None:
        self._answer = answer
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def serve(self) -> None:
        """Answer requests until the peer closes the connection, is too slow, or sends something else than HTTP/1.1."""
        try:
            try:
                while (head := await self._receive()) is not None:
                    request = _request_of(head)
                    await self._send(await self._answer(request), without_body=request.method == "HEAD")
                    # In any state but DONE, h11 requires that the connection ends: the peer asked for it, speaks
                    # HTTP/1.0, or has sent a body, which is unread.
                    if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                        return
                    self._http.start_next_cycle()
            except h11.RemoteProtocolError as error:
                error.__traceback__ = None  # a cycle, because h11 raises some errors in a method of theirs
                await self._send(Answer(HTTPStatus(error.error_status_hint), b"", {"connection": "close"}))
        except (trio.BrokenResourceError, trio.TooSlowError):
            return

    async def _receive(self) -> h11.Request | None:
        """Receive the head of a request; None if the peer has closed the connection."""
        with trio.fail_after(IDLE_S):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._stream.receive_some(READ_BYTES_MAX)))
        if not isinstance(event, h11.Request):
            return None
        self._http.next_event()  # the end of a request without a body
        return event

    async def _send(self, answer: Answer, *, without_body: bool = False) -> None:
        length, date = str(len(answer.body)), formatdate(usegmt=True)
        headers = {**answer.headers, "content-length": length, "date": date}
        events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=[*headers.items()])]
        if answer.body and not without_body:
            events.append(h11.Data(data=answer.body))
        events.append(h11.EndOfMessage())
        data = b"".join(self._http.send(event) or b"" for event in events)
        # One write, because the deadline could pass between two writes if the machine pauses.
        with trio.fail_after(WRITE_S):
            await self._stream.send_all(data)


def _request_of(head: h11.Request) -> PageRequest:
    path, _, query = head.target.decode().partition("?")
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return PageRequest(head.method.decode(), unquote(path), dict(parse_qsl(query, keep_blank_values=True)), headers)


def _token_of(request: PageRequest) -> str:
    """Return the bearer token, or the password of basic authentication with any user name; "" if there is neither."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # not base64, not ASCII, or not UTF-8
        return ""


def _host_of(value: str) -> str:
    """Return the host of a Host header in lower case, without the port, and IPv6 without brackets."""
    name = value[1:].partition("]")[0] if value.startswith("[") else value.partition(":")[0]
    return name.lower().removesuffix(".")
