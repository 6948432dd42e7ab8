"""Authentication of clients: without credentials, by the tokens of the settings, or by web tokens.

The token of a client is the first of these that is present: ``Authorization: Bearer`` in CONNECT, ``passcode``,
``Authorization: Bearer`` of the upgrade, the cookie. If that token is wrong, the client is refused, and the other
places are not tried. Schemes other than Bearer are ignored, because a proxy may use them. An empty value counts as
absent.

A client's token is compared, as a digest, with every token of the settings, so the time reveals nothing about any of
them.

A web token (RFC 7519) is verified with the valid keys, and refused for any irregularity. The token does not choose the
algorithm: a key verifies only algorithms that fit its kind and are in the settings. So neither ``none`` nor a public
key used as a secret can pass (RFC 8725, section 2.1).

A refused CONNECT is answered with a delay that grows with the recent refusals of the same address. The delay slows down
guessing, but never a client with valid credentials. The memory is bounded: the address with the oldest refusal is
dropped first.
"""

import hashlib
import hmac
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

import jwt
import trio
from jwt import exceptions

from airy_trio.auth.keys import Key, KeyFile, KeyRing, KeysFault, secret_key, source_of
from airy_trio.auth.users import ALL, ANONYMOUS, AuthOptions, GrantError, Refusal, RefusalKind, User, Verified, grant_in
from airy_trio.errors import SettingsError
from airy_trio.stomp.frames import Connect

NOT_A_TOKEN: Final = ""
"""Stands for a value that is present and cannot be a token, such as two of them: it matches no user."""
DELAY_FIRST_S: Final = 0.1
"""After the first refusal; each further one doubles it."""
DELAY_MAX_S: Final = 2.0
DECAY_S: Final = 10.0
"""An address loses one refusal after each such time without a refusal."""
REFUSALS_MAX: Final = 6
"""Refusals counted for one address. More would not change the delay, which has reached its maximum."""
ADDRESSES_MAX: Final = 10_000

_SCHEME: Final = re.compile(r"[ \t]*bearer(?:[ \t]+(.*))?", re.IGNORECASE | re.DOTALL)
_TOKEN: Final = re.compile(r"[!-~]+")

WEB_TOKEN_BYTES_MAX: Final = 8192
"""A header of an upgrade may have this size; the limit of CONNECT is smaller."""
SUBJECT_CHARS_MAX: Final = 255
"""OpenID Connect Core, section 2."""
_BAD_HEADER: Final = "the header cannot be read, or has crit, or a kid that is not a text"
_BAD_SUBJECT: Final = f"the claim sub is missing, or not a printable text of 1 to {SUBJECT_CHARS_MAX} characters"
_REASONS: Final[Mapping[type[Exception], str]] = {
    exceptions.ImmatureSignatureError: "the time in the claim {} is in the future",
    exceptions.InvalidIssuedAtError: "the claim {} is not a number of seconds",
    exceptions.DecodeError: "the claim {} is not a number of seconds",
    exceptions.InvalidAudienceError: "the claim aud does not contain auth.jwt_audience",
    exceptions.InvalidIssuerError: "the claim iss is not auth.jwt_issuer",
    exceptions.InvalidSubjectError: _BAD_SUBJECT,
    exceptions.InvalidJTIError: "the claim jti is not a text",
}
"""{} is replaced by the name of a time claim."""

Headers = Mapping[str, Sequence[str]]
"""Of a request: the values of each header by its name in lower case."""


class UnknownKeyError(Exception):
    """No known key verifies this token; a newer key might. The message is the reason, for the log."""


class Authenticator:
    """Finds the user of the credentials in the upgrade and in CONNECT. Stores digests, no tokens.

    ``file_keys``: see ``renew``. One task must call ``refresh_keys`` in a loop while sessions run.
    """

    def __init__(self, options: AuthOptions, file_keys: tuple[Key, ...] = ()) -> None:
        self._ring = KeyRing()
        self._delays = Delays()
        self.renew(options, file_keys)

    def renew(self, options: AuthOptions, file_keys: tuple[Key, ...] = ()) -> None:
        """Replace the options. Sessions are not ended here: the caller then tests each user with ``accepts``.

        ``file_keys``: the result of ``load_file_keys`` for these options.
        """
        past, self._ring = self._ring, _key_ring(options, self._ring, file_keys)
        self._options = options
        digests = ((_digest(token), name) for name, token in options.tokens.items())
        self._users = tuple((digest, User(name, digest)) for digest, name in digests)
        past.retire()  # `refresh_keys` returns from it, and continues with the new one

    def token_of_upgrade(self, headers: Headers) -> str | None:
        """Return the token in the headers of an upgrade, for ``authenticate``; None if there is none."""
        return None if self._options.mode == "none" else token_of_upgrade(headers, self._options.cookie)

    def authenticate_at_once(
        self, request: Connect, upgrade_token: str | None = None
    ) -> User | Refusal | UnknownKeyError:
        """Do the same as ``authenticate``, without waiting for a key; an unknown one is returned, not raised."""
        options = self._options
        if options.mode == "none":
            return ANONYMOUS
        found = token_of_connect(request)
        token = upgrade_token if found is None else found
        if token is None:
            return Refusal.unauthorized("the client sent no token")
        if not token:
            return Refusal.unauthorized("the client sent several tokens, or characters that a token cannot contain")
        if options.mode == "tokens":
            return self._user_of(_digest(token)) or Refusal.unauthorized("the token is not in auth.tokens")
        try:
            return verified(token, self._ring.keys, options)
        except UnknownKeyError as unknown:
            return unknown

    async def authenticate(self, request: Connect, upgrade_token: str | None = None) -> User | Refusal:
        """Return the user, or the reason for a refusal. A token in CONNECT has precedence; ``login`` is ignored.

        If a web token names an unknown key, waits until the keys were loaded again.
        """
        ring, answer = self._ring, self.authenticate_at_once(request, upgrade_token)
        if not isinstance(answer, UnknownKeyError):
            return answer
        newer = await ring.wait_newer()
        if ring is not self._ring:  # renewed while it waited
            return await self.authenticate(request, upgrade_token)
        if newer:
            answer = self.authenticate_at_once(request, upgrade_token)
        if not isinstance(answer, UnknownKeyError):
            return answer
        if ring.keys:
            return Refusal.unauthorized(str(answer))
        return Refusal(RefusalKind.UNAVAILABLE, "the keys of auth.jwt_key have not been loaded yet")

    def delay_s(self, address: str | None) -> float:
        """Count a refusal of an address, None if unknown, and return the delay of its answer in seconds."""
        return self._delays.refused(address or "", trio.current_time())

    def accepts(self, user: User) -> bool:
        """Return whether a user's credentials are still valid, for the same name and with the same grant."""
        options, proof = self._options, user.proof
        match options.mode:
            case "none":
                return True
            case "tokens":
                return isinstance(proof, bytes) and self._user_of(proof) == user
            case "jwt":
                if not isinstance(proof, Verified) or (options.jwt_require_exp and user.expires_at is None):
                    return False
                # The claims themselves are not stored, and those of other names might grant something else.
                if proof.grant_claims != options.grant_claims or (options.jwt_require_grants and user.grant == ALL):
                    return False
                # Until keys were loaded no session is ended, because a new key server may not have answered yet.
                # `refresh_keys` returns True once its keys are there.
                return not self._ring.keys or still_accepted(proof, self._ring.keys, options)
            case _:
                assert_never(options.mode)

    async def refresh_keys(self) -> bool:
        """Wait until the keys of web tokens are due, and load them. True if results of ``accepts`` may have changed."""
        return await self._ring.refresh()

    def _user_of(self, digest: bytes) -> User | None:
        found = None
        for known, user in self._users:
            if hmac.compare_digest(known, digest):
                found = user
        return found


def load_file_keys(options: AuthOptions) -> tuple[Key, ...]:
    """Return the keys of the file that the options name; empty if they name none. Blocks. Raises ``SettingsError``."""
    if options.mode != "jwt" or options.secret_is_shared:
        return ()
    source = source_of(options)
    if not isinstance(source, KeyFile):
        return ()
    try:
        return source.load_now()
    except KeysFault as fault:
        raise SettingsError([f"auth.jwt_key: {source.words}: {fault}"]) from None


def _key_ring(options: AuthOptions, past: KeyRing, file_keys: tuple[Key, ...]) -> KeyRing:
    """Return the keys of the options. The keys of the same server are reused until it has answered again."""
    if options.mode != "jwt":
        return KeyRing()
    if options.secret_is_shared:
        return KeyRing((secret_key(options.jwt_key, options.jwt_algorithms),))
    source = source_of(options)
    if isinstance(source, KeyFile):
        return KeyRing(file_keys, source)
    return KeyRing(past.keys if past.source == source else (), source)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


class Delays:
    """The recent refusals of each address."""

    def __init__(self) -> None:
        # Count, and time of the last refusal; the oldest first.
        self._refusals: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._refusals)

    def refused(self, address: str, now: float) -> float:
        """Count a refusal, and return the delay of its answer in seconds. ``now``: in Trio's time."""
        count, at = self._refusals.pop(address, (0, now))
        count = max(0, count - int((now - at) / DECAY_S))
        self._refusals[address] = (min(count + 1, REFUSALS_MAX), now)
        if len(self._refusals) > ADDRESSES_MAX:
            self._refusals.popitem(last=False)
        return min(math.ldexp(DELAY_FIRST_S, count), DELAY_MAX_S)


def token_of_connect(request: Connect) -> str | None:
    """Return the token in CONNECT; None if there is none."""
    bearer = None if request.authorization is None else _bearer(request.authorization)
    return (request.passcode or None) if bearer is None else bearer


def token_of_upgrade(headers: Headers, cookie: str) -> str | None:
    """Return the token in the header or the ``cookie`` of an upgrade; None if there is none.

    Two of a kind are ``NOT_A_TOKEN``: the server cannot know which of them was meant.
    """
    bearers = [found for value in headers.get("authorization", ()) if (found := _bearer(value)) is not None]
    cookies = [found for value in headers.get("cookie", ()) if cookie for found in _cookies_named(cookie, value)]
    present = bearers or [one for one in cookies if one]
    return None if not present else present[0] if len(present) == 1 else NOT_A_TOKEN


def _bearer(value: str) -> str | None:
    scheme = _SCHEME.fullmatch(value)
    text = "" if scheme is None else (scheme[1] or "").strip(" \t")
    if not text:
        return None
    return text if _TOKEN.fullmatch(text) else NOT_A_TOKEN


def _cookies_named(name: str, header: str) -> list[str]:
    """Return the values of all cookies with a name (RFC 6265, section 4.2.1). They may be quoted."""
    values: list[str] = []
    for pair in header.split(";"):
        found, separator, value = pair.strip(" \t").partition("=")
        if separator and found == name:
            values.append(value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value)
    return values


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
    # Raised even if keys fit: the issuer may have replaced the key under the same kid, or may use none.
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
    except exceptions.InvalidSignatureError:
        return None
    except exceptions.ExpiredSignatureError:  # after the signature was verified: only its owner learns it
        return Refusal(RefusalKind.EXPIRED, "the time in the claim exp has passed")
    except Exception as error:  # noqa: BLE001 - as in `verified`
        return Refusal.unauthorized(_reason(error))


def _reason(error: Exception) -> str:
    """Return why a token with a valid signature is refused. The library's own messages might quote the token."""
    if isinstance(error, GrantError):
        return str(error)
    if isinstance(error, exceptions.MissingRequiredClaimError):
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
    # In whole seconds, as the library has compared it.
    expires_at = None if "exp" not in claims else float(int(claims["exp"])) + options.jwt_leeway_s
    return User(subject, proof, expires_at, grant_in(claims, options))
