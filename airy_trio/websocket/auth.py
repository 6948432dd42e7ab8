"""Who a client is, by the credentials in its CONNECT. What users may do, and what others are told, is not here.

Tokens are compared as digests, always with all of them: how long it takes tells nothing about any of them.
"""

import hashlib
import hmac
import re
from typing import Any, Final, Literal, assert_never

from attrs import Attribute, field, frozen

from airy_trio.options import NotAllowedError
from airy_trio.stomp.requests import Connect

TOKEN_BYTES_MAX: Final = 2048
"""More would not fit into a header line of CONNECT, whose limit is smaller than that of later frames."""
USER_NAME_CHARS_MAX: Final = 64

_USER_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{USER_NAME_CHARS_MAX}}}")
_TOKEN: Final = re.compile(rf"[!-~]{{1,{TOKEN_BYTES_MAX}}}")
_BEARER: Final = re.compile(r" *bearer +([!-~]+) *", re.IGNORECASE)
_TOKENS_WORDS: Final = (
    f"NAME = TOKEN: a name of at most {USER_NAME_CHARS_MAX} letters, digits, dots, dashes and underscores, a token of "
    f"1 to {TOKEN_BYTES_MAX} printable ASCII characters without spaces, each token once"
)


def _check_tokens(_instance: object, option: "Attribute[Any]", tokens: dict[str, str]) -> None:
    """Refuse what no client could send, and what would leave open who it is. No message has a part of a token."""
    found = None
    if not all(_USER_NAME.fullmatch(name) for name in tokens):
        found = "another name"
    elif wrong := [name for name, token in tokens.items() if not _TOKEN.fullmatch(token)]:
        empty = not all(tokens[name] for name in wrong)
        found = f"{'an empty' if empty else 'another'} token of {', '.join(wrong)}"
    elif len(set(tokens.values())) < len(tokens):
        found = "the same token twice"
    if found is not None:
        raise NotAllowedError(option.name, _TOKENS_WORDS, found)


@frozen(kw_only=True)
class AuthOptions:
    """Who may connect (settings, ``[auth]``). ``tokens``: of each user, by name; they do not show in the ``repr``."""

    mode: Literal["none", "tokens"] = "none"
    tokens: dict[str, str] = field(factory=dict, repr=False, validator=_check_tokens)


@frozen
class User:
    """Who a client is. ``name`` None: nobody was asked for credentials."""

    name: str | None


ANYBODY: Final = User(None)


class Authenticator:
    """Tells users by what they send in CONNECT. Holds digests, no tokens."""

    def __init__(self, options: AuthOptions) -> None:
        self._mode = options.mode
        self._users = tuple((_digest(token), User(name)) for name, token in options.tokens.items())

    def authenticate(self, request: Connect) -> User | None:
        """Give the user whose credentials these are; None where they are missing or wrong.

        The token of ``Authorization: Bearer TOKEN`` counts before ``passcode``; ``login`` is not looked at.
        """
        match self._mode:
            case "none":
                return ANYBODY
            case "tokens":
                return self._user_of(_token_in(request))
            case _:
                assert_never(self._mode)

    def _user_of(self, token: str) -> User | None:
        digest = _digest(token)
        found = None
        for known, user in self._users:
            if hmac.compare_digest(known, digest):
                found = user
        return found


def _token_in(request: Connect) -> str:
    bearer = None if request.authorization is None else _BEARER.fullmatch(request.authorization)
    return (request.passcode or "") if bearer is None else bearer[1]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
