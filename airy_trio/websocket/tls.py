"""TLS for client connections: a transport over another transport, and the certificate that the server shows.

The fan-out writes without waiting, which ``trio.SSLStream`` cannot. ``TlsTransport`` therefore drives OpenSSL itself,
over two ``ssl.MemoryBIO`` that hold little: accepted data is encrypted at once, record by record, and given to the
transport below as one piece; input is decrypted only as fast as it is read. What TLS itself has to write (alerts,
answers to a key update) leaves in its order between the data.

OpenSSL gets one record of the peer at a time. Given more, it would process all records without content (key updates,
refused renegotiations) in one call, which blocks the event loop for as long as the peer likes. So each such record is
counted here, their number is limited, and reading on takes a turn.
"""
# ruff: noqa: D102 - the port documents each method

import ssl
from collections.abc import Iterator
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
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.transport import HandshakeError, Transport

CERTIFICATE: Final = "listener.tls_certificate"
KEY: Final = "listener.tls_key"
FILE_BYTES_MAX: Final = 1024 * 1024
PROTOCOLS: Final = ("http/1.1",)
"""For ALPN: a WebSocket begins as HTTP/1.1 here."""

RECORD_BYTES_MAX: Final = 16 * 1024
"""Plaintext of one record (RFC 8446, section 5.1)."""
RECORD_HEAD_BYTES: Final = 5
"""Type and version; the last two are the length of the rest."""
EMPTY_RECORDS_MAX: Final = 256
"""Records without content that one peer may send after its handshake. Clients change keys after gigabytes. Each causes
an answer of some 30 octets, so this also limits the answers that a peer does not take."""
HANDSHAKE_READ_BYTES: Final = 4096


@define
class Encryption:
    """The TLS context of new connections. To replace ``context`` does not change existing connections."""

    context: ssl.SSLContext


class TlsTransport:
    """The server's side of TLS over ``transport``, which it owns.

    Encrypted data must leave in order, so nothing is encrypted while data is pending below. OpenSSL refuses to write
    between two halves of a handshake message of the peer. The only such message that is accepted after the handshake is
    a key update of five octets, which TLS libraries send in one piece. If a write comes after half of one, the
    connection is broken.

    ``turn`` is awaited before each further step of the handshake, and after each read without content. These cost
    more than anything else that a client can cause.
    """

    def __init__(self, transport: Transport, context: ssl.SSLContext, turn: Turn = trio.lowlevel.checkpoint) -> None:
        self._transport = transport
        self._turn = turn
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._received = b""  # octets of the peer that OpenSSL does not have yet
        self._record_left = 0  # missing octets of the peer's current record
        self._empty_records = 0
        self._established = self._close_notify_sent = self._input_dropped = self._closed = False
        self._broken: str | None = None

    @property
    def pending(self) -> bool:
        return self._transport.pending or self._outgoing.pending > 0

    async def handshake(self) -> None:
        await self._transport.handshake()
        while not self._established:
            self._check_usable()
            try:
                self._tls.do_handshake()
                self._established = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError as error:  # the peer left, or only tested whether the port is open
                raise trio.BrokenResourceError(self._fail(error)) from None
            except ssl.SSLError as error:
                raise HandshakeError(self._fail(error)) from None
            self._flush()
            # The peer answers only when it has all of this step.
            while self._transport.pending:
                await self._transport.drain()
            if not self._established:
                await self._feed_record(HANDSHAKE_READ_BYTES)
                # The first step, above, takes no turn: without input it costs nothing.
                await self._turn()

    def offer(self, data: bytes) -> bool:
        if self.pending:
            return False
        self._check_usable()
        unencrypted = memoryview(data)
        records = []
        try:
            while unencrypted:
                # One record in each step. OpenSSL would take all of the data, but a BIO keeps the memory of the most
                # that it has ever held: after one batch of 64 KiB a connection would keep 64 KiB instead of 22
                # (measured with 200 connections).
                written = self._tls.write(unencrypted[:RECORD_BYTES_MAX])
                unencrypted = unencrypted[written:]
                records.append(self._outgoing.read())
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(self._fail(error)) from None
        if records:
            self._transport.push(records[0] if len(records) == 1 else b"".join(records))
        return True

    def push(self, data: bytes) -> None:
        if not self.offer(data):
            raise RuntimeError("data is pending")

    async def drain(self) -> None:
        if self.pending:
            self._check_usable()
            await self._transport.drain()
            self._flush()

    async def receive_some(self, bytes_max: int) -> bytes:
        """See ``Transport.receive_some``. A close_notify ends the stream of the peer; an end without one breaks it."""
        if self._input_dropped:
            while await self._transport.receive_some(bytes_max):
                pass
            return b""
        await trio.lowlevel.checkpoint_if_cancelled()
        fed = complete = False
        while True:
            self._check_usable()
            data = self._decrypted(bytes_max)
            self._flush()
            if data is not None:
                # The checkpoint that Trio expects, but not a place to be cancelled: OpenSSL does not have this data any
                # more.
                await trio.lowlevel.cancel_shielded_checkpoint()
                return data
            # Decrypting a complete record gave nothing, so it was one without content, such as a key update.
            if complete:
                self._empty_records += 1
                if self._empty_records > EMPTY_RECORDS_MAX:
                    self._broken = "the peer sends too many records without content"
                    self._check_usable()
            if fed:
                await self._turn()
            fed, complete = True, await self._feed_record(bytes_max)

    async def send_eof(self) -> None:
        """See ``Transport.send_eof``: close_notify, then the end of the transport below."""
        if self._broken is None:
            self._check_usable()
            while self.pending:
                await self.drain()
            self._send_close_notify()
        else:
            self._input_dropped = True  # an alert was sent: no input can be decrypted any more
        while self._transport.pending:
            await self._transport.drain()
        await self._transport.send_eof()

    async def aclose(self) -> None:
        """See ``Transport.aclose``: with close_notify, unless data is pending."""
        # While data is pending, close_notify would have to wait behind it. Without close_notify the peer finds that its
        # stream was truncated.
        if not self.pending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self._send_close_notify()
        self._closed = True
        await self._transport.aclose()

    async def abort(self) -> None:
        """See ``Transport.abort``: without close_notify, so that the peer knows that data is missing."""
        self._closed = True
        await self._transport.abort()

    def _flush(self) -> None:
        """Push the output of TLS itself below. While data is pending there, it stays here."""
        if self._outgoing.pending and not self._transport.pending:
            self._transport.push(self._outgoing.read())

    def _decrypted(self, bytes_max: int) -> bytes | None:
        """Return decrypted input; None if there is none yet."""
        try:
            return self._tls.read(bytes_max)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(self._fail(error)) from None

    async def _feed_record(self, bytes_max: int) -> bool:
        """Give OpenSSL the peer's next record, or the part that has arrived; return whether the record is complete."""
        # The head of a record has its length; within a record any octet is progress. If this is cancelled, `_received`
        # has what has arrived. OpenSSL checks the head, so a record that is too long is refused before all of it has
        # arrived.
        while len(self._received) < (1 if self._record_left else RECORD_HEAD_BYTES):
            data = await self._transport.receive_some(bytes_max)
            if not data:
                # OpenSSL then reports whether the stream ended with a close_notify.
                self._incoming.write(self._received)
                self._incoming.write_eof()
                self._received = b""
                return False
            self._received += data
        left = self._record_left or RECORD_HEAD_BYTES + int.from_bytes(self._received[3:RECORD_HEAD_BYTES])
        part, self._received = self._received[:left], self._received[left:]
        self._incoming.write(part)
        self._record_left = left - len(part)
        return not self._record_left

    def _fail(self, error: ssl.SSLError) -> str:
        """Mark the connection as broken, send the alert of OpenSSL if it can leave now, and return the reason."""
        if isinstance(error, ssl.SSLEOFError):
            self._broken = "the peer's stream ended without close_notify"
        else:
            self._broken = error.reason.replace("_", " ").lower() if error.reason else "the peer broke the TLS protocol"
        alert = self._outgoing.read()
        if alert and not self._transport.pending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self._transport.push(alert)
        return self._broken

    def _send_close_notify(self) -> None:
        """Send close_notify, once."""
        if self._close_notify_sent or not self._established or self._broken is not None or self._closed:
            return
        self._close_notify_sent = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # ours is written; that of the peer arrives later
        except ssl.SSLError:
            self._input_dropped = True  # unread data precedes the peer's close_notify, and cannot be decrypted any more
        self._flush()

    def _check_usable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the transport is closed")
        if self._broken is not None:
            raise trio.BrokenResourceError(self._broken)


@frozen(kw_only=True)
class Certificate:
    """A certificate with its key, checked and loaded into ``context``. ``names``: the hosts in the certificate."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def days_left(self, now: datetime) -> int:
        """Return the whole days until it expires; negative if it has expired."""
        return (self.not_after - now).days

    def warnings(self, now: datetime) -> Iterator[str]:
        """Yield the reasons for which clients will reject it."""
        if now > self.not_after:
            yield f"{CERTIFICATE}: the certificate expired on {self.not_after:%Y-%m-%d}; clients reject it"
        if now < self.not_before:
            yield f"{CERTIFICATE}: the certificate is valid only from {self.not_before:%Y-%m-%d}; clients reject it"


def load(certificate_file: str, key_file: str) -> Certificate:
    """Read and check both PEM files. Blocks. Raises ``StartError`` with all faults; they contain nothing of a key.

    ``certificate_file`` has the server's own certificate first, then the chain to a root. The key has no passphrase.
    """
    faults: list[str] = []
    chain = _chain(certificate_file, faults)
    key = _key(key_file, faults)
    if key is not None and chain and key.public_key() != _public_key(chain[0]):
        later = any(key.public_key() == _public_key(other) for other in chain[1:])
        hint = "; it belongs to a later certificate: the server's own must be the first in the file" if later else ""
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
    data = _read_file(CERTIFICATE, file, faults)
    if data is None:
        return []
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        faults.append(f"{CERTIFICATE}: {file}: no readable certificate in the file; PEM is required")
    return []


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """Return the public key; None if it is of an unknown kind, which cannot be the kind of the server's key."""
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def _key(file: str, faults: list[str]) -> PrivateKeyTypes | None:
    data = _read_file(KEY, file, faults)
    if data is None:
        return None
    try:
        return load_pem_private_key(data, None)
    except TypeError:  # it needs a password
        faults.append(f"{KEY}: {file}: the key has a passphrase; a key without one is required")
    except (ValueError, UnsupportedAlgorithm):
        faults.append(f"{KEY}: {file}: no readable private key in the file; PEM is required")
    return None


def _read_file(setting: str, file: str, faults: list[str]) -> bytes | None:
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
        return ()  # the names are only for the log


def _context(certificate_file: str, key_file: str) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and newer with Python's choice of ciphers. Raises ``StartError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # By renegotiations a client could cause handshakes without limit. Compression reveals content by its length
    # (CRIME).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(PROTOCOLS)
    try:
        # With an empty password OpenSSL does not ask for one on the terminal if the key has got a passphrase since its
        # check.
        context.load_cert_chain(certificate_file, key_file, password="")
    except OSError as error:  # ssl.SSLError is one
        reason = (getattr(error, "reason", None) or "the files changed while they were read").replace("_", " ").lower()
        raise StartError([f"{CERTIFICATE}: the certificate cannot be used: {reason}"]) from None
    return context
