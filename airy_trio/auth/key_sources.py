"""Where the keys of web tokens are: a PEM file, a JWK Set in a file, or one on a server; how long each may be old.

One GET over HTTPS, for keys: bounded in time and size, and never in the way of others.

The server's certificate is verified by the certificate authorities of the system, or those that ``SSL_CERT_FILE``
names. No redirect is followed, no proxy is used, and no error has the path or the query of the URL.

The keys that count now, kept fresh by one task: asked for anew when a token names an unknown one, and now and then.

What cannot be had leaves the keys as they are. However many tokens name unknown keys, the source is asked once in its
``pause_s``, by the one task; who waits for it waits for a bounded time.
"""

import math
import ssl
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Protocol, Self
from urllib.parse import quote, urlsplit

import h11
import structlog
import trio
from attrs import frozen

from airy_trio.auth.keys import KEYS_BYTES_MAX, Key, KeysFault, bounded, read_jwks, read_pem
from airy_trio.auth.users import AuthOptions

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
class KeyUrl:
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
    place = KeyUrl.of(url)
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


class KeySource(Protocol):
    """Gives keys whenever it is asked. ``pause_s``: not to be asked more often; ``refresh_s``: to be asked at least."""

    @property
    def pause_s(self) -> float: ...  # noqa: D102 - above

    @property
    def refresh_s(self) -> float: ...  # noqa: D102 - above

    async def load(self) -> tuple[Key, ...]:
        """Give the keys, at least one. Raises ``KeysFault``."""
        ...


@frozen
class KeyFile:
    """Keys in a file, which is looked at so often that a changed one counts soon."""

    path: Path
    read: Callable[[bytes, Collection[str]], tuple[Key, ...]]
    algorithms: tuple[str, ...]
    pause_s: float = 1.0
    refresh_s: float = 10.0

    @property
    def words(self) -> str:
        """What the setting is taken for; its value may be a secret that stands there by mistake."""
        kind = "JWK Set" if self.path.suffix == ".json" else "PEM file"
        return f"taken for the name of a {kind}, by jwt_algorithms and its ending"

    async def load(self) -> tuple[Key, ...]:
        """See ``KeySource.load``."""
        return await trio.to_thread.run_sync(self.load_now, abandon_on_cancel=True)  # a mount may hang

    def load_now(self) -> tuple[Key, ...]:
        """Do the same without Trio. Blocks."""
        try:
            with self.path.open("rb") as file:
                data = file.read(KEYS_BYTES_MAX + 1)
        except FileNotFoundError:
            message = "there is no such file"
        except (OSError, ValueError) as error:  # its text has the name, which may be a secret by mistake
            message = f"the file cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
        else:
            return self.read(bounded(data), self.algorithms)
        raise KeysFault(message)


@frozen
class KeyServer:
    """A JWK Set behind an ``https://`` URL."""

    url: str
    algorithms: tuple[str, ...]
    pause_s: float = 30.0
    refresh_s: float = 300.0

    async def load(self) -> tuple[Key, ...]:
        """See ``KeySource.load``."""
        return read_jwks(await fetch(self.url), self.algorithms)


def source_of(options: AuthOptions) -> KeyFile | KeyServer:
    """Tell where the keys are: ``https://`` is a JWK Set's URL, ``*.json`` its file, anything else a PEM file."""
    algorithms = tuple(options.jwt_algorithms)
    if options.jwt_key.startswith("https://"):
        return KeyServer(options.jwt_key, algorithms)
    path = Path(options.jwt_key)
    return KeyFile(path, read_jwks if path.suffix == ".json" else read_pem, algorithms)


logger = structlog.get_logger(__name__)

RETRY_S: Final = 1.0
"""After the first failure; each further one doubles it, up to the source's ``pause_s``."""
WAIT_S: Final = FETCH_TIMEOUT_S + 1


class KeyRing:
    """The keys, and the source that they come from; without one they stay.

    ``loaded``: whether they are known; a server of keys may not have answered yet.
    """

    def __init__(self, keys: tuple[Key, ...] = (), source: KeySource | None = None) -> None:
        self.keys = keys
        self.loaded = source is None or bool(keys)
        self.source = source
        self._begun_at = -math.inf
        self._due_at = math.inf if source is None else -math.inf
        self._loading = False
        self._failures = 0
        self._wanted = trio.Event()
        self._ended = trio.Event()

    def retire(self) -> None:
        """Ask for nothing any more: another one counts. Who waits here is let go."""
        self.source = None
        self._wanted.set()
        self._ended.set()

    async def wait_newer(self) -> bool:
        """Ask for the keys anew and wait for them; False where they were asked for too short a time ago."""
        if self.source is None:
            return False
        ended = self._ended
        if not self._loading:
            if trio.current_time() < self._begun_at + self.source.pause_s:
                return False
            self._wanted.set()
        with trio.move_on_after(WAIT_S):
            await ended.wait()
        return ended.is_set()

    async def refresh(self) -> bool:
        """Wait until the keys are due or wanted, and load them once; True where they are others than before."""
        with trio.move_on_at(self._due_at):
            await self._wanted.wait()
        self._wanted = trio.Event()
        source = self.source  # it may be retired while it is asked
        if source is None:
            return False
        self._loading, self._begun_at = True, trio.current_time()
        try:
            return self._take(await source.load(), source)
        except KeysFault as fault:
            return self._put_off(str(fault), source)
        except Exception as error:  # noqa: BLE001 - beyond this the server would end, by what another one has answered
            return self._put_off(f"an error of the program: {type(error).__name__}", source)
        finally:
            self._loading = False
            self._ended.set()
            self._ended = trio.Event()

    def _put_off(self, reason: str, source: KeySource) -> bool:
        if not self._failures:
            logger.warning("auth.jwt_key: the keys stay as they are", reason=reason, known=len(self.keys))
        self._due_at = trio.current_time() + min(math.ldexp(RETRY_S, min(self._failures, 10)), source.pause_s)
        self._failures += 1
        return False

    def _take(self, keys: tuple[Key, ...], source: KeySource) -> bool:
        changed = keys != self.keys
        if changed or self._failures:
            logger.info("keys of web tokens loaded", keys=len(keys))
        self.keys, self.loaded, self._failures = keys, True, 0
        self._due_at = trio.current_time() + source.refresh_s
        return changed
