"""Web tokens with real keys: which are accepted, for each algorithm and each claim."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from airy_trio.auth.authenticator import WEB_TOKEN_BYTES_MAX, UnknownKeyError, verified
from airy_trio.auth.keys import Key, read_jwks, read_pem, secret_key
from airy_trio.auth.users import ALGORITHMS, KEY_PAIR_ALGORITHMS, AuthOptions, Refusal, RefusalKind, User, Verified
from tests.auth.signing import SECRET, Issuer, authenticator_of, connect_with, issuer, jwk, jwks, key_pair, pem

HS256 = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
KEYS = (secret_key(SECRET, ["HS256"]),)


def options(*algorithms: str, audience: str = "", issuer: str = "") -> AuthOptions:
    return AuthOptions(
        mode="jwt", jwt_key="keys.json", jwt_algorithms=list(algorithms), jwt_audience=audience, jwt_issuer=issuer
    )


def keys_of(*issuers: Issuer, algorithms: Sequence[str] = KEY_PAIR_ALGORITHMS) -> tuple[Key, ...]:
    entries = [
        jwk(one.key, **({} if one.kid is None else {"kid": one.kid})) for one in issuers if not isinstance(one.key, str)
    ]
    return read_jwks(jwks(*entries), algorithms)


def judged(token: str, keys: Sequence[Key] = KEYS, settings: AuthOptions = HS256) -> User | RefusalKind | None:
    """Return the result for a token. None: no known key."""
    try:
        answer = verified(token, keys, settings)
    except UnknownKeyError:
        return None
    return answer.kind if isinstance(answer, Refusal) else answer


@frozen
class In:
    """A time, in seconds after the token is issued."""

    seconds: int


def part(content: object) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: object, payload: object, secret: bytes = SECRET.encode()) -> str:
    """Return a token with any header and payload and a valid HS256 signature."""
    if isinstance(payload, Mapping):
        now = int(time.time())
        payload = {k: now + v.seconds if isinstance(v, In) else v for k, v in payload.items()}
    text = f"{part(header)}.{part(payload)}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), hashlib.sha256))}"


GOOD_HEADER = {"alg": "HS256", "typ": "JWT"}
GOOD_PAYLOAD: Mapping[str, object] = {"sub": "agent", "exp": In(3600)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_of_each_algorithm(algorithm: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    signer = issuer(algorithm)
    path = tmp_path / "key.pem"
    if not isinstance(signer.key, str):
        path.write_bytes(pem(signer.key))
    settings = AuthOptions(
        mode="jwt", jwt_key=SECRET if isinstance(signer.key, str) else str(path), jwt_algorithms=[algorithm]
    )
    authenticator = authenticator_of(settings)
    user = await authenticator.authenticate(connect_with(signer.token()))
    assert isinstance(user, User)
    assert user.name == "agent"
    assert authenticator.accepts(user)
    body, _, signature = signer.token().rpartition(".")
    for token in (f"{body}.{signature[:-8]}", f"{body}.", body, f"{body}.{'A' * len(signature)}"):
        refusal = await authenticator.authenticate(connect_with(token))
        assert isinstance(refusal, Refusal)
        assert refusal.kind is RefusalKind.UNAUTHORIZED


@pytest.mark.parametrize("wanted", KEY_PAIR_ALGORITHMS)
def test_algorithm_missing_in_the_settings_is_refused(wanted: str) -> None:
    for algorithm in ALGORITHMS:
        if algorithm != wanted:
            signer = issuer(algorithm)
            keys = keys_of(issuer(wanted), *[signer][isinstance(signer.key, str) :])
            assert judged(signer.token(), keys, options(wanted)) is RefusalKind.UNAUTHORIZED


def test_key_with_alg_verifies_no_other_algorithm() -> None:
    both = options("RS256", "RS512")
    signers = {algorithm: issuer(algorithm) for algorithm in both.jwt_algorithms}  # they share one RSA key
    keys = read_jwks(jwks(jwk(key_pair("RS256"), alg="RS512")), both.jwt_algorithms)
    assert isinstance(judged(signers["RS512"].token(), keys, both), User)
    assert judged(signers["RS256"].token(), keys, both) is None


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, 7, ["HS256"], "hs256", "HS1", "PS256", "EdDSA"])
@pytest.mark.parametrize("signature", ["", None])
def test_unknown_algorithm_is_refused(alg: object, signature: str | None) -> None:
    token = signed({**GOOD_HEADER, "alg": alg}, GOOD_PAYLOAD)
    if signature is not None:
        token = token.rpartition(".")[0] + "." + signature
    assert judged(token) is RefusalKind.UNAUTHORIZED
    assert judged(token, keys_of(issuer("RS256")), options("RS256")) is RefusalKind.UNAUTHORIZED


def test_a_token_without_an_algorithm() -> None:
    assert judged(signed({"typ": "JWT"}, GOOD_PAYLOAD)) is RefusalKind.UNAUTHORIZED


def test_a_public_key_is_never_taken_for_a_secret() -> None:
    """A client signs with the public key as if it were a secret (RFC 8725, section 2.1)."""
    key = key_pair("RS256")
    for secret in (pem(key), pem(key).strip(), jwks(jwk(key))):
        for header in (GOOD_HEADER, {**GOOD_HEADER, "alg": "RS256"}):
            token = signed(header, GOOD_PAYLOAD, secret)
            for keys in (read_pem(pem(key), ["RS256"]), keys_of(issuer("RS256"))):
                assert not isinstance(judged(token, keys, options("RS256")), User)
                assert not isinstance(judged(token, keys, options("RS256", "HS256")), User)


def test_key_inside_the_token_is_ignored() -> None:
    forger = issuer("ES256", 1)
    assert not isinstance(forger.key, str)
    for header in (
        {"jwk": jwk(forger.key)},
        {"jku": "https://forger.example/keys.json"},
        {"x5u": "https://forger.example/certificate.pem"},
        {"x5c": [part(b"certificate")]},
    ):
        assert judged(forger.token(headers=header), keys_of(issuer("ES256")), options("ES256")) is None


@pytest.mark.parametrize("kid", ["../../dev/null", "' or 1=1 --", "\x00", "x" * 1000])
def test_any_unknown_key_id_is_accepted_as_unknown(kid: str) -> None:
    signer = issuer("RS256", kid="known")
    assert judged(evolve(signer, kid=kid).token(), keys_of(signer), options("RS256")) is None


@pytest.mark.parametrize("kid", [7, None, ["known"], {}])
def test_key_id_that_is_not_text_is_refused(kid: object) -> None:
    assert judged(signed({**GOOD_HEADER, "kid": kid}, GOOD_PAYLOAD)) is RefusalKind.UNAUTHORIZED or kid is None


@pytest.mark.parametrize("more", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": True}, {"crit": []}])
def test_critical_header_is_refused(more: dict[str, object]) -> None:
    assert judged(signed({**GOOD_HEADER, **more}, GOOD_PAYLOAD)) is RefusalKind.UNAUTHORIZED


def test_key_is_found_by_id_or_by_trying() -> None:
    old, new, unnamed = issuer("ES256", 0, "old"), issuer("ES256", 1, "new"), issuer("ES256", 2)
    keys = keys_of(old, new, unnamed)
    for signer in (old, new, unnamed, evolve(new, kid=None), evolve(unnamed, kid="other")):
        assert isinstance(judged(signer.token(), keys, options("ES256")), User)
    assert judged(evolve(new, kid="old").token(), keys, options("ES256")) is None
    assert judged(issuer("ES256", 3).token(), keys, options("ES256")) is None


@pytest.mark.parametrize(
    "claims, answer",
    [
        ({"exp": In(-4)}, "agent"),
        ({"exp": In(-60)}, RefusalKind.EXPIRED),
        ({"exp": 0}, RefusalKind.EXPIRED),
        ({"exp": -(10**400)}, RefusalKind.EXPIRED),
        ({"exp": 10**400}, RefusalKind.UNAUTHORIZED),
        ({"exp": float("inf")}, RefusalKind.UNAUTHORIZED),
        ({"exp": float("nan")}, RefusalKind.UNAUTHORIZED),
        ({"exp": None}, RefusalKind.UNAUTHORIZED),
        ({"exp": "soon"}, RefusalKind.UNAUTHORIZED),
        ({"exp": [2**40]}, RefusalKind.UNAUTHORIZED),
        ({"nbf": In(3)}, "agent"),
        ({"nbf": In(60)}, RefusalKind.UNAUTHORIZED),
        ({"nbf": "now"}, RefusalKind.UNAUTHORIZED),
        ({"iat": In(60)}, RefusalKind.UNAUTHORIZED),
        ({"sub": ""}, RefusalKind.UNAUTHORIZED),
        ({"sub": 7}, RefusalKind.UNAUTHORIZED),
        ({"sub": None}, RefusalKind.UNAUTHORIZED),
        ({"sub": "a\nb"}, RefusalKind.UNAUTHORIZED),
        ({"sub": "x" * 255}, "x" * 255),
        ({"sub": "x" * 256}, RefusalKind.UNAUTHORIZED),
        ({"sub": "Grace Höpper"}, "Grace Höpper"),
        ({"aud": "other", "iss": "other"}, "agent"),
    ],
)
def test_the_claims(claims: dict[str, object], answer: str | RefusalKind) -> None:
    found = judged(signed(GOOD_HEADER, {**GOOD_PAYLOAD, **claims}))
    assert (found.name if isinstance(found, User) else found) == answer


@pytest.mark.parametrize(
    "claims, reason",
    [
        ({"exp": None}, "the claim exp is missing"),
        ({"exp": In(-60)}, "the time in the claim exp has passed"),
        ({"exp": "hush"}, "the claim exp is not a number of seconds"),
        ({"nbf": In(60)}, "the time in the claim nbf is in the future"),
        ({"iat": In(60)}, "the time in the claim iat is in the future"),
        ({"iat": "hush"}, "the claim iat is not a number of seconds"),
        ({"sub": "hush\n"}, "the claim sub is missing, or not a printable text of 1 to 255 characters"),
        ({"sub": 7}, "the claim sub is missing, or not a printable text of 1 to 255 characters"),
        ({"jti": 7}, "the claim jti is not a text"),
        ({"aud": None}, "the claim aud is missing"),
        ({"aud": "hush"}, "the claim aud does not contain auth.jwt_audience"),
        ({"iss": "hush"}, "the claim iss is not auth.jwt_issuer"),
        ({"airy_channels": "hush"}, "the claim airy_channels is not a list of texts"),
        ({"airy_destinations": ["/events", {"hush": 1}]}, "the claim airy_destinations is not a list of texts"),
    ],
)
def test_reason_names_the_claim_and_not_its_value(claims: dict[str, object], reason: str) -> None:
    settings = evolve(HS256, jwt_audience="here", jwt_issuer="us")
    token = signed(GOOD_HEADER, {**GOOD_PAYLOAD, "aud": "here", "iss": "us", **claims})
    answer = verified(token, KEYS, settings)
    assert isinstance(answer, Refusal)
    assert answer.reason == reason


@pytest.mark.parametrize(
    "header, reason",
    [
        ({"alg": "none"}, "the header alg is not in auth.jwt_algorithms"),
        ({"kid": 7}, "the header cannot be read, or has crit, or a kid that is not a text"),
        ({"crit": ["exp"]}, "the header cannot be read, or has crit, or a kid that is not a text"),
    ],
)
def test_reason_names_the_header(header: dict[str, object], reason: str) -> None:
    answer = verified(signed({**GOOD_HEADER, **header}, GOOD_PAYLOAD), KEYS, HS256)
    assert isinstance(answer, Refusal)
    assert answer.reason == reason


async def test_unknown_key_and_bad_signature_have_different_reasons(tmp_path: Path, autojump_clock: MockClock) -> None:
    known, unknown = issuer("ES256", 0, "known"), issuer("ES256", 1, "hush")
    assert not isinstance(known.key, str)
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(jwk(known.key, kid="known")))
    authenticator = authenticator_of(AuthOptions(mode="jwt", jwt_key=str(path), jwt_algorithms=["ES256"]))
    for signer, reason in (
        (unknown, "auth.jwt_key has no key for its kid and alg"),
        (evolve(unknown, kid="known"), "no key of auth.jwt_key verifies the signature"),
    ):
        answer = await authenticator.authenticate(connect_with(signer.token()))
        assert answer == Refusal.unauthorized(reason)


def test_a_token_without_a_subject_or_an_end() -> None:
    assert judged(issuer("HS256").token(without=["sub"])) is RefusalKind.UNAUTHORIZED
    assert judged(issuer("HS256").token(without=["exp"])) is RefusalKind.UNAUTHORIZED
    endless = judged(issuer("HS256").token(without=["exp"]), KEYS, evolve(HS256, jwt_require_exp=False))
    assert isinstance(endless, User)
    assert endless.expires_at is None


def test_token_is_valid_until_expiry_plus_leeway() -> None:
    user = judged(issuer("HS256").token(exp=2**40), KEYS, evolve(HS256, jwt_leeway_s=7))
    assert isinstance(user, User)
    assert user.expires_at == 2**40 + 7


@pytest.mark.parametrize(
    "setting, claim, good",
    [
        ("jwt_audience", {"aud": "airy"}, True),
        ("jwt_audience", {"aud": ["other", "airy"]}, True),
        ("jwt_audience", {"aud": "other"}, False),
        ("jwt_audience", {"aud": "airy2"}, False),
        ("jwt_audience", {"aud": []}, False),
        ("jwt_audience", {"aud": {"airy": 1}}, False),
        ("jwt_audience", {"aud": ["airy", 7]}, False),
        ("jwt_audience", {}, False),
        ("jwt_issuer", {"iss": "airy"}, True),
        ("jwt_issuer", {"iss": "airy/"}, False),
        ("jwt_issuer", {"iss": ["airy"]}, False),
        ("jwt_issuer", {}, False),
    ],
)
def test_audience_and_issuer(setting: str, claim: dict[str, object], *, good: bool) -> None:
    settings = evolve(
        HS256,
        jwt_audience="airy" if setting == "jwt_audience" else "",
        jwt_issuer="airy" if setting == "jwt_issuer" else "",
    )
    answer = judged(signed(GOOD_HEADER, {**GOOD_PAYLOAD, **claim}), KEYS, settings)
    assert isinstance(answer, User) if good else answer is RefusalKind.UNAUTHORIZED


def test_expiry_is_revealed_only_with_a_good_signature() -> None:
    forger = Issuer("another secret that is long enough for each of the three: 64 bytes..")
    assert judged(forger.token(exp=1)) is None
    assert judged(issuer("HS256").token(exp=1)) is RefusalKind.EXPIRED


def test_a_token_at_its_limit_and_beyond() -> None:
    def of_length(length: int) -> str:
        for pad in range(length):
            token = signed(GOOD_HEADER, {**GOOD_PAYLOAD, "pad": "x" * (length * 3 // 4 - 160 + pad)})
            if len(token) >= length:
                return token
        raise AssertionError

    assert isinstance(judged(of_length(WEB_TOKEN_BYTES_MAX - 3)[:WEB_TOKEN_BYTES_MAX]), User)
    assert judged(of_length(WEB_TOKEN_BYTES_MAX + 1)) is RefusalKind.UNAUTHORIZED


@pytest.mark.parametrize("payload", [[], "agent", 7, None, b"[" * 4000, b"{", b"\xff", b'{"sub": "agent"} x'])
def test_payload_that_is_not_an_object_is_refused(payload: object) -> None:
    assert judged(signed(GOOD_HEADER, payload)) is RefusalKind.UNAUTHORIZED


@pytest.mark.parametrize("header", [[], "HS256", 7, None, b"[" * 4000, b"{", b"\xff"])
def test_header_that_is_not_an_object_is_refused(header: object) -> None:
    assert judged(signed(header, GOOD_PAYLOAD)) is RefusalKind.UNAUTHORIZED


@given(st.text(max_size=200) | st.lists(st.binary(max_size=60).map(part), max_size=5).map(".".join))
def test_garbage_is_refused(token: str) -> None:
    assert not isinstance(judged(token), User)
    assert not isinstance(judged(token, keys_of(issuer("ES256")), options("ES256")), User)


@given(st.data())
def test_a_token_with_one_octet_changed_is_refused(data: st.DataObject) -> None:
    token = issuer("HS256").token(exp=2**40)
    place = data.draw(st.integers(0, len(token) - 1))
    octet = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda one: one != token[place]))
    assert not isinstance(judged(token[:place] + octet + token[place + 1 :]), User)


def test_nothing_shows_a_token_or_the_secret() -> None:
    token = issuer("HS256").token()
    shown = repr((HS256, KEYS, judged(token), connect_with(token), connect_with(authorization=f"Bearer {token}")))
    assert SECRET not in shown
    assert token[-20:] not in shown


def test_user_contains_the_proof_of_its_token() -> None:
    signer = issuer("RS256", kid="k")
    user = judged(signer.token(iss="i", aud=["a", "b"]), keys_of(signer), options("RS256", issuer="i", audience="a"))
    assert isinstance(user, User)
    (key,) = keys_of(signer)
    assert user.proof == Verified(
        key.fingerprint, "RS256", "i", frozenset({"a", "b"}), ("airy_channels", "airy_destinations")
    )
