"""The settings of ``[auth]``, each looked at alone; what contradicts what is told where settings are gathered."""

import re
from typing import Any, Final, Literal

from attrs import Attribute, field, frozen

from airy_trio.options import NotAllowedError, between, matching, satisfying

TOKEN_BYTES_MAX: Final = 2048
"""More would not fit into a header line of CONNECT, whose limit is smaller than that of later frames."""
USER_NAME_CHARS_MAX: Final = 64
LEEWAY_S_MAX: Final = 600
"""More would make the time of expiry mean little."""

SECRET_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
"""Who can verify these can also sign."""
KEY_PAIR_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
ALGORITHMS: Final = (*SECRET_ALGORITHMS, *KEY_PAIR_ALGORITHMS)

_USER_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{USER_NAME_CHARS_MAX}}}")
_TOKEN: Final = re.compile(rf"[!-~]{{1,{TOKEN_BYTES_MAX}}}")
_TOKENS_WORDS: Final = (
    f"NAME = TOKEN: a name of at most {USER_NAME_CHARS_MAX} letters, digits, dots, dashes and underscores, a token of "
    f"1 to {TOKEN_BYTES_MAX} printable ASCII characters without spaces, each token once"
)
_CLAIM: Final = matching(r"[^\x00-\x1f\x7f]+", "the name of a claim")


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
    """Who may connect (settings, ``[auth]``).

    ``tokens``: of each user, by name. ``jwt_key``: the secret of HS*, else where the public keys are: an ``https://``
    URL or a ``.json`` file of a JWK Set, or a PEM file. Neither shows in the ``repr``. ``jwt_audience``,
    ``jwt_issuer``: what ``aud`` must hold and ``iss`` must be; "": not checked. ``jwt_channels_claim``,
    ``jwt_destinations_claim``: the names of the claims that limit what a user reads. ``jwt_require_grants``: a token
    with neither of them reads nothing, instead of everything. ``cookie``: the name of the one that carries the token,
    or "".
    """

    mode: Literal["none", "tokens", "jwt"] = "none"
    tokens: dict[str, str] = field(factory=dict, repr=False, validator=_check_tokens)
    jwt_key: str = field(default="", repr=False)
    jwt_algorithms: list[str] = field(
        factory=lambda: ["RS256"],
        validator=satisfying(
            lambda names: bool(names) and all(name in ALGORITHMS for name in names),
            f"an array of one or more of {', '.join(ALGORITHMS)}",
        ),
    )
    jwt_audience: str = ""
    jwt_issuer: str = ""
    jwt_leeway_s: float = field(default=5, validator=between(0, LEEWAY_S_MAX))
    jwt_require_exp: bool = True
    jwt_channels_claim: str = field(default="airy_channels", validator=_CLAIM)
    jwt_destinations_claim: str = field(default="airy_destinations", validator=_CLAIM)
    jwt_require_grants: bool = False
    cookie: str = field(
        default="",
        validator=matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]*", 'the name of a cookie, or ""'),  # RFC 6265, section 4.1.1
    )

    @property
    def grant_claims(self) -> tuple[str, str]:
        """The names of the claims that limit what a user reads: of channels, and of destinations."""
        return self.jwt_channels_claim, self.jwt_destinations_claim

    @property
    def secret_is_shared(self) -> bool:
        """Whether tokens are signed with a secret that is known here as well (HS*)."""
        return any(name in SECRET_ALGORITHMS for name in self.jwt_algorithms)
