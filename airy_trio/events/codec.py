"""From an event to the bytes of its body (wire contract, "Events"): compact JSON with the keys in the contract's order.

Events are trusted: their strings can be encoded as UTF-8 and their JSON has been checked. JSON from the database is
embedded without change.
"""

from json.encoder import encode_basestring as quoted
from typing import assert_never

from attrs import evolve

from airy_trio.errors import AiryTrioError
from airy_trio.events.models import (
    ChannelUpdated,
    Event,
    Json,
    MessageDeleted,
    MessageUpdated,
    MetadataUpdated,
    TagDeleted,
    TagUpdated,
)
from airy_trio.events.values import RowFault, printable

TRUNCATED = Json('{"truncated":true}')
"""Replaces content or metadata that is too large."""


class EventTooLargeError(AiryTrioError):
    """An event that is too large even without its content or metadata. ``fault`` describes its row."""

    def __init__(self, fault: RowFault) -> None:
        self.fault = fault
        super().__init__(f"{fault.table} {fault.key}: {fault.reason}")


def encode(event: Event, body_bytes_max: int) -> tuple[bytes, bool]:
    """Return the body, and whether ``content`` or ``metadata`` was replaced by ``TRUNCATED`` to keep the limit.

    Raises ``EventTooLargeError`` if that is not enough, or if the event has neither.
    """
    body = _written(event).encode()
    if len(body) <= body_bytes_max:
        return body, False
    match event:
        case MessageUpdated():
            body = _written(event._replace(content=TRUNCATED)).encode()
        case MetadataUpdated():
            body = _written(evolve(event, metadata=TRUNCATED)).encode()
        case MessageDeleted() | ChannelUpdated() | TagUpdated() | TagDeleted():
            pass
        case _:
            assert_never(event)
    if len(body) > body_bytes_max:
        raise EventTooLargeError(_fault(event, body_bytes_max))
    return body, True


def _written(event: Event) -> str:
    match event:
        case MessageUpdated():
            return (
                f'{{"type":"message.updated","payload":{{"conversation_id":{quoted(event.conversation_id)},'
                f'"channel_id":{quoted(event.channel_id)},"message":{{"id":{quoted(event.id)},"content":{event.content},'
                f'"delivery_state":{quoted(event.delivery_state)},"from_contact":{_flag(value=event.from_contact)},'
                f'"sent_at":{quoted(event.sent_at)},"source":{quoted(event.source)},'
                f'"sender":{{"id":{quoted(event.sender_id)}}}}}}}}}'
            )
        case MetadataUpdated():
            return (
                f'{{"type":"metadata.updated","payload":{{"subject":{quoted(event.subject)},'
                f'"identifier":{quoted(event.identifier)},"metadata":{event.metadata}}}}}'
            )
        case ChannelUpdated():
            return (
                f'{{"type":"channel.updated","payload":{{"id":{quoted(event.id)},"source":{quoted(event.source)},'
                f'"source_channel_id":{quoted(event.source_channel_id)},"connected":{_flag(value=event.connected)}}}}}'
            )
        case TagUpdated():
            return (
                f'{{"type":"tag.updated","payload":{{"id":{quoted(event.id)},"name":{quoted(event.name)},'
                f'"color":{quoted(event.color)}}}}}'
            )
        case MessageDeleted():
            return (
                f'{{"type":"message.deleted","payload":{{"conversation_id":{quoted(event.conversation_id)},'
                f'"channel_id":{quoted(event.channel_id)},"message":{{"id":{quoted(event.id)}}}}}}}'
            )
        case TagDeleted():
            return f'{{"type":"tag.deleted","payload":{{"id":{quoted(event.id)}}}}}'
        case _:
            assert_never(event)


def _flag(*, value: bool) -> str:
    return "true" if value else "false"


def _fault(event: Event, body_bytes_max: int) -> RowFault:
    match event:
        case MessageUpdated() | MessageDeleted():
            table, key = "messages", printable(event.id)
        case MetadataUpdated():
            table, key = "metadata", f"{event.subject}:{printable(event.identifier)}"
        case ChannelUpdated():
            table, key = "channels", printable(event.id)
        case TagUpdated() | TagDeleted():
            table, key = "tags", printable(event.id)
        case _:
            assert_never(event)
    reason = f"its event is larger than {body_bytes_max} bytes, even without content and metadata"
    return RowFault(table=table, key=key, reason=reason)
