"""From rows to events, and from an event to the bytes of its body. Bad data becomes row faults.

The second part combines the rows of one metadata pair into one JSON object (wire contract, "Events"): order, types,
nesting. An unusable row of a pair becomes a row fault; the other rows still apply.

The third part writes the body (wire contract, "Events"): compact JSON with the keys in the contract's order. Events are
trusted: their strings can be encoded as UTF-8 and their JSON has been checked. JSON from the database is embedded
without change.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import tzinfo
from json.encoder import encode_basestring as quoted
from typing import Final, assert_never

from attrs import evolve, frozen

from airy_trio.capture.feed import (
    ChangedObject,
    Channel,
    ChannelGone,
    Gone,
    Message,
    MessageGone,
    Metadata,
    MetadataEntry,
    Tag,
    TagGone,
    Unreadable,
    Value,
)
from airy_trio.capture.mapping import SINGULAR
from airy_trio.errors import AiryTrioError
from airy_trio.events import values
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
from airy_trio.events.values import RowFault, UnfitValueError, instant, printable, wire_time

_NAMES: Final[Mapping[type[Gone], str]] = {MessageGone: "message", ChannelGone: "channel", TagGone: "tag"}
"""The part of an event's type before the dot, and of an object's identity before the colon."""
_KINDS: Final = {name: kind for kind, name in SINGULAR.items()}


@frozen(kw_only=True)
class EventsOptions:
    """``[events]`` of the settings. ``deletes``: whether deleting messages and tags causes events."""

    deletes: bool = False


@frozen(kw_only=True)
class Translation:
    """The events in the order of their objects, and the faults of skipped rows.

    ``value_faults``: the number of metadata values that became strings because they did not fit their ``value_type``.
    ``ended``: objects that no longer exist, by the type of their updates, whether or not a deletion is sent.
    """

    events: tuple[Event, ...]
    faults: tuple[RowFault, ...]
    value_faults: int
    ended: tuple[tuple[str, str], ...] = ()


def translate(objects: Iterable[ChangedObject], options: EventsOptions) -> Translation:
    """Make an event or a fault of each object. Deletes are left out unless ``options.deletes`` is set."""
    events: list[Event] = []
    faults: list[RowFault] = []
    ended: list[tuple[str, str]] = []
    value_faults = 0
    for changed in objects:
        try:
            if isinstance(changed, Gone):
                name = _NAMES[type(changed)]
                with suppress(UnfitValueError):  # an object without a fit id has no state
                    # Noted before the event is made, because the event may have a fault or be left out.
                    ended.append((f"{name}.updated", f"{name}:{values.identity(changed.id, 'id')}"))
            if isinstance(changed, Metadata):
                # The pair leaves the state, but ``{}`` is sent: there is no event for deleted metadata.
                if not changed.entries:
                    if isinstance(changed.subject, str) and changed.subject not in values.SUBJECTS:
                        continue  # not sent, and no fault: a ``where`` that excludes other subjects causes such pairs
                    subject, id_ = values.subject(changed.subject), values.identity(changed.identifier, "identifier")
                    ended.append((MetadataUpdated.type, f"metadata:{subject}:{id_}"))
                metadata, nested = _metadata(changed)
                events.append(metadata)
                faults.extend(nested.faults)
                value_faults += nested.value_faults
            elif isinstance(changed, Unreadable):
                faults.append(_fault(changed, changed.reason))
            elif (event := _event(changed, options)) is not None:
                events.append(event)
        except UnfitValueError as error:
            faults.append(_fault(changed, str(error)))
    return Translation(events=tuple(events), faults=tuple(faults), value_faults=value_faults, ended=tuple(ended))


def _event(
    changed: Message | MessageGone | Channel | ChannelGone | Tag | TagGone, options: EventsOptions
) -> Event | None:
    match changed:
        case Message():
            return _message(changed)
        case MessageGone() | TagGone() if not options.deletes:
            return None
        case MessageGone():
            return MessageDeleted(
                id=values.identity(changed.id, "id"),
                conversation_id=values.identity(changed.conversation_id, "conversation_id"),
                channel_id=values.identity(changed.channel_id, "channel_id"),
            )
        case Channel() | ChannelGone():
            return ChannelUpdated(
                id=values.identity(changed.id, "id"),
                source=values.text(changed.source, "source"),
                source_channel_id=values.text(changed.source_channel_id, "source_channel_id"),
                connected=isinstance(changed, Channel) and values.connected(changed.connected),
            )
        case Tag():
            return TagUpdated(
                id=values.identity(changed.id, "id"),
                name=values.text(changed.name, "name"),
                color=values.color(changed.color),
            )
        case TagGone():
            return TagDeleted(id=values.identity(changed.id, "id"))
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
        values.from_contact(from_contact),
        wire_time(sent_at, time_zone, "sent_at"),
        values.text(source, "source"),
        values.sender(sender_id),
    )


def _metadata(pair: Metadata) -> tuple[MetadataUpdated, "Nested"]:
    subject = values.subject(pair.subject)
    identifier = values.identity(pair.identifier, "identifier")
    conversation_id = values.optional_identity(pair.conversation_id, "conversation_id")
    channel_id = values.optional_identity(pair.channel_id, "channel_id")
    nested = nest(pair.entries, pair.time_zone, f"{subject}:{printable(identifier)}")
    event = MetadataUpdated(
        subject=subject,
        identifier=identifier,
        metadata=nested.metadata,
        conversation_id=conversation_id,
        channel_id=channel_id,
    )
    return event, nested


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


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": Json("true"), "1": Json("true"), "false": Json("false"), "0": Json("false")}
_NULLS = ("", "null")
_NULL = Json("null")

Tree = dict[str, "Tree | Json"]
_Members = Iterator[tuple[str, Tree | Json]]


_Row = tuple[bool, int | float, str, Json, bool]
"""Has a time, the time, key, value, fits its type. Rows apply in the sort order of these tuples.

That is by time and then by key. Rows that are equal in both are ordered by value, so that the result is deterministic.
"""


@frozen(kw_only=True)
class Nested:
    """The object, the faults of skipped rows, and the number of values that became strings because they did not fit."""

    metadata: Json
    faults: tuple[RowFault, ...]
    value_faults: int


def nest(entries: Iterable[MetadataEntry], time_zone: tzinfo, pair: str) -> Nested:
    """Apply the rows in the order of their time, NULL first. ``pair`` is the prefix of the keys of faults.

    Each dot in a key descends one level; an empty part is a name like any other. A later row replaces the value at its
    key, and any value on the path that is not an object. An object on the path gets the new member.
    """
    rows: list[_Row] = []
    faults: list[RowFault] = []
    for entry in entries:
        try:
            rows.append(_row(entry, time_zone))
        except UnfitValueError as error:
            key = f"{pair}:{printable(entry.key)}"
            faults.append(RowFault(table="metadata", key=key, reason=str(error)))
    rows.sort()
    tree: Tree = {}
    value_faults = 0
    for _, _, key, value, fits in rows:
        _plant(tree, key.split("."), value)
        value_faults += not fits
    return Nested(metadata=_written(tree), faults=tuple(faults), value_faults=value_faults)


def _row(entry: MetadataEntry, time_zone: tzinfo) -> _Row:
    column = "key"
    key = values.text(entry.key, column)
    depth = key.count(".") + 1
    if depth > values.NESTING_MAX:
        raise UnfitValueError(column, f"is nested deeper than {values.NESTING_MAX}")
    # Not part of the time: -infinity is a time too, and a row without a time comes before it.
    has_time = entry.updated_at is not None
    time = instant(entry.updated_at, time_zone, "updated_at") if has_time else -math.inf
    if entry.value is None:
        return has_time, time, key, _NULL, True
    raw = values.raw_text(entry.value, "value")
    value = _typed(raw, entry.value_type, values.NESTING_MAX - depth)
    if value is None:
        return has_time, time, key, values.quoted(raw), False
    return has_time, time, key, value, True


def _typed(raw: str, value_type: Value, nesting_max: int) -> Json | None:
    """Return the value in the form of its type; None if it does not fit."""
    typed: Json | None = None
    match value_type:
        case None | "text":
            typed = values.quoted(raw)
        case "number" if _NUMBER.fullmatch(raw):
            typed = Json(raw)
        case "bool":
            typed = _BOOLEANS.get(raw.lower())
        case "nullValue" if raw in _NULLS:
            typed = _NULL
        case "array" if values.is_array(raw):
            typed = _checked(raw, nesting_max)
        case "object" if values.is_object(raw):
            typed = _checked(raw, nesting_max)
        case _:
            pass  # it does not fit, or the type is unknown; the caller counts it
    return typed


def _checked(raw: str, nesting_max: int) -> Json | None:
    try:
        return values.check(raw, nesting_max)
    except values.InvalidJsonError:
        return None


def _plant(tree: Tree, path: list[str], value: Json) -> None:
    for name in path[:-1]:
        below = tree.get(name)
        if not isinstance(below, dict):
            is_object = below is not None and values.is_object(below)
            below = {**values.members(below)} if below is not None and is_object else {}
            tree[name] = below
        tree = below
    tree[path[-1]] = value


def _written(tree: Tree) -> Json:
    """Write the tree as JSON, without recursion, because it may be deeper than the stack allows."""
    parts = ["{"]
    open_objects: list[_Members] = [iter(tree.items())]
    while open_objects:
        for name, value in open_objects[-1]:
            comma = "" if parts[-1] == "{" else ","
            if isinstance(value, dict):
                # The brace is a part of its own, by which the first member is recognised.
                parts += (f"{comma}{values.quoted_name(name)}:", "{")
                open_objects.append(iter(value.items()))
                break
            parts.append(f"{comma}{values.quoted_name(name)}:{value}")
        else:
            parts.append("}")
            open_objects.pop()
    return Json("".join(parts))


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
    body = _text_of(event).encode()
    if len(body) <= body_bytes_max:
        return body, False
    match event:
        case MessageUpdated():
            body = _text_of(event._replace(content=TRUNCATED)).encode()
        case MetadataUpdated():
            body = _text_of(evolve(event, metadata=TRUNCATED)).encode()
        case MessageDeleted() | ChannelUpdated() | TagUpdated() | TagDeleted():
            pass
        case _:
            assert_never(event)
    if len(body) > body_bytes_max:
        raise EventTooLargeError(_too_large(event, body_bytes_max))
    return body, True


def _text_of(event: Event) -> str:
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


def _too_large(event: Event, body_bytes_max: int) -> RowFault:
    if isinstance(event, MetadataUpdated):
        key = f"{event.subject}:{printable(event.identifier)}"
    else:
        key = printable(event.id)
    reason = f"its event is larger than {body_bytes_max} bytes, even without content and metadata"
    return RowFault(table=_KINDS[event.type.partition(".")[0]], key=key, reason=reason)
