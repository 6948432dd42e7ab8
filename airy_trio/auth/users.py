"""The user of a client, what it was recognised by, and why credentials are refused."""

from enum import Enum
from typing import Final

from attrs import field, frozen

from airy_trio.websocket.auth.grants import ALL, Grant


@frozen
class Verified:
    """What a web token was accepted by: its key's fingerprint, ``alg``, ``iss`` and ``aud``; nothing secret.

    ``grant_claims``: the names of the claims that its grant was read from.
    """

    key: bytes
    algorithm: str
    issuer: str | None
    audiences: frozenset[str]
    grant_claims: tuple[str, str]


@frozen
class User:
    """Who a client is. ``name`` None: nobody was asked for credentials.

    ``proof``: what it was recognised by, so that it can be told later whether that still counts: the digest of its
    token, or what its web token was accepted by. ``expires_at``: until when it counts, in seconds since 1970, leeway
    included; None: without end. ``grant``: what it may read.
    """

    name: str | None
    proof: bytes | Verified = field(default=b"", repr=False)
    expires_at: float | None = None
    grant: Grant = ALL


ANYBODY: Final = User(None)


class RefusalKind(Enum):
    """What a client learns about credentials that are not accepted."""

    UNAUTHORIZED = "unauthorized"
    """They are missing or wrong."""
    EXPIRED = "expired"
    """They were valid until some time ago."""
    UNAVAILABLE = "unavailable"
    """They cannot be verified now: the keys have not been loaded yet."""


@frozen
class Refusal:
    """Why credentials are not accepted.

    ``reason``: for the log only, in plain words. It names claims and settings, and quotes nothing that the client sent:
    there are as many reasons as ways to refuse.
    """

    kind: RefusalKind
    reason: str

    @classmethod
    def unauthorized(cls, reason: str) -> "Refusal":
        """The refusal of credentials that are missing or wrong."""
        return cls(RefusalKind.UNAUTHORIZED, reason)
