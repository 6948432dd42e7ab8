"""What a feed reads: changed objects with their rows as the database holds them, under our names.

Values are raw. The mapping of the settings has been applied (names, constants, ``values``), nothing is converted:
turning text into a time or a flag may fail, and one impossible row must not fail a batch.
``events.translate`` converts.
"""

from datetime import tzinfo
from typing import Literal, NamedTuple

from attrs import frozen

Value = str | bytes | int | float | bool | None
"""One column's raw value. ``bytes`` is text that is not UTF-8, or a BLOB."""


ContentForm = Literal["auto", "text", "json"]
"""How a message's content becomes JSON. "text": a JSON string. "json": the JSON that it is. "auto": the JSON that it is
if it is an object or an array, else a string."""


class Message(NamedTuple):
    """A row of the messages table. ``content_form``: the mapping's, or "json" for a column that is declared JSON.

    Of content that is longer than an event may be, only the beginning is read. It is still longer than an event may
    be, and its form is "text", because the rest of a JSON value is missing.
    ``sent_at`` is epoch milliseconds (int, float or digits) or ISO text, which is in ``time_zone`` if it names none.

    A tuple, for a bulk change makes one for each row: a frozen class takes eight times as long to make. First the
    fields of ``tables.FIELDS``, in that order.
    """

    id: Value
    conversation_id: Value
    channel_id: Value
    content: Value
    delivery_state: Value
    from_contact: Value
    sent_at: Value
    source: Value
    sender_id: Value
    content_form: ContentForm
    time_zone: tzinfo


@frozen(kw_only=True)
class MessageGone:
    """A message that was deleted, or that the mapping's ``where`` no longer includes."""

    id: Value
    conversation_id: Value
    channel_id: Value


@frozen(kw_only=True)
class MetadataEntry:
    """A row of the metadata table: one key of one (subject, identifier) pair. ``value_type`` None: all text."""

    key: Value
    value: Value
    value_type: Value
    updated_at: Value


@frozen(kw_only=True)
class Metadata:
    """All the rows there are now of one (subject, identifier) pair, in no order; none when the last was deleted.

    ``conversation_id`` and ``channel_id`` are those of the thing that the metadata is about, read in the same
    snapshot; None where no such row is known.
    """

    subject: Value
    identifier: Value
    entries: tuple[MetadataEntry, ...]
    time_zone: tzinfo
    conversation_id: Value = None
    channel_id: Value = None


@frozen(kw_only=True)
class Channel:
    """A row of the channels table."""

    id: Value
    source: Value
    source_channel_id: Value
    connected: Value


@frozen(kw_only=True)
class ChannelGone:
    """A channel that was deleted, with what its last event must carry."""

    id: Value
    source: Value
    source_channel_id: Value


@frozen(kw_only=True)
class Tag:
    """A row of the tags table."""

    id: Value
    name: Value
    color: Value


@frozen(kw_only=True)
class TagGone:
    """A tag that was deleted."""

    id: Value


@frozen(kw_only=True)
class Unreadable:
    """An object that the database refuses to read. ``kind`` is its table's name in the settings.

    ``key``: its id, or subject and identifier. ``reason`` contains nothing of the row.
    """

    kind: str
    key: tuple[Value, ...]
    reason: str


ChangedObject = Message | MessageGone | Metadata | Channel | ChannelGone | Tag | TagGone | Unreadable
"""The closed union of what a feed gives."""
