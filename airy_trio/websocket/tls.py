"""TLS over any other transport, by hand: what is taken is encrypted at once, so that the fan-out serves these clients too.

Over ``ssl.MemoryBIO``, whose two ends hold little: a run is encrypted record by record and handed on whole, and the
peer's octets are decrypted only as fast as they are read here. What TLS itself has to say (alerts, answers to
a key update) leaves in its turn. Which certificate is shown is decided elsewhere.

TLS gets one record of the peer at a time. Given more, OpenSSL would work through all records that carry no content
(key updates, refused renegotiations) in one call, which stops the event loop for as long as the peer likes. So each of
them is seen here: reading on takes a turn, and their number has a limit.

The server's certificate and its key: read from their files, looked at, and made into what connections use.

Every fault is told in words that name the setting, none with anything of a key. Which connections use it, and when it
is read again, is decided elsewhere.
"""

import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import trio
from attrs import define, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from airy_trio.errors import StartError
from airy_trio.websocket.transport import HandshakeError, Transport

CERTIFICATE: Final = "listener.tls_certificate"
KEY: Final = "listener.tls_key"
"""The settings, as faults and warnings name them."""
FILE_BYTES_MAX: Final = 1024 * 1024
PROTOCOLS: Final = ("http/1.1",)
"""For ALPN: a WebSocket begins as HTTP/1.1 here."""


@frozen(kw_only=True)
class Certificate:
    """A certificate that can be served with. ``names``: of hosts, for whom it was issued. ``context``: for transports."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def days_left(self, now: datetime) -> int:
        """How many whole days it is still valid; negative where it has expired."""
        return (self.not_after - now).days

    def warnings(self, now: datetime) -> Iterator[str]:
        """Why clients are going to refuse it."""
        if now > self.not_after:
            yield f"{CERTIFICATE}: the certificate has expired, on {self.not_after:%Y-%m-%d}: clients refuse it"
        if now < self.not_before:
            yield f"{CERTIFICATE}: the certificate is valid only from {self.not_before:%Y-%m-%d} on: clients refuse it"


def load(certificate_file: str, key_file: str) -> Certificate:
    """Read both files. Blocks for that.

    PEM: the server's own certificate first, then those that lead to a root; the key without a passphrase.
    Raises ``StartError`` with all faults.
    """
    faults: list[str] = []
    chain = _chain(certificate_file, faults)
    key = _key(key_file, faults)
    if key is not None and chain and key.public_key() != _public_key(chain[0]):
        later = any(key.public_key() == _public_key(other) for other in chain[1:])
        hint = "; it belongs to a later one: the server's own must be the first in its file" if later else ""
        faults.append(f"{KEY}: the key does not belong to the certificate{hint}")
    if faults:
        raise StartError(faults)
    leaf = chain[0]
    return Certificate(
        context=_context(certificate_file, key_file),
        names=_names(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def _chain(file: str, faults: list[str]) -> list[x509.Certificate]:
    data = _read(CERTIFICATE, file, faults)
    if data is None:
        return []
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        faults.append(f"{CERTIFICATE}: {file}: there is no certificate in it that can be read (PEM is needed)")
    return []


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """None: of a kind that no key of a server can be, as it cannot be read either."""
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def _key(file: str, faults: list[str]) -> PrivateKeyTypes | None:
    data = _read(KEY, file, faults)
    if data is None:
        return None
    try:
        return load_pem_private_key(data, None)
    except TypeError:  # it needs a password
        faults.append(f"{KEY}: {file}: the key is locked with a passphrase; one without is needed")
    except (ValueError, UnsupportedAlgorithm):
        faults.append(f"{KEY}: {file}: there is no private key in it that can be read (PEM is needed)")
    return None


def _read(setting: str, file: str, faults: list[str]) -> bytes | None:
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        faults.append(f"{setting}: {file}: the file cannot be read: {error.strerror or type(error).__name__}")
        return None
    if len(data) > FILE_BYTES_MAX:
        faults.append(f"{setting}: {file}: larger than {FILE_BYTES_MAX} bytes")
        return None
    return data


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return ()  # they are told to who reads the log, no more


def _context(certificate_file: str, key_file: str) -> ssl.SSLContext:
    """TLS 1.2 and newer with Python's choice of ciphers, no renegotiation. Raises ``StartError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(PROTOCOLS)
    try:
        context.load_cert_chain(certificate_file, key_file, password="")
    except OSError as error:  # ssl.SSLError is one
        reason = (getattr(error, "reason", None) or "the files changed meanwhile").replace("_", " ").lower()
        raise StartError([f"{CERTIFICATE}: the certificate cannot be used: {reason}"]) from None
    return context


RECORD_BYTES_MAX: Final = 16 * 1024
"""Of plaintext in one record (RFC 8446, section 5.1)."""
RECORD_HEAD_BYTES: Final = 5
"""Type, version and, in the last two, the length of what follows."""
EMPTY_RECORDS_MAX: Final = 256
"""Records without content that one peer may send after its handshake: clients change keys after gigabytes. Each
provokes an answer of some 30 octets, so this also bounds the answers that a peer does not take."""
HANDSHAKE_READ_BYTES: Final = 4096


@define
class Encryption:
    """What new connections are encrypted with. Replacing ``context`` leaves those that exist as they are."""

    context: ssl.SSLContext


class TlsTransport:
    """The server's side of TLS over a transport that it owns.

    What was encrypted has to leave, and in order, so nothing is encrypted while something is pending below. TLS may
    not let us write between two halves of a message of the peer's handshake; what was taken then stays as it is, and
    is pending until ``receive_some`` has heard the rest. ``turn``: how a step of the handshake waits for its turn, and
    each read that brought no content: these are the dearest things that a client can ask for.
    """

    def __init__(
        self,
        transport: Transport,
        context: ssl.SSLContext,
        turn: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._transport = transport
        self._turn = turn
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._came = b""  # of the peer, not yet given to TLS
        self._left = 0  # octets of the peer's current record that TLS still has to get
        self._empty = 0  # records without content
        self._plain: memoryview | None = None  # taken, not yet encrypted
        self._held = False  # something is in _plain or in _outgoing
        self._heard: trio.Event | None = None  # somebody waits for the peer's half of a handshake
        self._established = self._ended = self._deaf = self._closed = False
        self._broken: str | None = None

    @property
    def pending(self) -> bool:
        """See ``Transport.pending``."""
        return self._held or self._transport.pending

    async def handshake(self) -> None:
        """See ``Transport.handshake``."""
        await self._transport.handshake()
        while not self._established:
            self._check()
            try:
                self._tls.do_handshake()
                self._established = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError as error:  # a look whether the port is open, or somebody who left
                raise trio.BrokenResourceError(self._break(error)) from None
            except ssl.SSLError as error:
                raise HandshakeError(self._break(error)) from None
            self._advance()
            while self._transport.pending:
                await self._transport.drain()
            if not self._established:
                await self._hear(HANDSHAKE_READ_BYTES)
                await self._turn()

    def offer(self, data: bytes) -> bool:
        """See ``Transport.offer``."""
        if self._held or self._transport.pending:
            return False
        self._take(data)
        return True

    def push(self, data: bytes) -> None:
        """See ``Transport.push``."""
        if self.pending:
            message = "something is pending"
            raise RuntimeError(message)
        self._take(data)

    async def drain(self) -> None:
        """See ``Transport.drain``."""
        while self.pending:
            self._check()
            if self._transport.pending:
                await self._transport.drain()
                self._advance()
                return
            self._advance()
            if not self._held or self._transport.pending:
                return
            self._heard = trio.Event()
            await self._heard.wait()
            self._check()

    async def receive_some(self, bytes_max: int) -> bytes:
        """See ``Transport.receive_some``. The peer's close_notify ends its stream; to end without one breaks it."""
        if self._deaf:
            while await self._transport.receive_some(bytes_max):
                pass
            return b""
        await trio.lowlevel.checkpoint_if_cancelled()
        heard = whole = False
        while True:
            self._check()
            data = self._decrypted(bytes_max)
            self._advance()
            if self._heard is not None:
                self._heard.set()
            if data is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return data
            if whole:
                self._count_empty()
            if heard:
                await self._turn()
            heard, whole = True, await self._hear(bytes_max)

    async def send_eof(self) -> None:
        """See ``Transport.send_eof``: a close_notify, then what the medium has."""
        if self._broken is None:
            self._check()
            while self.pending:
                await self.drain()
            self._end()
        else:
            self._deaf = True  # an alert has been sent, and what comes now is nothing to us
        while self._transport.pending:
            await self._transport.drain()
        await self._transport.send_eof()

    async def aclose(self) -> None:
        """See ``Transport.aclose``: with a close_notify, unless others stand in its way."""
        if not self.pending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self._end()
        self._close()
        await self._transport.aclose()

    async def abort(self) -> None:
        """See ``Transport.abort``. Without a close_notify: the peer is to know that something is missing."""
        self._close()
        await self._transport.abort()

    def _take(self, data: bytes) -> None:
        self._check()
        if data:
            self._plain = memoryview(data)
            self._advance()

    def _advance(self) -> None:
        """Encrypt what was taken as far as TLS lets us, and hand it on, after what TLS itself has said.

        Not while something is pending below: then both stay where they are.
        """
        if self._transport.pending:
            self._held = self._plain is not None or self._outgoing.pending > 0
            return
        records = [self._outgoing.read()] if self._outgoing.pending else []
        try:
            while self._plain is not None:
                written = self._tls.write(self._plain[:RECORD_BYTES_MAX])
                self._plain = self._plain[written:] if written < len(self._plain) else None
                records.append(self._outgoing.read())
        except ssl.SSLWantReadError:
            records.append(self._outgoing.read())
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(self._break(error)) from None
        self._held = self._plain is not None
        data = records[0] if len(records) == 1 else b"".join(records)
        if data:
            self._transport.push(data)

    def _decrypted(self, bytes_max: int) -> bytes | None:
        """What can be read of what came; None: not one octet yet."""
        try:
            return self._tls.read(bytes_max)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(self._break(error)) from None

    async def _hear(self, bytes_max: int) -> bool:
        """Give TLS the peer's next record, or the part of it that has come; return whether that was its end."""
        while len(self._came) < (1 if self._left else RECORD_HEAD_BYTES):
            data = await self._transport.receive_some(bytes_max)
            if not data:
                self._incoming.write(self._came)
                self._incoming.write_eof()
                self._came = b""
                return False
            self._came += data
        left = self._left or RECORD_HEAD_BYTES + int.from_bytes(self._came[3:RECORD_HEAD_BYTES])
        part, self._came = self._came[:left], self._came[left:]
        self._incoming.write(part)
        self._left = left - len(part)
        return not self._left

    def _count_empty(self) -> None:
        self._empty += 1
        if self._empty > EMPTY_RECORDS_MAX:
            self._broken = "the peer sends records without content"
            self._check()

    def _break(self, error: ssl.SSLError) -> str:
        """Note that no more can be said, send the alert that says why if it can leave now, and give the words."""
        if isinstance(error, ssl.SSLEOFError):
            self._broken = "the peer's stream ended without close_notify"
        else:
            self._broken = error.reason.replace("_", " ").lower() if error.reason else "the peer does not keep to TLS"
        self._plain, self._held = None, False
        alert = self._outgoing.read()
        if alert and not self._transport.pending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self._transport.push(alert)
        return self._broken

    def _end(self) -> None:
        """Say close_notify, once."""
        if self._ended or not self._established or self._broken is not None or self._closed:
            return
        self._ended = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # it is written; that of the peer comes later
        except ssl.SSLError:
            self._deaf = True  # data that nobody has read stands before the peer's, and cannot be decrypted any more
        self._advance()

    def _close(self) -> None:
        self._closed = True
        self._plain, self._held = None, False
        if self._heard is not None:
            self._heard.set()

    def _check(self) -> None:
        if self._closed:
            message = "the transport is closed"
            raise trio.ClosedResourceError(message)
        if self._broken is not None:
            raise trio.BrokenResourceError(self._broken)
