"""The server's certificate and its key: read from their files, looked at, and made into what connections use.

Every fault is told in words that name the setting, none with anything of a key. Which connections use it, and when it
is read again, is decided elsewhere.
"""

import ssl
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from airy_trio.errors import StartError

CERTIFICATE: Final = "listener.tls_certificate"
KEY: Final = "listener.tls_key"
"""The settings, as faults and warnings name them."""
FILE_BYTES_MAX: Final = 1024 * 1024
PROTOCOLS: Final = ("http/1.1",)
"""For ALPN: a WebSocket begins as HTTP/1.1 here."""


@frozen(kw_only=True)
class Certificate:
    """A certificate that can be served with. ``names``: of hosts, for whom it was issued. ``context``: for outlets."""

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
