"""Tells users by their credentials: anybody, one of the tokens of the settings, or a web token.

Tokens are compared as digests, always with all of them: how long it takes tells nothing about any of them.
"""

import hashlib
import hmac
from typing import assert_never

import trio

from airy_trio.errors import SettingsError
from airy_trio.stomp.requests import Connect
from airy_trio.websocket.auth.credentials import Headers, token_of_connect, token_of_upgrade
from airy_trio.websocket.auth.delays import Delays
from airy_trio.websocket.auth.grants import ALL
from airy_trio.websocket.auth.key_ring import KeyRing
from airy_trio.websocket.auth.key_sources import KeyFile, source_of
from airy_trio.websocket.auth.keys import Key, KeysFault, secret_key
from airy_trio.websocket.auth.options import AuthOptions
from airy_trio.websocket.auth.users import ANYBODY, Refusal, RefusalKind, User, Verified
from airy_trio.websocket.auth.web_tokens import UnknownKeyError, still_accepted, verified


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
