"""The keys that verify web tokens: read from a JWK Set or from PEM, and kept current.

Each key is only for algorithms of its kind; a public key is never used as a secret of HS*. A private key is refused
wherever it is found: this server does not sign.

A source is a PEM file, a JWK Set in a file, or a JWK Set on a server. ``KeyRing`` has the keys that are valid now. One
task keeps it current: it loads them at regular intervals, and at once when a token names an unknown key. If loading
fails, the keys stay as they are. However many tokens name unknown keys, the source is loaded at most once in its
``pause_s``, by that one task; a token waits for it for a limited time.

A key server is reached with one GET over HTTPS, limited in time and size. Its certificate is verified with the
certificate authorities of the system, or of ``SSL_CERT_FILE``. Redirects are not followed, proxies are not used, and no
error contains the path or the query of the URL, which may be secret.
"""

import hashlib
import json
import math
import ssl
from collections.abc import Collection, Iterable
from http import HTTPStatus
from http.client import HTTPS_PORT
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, quote, urlsplit

import h11
import structlog
import trio
from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWK

from airy_trio.auth.users import AuthOptions
from airy_trio.retry import Backoff, Outage

logger = structlog.get_logger(__name__)

KEYS_BYTES_MAX: Final = 256 * 1024
"""Size of a file or a response with keys."""
KEYS_MAX: Final = 64
"""Of a JWK Set. A token without ``kid`` is tried with each."""
RSA_BITS_MIN: Final = 2048
_RSA: Final = frozenset({"RS256", "RS384", "RS512"})
_OF_CURVE: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
FETCH_TIMEOUT_S: Final = 5.0
"""From the look-up of the host name to the last byte."""
WAIT_S: Final = FETCH_TIMEOUT_S + 1
"""The longest time that a token waits for newer keys."""
RECEIVE_BYTES_MAX: Final = 16 * 1024
"""Octets of a response that are received in one step."""
RETRY_S: Final = 1.0
"""After the first failure; doubled after each further one, up to the source's ``pause_s``."""
_SAFE: Final = "/%:@!$&'()*+,;=~?"
"""Characters that are not escaped in a path or a query (RFC 3986), and the escapes of those that are."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey


class KeysFault(Exception):
    """No usable keys were read. The message gives the reason and quotes nothing of the data."""


@frozen
class Key:
    """One key. ``kid``: its name, if it has one. ``algorithms``: those that it may verify, at least one."""

    kid: str | None
    algorithms: frozenset[str]
    material: PublicKey | bytes = field(repr=False, eq=False)
    fingerprint: bytes = field(repr=False)

    def may_verify(self, kid: str | None, algorithm: str) -> bool:
        """Return whether this key may verify a token with this ``kid``, None if it has none, and this algorithm."""
        return algorithm in self.algorithms and (kid is None or self.kid is None or kid == self.kid)


def bounded(data: bytes) -> bytes:
    """Return data of at most ``KEYS_BYTES_MAX``, else raise ``KeysFault``."""
    if len(data) > KEYS_BYTES_MAX:
        raise KeysFault(f"larger than {KEYS_BYTES_MAX} bytes")
    return data


def secret_key(secret: str, algorithms: Iterable[str]) -> Key:
    """Make the key of HS* from its secret."""
    data = secret.encode()
    return Key(None, frozenset(algorithms), data, hashlib.sha256(data).digest())


def read_pem(data: bytes, algorithms: Collection[str]) -> tuple[Key, ...]:
    """Read the one public key, or certificate, in PEM. Raises ``KeysFault``."""
    if b"PRIVATE KEY-----" in data:
        raise KeysFault("it contains a private key; the public key is required")
    if data.count(b"-----BEGIN ") != 1:
        raise KeysFault("not one public key or certificate in PEM (use a JWK Set, a .json file, for several)")
    try:
        certified = b"-----BEGIN CERTIFICATE-----" in data
        public = load_pem_x509_certificate(data).public_key() if certified else load_pem_public_key(data)
    except Exception:  # noqa: BLE001 - as in _from_jwk; and the messages may quote the data
        raise KeysFault("the text between BEGIN and END is not a public key") from None
    if not isinstance(public, RSAPublicKey | EllipticCurvePublicKey):
        raise KeysFault("neither an RSA key nor a key for ES256, ES384 or ES512")
    return _usable([_key(None, public, algorithms)], algorithms)


def read_jwks(data: bytes, algorithms: Collection[str]) -> tuple[Key, ...]:
    """Read the keys of a JWK Set (RFC 7517, section 5), except those for other uses. Raises ``KeysFault``."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise KeysFault("not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeysFault('not a JWK Set: it has no array "keys"')
    if len(entries) > KEYS_MAX:
        raise KeysFault(f"more than {KEYS_MAX} keys")
    if any(isinstance(entry, dict) and "d" in entry for entry in entries):
        raise KeysFault("it contains a private key; only public keys are allowed")
    return _usable([_from_jwk(entry, algorithms) for entry in entries if isinstance(entry, dict)], algorithms)


def _from_jwk(entry: dict[str, Any], algorithms: Collection[str]) -> Key | None:
    """Read one key of a set. None if it is for another use or of an unknown kind, which RFC 7517 says to ignore."""
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kid, named = entry.get("kid"), entry.get("alg")
    if not isinstance(kid, str | None) or not isinstance(named, str | None):
        return None
    try:
        public = PyJWK(entry).key
    except Exception:  # noqa: BLE001 - a key that the library cannot read is ignored, whatever the error
        return None
    if not isinstance(public, RSAPublicKey | EllipticCurvePublicKey):
        return None
    return _key(kid, public, [one for one in algorithms if named in (None, one)])


def _key(kid: str | None, public: PublicKey, algorithms: Iterable[str]) -> Key | None:
    """Make the key for those of the algorithms that fit its kind. None if none fits, or if it is too short."""
    if isinstance(public, RSAPublicKey):
        kind = _RSA if public.key_size >= RSA_BITS_MIN else frozenset()
    else:
        kind = frozenset({_OF_CURVE.get(public.curve.name, "")})
    fitting = kind & frozenset(algorithms)
    if not fitting:
        return None
    written = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(kid, fitting, public, hashlib.sha256(written).digest())


def _usable(found: Iterable[Key | None], algorithms: Iterable[str]) -> tuple[Key, ...]:
    keys = tuple(key for key in found if key is not None)
    if not keys:
        raise KeysFault(f"no public key for {', '.join(algorithms)} (RSA keys need at least {RSA_BITS_MIN} bits)")
    return keys


@frozen
class KeyFile:
    """Keys in a file. It is read often, so that a change takes effect soon.

    ``pause_s``: the shortest interval between two loads; ``refresh_s``: the longest.
    """

    path: Path
    algorithms: tuple[str, ...]
    pause_s: float = 1.0
    refresh_s: float = 10.0

    @property
    def is_set(self) -> bool:
        """Whether the file is a JWK Set; otherwise it is PEM."""
        return self.path.suffix == ".json"

    @property
    def words(self) -> str:
        """How the setting was understood. Its value is not shown, as it may be a secret by mistake."""
        kind = "JWK Set" if self.is_set else "PEM file"
        return f"understood as the name of a {kind}, from jwt_algorithms and its ending"

    async def load(self) -> tuple[Key, ...]:
        """Return the keys, at least one. Raises ``KeysFault``. Can be cancelled."""
        return await trio.to_thread.run_sync(self.load_now, abandon_on_cancel=True)  # a mount may hang

    def load_now(self) -> tuple[Key, ...]:
        """Load without Trio. Blocks."""
        try:
            with self.path.open("rb") as file:
                data = file.read(KEYS_BYTES_MAX + 1)
        except FileNotFoundError:
            message = "there is no such file"
        except (OSError, ValueError) as error:  # its text contains the name, which may be a secret by mistake
            message = f"the file cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
        else:
            return (read_jwks if self.is_set else read_pem)(bounded(data), self.algorithms)
        raise KeysFault(message)


@frozen
class KeyServer:
    """A JWK Set behind an ``https://`` URL. ``pause_s``, ``refresh_s`` and ``load``: see ``KeyFile``."""

    url: str
    algorithms: tuple[str, ...]
    pause_s: float = 30.0
    refresh_s: float = 300.0
    # Of its own, because an abandoned thread that hangs keeps its token. The next load then waits for that thread, and
    # the other threads of the process are not affected.
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False, eq=False, repr=False)

    async def load(self) -> tuple[Key, ...]:
        """See ``KeyFile.load``."""
        parts = urlsplit(self.url)
        target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
        try:
            with trio.fail_after(FETCH_TIMEOUT_S):
                # Reads all certificate authorities, from a mount that may hang.
                make = ssl.create_default_context
                tls = await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=self._limiter)
                async with await trio.open_ssl_over_tcp_stream(
                    parts.hostname or "", parts.port or HTTPS_PORT, https_compatible=True, ssl_context=tls
                ) as stream:
                    body = await _body_of(stream, _host_header(parts), target)
                return read_jwks(body, self.algorithms)
        except trio.TooSlowError:
            message = f"the key server took more than {FETCH_TIMEOUT_S:g} s"
        except h11.RemoteProtocolError:
            message = "the key server did not answer in HTTP"
        except (OSError, trio.BrokenResourceError) as error:
            cause = error.__cause__ or error  # that of the only address, a group of those of all, or an error of TLS
            first = getattr(cause, "exceptions", (cause,))[0]
            message = f"the keys cannot be fetched: {getattr(first, 'strerror', None) or type(first).__name__}"
        raise KeysFault(message)


def _host_header(url: SplitResult) -> bytes:
    # The host alone is encoded: for IDNA a port would be a part of its last label.
    name = url.hostname or ""
    host = (f"[{name}]" if ":" in name else name).encode("idna")
    return host if url.port in {None, HTTPS_PORT} else host + b":%d" % (url.port or 0)


async def _body_of(stream: trio.abc.Stream, host: bytes, target: str) -> bytes:
    """Request ``target`` and return the body. ``host``: the value of the header Host.

    Raises ``KeysFault``, ``h11.RemoteProtocolError`` and ``trio.BrokenResourceError``.
    """
    http = h11.Connection(h11.CLIENT)
    # Not compressed, because h11 does not decompress.
    accept = (b"Accept", b"application/json, */*"), (b"Accept-Encoding", b"identity")
    request = h11.Request(method="GET", target=target, headers=[(b"Host", host), *accept, (b"Connection", b"close")])
    await stream.send_all(http.send(request) + http.send(h11.EndOfMessage()))
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES_MAX)))
        elif isinstance(event, h11.Response) and event.status_code != HTTPStatus.OK:
            raise KeysFault(f"the key server answered with status {event.status_code}")
        elif isinstance(event, h11.Data):
            body = bounded(body + event.data)
        elif isinstance(event, h11.EndOfMessage):
            return body


def source_of(options: AuthOptions) -> KeyFile | KeyServer:
    """Return the source that ``jwt_key`` names: ``https://`` a JWK Set, ``*.json`` its file, else a PEM file."""
    algorithms = tuple(options.jwt_algorithms)
    if options.jwt_key.startswith("https://"):
        return KeyServer(options.jwt_key, algorithms)
    return KeyFile(Path(options.jwt_key), algorithms)


class KeyRing:
    """The keys that are valid now, and their source.

    ``keys`` is empty until the first load. ``source`` None: the keys never change.
    """

    # Tasks of three kinds meet here. One task calls `refresh` in a loop and is the only one that loads. Sessions call
    # `wait_newer` for a token with an unknown key. During a load they wait for its end. Otherwise they request a load,
    # unless the last one began less than `pause_s` ago: then the answer is False at once. So tokens with invented keys
    # cause one load in `pause_s`, however many there are. A renewal of the settings replaces the ring and calls
    # `retire` on the old one. That wakes the loading task and the sessions, and each continues with the new ring.
    # Each of the two events is for one load. `_wanted` is replaced before the load begins, so requests that come
    # together are one, and none is left over. A session takes `_ended` when it begins to wait, and it is replaced at
    # the end of a load, so no session waits for a second one.

    def __init__(self, keys: tuple[Key, ...] = (), source: KeyFile | KeyServer | None = None) -> None:
        self.keys = keys
        self.source = source
        self._began_at = -math.inf
        self._due_at = math.inf if source is None else -math.inf
        self._loading: trio.CancelScope | None = None
        backoff = Backoff(RETRY_S, RETRY_S if source is None else source.pause_s)
        self._outage = Outage(logger, "auth.jwt_key: the keys stay as they are", backoff=backoff)
        self._wanted = trio.Event()
        self._ended = trio.Event()  # of the current load, or of the next one

    def retire(self) -> None:
        """End the use of this ring, because another one replaces it. All waiting tasks return.

        A running load is cancelled: a file on a mount that hangs must not delay the ring that replaces this one.
        """
        self.source = None
        self._due_at = math.inf
        if self._loading is not None:
            self._loading.cancel()
        self._wanted.set()
        self._ended.set()

    async def wait_newer(self) -> bool:
        """Request a load and wait for it. False if the last one is too recent, or took longer than ``WAIT_S``."""
        if self.source is None:
            return False
        ended = self._ended
        if self._loading is None:
            if trio.current_time() < self._began_at + self.source.pause_s:
                return False
            self._wanted.set()
        with trio.move_on_after(WAIT_S):
            await ended.wait()
        return ended.is_set()

    async def refresh(self) -> bool:
        """Wait until the keys are due or requested, and load them once. True if they have changed."""
        with trio.move_on_at(self._due_at):
            await self._wanted.wait()
        self._wanted = trio.Event()
        source = self.source
        if source is None:
            return False
        self._began_at = trio.current_time()
        keys, fault = None, ""
        try:
            with trio.CancelScope() as self._loading:
                keys = await source.load()
        except KeysFault as error:
            fault = str(error)
        except Exception as error:  # noqa: BLE001 - the answer of another server must not end this one
            fault = f"an error of the program: {type(error).__name__}"
        finally:
            # No checkpoint from here until the new keys are stored below, so the sessions that this wakes find them.
            self._loading = None
            self._ended.set()
            self._ended = trio.Event()
        if fault:
            self._due_at = trio.current_time() + self._outage.begin(fault, known=len(self.keys))
        if keys is None:  # a fault, or retired meanwhile
            return False
        changed = keys != self.keys
        if changed or self._outage.reason is not None:
            logger.info("keys of web tokens loaded", keys=len(keys))
        self._outage.end()
        self.keys = keys
        self._due_at = trio.current_time() + source.refresh_s
        return changed
