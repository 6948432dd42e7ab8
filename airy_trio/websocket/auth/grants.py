"""What a user may read, by the claims of its web token (settings, ``[auth]``): which destinations, of which channels.

A claim that is absent grants all, an empty list grants nothing. A token with neither claim reads everything, or nothing
if ``jwt_require_grants`` is set. A grant only says what is left of a destination; the views of the log keep other
events from the user.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from airy_trio.events.destinations import EVERYTHING, Destination, UnknownDestinationError, parse, within
from airy_trio.websocket.auth.options import AuthOptions


@frozen
class Grant:
    """The destinations that a user may subscribe to, and the channels whose events it reads there; None: all.

    ``/events`` includes all destinations.
    """

    destinations: frozenset[Destination] | None = None
    channels: frozenset[str] | None = None

    def of(self, destination: Destination) -> Destination | None:
        """Return the part of a destination that may be read; None: nothing."""
        if not self._lists(destination):
            return None
        return destination if self.channels is None else within(destination, self.channels)

    def why_not(self, destination: Destination) -> str:
        """Say, for the log, which claim keeps a destination from the user: by its setting, without its value."""
        if self is NOTHING:  # a token with two empty lists has an equal grant, but not this one
            return "the token has no claim that grants anything, and auth.jwt_require_grants is set"
        if not self._lists(destination):
            return "the claim of auth.jwt_destinations_claim does not list this destination"
        return "the claim of auth.jwt_channels_claim lists no channel of this destination"

    def _lists(self, destination: Destination) -> bool:
        granted = self.destinations
        return granted is None or destination in granted or EVERYTHING in granted


ALL: Final = Grant()
NOTHING: Final = Grant(frozenset(), frozenset())


def grant_in(claims: Mapping[str, Any], options: AuthOptions) -> Grant:
    """Read the claims that the options name. A text that is no destination grants none.

    Raises ``ValueError`` if one of the claims is no list of texts. JSON can hold half a surrogate pair, which is no
    text: no channel has such an id, and it could not be shown.
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
    """A claim is no list of texts. The message names the claim, and quotes nothing of its value."""


def _texts(claims: Mapping[str, Any], name: str) -> list[str] | None:
    if name not in claims:
        return None
    texts = claims[name]
    if not isinstance(texts, list) or not all(isinstance(text, str) and _is_unicode(text) for text in texts):
        message = f"the claim {name} is no list of texts"
        raise GrantError(message)
    return texts


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(text: str) -> Destination | None:
    try:
        return parse(text)
    except UnknownDestinationError:
        return None
