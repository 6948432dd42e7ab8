"""The keys that verify web tokens, read from a JWK Set or from PEM. Each is only for algorithms of its kind.

A public key is never used as a secret of HS*. A private key is refused wherever it is found: this server does not sign.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from airy_trio.auth.users import SECRET_ALGORITHMS

KEYS_BYTES_MAX: Final = 256 * 1024
"""Size of a file or a response with keys."""
KEYS_MAX: Final = 64
"""Of a JWK Set. A token without ``kid`` is tried with each."""
RSA_BITS_MIN: Final = 2048
SECRET_BYTES_MIN: Final = {name: int(name[2:]) // 8 for name in SECRET_ALGORITHMS}
"""As long as the hash (RFC 7518, section 3.2)."""
_RSA: Final = frozenset({"RS256", "RS384", "RS512"})
_OF_CURVE: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_READERS: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
}

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
        message = f"larger than {KEYS_BYTES_MAX} bytes"
        raise KeysFault(message)
    return data


def secret_key(secret: str, algorithms: Iterable[str]) -> Key:
    """Make the key of HS* from its secret."""
    data = secret.encode()
    return Key(None, frozenset(algorithms), data, hashlib.sha256(data).digest())


def read_pem(data: bytes, algorithms: Collection[str]) -> tuple[Key, ...]:
    """Read the one public key, or certificate, in PEM. Raises ``KeysFault``."""
    if b"PRIVATE KEY-----" in data:
        message = "it contains a private key; the public key is required"
        raise KeysFault(message)
    if data.count(b"-----BEGIN ") != 1:
        message = "not one public key or certificate in PEM (use a JWK Set, a .json file, for several)"
        raise KeysFault(message)
    try:
        certified = b"-----BEGIN CERTIFICATE-----" in data
        public = load_pem_x509_certificate(data).public_key() if certified else load_pem_public_key(data)
    except Exception:  # noqa: BLE001 - as in _from_jwk; and the messages may quote the data
        message = "the text between BEGIN and END is not a public key"
        raise KeysFault(message) from None
    if not isinstance(public, RSAPublicKey | EllipticCurvePublicKey):
        message = "neither an RSA key nor a key for ES256, ES384 or ES512"
        raise KeysFault(message)
    return _usable([_key(None, public, algorithms)], algorithms)


def read_jwks(data: bytes, algorithms: Collection[str]) -> tuple[Key, ...]:
    """Read the keys of a JWK Set (RFC 7517, section 5), except those for other uses. Raises ``KeysFault``."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        message = "not JSON"
        raise KeysFault(message) from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        message = 'not a JWK Set: it has no array "keys"'
        raise KeysFault(message)
    if len(entries) > KEYS_MAX:
        message = f"more than {KEYS_MAX} keys"
        raise KeysFault(message)
    if any(isinstance(entry, dict) and "d" in entry for entry in entries):
        message = "it contains a private key; only public keys are allowed"
        raise KeysFault(message)
    return _usable([_from_jwk(entry, algorithms) for entry in entries if isinstance(entry, dict)], algorithms)


def _from_jwk(entry: dict[str, Any], algorithms: Collection[str]) -> Key | None:
    """Read one key of a set. None if it is for another use or of an unknown kind, which RFC 7517 says to ignore."""
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kid, named = entry.get("kid"), entry.get("alg")
    if not isinstance(kid, str | None) or not isinstance(named, str | None):
        return None
    read = _READERS.get(str(entry.get("kty")))
    try:
        public = None if read is None else read(entry)
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
        message = f"no public key for {', '.join(algorithms)} (RSA keys need at least {RSA_BITS_MIN} bits)"
        raise KeysFault(message)
    return keys
