"""The settings of ``[auth]``, each looked at alone; what contradicts what is told where settings are gathered."""

import re
from typing import Any, Final, Literal

from attrs import Attribute, field, frozen

from airy_trio.options import NotAllowedError

TOKEN_BYTES_MAX: Final = 2048
"""More would not fit into a header line of CONNECT, whose limit is smaller than that of later frames."""
USER_NAME_CHARS_MAX: Final = 64

_USER_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{USER_NAME_CHARS_MAX}}}")
_TOKEN: Final = re.compile(rf"[!-~]{{1,{TOKEN_BYTES_MAX}}}")
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
