"""Options, users and grants: the settings of ``[auth]``, who a client is, what it may read, and why it is refused.

A web token may limit what its user reads, by two claims: destinations, and channels. An absent claim grants everything,
an empty list grants nothing. A token with neither claim reads everything, or nothing if ``jwt_require_grants`` is set.
``Grant.of`` returns what remains of a destination; the views of the log then filter its events.
"""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from attrs import Attribute, field, fields, frozen

from airy_trio.events.destinations import EVERYTHING, Destination, UnknownDestinationError, parse, within
from airy_trio.events.values import is_encodable
from airy_trio.options import NotAllowedError, between, matching, satisfying

TOKEN_BYTES_MAX: Final = 2048
"""A longer one would not fit into a header line of CONNECT, whose limit is smaller than that of later frames."""
USER_NAME_CHARS_MAX: Final = 64
LEEWAY_S_MAX: Final = 600
"""A longer one would make the time of expiry meaningless."""

SECRET_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
"""The key that verifies these can also sign."""
SECRET_BYTES_MIN: Final = {name: int(name[2:]) // 8 for name in SECRET_ALGORITHMS}
"""As long as the hash (RFC 7518, section 3.2)."""
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
    """Reject tokens that no client could send, and a token of two users. No message contains a part of a token."""
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


def _is_valid_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        host = (url.hostname or "").encode("idna") if url.port != 0 else b""
    except ValueError:  # includes UnicodeError: a name that IDNA cannot encode
        return False
    return bool(host) and text.isprintable() and " " not in text


@frozen(kw_only=True)
class AuthOptions:
    """Settings of ``[auth]``.

    ``tokens``: by the name of the user. ``jwt_key``: the secret of HS*, else the place of the public keys: an
    ``https://`` URL or a ``.json`` file of a JWK Set, or a PEM file. The ``repr`` has neither. ``jwt_audience``,
    ``jwt_issuer``: required in ``aud`` and ``iss``; "": not checked. ``jwt_channels_claim``,
    ``jwt_destinations_claim``: the names of the claims that limit what a user reads. ``jwt_require_grants``: a token
    with neither of them reads nothing, instead of everything. ``cookie``: the name of the cookie with the token, or "".
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

    def contradictions(self) -> Iterator[str]:
        """Yield a line for options that admit no client, admit every client by mistake, or have no effect."""
        if self.mode == "tokens" and not self.tokens:
            yield 'mode is "tokens", but there are no tokens: no client could connect'
        if self.mode == "none" and self.tokens:
            yield 'there are tokens, but mode is "none": every client could connect'
        if self.mode == "jwt" and self.tokens:
            yield 'there are tokens, but mode is "jwt": they would be ignored'
        if self.mode == "none" and self.cookie:
            yield 'cookie is set, but mode is "none": every client could connect'
        if self.mode == "jwt":
            if self.jwt_channels_claim == self.jwt_destinations_claim:
                both = f'jwt_channels_claim and jwt_destinations_claim are both "{self.jwt_channels_claim}"'
                yield f"{both}: neither could be granted alone"
            if fault := self._key_fault():
                yield fault
            return
        defaults, names = AuthOptions(), (option.name for option in fields(AuthOptions))
        idle = [name for name in names if name.startswith("jwt_") and getattr(self, name) != getattr(defaults, name)]
        if idle:
            yield f'{", ".join(idle)}: only for mode = "jwt", but mode is "{self.mode}"'

    def _key_fault(self) -> str | None:
        """Return the first fault of ``jwt_key`` and its algorithms, or None. It does not show the key."""
        key, shared = self.jwt_key, [name for name in self.jwt_algorithms if name in SECRET_ALGORITHMS]
        if shared:
            bytes_min = max(SECRET_BYTES_MIN[name] for name in shared)
            faults: tuple[tuple[bool, str], ...] = (
                (len(shared) < len(self.jwt_algorithms),
                 ("jwt_algorithms: HS* with others: the public key would also be the secret of HS*, and anyone with it "
                  "could sign tokens")),
                (not key, 'mode is "jwt", which needs jwt_key: the secret'),
                (key.startswith(("https://", "http://")) or "-----BEGIN" in key,
                 "jwt_key: HS* needs the secret itself, but this is a URL or a PEM key"),
                (len(key.encode()) < bytes_min,
                 (f"jwt_key: the secret of {', '.join(shared)} needs at least {bytes_min} bytes (RFC 7518, section "
                  "3.2)")),
            )  # fmt: skip
        else:
            is_url = key.startswith("https://")
            faults = (
                (not key, 'mode is "jwt", which needs jwt_key: a file or an https:// URL of public keys'),
                ("-----BEGIN" in key,
                 "jwt_key: this is a key; put it in a file and set jwt_key to the name of the file"),
                (key.startswith("http://"),
                 ("jwt_key: keys are fetched over https:// only, because http:// lets others on the network replace "
                  "them")),
                (is_url and not _is_valid_url(key), "jwt_key: not a valid https:// URL"),
                (is_url and "@" in key, "jwt_key: the URL has a user or a password, but public keys need neither"),
                ("\0" in key, "jwt_key: not a file name"),
            )  # fmt: skip
        return next((line for applies, line in faults if applies), None)

    @property
    def grant_claims(self) -> tuple[str, str]:
        """The names of the claims of channels and of destinations."""
        return self.jwt_channels_claim, self.jwt_destinations_claim

    @property
    def secret_is_shared(self) -> bool:
        """Whether tokens are signed with a secret that this server has as well (HS*)."""
        return any(name in SECRET_ALGORITHMS for name in self.jwt_algorithms)


@frozen
class Grant:
    """The destinations that a user may subscribe to, and the channels whose events it receives there; None: all.

    ``/events`` includes all destinations.
    """

    destinations: frozenset[Destination] | None = None
    channels: frozenset[str] | None = None

    def of(self, destination: Destination) -> Destination | None:
        """Return the part of a destination that may be read; None: nothing of it."""
        if not self._lists(destination):
            return None
        return destination if self.channels is None else within(destination, self.channels)

    def why_not(self, destination: Destination) -> str:
        """Return, for the log, which claim denies a destination: the name of its setting, without its value."""
        if self is NOTHING:  # identity: a token with two empty lists has an equal grant
            return "the token has neither claim of grants, and auth.jwt_require_grants is set"
        if not self._lists(destination):
            return "the claim of auth.jwt_destinations_claim does not list this destination"
        return "the claim of auth.jwt_channels_claim lists no channel of this destination"

    def _lists(self, destination: Destination) -> bool:
        granted = self.destinations
        return granted is None or destination in granted or EVERYTHING in granted


ALL: Final = Grant()
NOTHING: Final = Grant(frozenset(), frozenset())


def grant_in(claims: Mapping[str, Any], options: AuthOptions) -> Grant:
    """Read the claims that the options name. A text that is not a destination grants nothing.

    Raises ``GrantError`` if a claim is not a list of texts. JSON can contain half a surrogate pair, which is not a
    text: no channel has such an id, and it could not be logged.
    """
    destinations = _texts(claims, options.jwt_destinations_claim)
    channels = _texts(claims, options.jwt_channels_claim)
    if destinations is None and channels is None:
        return NOTHING if options.jwt_require_grants else ALL
    return Grant(
        None if destinations is None else frozenset(one for text in destinations if (one := _parsed(text)) is not None),
        None if channels is None else frozenset(channels),
    )


class GrantError(ValueError):
    """A claim is not a list of texts. The message names the claim and does not quote its value."""


def _texts(claims: Mapping[str, Any], name: str) -> list[str] | None:
    if name not in claims:
        return None
    texts = claims[name]
    if not isinstance(texts, list) or not all(isinstance(text, str) and is_encodable(text) for text in texts):
        raise GrantError(f"the claim {name} is not a list of texts")
    return texts


def _parsed(text: str) -> Destination | None:
    try:
        return parse(text)
    except UnknownDestinationError:
        return None


@frozen
class Verified:
    """Why a web token was accepted: its key's fingerprint, ``alg``, ``iss`` and ``aud``. Has no secret.

    ``grant_claims``: the names of the claims from which its grant was read.
    """

    key: bytes
    algorithm: str
    issuer: str | None
    audiences: frozenset[str]
    grant_claims: tuple[str, str]


@frozen
class User:
    """The user of a client. ``name`` None: no credentials are required.

    ``proof``: the digest of its token, or why its web token was accepted; it shows later whether that is still valid.
    ``expires_at``: the end of its credentials in seconds since 1970, leeway included; None: no end. ``grant``: what it
    may read.
    """

    name: str | None
    proof: bytes | Verified = field(default=b"", repr=False)
    expires_at: float | None = None
    grant: Grant = ALL


ANONYMOUS: Final = User(None)


class RefusalKind(Enum):
    """The part of a refusal that the client learns."""

    UNAUTHORIZED = "unauthorized"
    """The credentials are missing or wrong."""
    EXPIRED = "expired"
    """The credentials have expired."""
    UNAVAILABLE = "unavailable"
    """The credentials cannot be verified, because no keys have been loaded yet."""


@frozen
class Refusal:
    """Why credentials are not accepted.

    ``reason`` is for the log only. It names claims and settings and quotes nothing that the client sent, so the number
    of different reasons is bounded.
    """

    kind: RefusalKind
    reason: str

    @classmethod
    def unauthorized(cls, reason: str) -> "Refusal":
        """Return a refusal of credentials that are missing or wrong."""
        return cls(RefusalKind.UNAUTHORIZED, reason)
