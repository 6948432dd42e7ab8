"""Tells users by the credentials in their CONNECT.

Tokens are compared as digests, always with all of them: how long it takes tells nothing about any of them.
"""

import hashlib
import hmac
import re
from typing import Final, assert_never

from airy_trio.stomp.requests import Connect
from airy_trio.websocket.auth.options import AuthOptions
from airy_trio.websocket.auth.users import ANYBODY, User

_BEARER: Final = re.compile(r" *bearer +([!-~]+) *", re.IGNORECASE)


class Authenticator:
    """Tells users by what they send in CONNECT. Holds digests, no tokens."""

    def __init__(self, options: AuthOptions) -> None:
        self.renew(options)

    def renew(self, options: AuthOptions) -> None:
        """Go on with other options: what they hold counts from now on, and nothing else does.

        Who is connected is not looked at: ``Sessions.renew`` calls this and ends whom ``accepts`` refuses then.
        """
        self._mode = options.mode
        self._users = tuple(User(name, _digest(token)) for name, token in options.tokens.items())

    def authenticate(self, request: Connect) -> User | None:
        """Give the user whose credentials these are; None where they are missing or wrong.

        The token of ``Authorization: Bearer TOKEN`` counts before ``passcode``; ``login`` is not looked at.
        """
        match self._mode:
            case "none":
                return ANYBODY
            case "tokens":
                return self._user_of(_digest(_token_in(request)))
            case _:
                assert_never(self._mode)

    def accepts(self, user: User) -> bool:
        """Whether what a user was recognised by still counts, and still says the same name."""
        match self._mode:
            case "none":
                return True
            case "tokens":
                return self._user_of(user.proof) == user
            case _:
                assert_never(self._mode)

    def _user_of(self, digest: bytes) -> User | None:
        found = None
        for user in self._users:
            if hmac.compare_digest(user.proof, digest):
                found = user
        return found


def _token_in(request: Connect) -> str:
    bearer = None if request.authorization is None else _BEARER.fullmatch(request.authorization)
    return (request.passcode or "") if bearer is None else bearer[1]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
