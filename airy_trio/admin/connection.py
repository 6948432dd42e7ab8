"""HTTP/1.1 on one connection of the admin port: h11 parses the requests, an ASGI application answers them.

Requests are answered one after another, in one task. When a connection ends, it leaves no task and no reference cycle,
so its memory is free at once: peers that connect and end as fast as they can grow the server by nothing. There is no
HTTP/2, whose peers can open and reset many requests at once.

The pages take no request body. A body is not read, and its connection is closed after the answer.
"""

from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import h11
import structlog
import trio
from starlette.types import ASGIApp, Message, Scope

logger = structlog.get_logger(__name__)

IDLE_S: Final = 5.0
"""The maximum time until a request is complete, and between two requests."""
WRITE_S: Final = 1.0
"""The time in which a peer must accept an answer; the kernel's buffers can hold it."""
HEAD_BYTES_MAX: Final = 16 * 1024
READ_BYTES_MAX: Final = 4 * 1024
"""Received at once. With ``HEAD_BYTES_MAX`` it bounds what is buffered of a peer that sends without end."""

Headers = Iterable[tuple[bytes, bytes]]


class HttpConnection:
    """One connection. The caller owns the stream."""

    def __init__(self, application: ASGIApp, stream: trio.abc.Stream) -> None:
        self._application = application
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def serve(self) -> None:
        """Answer requests until the peer closes the connection, is too slow, or sends something else than HTTP/1.1."""
        try:
            try:
                while (request := await self._receive()) is not None:
                    await self._send(*await self._answer(request))
                    if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                        return
                    self._http.start_next_cycle()
            except h11.RemoteProtocolError as error:
                error.__traceback__ = None  # a cycle, because h11 raises some errors in a method of theirs
                await self._send(error.error_status_hint, [(b"content-length", b"0"), (b"connection", b"close")], b"")
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

    async def _answer(self, request: h11.Request) -> tuple[int, Headers, bytes]:
        """Return the application's status, headers and body. If it fails, this is logged."""
        path, _, query = request.target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode(),
            "scheme": "http",
            "path": unquote(path.decode()),
            "raw_path": path,
            "query_string": query,
            "headers": list(request.headers),
        }
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR
        headers: Headers = []
        body = b""

        async def receive() -> Message:
            await trio.lowlevel.checkpoint()
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            nonlocal status, headers, body
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                status, headers = message["status"], message["headers"]
            else:
                body += message.get("body", b"")

        try:
            await self._application(scope, receive, send)
        except Exception:  # Starlette has sent an answer before it raised this
            logger.exception("admin request failed")
        return status, headers, b"" if request.method == b"HEAD" else body

    async def _send(self, status: int, headers: Headers, body: bytes) -> None:
        date = (b"date", formatdate(usegmt=True).encode())
        events: list[h11.Event] = [h11.Response(status_code=status, headers=[*headers, date])]
        if body:
            events.append(h11.Data(data=body))
        events.append(h11.EndOfMessage())
        with trio.fail_after(WRITE_S):
            for event in events:
                await self._stream.send_all(self._http.send(event) or b"")
