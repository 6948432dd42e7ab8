"""Events, bounds and destinations as a Redis stream has them, and back. Asks nothing of any Redis."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType, Within
from airy_trio.log import redis_scripts
from airy_trio.log.store import (
    Bounds,
    NewEvent,
    StoredEvent,
)

_PLACES: Final[Mapping[str, int]] = {name: 2 * place for place, name in enumerate(redis_scripts.FIELDS, start=1)}


def read_bounds(answer: Sequence[Any]) -> Bounds:
    """What the script ``bounds`` tells."""
    epoch, first, last, now_ms, _ = answer
    return Bounds(epoch=epoch.decode(), first=first, last=last, now_ms=now_ms)


def fields_of(event: NewEvent) -> Sequence[bytes]:
    """The fields of an event except its time (``FIELDS``). A text that may be None begins with + or is -."""
    texts = (event.type, event.object, _optional(event.conversation_id), _optional(event.channel_id))
    whole = b"0" if event.age_ms is None else b"0 %d" % event.age_ms
    return [*(text.encode() for text in texts), b"1" if event.truncated else whole, event.body]


def read_entry(id_: bytes, fields: Sequence[bytes]) -> StoredEvent:
    """The event of one entry, whose fields come as names and values in turn."""
    at, type_, object_, conversation, channel, flag, body = fields[1::2]
    truncated, _, age_ms = flag.partition(b" ")
    return StoredEvent(
        offset=offset_of(id_),
        appended_at_ms=int(at),
        type=type_.decode(),
        object=object_.decode(),
        conversation_id=conversation[1:].decode() if conversation.startswith(b"+") else None,
        channel_id=channel[1:].decode() if channel.startswith(b"+") else None,
        body=body,
        truncated=truncated == b"1",
        age_ms=int(age_ms) if age_ms else None,
    )


def _optional(text: str | None) -> str:
    return "-" if text is None else f"+{text}"


def offset_of(id_: bytes) -> int:
    """The offset that stands in the id of an entry."""
    return int(id_.partition(b"-")[0])


def durable_key(owner: str, name: str) -> str:
    """The name of a durable subscription in the hash of all."""
    return json.dumps([owner, name])


def wanted_of(destination: Destination | None) -> tuple[int | str, ...]:
    """Where in an entry's fields the value stands that is compared, what it must be, and which its channel may be."""
    match destination:
        case None | Everything():
            return 0, ""
        case OfType(type=type_):
            return _PLACES["type"], type_
        case OfChannel(id=id_):
            return _PLACES["channel"], f"+{id_}"
        case OfConversation(id=id_):
            return _PLACES["conversation"], f"+{id_}"
        case Within(destination=wider, channels=channels):
            return *wanted_of(wider), *(f"+{id_}" for id_ in channels)
        case _:
            assert_never(destination)
