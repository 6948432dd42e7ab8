"""Who a client is."""

from typing import Final

from attrs import field, frozen


@frozen
class User:
    """Who a client is. ``name`` None: nobody was asked for credentials.

    ``proof``: what it was recognised by, so that it can be told later whether that still counts; no secret.
    """

    name: str | None
    proof: bytes = field(default=b"", repr=False)


ANYBODY: Final = User(None)
