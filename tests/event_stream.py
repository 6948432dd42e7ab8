"""A reader of event streams for tests: HTTP by h11, events by the rules of the HTML standard, 9.2.6.

The reader is stricter than a browser: a field that the standard does not define is an error.
"""

import json
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import h11
import trio
from attrs import define, field, frozen

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 65_536
Headers = Sequence[tuple[str, str]]


@frozen
class StreamEvent:
    """One event as ``EventSource`` dispatches it. ``id``: the ``lastEventId``, of this or an earlier event."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON
        return json.loads(self.data)


@define
class Parser:
    """Parses octets into events. ``comments``: the number of comments. ``retry``: the newest value."""

    comments: int = 0
    retry: int | None = None
    last_id: str = ""
    _rest: bytes = b""
    _type: str = ""
    _data: list[str] = field(factory=list)

    def feed(self, octets: bytes) -> list[StreamEvent]:
        found: list[StreamEvent] = []
        *lines, self._rest = (self._rest + octets).split(b"\n")
        for line in lines:
            assert b"\r" not in line, line
            if not line:
                if self._data:
                    found.append(StreamEvent(self._type or "message", "\n".join(self._data), self.last_id))
                self._type, self._data = "", []
                continue
            name, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    self.comments += 1
                case "event":
                    self._type = value
                case "data":
                    self._data.append(value)
                case "id":
                    self.last_id = value
                case "retry":
                    self.retry = int(value)
                case _:
                    raise AssertionError(line)
        return found


@define
class EventStream:
    """One connection. ``status`` and ``headers`` (by lower-case name) are those of the response."""

    stream: trio.abc.Stream
    status: int = 0
    headers: dict[str, str] = field(factory=dict)
    parser: Parser = field(factory=Parser)
    _http: h11.Connection = field(factory=lambda: h11.Connection(h11.CLIENT))
    _events: "deque[StreamEvent]" = field(factory=deque)

    async def request(
        self, target: str = "/events", *, method: str = "GET", host: str = HOST, headers: Headers = ()
    ) -> "EventStream":
        """Send a request and read the head of the response."""
        await self.stream.send_all(
            self._http.send(h11.Request(method=method, target=target, headers=[("Host", host), *headers]))
            + self._http.send(h11.EndOfMessage())
        )
        response = await self._next()
        assert isinstance(response, h11.Response)
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}
        return self

    async def receive(self) -> StreamEvent:
        """Return the next event. Raises ``EOFError`` at the end of the stream."""
        while not self._events:
            octets = await self._body()
            if octets is None:
                raise EOFError
            self._events.extend(self.parser.feed(octets))
        return self._events.popleft()

    async def body(self) -> bytes:
        """Return the rest of the response."""
        parts = []
        while (octets := await self._body()) is not None:
            parts.append(octets)
        return b"".join(parts)

    async def subscribed(self) -> Any:  # noqa: ANN401 - any JSON
        """Return the data of the first event."""
        assert self.status == 200, self.status
        first = await self.receive()
        assert first.type == "subscribed", first
        return first.json

    async def _body(self) -> bytes | None:
        event = await self._next()
        if isinstance(event, h11.EndOfMessage):
            return None
        assert isinstance(event, h11.Data)
        return bytes(event.data)

    async def _next(self) -> Any:  # noqa: ANN401 - of h11
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(bytes(await self.stream.receive_some(READ_BYTES)))
        return event


@asynccontextmanager
async def requesting(
    port: int, target: str = "/events", *, method: str = "GET", headers: Headers = ()
) -> AsyncGenerator[EventStream]:
    """Send a request to a server on this machine. Closes the connection at the end."""
    async with await trio.open_tcp_stream(HOST, port) as stream:
        yield await EventStream(stream).request(target, method=method, host=f"{HOST}:{port}", headers=headers)
