"""Web tokens (RFC 7519): verified with the valid keys, and read as a user. Any irregularity refuses the token.

The token does not choose the algorithm: a key verifies only algorithms that fit its kind and are in the settings. So
neither ``none`` nor a public key used as a secret can pass (RFC 8725, section 2.1).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuedAtError,
    InvalidIssuerError,
    InvalidJTIError,
    InvalidSignatureError,
    InvalidSubjectError,
    MissingRequiredClaimError,
)

from airy_trio.auth.keys import Key
from airy_trio.auth.users import AuthOptions, GrantError, Refusal, RefusalKind, User, Verified, grant_in

WEB_TOKEN_BYTES_MAX: Final = 8192
"""A header of an upgrade may have that much. The limit of CONNECT is smaller."""
SUBJECT_CHARS_MAX: Final = 255
"""OpenID Connect Core, section 2."""
_BAD_HEADER: Final = "the header cannot be read, or has crit, or a kid that is not a text"
_BAD_SUBJECT: Final = f"the claim sub is missing, or not a printable text of 1 to {SUBJECT_CHARS_MAX} characters"
_REASONS: Final[Mapping[type[Exception], str]] = {
    ImmatureSignatureError: "the time in the claim {} is in the future",
    InvalidIssuedAtError: "the claim {} is not a number of seconds",
    jwt.DecodeError: "the claim {} is not a number of seconds",
    InvalidAudienceError: "the claim aud does not contain auth.jwt_audience",
    InvalidIssuerError: "the claim iss is not auth.jwt_issuer",
    InvalidSubjectError: _BAD_SUBJECT,
    InvalidJTIError: "the claim jti is not a text",
}
"""{} is replaced by the name of a claim of time."""


class UnknownKeyError(Exception):
    """No known key verifies this token; a newer one might. The message is the reason, for the log."""


def verified(token: str, keys: Sequence[Key], options: AuthOptions) -> User | Refusal:
    """Verify a token and return its user. Raises ``UnknownKeyError`` if newer keys might accept it."""
    if len(token) > WEB_TOKEN_BYTES_MAX:
        return Refusal.unauthorized(f"the token is larger than {WEB_TOKEN_BYTES_MAX} bytes")
    try:
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in options.jwt_algorithms:
            return Refusal.unauthorized("the header alg is not in auth.jwt_algorithms")
        if not isinstance(kid, str | None) or "crit" in header:
            return Refusal.unauthorized(_BAD_HEADER)
    except Exception:  # noqa: BLE001 - a token that the library cannot read is refused, whatever the error
        return Refusal.unauthorized(_BAD_HEADER)
    fitting = [key for key in keys if key.may_verify(kid, algorithm)]
    for key in fitting:
        answer = _verified_with(key, token, algorithm, options)
        if answer is not None:
            return answer
    without = f"auth.jwt_key has no key for {'its alg' if kid is None else 'its kid and alg'}"
    raise UnknownKeyError("no key of auth.jwt_key verifies the signature" if fitting else without)


def still_accepted(proof: Verified, keys: Sequence[Key], options: AuthOptions) -> bool:
    """Return whether the token would still be accepted, apart from its time."""
    return (
        any(proof.key == key.fingerprint and proof.algorithm in key.algorithms for key in keys)
        and options.jwt_issuer in ("", proof.issuer)
        and (not options.jwt_audience or options.jwt_audience in proof.audiences)
    )


def _verified_with(key: Key, token: str, algorithm: str, options: AuthOptions) -> User | Refusal | None:
    """Return None if the token was not signed with this key."""
    try:
        claims = jwt.decode(
            token,
            key.material,
            algorithms=[algorithm],
            audience=options.jwt_audience or None,
            issuer=options.jwt_issuer or None,
            leeway=options.jwt_leeway_s,
            options={
                "require": ["exp"] if options.jwt_require_exp else [],
                "verify_aud": bool(options.jwt_audience),
                "verify_iss": bool(options.jwt_issuer),
            },
        )
        return _user(claims, key, algorithm, options)
    except InvalidSignatureError:
        return None
    except ExpiredSignatureError:  # raised after the signature was verified, so only the owner of the token learns it
        return Refusal(RefusalKind.EXPIRED, "the time in the claim exp has passed")
    except Exception as error:  # noqa: BLE001 - as in `verified`
        return Refusal.unauthorized(_reason(error))


def _reason(error: Exception) -> str:
    """Return why a token with a good signature is refused. The messages of the library might quote the token."""
    if isinstance(error, GrantError):
        return str(error)
    if isinstance(error, MissingRequiredClaimError):
        return f"the claim {error.claim} is missing"
    named = next((name for name in ("exp", "nbf", "iat") if f"({name})" in str(error)), None)
    reason = _REASONS.get(type(error), "")
    return reason.format(named) if reason and (named or "{}" not in reason) else "the claims cannot be read"


def _user(claims: Mapping[str, Any], key: Key, algorithm: str, options: AuthOptions) -> User | Refusal:
    subject, issuer, audience = claims.get("sub"), claims.get("iss"), claims.get("aud")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARS_MAX or not subject.isprintable():
        return Refusal.unauthorized(_BAD_SUBJECT)
    proof = Verified(
        key.fingerprint,
        algorithm,
        issuer if isinstance(issuer, str) else None,
        frozenset(one for one in (audience if isinstance(audience, list) else [audience]) if isinstance(one, str)),
        options.grant_claims,
    )
    expires_at = None if "exp" not in claims else float(int(claims["exp"])) + options.jwt_leeway_s
    return User(subject, proof, expires_at, grant_in(claims, options))
