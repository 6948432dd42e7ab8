"""The events that clients receive, as frozen classes in one closed union (wire contract, "Events").

Each also has the identity of its object, its channel and its conversation, which select the subscriptions and are not
all sent. JSON from the database stays text and is embedded without reformatting.
"""

from typing import ClassVar, NamedTuple, NewType, get_args

from attrs import frozen

Json = NewType("Json", str)
"""Text that a strict parser has accepted as one JSON value."""


class _MessageFields(NamedTuple):
    id: str
    conversation_id: str
    channel_id: str
    content: Json
    delivery_state: str
    from_contact: bool
    sent_at: str
    source: str
    sender_id: str


class MessageUpdated(_MessageFields):
    """The current state of a message. ``sent_at``: UTC with exactly three decimals and ``Z``.

    A tuple, because a bulk change makes one for each row and a frozen class takes eight times as long to make.
    """

    __slots__ = ()
    type: ClassVar[str] = "message.updated"

    @property
    def object(self) -> str:
        """The identity of the message: equal for all of its events, including its deletion."""
        return f"message:{self.id}"


@frozen(kw_only=True)
class MessageDeleted:
    """A deleted message (only with ``[events] deletes``)."""

    type: ClassVar[str] = "message.deleted"

    id: str
    conversation_id: str
    channel_id: str

    @property
    def object(self) -> str:
        """The identity of the message, as in its updates."""
        return f"message:{self.id}"


@frozen(kw_only=True)
class MetadataUpdated:
    """The full current metadata of one (subject, identifier) pair.

    ``conversation_id`` and ``channel_id`` are those of its subject; None if unknown.
    """

    type: ClassVar[str] = "metadata.updated"

    subject: str
    identifier: str
    metadata: Json
    conversation_id: str | None
    channel_id: str | None

    @property
    def object(self) -> str:
        """The identity of the pair: conversation 1 and message 1 differ."""
        return f"metadata:{self.subject}:{self.identifier}"


@frozen(kw_only=True)
class ChannelUpdated:
    """The current state of a channel; a deleted one is not connected."""

    type: ClassVar[str] = "channel.updated"

    id: str
    source: str
    source_channel_id: str
    connected: bool

    conversation_id: ClassVar[None] = None

    @property
    def channel_id(self) -> str:
        """The channel itself."""
        return self.id

    @property
    def object(self) -> str:
        """The identity of the channel."""
        return f"channel:{self.id}"


@frozen(kw_only=True)
class _TagEvent:
    id: str

    conversation_id: ClassVar[None] = None
    channel_id: ClassVar[None] = None

    @property
    def object(self) -> str:
        """The identity of the tag: equal for its updates and its deletion."""
        return f"tag:{self.id}"


@frozen(kw_only=True)
class TagUpdated(_TagEvent):
    """The current state of a tag."""

    type: ClassVar[str] = "tag.updated"

    name: str
    color: str


@frozen(kw_only=True)
class TagDeleted(_TagEvent):
    """A deleted tag (only with ``[events] deletes``)."""

    type: ClassVar[str] = "tag.deleted"


Event = MessageUpdated | MessageDeleted | MetadataUpdated | ChannelUpdated | TagUpdated | TagDeleted
"""The closed union: every ``match`` over it ends in ``assert_never``."""

TYPES: tuple[str, ...] = tuple(event.type for event in get_args(Event))
"""The names of the types in the wire contract."""

STATE_TYPES: frozenset[str] = frozenset(
    {MessageUpdated.type, MetadataUpdated.type, ChannelUpdated.type, TagUpdated.type}
)
"""The types whose newest event is the state of an object."""
