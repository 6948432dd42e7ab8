"""An issuer of web tokens. Its keys are made once for each process, in every form that the server reads."""

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jwt
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from airy_trio.auth.authenticator import Authenticator, load_file_keys
from airy_trio.auth.users import AuthOptions
from airy_trio.stomp.frames import Connect, HeartBeat, Version

SECRET = "a secret that is long enough for each of the three: sixty-four bytes"
CURVES: Mapping[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def key_pair(algorithm: str, number: int = 0, bits: int = 2048) -> PrivateKey:
    """Return the ``number``-th key for an algorithm. The RSA algorithms share keys, because making one takes long."""
    return rsa_key_pair(number, bits) if algorithm.startswith("RS") else curve_key_pair(algorithm, number)


@cache
def rsa_key_pair(_number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def curve_key_pair(algorithm: str, _number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[algorithm])


def pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(key: PrivateKey, **more: object) -> dict[str, Any]:
    public = key.public_key()
    written = RSAAlgorithm.to_jwk(public) if isinstance(public, rsa.RSAPublicKey) else ECAlgorithm.to_jwk(public)
    return {**json.loads(written), **more}


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


@frozen
class Issuer:
    """Signs tokens with one key."""

    key: PrivateKey | str = SECRET
    algorithm: str = "HS256"
    kid: str | None = None

    def token(
        self, *, headers: Mapping[str, object] | None = None, without: Sequence[str] = (), **claims: object
    ) -> str:
        """Return a token for ``agent`` that is valid for an hour, with the given changes."""
        payload = {"sub": "agent", "exp": int(time.time()) + 3600, **claims}
        named = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(
            {name: value for name, value in payload.items() if name not in without},
            self.key,
            algorithm=self.algorithm,
            headers={**named, **(headers or {})},
        )


def issuer(algorithm: str, number: int = 0, kid: str | None = None) -> Issuer:
    return Issuer(SECRET if algorithm.startswith("HS") else key_pair(algorithm, number), algorithm, kid)


def connect_with(token: str | None = None, *, authorization: str | None = None) -> Connect:
    return Connect(version=Version.V1_2, login=None, passcode=token, authorization=authorization, heartbeat=HeartBeat())


def authenticator_of(options: AuthOptions) -> Authenticator:
    """Return an authenticator with the keys of the file that the options name."""
    return Authenticator(options, load_file_keys(options))
