"""Destinations: the names that a client can subscribe to, and the events of each (wire contract, "Destinations").

``/events``, ``/events/TYPE``, ``/events/channel/ID`` and ``/events/conversation/ID``. The id is percent-encoded UTF-8,
and need not exist.
"""

from typing import Final, Protocol, assert_never
from urllib.parse import quote, unquote_to_bytes

from attrs import frozen

from airy_trio.events.models import TYPES, ChannelUpdated, TagDeleted, TagUpdated

ROOT = "/events"
_WITHOUT_CHANNEL: Final = frozenset({TagUpdated.type, TagDeleted.type})


class UnknownDestinationError(ValueError):
    """A string that is not a destination."""


# Destinations are keys of the dictionaries of views and of pages. With narrow views each event looks up several of
# them, so each hash is computed once.
@frozen(cache_hash=True)
class Everything:
    """``/events``: every event."""


@frozen(cache_hash=True)
class OfType:
    """``/events/TYPE``: the events of one type."""

    type: str


@frozen(cache_hash=True)
class OfChannel:
    """``/events/channel/ID``: the events of one channel."""

    id: str


@frozen(cache_hash=True)
class OfConversation:
    """``/events/conversation/ID``: the events of one conversation."""

    id: str


@frozen(cache_hash=True)
class Within:
    """The events of a destination that belong to certain channels, for a client that may read only those.

    A client cannot name it: the server makes it (``within``). ``channels`` is not empty.
    """

    destination: Everything | OfType | OfConversation
    channels: frozenset[str]


Destination = Everything | OfType | OfChannel | OfConversation | Within
"""What can be read from the log. A client can name each but ``Within``."""

EVERYTHING = Everything()


class Addressed(Protocol):
    """An event, or a stored event.

    An event with a conversation must have the conversation's channel: a user who is limited to channels does not
    receive an event without one.
    """

    @property
    def type(self) -> str:
        """The wire name of the event's type."""
        ...

    @property
    def channel_id(self) -> str | None:
        """Its channel, if known."""
        ...

    @property
    def conversation_id(self) -> str | None:
        """Its conversation, if known."""
        ...


def parse(text: str) -> Destination:
    """Read a destination as a client writes it. Raises ``UnknownDestinationError``."""
    if text == ROOT:
        return EVERYTHING
    match text.removeprefix(ROOT + "/").split("/") if text.startswith(ROOT + "/") else []:
        case [type_] if type_ in TYPES:
            return OfType(type_)
        case ["channel", encoded] if encoded:
            return OfChannel(_decoded(encoded))
        case ["conversation", encoded] if encoded:
            return OfConversation(_decoded(encoded))
        case _:
            raise UnknownDestinationError(text)


def within(destination: Destination, channels: frozenset[str]) -> Destination | None:
    """Restrict a destination to certain channels. None: no event can belong to both."""
    match destination:
        case _ if not channels:
            return None
        case OfChannel(id=id_):
            return destination if id_ in channels else None
        case Within(destination=wider, channels=others):
            return within(wider, channels & others)
        # Both have the same events, so these clients share the view of the channel and need no narrow one.
        case Everything() if len(channels) == 1:
            return OfChannel(next(iter(channels)))
        case _:
            return Within(destination, channels)


def text(destination: Destination) -> str:
    """Write a destination as a client names it: the inverse of ``parse``, except for ``Within``."""
    match destination:
        case Everything():
            return ROOT
        case OfType(type=type_):
            return f"{ROOT}/{type_}"
        case OfChannel(id=id_):
            return f"{ROOT}/channel/{quote(id_, safe='')}"
        case OfConversation(id=id_):
            return f"{ROOT}/conversation/{quote(id_, safe='')}"
        case Within(destination=wider):
            return text(wider)
        case _:
            assert_never(destination)


def destinations_of(event: Addressed) -> tuple[Destination, ...]:
    """Return all destinations of an event that a client can name: two to four."""
    found: list[Destination] = [EVERYTHING, OfType(event.type)]
    if event.channel_id is not None:
        found.append(OfChannel(event.channel_id))
    if event.conversation_id is not None:
        found.append(OfConversation(event.conversation_id))
    return tuple(found)


def covers(destination: Destination, event: Addressed) -> bool:
    """Return whether an event, new or stored, belongs to a destination."""
    match destination:
        case Everything():
            return True
        case OfType(type=type_):
            return event.type == type_
        case OfChannel(id=id_):
            return event.channel_id == id_
        case OfConversation(id=id_):
            return event.conversation_id == id_
        case Within(destination=wider, channels=channels):
            return event.channel_id in channels and covers(wider, event)
        case _:
            assert_never(destination)


def types_of(destination: Destination) -> frozenset[str]:
    """Return the types of the events that a destination may have."""
    match destination:
        case Everything():
            return frozenset(TYPES)
        case OfType(type=type_):
            return frozenset({type_})
        case OfChannel():
            return frozenset(TYPES) - _WITHOUT_CHANNEL
        case OfConversation():
            return frozenset(TYPES) - _WITHOUT_CHANNEL - {ChannelUpdated.type}
        case Within(destination=wider):
            return types_of(wider) - _WITHOUT_CHANNEL
        case _:
            assert_never(destination)


def _decoded(encoded: str) -> str:
    try:
        return unquote_to_bytes(encoded).decode()
    except UnicodeError:
        raise UnknownDestinationError(encoded) from None
