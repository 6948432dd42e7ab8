"""The events that clients see, as frozen facts in one closed union (wire contract, "Events").

Each also knows which object it is about and to whom it belongs, which never goes over the wire. JSON that came
from the database is kept as text and embedded as it is: it is not ours to reformat.
"""

from typing import ClassVar, NamedTuple, NewType

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
    """A message as it is now. ``sent_at``: UTC, exactly three decimals, ``Z``.

    A tuple, for a bulk change makes one for each row: a frozen class takes eight times as long to make.
    """

    __slots__ = ()
    type: ClassVar[str] = "message.updated"

    @property
    def object(self) -> str:
        """The identity of what this is about: equal for all events of one object."""
        return f"message:{self.id}"


@frozen(kw_only=True)
class MessageDeleted:
    """A message that is no more (only with ``[events] deletes``)."""

    type: ClassVar[str] = "message.deleted"

    id: str
    conversation_id: str
    channel_id: str

    @property
    def object(self) -> str:
        """The same identity as the message's updates."""
        return f"message:{self.id}"


@frozen(kw_only=True)
class MetadataUpdated:
    """The full current metadata of one (subject, identifier) pair.

    ``conversation_id`` and ``channel_id`` say to whom it belongs; None where that is not known.
    """

    type: ClassVar[str] = "metadata.updated"

    subject: str
    identifier: str
    metadata: Json
    conversation_id: str | None
    channel_id: str | None

    @property
    def object(self) -> str:
        """The pair is the identity: conversation 1 and message 1 never mix."""
        return f"metadata:{self.subject}:{self.identifier}"


@frozen(kw_only=True)
class ChannelUpdated:
    """A channel as it is now; a deleted one is not connected."""

    type: ClassVar[str] = "channel.updated"

    id: str
    source: str
    source_channel_id: str
    connected: bool

    conversation_id: ClassVar[None] = None

    @property
    def channel_id(self) -> str:
        """A channel belongs to itself."""
        return self.id

    @property
    def object(self) -> str:
        """The identity of the channel."""
        return f"channel:{self.id}"


@frozen(kw_only=True)
class TagUpdated:
    """A tag as it is now."""

    type: ClassVar[str] = "tag.updated"

    id: str
    name: str
    color: str

    conversation_id: ClassVar[None] = None
    channel_id: ClassVar[None] = None

    @property
    def object(self) -> str:
        """The identity of the tag."""
        return f"tag:{self.id}"


@frozen(kw_only=True)
class TagDeleted:
    """A tag that is no more (only with ``[events] deletes``)."""

    type: ClassVar[str] = "tag.deleted"

    id: str

    conversation_id: ClassVar[None] = None
    channel_id: ClassVar[None] = None

    @property
    def object(self) -> str:
        """The same identity as the tag's updates."""
        return f"tag:{self.id}"


Event = MessageUpdated | MessageDeleted | MetadataUpdated | ChannelUpdated | TagUpdated | TagDeleted
"""The closed union: every ``match`` over it ends in ``assert_never``."""

TYPES: tuple[str, ...] = (
    MessageUpdated.type,
    MessageDeleted.type,
    MetadataUpdated.type,
    ChannelUpdated.type,
    TagUpdated.type,
    TagDeleted.type,
)
"""The wire names, in one place."""
