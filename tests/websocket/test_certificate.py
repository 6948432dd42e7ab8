"""Certificates and keys from real files: valid ones, and the message of each fault."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from airy_trio.errors import StartError
from airy_trio.websocket.tls import FILE_BYTES_MAX, Certificate, load
from tests.certificates import AUTHORITY, Files, issue

JUNK = (b"", b"junk", b"\x80\x81")
NOW = datetime(2030, 6, 15, 12, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return issue(tmp_path)


def loaded(files: Files) -> Certificate:
    return load(str(files.certificate), str(files.key))


def refused(files: Files) -> tuple[str, ...]:
    with pytest.raises(StartError) as error:
        loaded(files)
    key = files.key.read_text(errors="replace").splitlines() if files.key.is_file() else []
    assert not any(line in str(error.value) for line in key if len(line) > 30)
    return error.value.faults


def test_valid_certificate(files: Files) -> None:
    found = loaded(files)
    assert found.names == ("localhost", "127.0.0.1")
    assert list(found.warnings(datetime.now(UTC))) == []
    assert found.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert found.context.options & ssl.OP_NO_RENEGOTIATION


def test_days_left_and_warnings(tmp_path: Path) -> None:
    found = loaded(issue(tmp_path, "a.example", expires=NOW + timedelta(days=10, hours=1)))
    assert found.days_left(NOW) == 10
    assert found.days_left(NOW + timedelta(days=10)) == 0
    assert found.days_left(NOW + timedelta(days=11)) == -1
    assert list(found.warnings(NOW)) == []
    [expired] = found.warnings(NOW + timedelta(days=11))
    assert expired == "listener.tls_certificate: the certificate expired on 2030-06-25; clients reject it"
    [early] = found.warnings(found.not_before - timedelta(seconds=1))
    assert "valid only from" in early


def test_missing_files(files: Files) -> None:
    files.certificate.unlink()
    files.key.unlink()
    certificate, key = refused(files)
    assert (
        certificate
        == f"listener.tls_certificate: {files.certificate}: the file cannot be read: No such file or directory"
    )
    assert key == f"listener.tls_key: {files.key}: the file cannot be read: No such file or directory"


def test_folder_instead_of_a_file(files: Files, tmp_path: Path) -> None:
    files.key.unlink()
    files.key.mkdir()
    assert refused(files) == (f"listener.tls_key: {files.key}: the file cannot be read: Is a directory",)


@pytest.mark.parametrize("junk", [*JUNK, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_file_without_a_certificate(files: Files, junk: bytes) -> None:
    files.certificate.write_bytes(junk)
    [fault] = refused(files)
    assert fault.startswith("listener.tls_certificate: ")
    assert fault.endswith("no readable certificate in the file; PEM is required")


@pytest.mark.parametrize("junk", [*JUNK, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_file_without_a_key(files: Files, junk: bytes) -> None:
    files.key.write_bytes(junk)
    [fault] = refused(files)
    assert fault.startswith("listener.tls_key: ")
    assert fault.endswith("no readable private key in the file; PEM is required")


def test_swapped_files(files: Files) -> None:
    certificate, key = refused(Files(files.key, files.certificate, files.authority))
    assert certificate.startswith("listener.tls_certificate: ")
    assert key.startswith("listener.tls_key: ")


def test_the_key_of_another_certificate(files: Files) -> None:
    files.key.write_bytes(AUTHORITY.issue_cert("localhost").private_key_pem.bytes())
    assert refused(files) == ("listener.tls_key: the key does not belong to the certificate",)


def test_the_key_of_a_later_certificate_in_the_file(files: Files) -> None:
    other = trustme.CA().cert_pem.bytes()
    files.certificate.write_bytes(other + files.certificate.read_bytes())
    [fault] = refused(files)
    assert fault.endswith("it belongs to a later certificate: the server's own must be the first in the file")


def test_passphrase_is_not_prompted_for(files: Files) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    files.key.write_bytes(locked)
    assert refused(files) == (
        f"listener.tls_key: {files.key}: the key has a passphrase; a key without one is required",
    )


def test_certificate_that_openssl_rejects(files: Files, tmp_path: Path) -> None:
    """A key that is too weak for OpenSSL, which words the reason."""
    weak = ec.generate_private_key(ec.SECP192R1())
    files.key.write_bytes(weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.certificate.write_bytes(self_signed(weak))
    [fault] = refused(files)
    assert fault == "listener.tls_certificate: the certificate cannot be used: ee key too small"


def self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - timedelta(days=1000), NOW)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


VERSION_8 = ("a003020102", "a003020107")
UNKNOWN_CURVE = ("06082a8648ce3d030107", "06082a8648ce3d030177")
ISSUERS_NAMES_AS_SUBJECTS = ("0603551d12", "0603551d11")
X400_ADDRESS = ("8209", "a309")


def altered(old: str, new: str) -> tuple[bytes, bytes]:
    """Return a certificate with some octets of its DER, in hex, replaced by others, and its key; both in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost")]
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - timedelta(days=1000), NOW)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.IssuerAlternativeName(names), critical=False)
    der = builder.sign(key, SHA256()).public_bytes(Encoding.DER)
    assert bytes.fromhex(old) in der
    data = ssl.DER_cert_to_PEM_cert(der.replace(bytes.fromhex(old), bytes.fromhex(new), 1)).encode()
    return data, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "change, words",
    [
        (VERSION_8, "no readable certificate in the file; PEM is required"),
        (UNKNOWN_CURVE, "the key does not belong to the certificate"),
    ],
    ids=["version", "curve"],
)
def test_unreadable_certificate_is_one_fault(files: Files, change: tuple[str, str], words: str) -> None:
    certificate, key = altered(*change)
    files.certificate.write_bytes(certificate)
    files.key.write_bytes(key)
    [fault] = refused(files)
    assert fault.endswith(words)


@pytest.mark.parametrize("change", [ISSUERS_NAMES_AS_SUBJECTS, X400_ADDRESS], ids=["twice", "kind"])
def test_unreadable_names_are_omitted(files: Files, change: tuple[str, str]) -> None:
    certificate, key = altered(*change)
    files.certificate.write_bytes(certificate)
    files.key.write_bytes(key)
    assert loaded(files).names == ()


def test_too_large_file_is_not_read(files: Files) -> None:
    good = files.certificate.read_bytes()
    files.certificate.write_bytes(good + b"\n" * (FILE_BYTES_MAX - len(good)))
    loaded(files)
    files.certificate.write_bytes(good + b"\n" * (FILE_BYTES_MAX - len(good) + 1))
    assert refused(files) == (f"listener.tls_certificate: {files.certificate}: larger than {FILE_BYTES_MAX} bytes",)
