"""Events byte for byte, at the size limit and one byte beyond."""

from typing import Any

import pytest

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
from airy_trio.events.translate import EventTooLargeError, encode
from airy_trio.events.values import RowFault
from tests.events.rows import altered, strictly_read

BODY_BYTES_MAX = 61_440

MESSAGE = MessageUpdated(
    id="m1",
    conversation_id="c1",
    channel_id="ch1",
    content=Json('{"text": "Hello World"}'),
    delivery_state="delivered",
    from_contact=True,
    sent_at="2020-10-25T21:24:54.560Z",
    source="facebook",
    sender_id="github:12345",
)
METADATA = MetadataUpdated(
    subject="conversation",
    identifier="c1",
    metadata=Json('{"contact":{"displayName":"Grace"},"isUserTyping":true}'),
    conversation_id="c1",
    channel_id="ch1",
)
CHANNEL = ChannelUpdated(id="ch1", source="facebook", source_channel_id="fb-page-id-1", connected=True)
TAG = TagUpdated(id="t1", name="flag", color="tag-red")
MESSAGE_DELETED = MessageDeleted(id="m1", conversation_id="c1", channel_id="ch1")
TAG_DELETED = TagDeleted(id="t1")

BODIES: list[tuple[Event, str]] = [
    (
        MESSAGE,
        (
            '{"type":"message.updated","payload":{"conversation_id":"c1","channel_id":"ch1","message":{"id":"m1",'
            '"content":{"text": "Hello World"},"delivery_state":"delivered","from_contact":true,'
            '"sent_at":"2020-10-25T21:24:54.560Z","source":"facebook","sender":{"id":"github:12345"}}}}'
        ),
    ),
    (
        METADATA,
        (
            '{"type":"metadata.updated","payload":{"subject":"conversation","identifier":"c1",'
            '"metadata":{"contact":{"displayName":"Grace"},"isUserTyping":true}}}'
        ),
    ),
    (
        CHANNEL,
        (
            '{"type":"channel.updated","payload":{"id":"ch1","source":"facebook","source_channel_id":"fb-page-id-1",'
            '"connected":true}}'
        ),
    ),
    (TAG, '{"type":"tag.updated","payload":{"id":"t1","name":"flag","color":"tag-red"}}'),
    (
        MESSAGE_DELETED,
        ('{"type":"message.deleted","payload":{"conversation_id":"c1","channel_id":"ch1","message":{"id":"m1"}}}'),
    ),
    (TAG_DELETED, '{"type":"tag.deleted","payload":{"id":"t1"}}'),
]


@pytest.mark.parametrize("event,body", BODIES, ids=[event.type for event, _ in BODIES])
def test_each_event_byte_for_byte(event: Event, body: str) -> None:
    assert encode(event, BODY_BYTES_MAX) == (body.encode(), False)


def test_false_flags() -> None:
    body, _ = encode(altered(MESSAGE, from_contact=False), BODY_BYTES_MAX)
    assert b'"from_contact":false,' in body
    body, _ = encode(altered(CHANNEL, connected=False), BODY_BYTES_MAX)
    assert body.endswith(b'"connected":false}}')


@pytest.mark.parametrize(
    "content", [' { "b": 1.50,\n "a": [1e400] } ', "null", '"gr\u00fc\u00df\u2028\U0001f600"', "-0"]
)
def test_json_is_embedded_unchanged(content: str) -> None:
    body, _ = encode(altered(MESSAGE, content=Json(content)), BODY_BYTES_MAX)
    assert f'"content":{content},"delivery_state"'.encode() in body
    body, _ = encode(altered(METADATA, metadata=Json(content)), BODY_BYTES_MAX)
    assert body.endswith(f'"metadata":{content}}}}}'.encode())


HARD = 'é 😀 "quoted" \\ /\n\r\t\x00\x1f\x7f\u2028'


@pytest.mark.parametrize("event", [event for event, _ in BODIES], ids=[event.type for event, _ in BODIES])
def test_any_text_in_any_column_is_written_exactly(event: Event) -> None:
    texts = [
        name
        for name in type(event).__annotations__
        if isinstance(getattr(event, name), str) and name not in {"type", "content", "metadata"}
    ]
    names_on_the_wire = [
        name for name in texts if not (event is METADATA and name in {"conversation_id", "channel_id"})
    ]
    hard: Any = {name: f"{HARD}{name}" for name in texts}
    body, truncated = encode(altered(event, **hard), BODY_BYTES_MAX)
    assert not truncated
    assert body.count("é 😀 ".encode()) == len(names_on_the_wire)
    assert b"\x00" not in body
    assert b"\n" not in body
    read = str(strictly_read(body))
    for name in names_on_the_wire:
        assert repr(f"{HARD}{name}")[1:-1] in read


def test_content_beyond_the_limit_is_truncated() -> None:
    body, _ = encode(MESSAGE, BODY_BYTES_MAX)
    assert encode(MESSAGE, len(body)) == (body, False)
    larger = altered(MESSAGE, content=Json('{"text":"' + "x" * 1000 + '"}'))
    whole, _ = encode(larger, BODY_BYTES_MAX)
    assert encode(larger, len(whole)) == (whole, False)
    cut, truncated = encode(larger, len(whole) - 1)
    assert truncated
    assert cut == BODIES[0][1].replace('{"text": "Hello World"}', '{"truncated":true}').encode()
    assert encode(larger, len(cut)) == (cut, True)
    with pytest.raises(EventTooLargeError):
        encode(larger, len(cut) - 1)


def test_the_limit_is_in_bytes() -> None:
    grapes = altered(MESSAGE, content=Json('"' + "🍇" * 300 + '"'))
    assert encode(grapes, 1000)[1]
    assert not encode(altered(MESSAGE, content=Json('"' + "g" * 300 + '"')), 1000)[1]


def test_metadata_that_is_too_large_is_replaced() -> None:
    large = altered(METADATA, metadata=Json('{"k":"' + "x" * BODY_BYTES_MAX + '"}'))
    assert encode(large, BODY_BYTES_MAX) == (
        (
            b'{"type":"metadata.updated","payload":{"subject":"conversation","identifier":"c1",'
            b'"metadata":{"truncated":true}}}'
        ),
        True,
    )


MONSTROUS = "x" * BODY_BYTES_MAX


@pytest.mark.parametrize(
    "event,table,key",
    [
        (altered(MESSAGE, conversation_id=MONSTROUS), "messages", "m1"),
        (altered(MESSAGE_DELETED, channel_id=MONSTROUS), "messages", "m1"),
        (altered(METADATA, identifier=MONSTROUS), "metadata", "conversation:" + "x" * 79 + "…"),
        (altered(CHANNEL, source=MONSTROUS), "channels", "ch1"),
        (altered(TAG, name=MONSTROUS), "tags", "t1"),
        (altered(TAG_DELETED, id=MONSTROUS), "tags", "x" * 79 + "…"),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_event_too_large_without_content_is_a_row_fault(event: Event, table: str, key: str) -> None:
    with pytest.raises(EventTooLargeError) as caught:
        encode(event, BODY_BYTES_MAX)
    reason = "its event is larger than 61440 bytes, even without content and metadata"
    assert caught.value.fault == RowFault(table=table, key=key, reason=reason)
    assert str(caught.value) == f"{table} {key}: {reason}"
    assert isinstance(caught.value, AiryTrioError)


def test_truncating_small_content_does_not_help() -> None:
    tiny = altered(MESSAGE, content=Json("1"))
    body, _ = encode(tiny, BODY_BYTES_MAX)
    with pytest.raises(EventTooLargeError):
        encode(tiny, len(body) - 1)
