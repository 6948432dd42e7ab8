"""Tells users by their credentials: anybody, one of the tokens of the settings, or a web token.

Tokens are compared as digests, always with all of them: how long it takes tells nothing about any of them.

Where a client's token is found: in CONNECT, in the upgrade's ``Authorization``, in a cookie; the first there counts.

The order: ``Authorization: Bearer`` in CONNECT, ``passcode``, ``Authorization: Bearer`` of the upgrade, the cookie. A
token that is there and wrong refuses the client: no other is tried. Another scheme than Bearer is not for us (a proxy
may use it), and what is empty is not there. Whether a token is right is not known here.

How long a refused CONNECT waits for its answer: longer with each that the same address has had refused lately.

Guessing is slowed, and who is let in is never: only refusals are counted and only they wait. The memory is bounded: the
address that was refused the longest ago is forgotten first. Nothing waits here.
"""

import hashlib
import hmac
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, assert_never

import trio

from airy_trio.auth.key_sources import KeyFile, KeyRing, source_of
from airy_trio.auth.keys import Key, KeysFault, secret_key
from airy_trio.auth.users import ALL, ANYBODY, AuthOptions, Refusal, RefusalKind, User, Verified
from airy_trio.auth.web_tokens import UnknownKeyError, still_accepted, verified
from airy_trio.errors import SettingsError
from airy_trio.stomp.requests import Connect

NOBODYS: Final = ""
"""Stands for what is there and cannot be a token, such as two of them: nobody has it."""

_SCHEME: Final = re.compile(r"[ \t]*bearer(?:[ \t]+(.*))?", re.IGNORECASE | re.DOTALL)
_TOKEN: Final = re.compile(r"[!-~]+")

Headers = Mapping[str, Sequence[str]]
"""Of a request: the values of each by its name in lower case."""


def token_of_connect(request: Connect) -> str | None:
    """Give the token that CONNECT carries; None where there is none."""
    bearer = None if request.authorization is None else _bearer(request.authorization)
    return (request.passcode or None) if bearer is None else bearer


def token_of_upgrade(headers: Headers, cookie: str) -> str | None:
    """Give the token that an upgrade carries, in the header or the ``cookie`` of this name; None where there is none.

    Two of a kind are nobody's: which of them a proxy or a browser meant is not ours to guess.
    """
    bearers = [found for value in headers.get("authorization", ()) if (found := _bearer(value)) is not None]
    cookies = [found for value in headers.get("cookie", ()) if cookie for found in _cookies_named(cookie, value)]
    present = bearers or [one for one in cookies if one]
    return None if not present else present[0] if len(present) == 1 else NOBODYS


def _bearer(value: str) -> str | None:
    scheme = _SCHEME.fullmatch(value)
    text = "" if scheme is None else (scheme[1] or "").strip(" \t")
    if not text:
        return None
    return text if _TOKEN.fullmatch(text) else NOBODYS


def _cookies_named(name: str, header: str) -> list[str]:
    """The values of all cookies of a name (RFC 6265, section 4.2.1), which may stand in quotes."""
    values: list[str] = []
    for pair in header.split(";"):
        found, separator, value = pair.strip(" \t").partition("=")
        if separator and found == name:
            values.append(value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value)
    return values


FIRST_S: Final = 0.1
"""Each further one doubles it."""
MOST_S: Final = 2.0
DECAY_S: Final = 10.0
"""After this time without a refusal one of an address is forgotten, after twice the time another, and so on."""
COUNTED_MAX: Final = 6
"""More change nothing: the delay is at its most before."""
ADDRESSES_MAX: Final = 10_000


class Delays:
    """Refusals by address."""

    def __init__(self) -> None:
        self._refusals: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, when the last; that first

    def __len__(self) -> int:
        return len(self._refusals)

    def refused(self, address: str, now: float) -> float:
        """Count a refusal, and give how long its answer is to wait, in seconds. ``now``: in Trio's time."""
        count, at = self._refusals.pop(address, (0, now))
        count = max(0, count - int((now - at) / DECAY_S))
        self._refusals[address] = (min(count + 1, COUNTED_MAX), now)
        if len(self._refusals) > ADDRESSES_MAX:
            self._refusals.popitem(last=False)
        return min(math.ldexp(FIRST_S, count), MOST_S)


class Authenticator:
    """Tells users by what they send in the upgrade and in CONNECT. Holds digests, no tokens.

    ``file_keys`` and errors: see ``renew``. One task calls ``refresh_keys`` in a loop while sessions run.
    """

    def __init__(self, options: AuthOptions, file_keys: tuple[Key, ...] | None = None) -> None:
        self._ring = KeyRing()
        self._delays = Delays()
        self.renew(options, file_keys)

    def renew(self, options: AuthOptions, file_keys: tuple[Key, ...] | None = None) -> None:
        """Replace the options.

        The sessions stay: ``Sessions.renew`` calls this, then ends those whose user ``accepts`` refuses.
        ``file_keys``: what ``load_file_keys`` returned for these options. Without them a key file is read here, which
        blocks. Raises ``SettingsError``, with nothing changed, if a key file cannot be used.
        """
        past, self._ring = self._ring, _key_ring(options, self._ring, file_keys)
        self._options = options
        digests = ((_digest(token), name) for name, token in options.tokens.items())
        self._users = tuple((digest, User(name, digest)) for digest, name in digests)
        past.retire()  # who refreshes it turns to the new one

    def token_of_upgrade(self, headers: Headers) -> str | None:
        """Give the token that an upgrade's headers carry, for ``authenticate``; None where there is none."""
        return None if self._options.mode == "none" else token_of_upgrade(headers, self._options.cookie)

    async def authenticate(self, request: Connect, upgrade_token: str | None = None) -> User | Refusal:
        """Give the user whose credentials these are, or why there is none. Those of CONNECT count before the others.

        ``login`` is not looked at. Where a web token names a key that is not known, keys are asked for anew.
        """
        options = self._options
        if options.mode == "none":
            return ANYBODY
        found = token_of_connect(request)
        token = upgrade_token if found is None else found
        if token is None:
            return Refusal.unauthorized("the client sent no token")
        if not token:
            return Refusal.unauthorized("the client sent several tokens, or characters that no token may have")
        if options.mode == "tokens":
            return self._user_of(_digest(token)) or Refusal.unauthorized("the token is none of auth.tokens")
        ring = self._ring
        answer = await _user_of_web_token(token, ring, options)
        if isinstance(answer, Refusal) and ring is not self._ring:  # renewed while it waited: the new keys are asked
            return await self.authenticate(request, upgrade_token)
        return answer

    def delay_s(self, address: str | None) -> float:
        """Count a refusal, and give how long its answer waits. ``address``: whose it is; None: of whom nobody knows."""
        return self._delays.refused(address or "", trio.current_time())

    def accepts(self, user: User) -> bool:
        """Whether a user's credentials still count, for the same name, and still grant what they granted."""
        options, proof = self._options, user.proof
        match options.mode:
            case "none":
                return True
            case "tokens":
                return isinstance(proof, bytes) and self._user_of(proof) == user
            case "jwt":
                if not isinstance(proof, Verified) or (options.jwt_require_exp and user.expires_at is None):
                    return False
                # Only the grant is kept, not the token's claims: under other names they may grant something else.
                if proof.grant_claims != options.grant_claims or (options.jwt_require_grants and user.grant == ALL):
                    return False
                return not self._ring.loaded or still_accepted(proof, self._ring.keys, options)
            case _:
                assert_never(options.mode)

    async def refresh_keys(self) -> bool:
        """Wait until the keys of web tokens are due, and load them; True where ``accepts`` may say otherwise now."""
        return await self._ring.refresh()

    def _user_of(self, digest: bytes) -> User | None:
        found = None
        for known, user in self._users:
            if hmac.compare_digest(known, digest):
                found = user
        return found


async def _user_of_web_token(token: str, ring: KeyRing, options: AuthOptions) -> User | Refusal:
    try:
        return verified(token, ring.keys, options)
    except UnknownKeyError as error:
        reason = str(error)
        newer = await ring.wait_newer()
    if newer:
        try:
            return verified(token, ring.keys, options)
        except UnknownKeyError as error:
            reason = str(error)
    if ring.loaded:
        return Refusal.unauthorized(reason)
    return Refusal(RefusalKind.UNAVAILABLE, "the keys of auth.jwt_key have not been loaded yet")


def load_file_keys(options: AuthOptions) -> tuple[Key, ...] | None:
    """Read the key file that the options name; None if they name none. Blocks. Raises ``SettingsError``."""
    if options.mode != "jwt" or options.secret_is_shared:
        return None
    source = source_of(options)
    return _load(source) if isinstance(source, KeyFile) else None


def _key_ring(options: AuthOptions, past: KeyRing, file_keys: tuple[Key, ...] | None) -> KeyRing:
    """Return the keys of the options. Those of a server stay the same until it has answered."""
    if options.mode != "jwt":
        return KeyRing()
    if options.secret_is_shared:
        return KeyRing((secret_key(options.jwt_key, options.jwt_algorithms),))
    source = source_of(options)
    if not isinstance(source, KeyFile):
        return KeyRing(past.keys if past.source == source else (), source)
    return KeyRing(_load(source) if file_keys is None else file_keys, source)


def _load(source: KeyFile) -> tuple[Key, ...]:
    try:
        return source.load_now()
    except KeysFault as fault:
        raise SettingsError([f"auth.jwt_key: {source.words}: {fault}"]) from None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
