"""What a user may read, by the claims of its web token (settings, "Claims"): which destinations, of which channels.

A claim that is absent grants all, an empty list grants nothing. How events are kept from who may not read them is not
known here: a grant only says what is left of a destination.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from airy_trio.events.destinations import EVERYTHING, Destination, UnknownDestinationError, parse, within

DESTINATIONS: Final = "airy_destinations"
CHANNELS: Final = "airy_channels"


@frozen
class Grant:
    """What may be subscribed to, and whose events are read there; None: of all. ``/events`` includes what is below."""

    destinations: frozenset[Destination] | None = None
    channels: frozenset[str] | None = None

    def of(self, destination: Destination) -> Destination | None:
        """Give what may be read of a destination; None: nothing."""
        granted = self.destinations
        if granted is not None and destination not in granted and EVERYTHING not in granted:
            return None
        return destination if self.channels is None else within(destination, self.channels)


ALL: Final = Grant()


def grant_in(claims: Mapping[str, Any]) -> Grant:
    """Read the claims. What names no destination grants none. Raises ``ValueError`` where one is no list of texts."""
    destinations, channels = _texts(claims, DESTINATIONS), _texts(claims, CHANNELS)
    if destinations is None and channels is None:
        return ALL
    return Grant(
        None if destinations is None else frozenset(one for text in destinations if (one := _parsed(text)) is not None),
        None if channels is None else frozenset(channels),
    )


def _texts(claims: Mapping[str, Any], name: str) -> list[str] | None:
    if name not in claims:
        return None
    texts = claims[name]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        message = f"{name} is no list of texts"
        raise ValueError(message)
    return texts


def _parsed(text: str) -> Destination | None:
    try:
        return parse(text)
    except UnknownDestinationError:
        return None
