"""One connection of a client: TCP, TLS, WebSocket, CONNECT; then frames in both directions, and heart-beats.

A connection ends with one of three exceptions. ``Lost``: another attempt may succeed. ``Refused``: the server gave a
reason, which says whether another attempt may succeed. ``BadAnswer``: the peer is not a server that this client can
use.
"""

import logging
import os
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Self, cast
from urllib.parse import urlsplit

import h11
import trio
from attrs import define, field, frozen
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import ProtocolError

from airy_trio.delivery.disconnects import CATALOGUE, Reconnect
from airy_trio.errors import AiryTrioError
from airy_trio.stomp.codec import Decoder, Limits, encode
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.frames import Frame, HeartBeat, Version, negotiate

PATH: Final = "/ws.communication"
"""The path of a URL that has none."""
OPEN_TIMEOUT_S: Final = 20.0
"""For one attempt, from TCP to CONNECTED."""
HEART_BEAT_MS: Final = 10_000
"""The interval that the client offers in both directions; the larger one of both sides applies."""
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""A larger message is a ``BadAnswer``. The limit of a server is 60 KiB by default."""
RETRY_AFTER_MAX_S: Final = 60.0
"""The longest ``Retry-After`` that is observed."""
LABEL_CHARS_MAX: Final = 63
"""Between two dots of a host name (RFC 1035). Python's resolver raises ``UnicodeError`` for a longer or empty label."""
_RECEIVE_BYTES: Final = 65_536
_PROSE_CHARS_MAX: Final = 200
_LIMITS: Final = Limits(
    frame_bytes_max=MESSAGE_BYTES_MAX, header_count_max=100, header_line_bytes_max=65_536, command_bytes_max=100
)
_RECONNECT: Final = {row.token[:3]: row.reconnect for row in CATALOGUE if row.token is not None}
_BY_CLOSE_CODE: Final = {row.close_code: row for row in CATALOGUE if row.token is not None}
_NOT_WEBSOCKET: Final = "the answer is not valid WebSocket"
_FAULTS: Final = {1002: _NOT_WEBSOCKET, 1007: _NOT_WEBSOCKET, 1009: "a message was too large"}
"""By the close codes with which this client ends a WebSocket. The server sends an ERROR before its own, if it can."""
_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_PRINTABLE: Final = re.compile(r"[!-~]+")
_AnyStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

logger = logging.getLogger(__name__)


class ClientError(AiryTrioError):
    """The events cannot continue."""


class Refused(ClientError):
    """The server does not accept this client, and the same attempt would fail again.

    ``token``: one of "Disconnect reasons" or "STOMP errors", such as ``403-destination``, or the status of an HTTP
    response, such as ``404``. ``prose``: the server's explanation, which may be empty. ``wait_s``: how long the server
    asks to wait before the next attempt; None: it does not say.
    """

    def __init__(self, token: str, prose: str, wait_s: float | None = None) -> None:
        super().__init__(f"the server refused: {token}: {prose}" if prose else f"the server refused: {token}")
        self.token = token
        self.prose = prose
        self.wait_s = wait_s

    @property
    def reconnect(self) -> Reconnect:
        """Whether another attempt may succeed. Of unknown tokens only those that begin with 5 are temporary."""
        unknown = Reconnect.YES if self.token.startswith("5") else Reconnect.NO
        return _RECONNECT.get(self.token[:3], unknown)


class BadAnswer(ClientError):
    """The peer does not speak STOMP 1.2 with positions over WebSocket, or its certificate is not valid."""


class Lost(Exception):
    """The connection is lost, or could not be opened."""


@frozen
class ServerAddress:
    """What a URL names. ``host_header``: as in the header Host. ``target``: of the request line. ``tls``: if secure."""

    host: str
    port: int
    host_header: str
    target: str
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext | None) -> Self:
        """Parse a URL. ``tls``: the certificates to trust; None: those of the system. Raises ``ValueError``."""
        parts = urlsplit(url)
        labels = (parts.hostname or "").removesuffix(".").split(".")
        if (
            parts.scheme not in {"ws", "wss"}
            or not all(0 < len(label) <= LABEL_CHARS_MAX for label in labels)
            or "@" in parts.netloc
            or not _PRINTABLE.fullmatch(url)
        ):
            raise ValueError("the URL is not of the form ws://HOST/PATH or wss://HOST/PATH, in ASCII, without a user")
        tls = None if parts.scheme == "ws" else tls or ssl.create_default_context()
        port = parts.port or (443 if tls else 80)
        path = PATH if parts.path in {"", "/"} else parts.path
        target = f"{path}?{parts.query}" if parts.query else path
        return cls(parts.hostname or "", port, parts.netloc, target, tls)

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[_AnyStream]:
        """Open a stream for a block. Raises ``Lost``, and ``BadAnswer`` for a certificate that is not valid."""
        try:
            plain = await trio.open_tcp_stream(self.host, self.port)
        except OSError as error:
            raise Lost(_reason(error)) from error
        try:
            if self.tls is None:
                yield plain
                return
            stream = trio.SSLStream(plain, self.tls, server_hostname=self.host, https_compatible=True)
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError as error:
                message = f"no TLS with {self.host}: {error.__cause__ or error}"
                invalid = isinstance(error.__cause__, ssl.SSLCertVerificationError)
                raise (BadAnswer if invalid else Lost)(message) from error
            yield stream
        finally:
            await trio.aclose_forcefully(plain)


@asynccontextmanager
async def connected(address: ServerAddress, token: str | None) -> AsyncGenerator["ServerConnection"]:
    """Open a connection for a block, up to CONNECTED, and close the socket after it.

    Raises ``Lost``, ``Refused``, ``BadAnswer``.
    """
    # Scopes and nurseries must be nested, so this scope surrounds the block of the caller too, and its deadline is
    # lifted before that block begins. Only an attempt that is too slow gets to the end of this function.
    with trio.move_on_after(OPEN_TIMEOUT_S) as opening:
        async with address.stream() as stream, tasks() as nursery:
            connection = ServerConnection(await _upgraded(nursery, stream, address))
            await connection.log_in(address.host, token)
            nursery.start_soon(connection.send_heart_beats)
            opening.deadline = float("inf")
            yield connection
            return
    raise Lost(f"no connection within {OPEN_TIMEOUT_S:g} s")


@asynccontextmanager
async def tasks() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery whose tasks are cancelled after the block. What the block raises is not wrapped in a group."""
    # A nursery wraps in a group what its block raises, even a single exception. So the exception is kept until the
    # nursery has ended. It is raised in a `finally`, because it has precedence over what a task raises while it is
    # cancelled.
    fault: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:  # for the nursery: a task of it may have failed
                raise
            except BaseException as error:  # noqa: BLE001 - raised below
                fault = error
            nursery.cancel_scope.cancel()
    finally:
        if fault is not None:
            raise fault


async def _upgraded(nursery: trio.Nursery, stream: _AnyStream, address: ServerAddress) -> WebSocketConnection:
    """Open the WebSocket. Raises ``Lost``, ``Refused``."""
    reader = _Reader(nursery)
    with reader.ended:
        return await wrap_client_stream(
            cast("trio.Nursery", reader),
            stream,
            address.host_header,
            address.target,
            subprotocols=["v12.stomp"],
            max_message_size=MESSAGE_BYTES_MAX,
            receive_buffer_size=_RECEIVE_BYTES,
        )
    if (rejected := reader.rejected) is None:
        raise Lost("the connection ended before the upgrade to WebSocket")
    retry_after = {name.lower(): value for name, value in rejected.headers}.get(b"retry-after", b"").decode("latin-1")
    wait_s = min(int(retry_after), RETRY_AFTER_MAX_S) if _NUMBER.fullmatch(retry_after) else None
    raise Refused(str(rejected.status_code), _prose(rejected.body or b""), wait_s)


@define(eq=False)
class _Reader:
    """Starts the reader of trio-websocket, in place of a nursery. ``ended`` is cancelled when the reader ends.

    With a nursery an upgrade would wait until its time-out if the connection is lost, and a rejection would be raised
    in the nursery.
    """

    _nursery: trio.Nursery
    ended: trio.CancelScope = field(factory=trio.CancelScope)
    rejected: ConnectionRejected | None = None

    def start_soon(self, read: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, read)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        except ConnectionRejected as rejected:
            self.rejected = rejected
        except (ConnectionClosed, ProtocolError, h11.ProtocolError, UnicodeError) as error:  # if the answer is no HTTP
            logger.debug("the WebSocket ended with a fault: %s", error)
        self.ended.cancel()


class ServerConnection:
    """Frames over a WebSocket. Each method raises ``Lost``, ``Refused`` and ``BadAnswer``."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._decoder = Decoder(_LIMITS, Version.V1_2)
        self._frames: Iterator[Frame] = iter(())
        self._heartbeat = HeartBeat()

    async def log_in(self, host: str, token: str | None) -> None:
        """Send CONNECT, read CONNECTED, and agree on heart-beats."""
        headers = [("accept-version", "1.2"), ("host", host), ("heart-beat", f"{HEART_BEAT_MS},{HEART_BEAT_MS}")]
        if token is not None:
            headers.append(("Authorization", f"Bearer {token}"))
        await self.send(Frame("CONNECT", tuple(headers)))
        answer = await self.receive("CONNECTED")
        if answer.get("version") != Version.V1_2.value:
            raise BadAnswer(f"the server speaks version {answer.get('version')!r} of STOMP instead of 1.2")
        try:
            self._heartbeat = negotiate(answer.get("heart-beat") or None, HEART_BEAT_MS)
        except ValueError:
            raise BadAnswer("the header heart-beat of the server is not two numbers of milliseconds") from None

    async def send(self, frame: Frame) -> None:
        """Send a frame."""
        try:
            await self._websocket.send_message(encode(frame, Version.V1_2).decode())
        except ConnectionClosed as closed:
            raise _ending(closed) from None
        except ProtocolError as error:
            raise Lost(str(error)) from error

    async def receive(self, command: str) -> Frame:
        """Return the next frame, which must have this command. It may be cancelled and called again."""
        silent_after_s = self._heartbeat.silent_after_s or float("inf")
        try:
            while (frame := next(self._frames, None)) is None:
                with trio.move_on_after(silent_after_s) as waiting:
                    data = await self._websocket.get_message()
                    self._frames = self._decoder.feed(data.encode() if isinstance(data, str) else data)
                if waiting.cancelled_caught:
                    raise Lost(f"the server was silent for {silent_after_s:g} s")
        except ConnectionClosed as closed:
            raise _ending(closed) from None
        except RemoteProtocolError as fault:
            raise BadAnswer(f"the server does not speak STOMP: {fault}") from fault
        if frame.command == "ERROR":
            raise Refused(frame.get("message") or "", _prose(frame.body))
        if frame.command != command:
            raise BadAnswer(f"the server sent {frame.command!r} instead of {command}")
        return frame

    @trio.lowlevel.enable_ki_protection
    async def send_heart_beats(self) -> None:
        """Send heart-beats until the connection ends, which ``receive`` reports; none if the server wants none."""
        with suppress(ConnectionClosed, ProtocolError):
            while (interval_s := self._heartbeat.outgoing_s) is not None:
                await trio.sleep(interval_s)
                await self._websocket.send_message("\n")


def _reason(error: OSError) -> str:
    """Return why a host could not be reached; if it has several addresses, the reason for the first one."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):  # Trio's error reports only that all attempts have failed
        cause = cause.exceptions[0]
    number = cause.errno if isinstance(cause, OSError) else None
    return str(error) if number is None else os.strerror(number)


def _ending(closed: ConnectionClosed) -> Exception:
    """Return the exception for a Close frame without an ERROR before it, or for a connection that has ended."""
    code, reason = (closed.reason.code, closed.reason.reason or "") if closed.reason else (None, "")
    if code in _FAULTS:
        return BadAnswer(f"{_FAULTS[code]}: {reason}")
    row = _BY_CLOSE_CODE.get(code)
    if row is not None and row.token is not None:
        return Refused(row.token, reason or row.prose)
    return Lost(f"the connection ended: close code {code}, {reason!r}")


def _prose(body: bytes) -> str:
    return body.decode(errors="replace").strip()[:_PROSE_CHARS_MAX]
