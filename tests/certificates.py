"""Certificates of a test authority, in files as the settings expect them."""

import ssl
from datetime import datetime
from pathlib import Path

import trustme
from attrs import frozen

AUTHORITY = trustme.CA()
"""One authority for the whole run, because it takes long to generate a key."""


@frozen
class Files:
    """A certificate and its key on disk, and the certificate of the authority that a client must trust."""

    certificate: Path
    key: Path
    authority: Path

    @property
    def listener(self) -> str:
        """The lines for ``[listener]``."""
        return f'tls_certificate = "{self.certificate}"\ntls_key = "{self.key}"\n'


def issue(folder: Path, *names: str, expires: datetime | None = None) -> Files:
    """Issue a certificate for these names, by default ``localhost`` and 127.0.0.1, and write it."""
    issued = AUTHORITY.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=expires)
    files = Files(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    AUTHORITY.cert_pem.write_to_path(str(files.authority))
    return files


def trusting(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return a context for a client that trusts the authority. ``version``: the only version that it accepts."""
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())  # without those of the system
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context
