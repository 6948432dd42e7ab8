"""From rows to events. Bad data becomes row faults; translation never raises for it."""

from collections.abc import Iterable
from typing import assert_never

from attrs import field, frozen

from airy_trio.capture.feed import (
    ChangedObject,
    Channel,
    ChannelGone,
    Message,
    MessageGone,
    Metadata,
    Tag,
    TagGone,
    Unreadable,
)
from airy_trio.events import values
from airy_trio.events.metadata import nest
from airy_trio.events.models import (
    ChannelUpdated,
    Event,
    MessageDeleted,
    MessageUpdated,
    MetadataUpdated,
    TagDeleted,
    TagUpdated,
)
from airy_trio.events.times import wire_time
from airy_trio.events.values import RowFault, UnfitValueError, printable

__all__ = ["EventsOptions", "RowFault", "Translation", "translate"]


@frozen(kw_only=True)
class EventsOptions:
    """``[events]`` of the settings. ``deletes``: whether deleting messages and tags causes events."""

    deletes: bool = False


@frozen(kw_only=True)
class Translation:
    """The events in the order of their objects, and the faults of skipped rows.

    ``misfits``: the number of metadata values that became strings because they did not fit their ``value_type``.
    """

    events: tuple[Event, ...]
    faults: tuple[RowFault, ...]
    misfits: int


@frozen
class _Collected:
    """The translation so far, except the misfits."""

    events: list[Event] = field(factory=list)
    faults: list[RowFault] = field(factory=list)


def translate(objects: Iterable[ChangedObject], options: EventsOptions) -> Translation:
    """Make an event or a fault of each object. Deletes are left out unless ``options.deletes`` is set."""
    collected = _Collected()
    misfits = 0
    for changed in objects:
        try:
            if isinstance(changed, Metadata):
                misfits += _metadata(changed, collected)
            elif isinstance(changed, Unreadable):
                collected.faults.append(_fault(changed, changed.reason))
            else:
                event = _event(changed, options)
                if event is not None:
                    collected.events.append(event)
        except UnfitValueError as error:
            collected.faults.append(_fault(changed, str(error)))
    return Translation(events=tuple(collected.events), faults=tuple(collected.faults), misfits=misfits)


def _event(
    changed: Message | MessageGone | Channel | ChannelGone | Tag | TagGone, options: EventsOptions
) -> Event | None:
    match changed:
        case Message():
            return _message(changed)
        case MessageGone():
            return _message_gone(changed) if options.deletes else None
        case Channel():
            return ChannelUpdated(
                id=values.identity(changed.id, "id"),
                source=values.text(changed.source, "source"),
                source_channel_id=values.text(changed.source_channel_id, "source_channel_id"),
                connected=values.connected(changed.connected),
            )
        case ChannelGone():
            return ChannelUpdated(
                id=values.identity(changed.id, "id"),
                source=values.text(changed.source, "source"),
                source_channel_id=values.text(changed.source_channel_id, "source_channel_id"),
                connected=False,
            )
        case Tag():
            return TagUpdated(
                id=values.identity(changed.id, "id"),
                name=values.text(changed.name, "name"),
                color=values.color(changed.color),
            )
        case TagGone():
            return TagDeleted(id=values.identity(changed.id, "id")) if options.deletes else None
        case _:
            assert_never(changed)


def _message(row: Message) -> MessageUpdated:
    """Make the event of a row. Unpacking and constructing by position takes half the time of names."""
    (
        id_, conversation_id, channel_id, content, delivery_state, from_contact, sent_at, source, sender_id,
        content_form, time_zone,
    ) = row  # fmt: skip
    return MessageUpdated(
        values.identity(id_, "id"),
        values.identity(conversation_id, "conversation_id"),
        values.identity(channel_id, "channel_id"),
        values.content(content, content_form),
        values.delivery_state(delivery_state),
        values.flag(from_contact, "from_contact"),
        wire_time(sent_at, time_zone, "sent_at"),
        values.text(source, "source"),
        values.sender(sender_id),
    )


def _message_gone(row: MessageGone) -> MessageDeleted:
    return MessageDeleted(
        id=values.identity(row.id, "id"),
        conversation_id=values.identity(row.conversation_id, "conversation_id"),
        channel_id=values.identity(row.channel_id, "channel_id"),
    )


def _metadata(pair: Metadata, collected: _Collected) -> int:
    """Collect the pair's event and the faults of its rows; return the number of misfits."""
    subject = values.subject(pair.subject)
    identifier = values.identity(pair.identifier, "identifier")
    conversation_id = values.optional_identity(pair.conversation_id, "conversation_id")
    channel_id = values.optional_identity(pair.channel_id, "channel_id")
    nested = nest(pair.entries, pair.time_zone, f"{subject}:{printable(identifier)}")
    collected.faults.extend(nested.faults)
    collected.events.append(
        MetadataUpdated(
            subject=subject,
            identifier=identifier,
            metadata=nested.metadata,
            conversation_id=conversation_id,
            channel_id=channel_id,
        )
    )
    return nested.misfits


def _fault(changed: ChangedObject, reason: str) -> RowFault:
    match changed:
        case Message() | MessageGone():
            table, key = "messages", printable(changed.id)
        case Metadata():
            table, key = "metadata", f"{printable(changed.subject)}:{printable(changed.identifier)}"
        case Channel() | ChannelGone():
            table, key = "channels", printable(changed.id)
        case Tag() | TagGone():
            table, key = "tags", printable(changed.id)
        case Unreadable():
            table, key = changed.kind, ":".join(map(printable, changed.key))
        case _:
            assert_never(changed)
    return RowFault(table=table, key=key, reason=reason)
