"""Web tokens (RFC 7519): verified with the keys that count, and read as a user. Whatever is odd about one refuses it.

The algorithm is never the token's choice: a key verifies what is both of its kind and in the settings, so neither
``none`` nor a public key taken for a secret can pass (RFC 8725, section 2.1).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt
from jwt.exceptions import ExpiredSignatureError, InvalidSignatureError

from airy_trio.websocket.auth.grants import grant_in
from airy_trio.websocket.auth.keys import Key
from airy_trio.websocket.auth.options import AuthOptions
from airy_trio.websocket.auth.users import Refusal, User, Verified

WEB_TOKEN_BYTES_MAX: Final = 8192
"""An upgrade's header may hold that much; CONNECT holds less, by its own limit."""
SUBJECT_CHARS_MAX: Final = 255
"""OpenID Connect Core, section 2."""


class UnknownKeyError(Exception):
    """No key that is known verifies this token; another one may."""


def verified(token: str, keys: Sequence[Key], options: AuthOptions) -> User | Refusal:
    """Verify a token and give its user. Raises ``UnknownKeyError`` where newer keys might accept it."""
    if len(token) > WEB_TOKEN_BYTES_MAX:
        return Refusal.UNAUTHORIZED
    try:
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in options.jwt_algorithms or not isinstance(kid, str | None) or "crit" in header:
            return Refusal.UNAUTHORIZED
    except Exception:  # noqa: BLE001 - whatever a library trips over in a client's token, the token is refused
        return Refusal.UNAUTHORIZED
    for key in keys:
        if key.may_verify(kid, algorithm):
            answer = _verified_with(key, token, algorithm, options)
            if answer is not None:
                return answer
    raise UnknownKeyError


def still_accepted(proof: Verified, keys: Sequence[Key], options: AuthOptions) -> bool:
    """Whether what a token was accepted by would still be, its time aside."""
    return (
        any(proof.key == key.fingerprint and proof.algorithm in key.algorithms for key in keys)
        and options.jwt_issuer in ("", proof.issuer)
        and (not options.jwt_audience or options.jwt_audience in proof.audiences)
    )


def _verified_with(key: Key, token: str, algorithm: str, options: AuthOptions) -> User | Refusal | None:
    """None: it was not signed with this key."""
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
    except ExpiredSignatureError:  # asked after the signature: only who had a good token learns this
        return Refusal.EXPIRED
    except Exception:  # noqa: BLE001 - as above: a token is refused, nothing else ends
        return Refusal.UNAUTHORIZED


def _user(claims: Mapping[str, Any], key: Key, algorithm: str, options: AuthOptions) -> User | Refusal:
    subject, issuer, audience = claims.get("sub"), claims.get("iss"), claims.get("aud")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARS_MAX or not subject.isprintable():
        return Refusal.UNAUTHORIZED
    proof = Verified(
        key.fingerprint,
        algorithm,
        issuer if isinstance(issuer, str) else None,
        frozenset(one for one in (audience if isinstance(audience, list) else [audience]) if isinstance(one, str)),
        options.grant_claims,
    )
    expires_at = None if "exp" not in claims else float(int(claims["exp"])) + options.jwt_leeway_s
    return User(subject, proof, expires_at, grant_in(claims, options))
