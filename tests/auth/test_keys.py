"""Which keys are read from a JWK Set or PEM, for which algorithms, and their faults."""

import datetime as dt
import json
import ssl
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.auth.keys import KEYS_MAX, KeysFault, read_jwks, read_pem, secret_key
from airy_trio.auth.users import KEY_PAIR_ALGORITHMS
from tests.auth.signing import SECRET, jwk, jwks, key_pair, pem, private_pem

RSA = key_pair("RS256")
P256 = key_pair("ES256")
ED25519 = (
    ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)


def certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, RSA.public_key(), x509.random_serial_number(), now, now)
    return made.sign(RSA, hashes.SHA256()).public_bytes(Encoding.PEM)


def of_version_8(data: bytes) -> bytes:
    der = ssl.PEM_cert_to_DER_cert(data.decode())
    return ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)).encode()


def algorithms_of(*entries: dict[str, Any]) -> list[list[str]]:
    return [sorted(key.algorithms) for key in read_jwks(jwks(*entries), KEY_PAIR_ALGORITHMS)]


@pytest.mark.parametrize("data", [pem(RSA), certificate()], ids=["public key", "certificate"])
def test_a_public_key_in_pem(data: bytes) -> None:
    (key,) = read_pem(data, ["RS256", "RS512", "ES256"])
    assert key.kid is None
    assert sorted(key.algorithms) == ["RS256", "RS512"]
    assert key.fingerprint == read_pem(pem(RSA), ["RS256"])[0].fingerprint


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
def test_a_curve_is_of_one_algorithm(algorithm: str) -> None:
    assert algorithms_of(jwk(key_pair(algorithm))) == [[algorithm]]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "not one public key"),
        (pem(RSA) + pem(P256), "not one public key"),
        (private_pem(RSA), "it contains a private key"),
        (b"-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----\n", "is not a public key"),
        (of_version_8(certificate()), "is not a public key"),
        (pem(key_pair("RS256", bits=1024)), "at least 2048 bits"),
        (pem(P256), "no public key for RS256"),
        (ED25519, "neither an RSA key nor"),
    ],
    ids=range(8),  # the keys differ in each process of the suite
)
def test_pem_without_a_usable_key(data: bytes, words: str) -> None:
    with pytest.raises(KeysFault, match=words) as caught:
        read_pem(data, ["RS256"])
    assert "hunter2" not in str(caught.value)


def test_keys_for_other_uses_are_ignored() -> None:
    good = jwk(RSA, kid="good")
    others = [
        jwk(RSA, use="enc"),
        jwk(RSA, key_ops=["encrypt"]),
        jwk(RSA, key_ops="verify"),
        jwk(RSA, alg="RSA-OAEP"),
        jwk(RSA, alg="HS256"),
        jwk(RSA, kid=7),
        jwk(RSA, n="!"),
        {**jwk(RSA), "n": None},
        {"kty": "oct", "k": "aHVudGVyMg"},
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "EC"},
        {"kty": ["RSA"]},
        jwk(ec.generate_private_key(ec.SECP256K1())),
        jwk(key_pair("RS256", bits=1024)),
        {},
    ]
    (key,) = read_jwks(jwks(*others, good, *others), KEY_PAIR_ALGORITHMS)
    assert key.kid == "good"


def test_key_with_alg_is_only_for_it() -> None:
    entries = (jwk(RSA, alg="RS384", use="sig", key_ops=["verify"]), jwk(RSA), jwk(P256, alg="ES384"))
    assert algorithms_of(*entries) == [["RS384"], ["RS256", "RS384", "RS512"]]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no array"),
        (b"{}", "no array"),
        (b'{"keys": {}}', "no array"),
        (b'{"keys": []}', "no public key for RS256"),
        (jwks({"kty": "oct", "k": "aHVudGVyMg"}), "no public key for RS256"),
        (jwks(jwk(RSA), json.loads(json.dumps({**jwk(RSA), "d": "hunter2"}))), "it contains a private key"),
        (jwks(*[{}] * (KEYS_MAX + 1)), "more than 64 keys"),
    ],
    ids=range(10),  # the same
)
def test_data_that_is_not_a_key_set(data: bytes, words: str) -> None:
    with pytest.raises(KeysFault, match=words) as caught:
        read_jwks(data, ["RS256"])
    assert "hunter2" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(jwk(RSA, kid="k", alg="RS256", use="sig", crv="P-256", key_ops=[]))), JSON))
def test_any_key_set_is_read_or_a_fault(changed: dict[str, Any]) -> None:
    try:
        keys = read_jwks(json.dumps({"keys": [{**jwk(RSA), **changed}]}).encode(), KEY_PAIR_ALGORITHMS)
    except KeysFault:
        return
    assert all(key.algorithms for key in keys)


def test_nothing_shows_a_secret() -> None:
    assert SECRET not in repr(secret_key(SECRET, ["HS256"]))
