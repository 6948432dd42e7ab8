"""From changed objects to events: deletes, counted value_faults, row faults."""

import math
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.capture.feed import ChangedObject, Message, Metadata, Value
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
from airy_trio.events.translate import EventsOptions, EventTooLargeError, Translation, encode, translate
from airy_trio.events.values import RowFault
from tests.events.rows import (
    ANY_VALUE,
    BERLIN,
    CHANNEL,
    CHANNEL_GONE,
    MESSAGE,
    MESSAGE_GONE,
    METADATA,
    TAG,
    TAG_GONE,
    altered,
    any_message,
    any_object,
    entry,
    strictly_read,
)

SILENT = EventsOptions()
DELETES = EventsOptions(deletes=True)


def event_of(changed: ChangedObject, options: EventsOptions = SILENT) -> Event:
    translation = translate([changed], options)
    assert (translation.faults, translation.value_faults) == ((), 0)
    (event,) = translation.events
    return event


def body_of(changed: ChangedObject, options: EventsOptions = SILENT) -> str:
    return encode(event_of(changed, options), 61_440)[0].decode()


def faults_of(changed: ChangedObject, options: EventsOptions = DELETES) -> tuple[RowFault, ...]:
    translation = translate([changed], options)
    assert translation.events == ()
    return translation.faults


def test_deletes_are_off_by_default() -> None:
    assert EventsOptions().deletes is False


def test_a_message() -> None:
    assert event_of(MESSAGE) == MessageUpdated(
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


def test_message_as_stored_by_sqlite() -> None:
    row = Message(
        id=42,
        conversation_id=7,
        channel_id=3,
        content="123",
        content_form="auto",
        delivery_state="PENDING",
        from_contact=0,
        sent_at="2020-10-25 22:24:54.5609",
        time_zone=BERLIN,
        source="sms",
        sender_id=None,
    )
    assert body_of(row) == (
        '{"type":"message.updated","payload":{"conversation_id":"7","channel_id":"3","message":{"id":"42",'
        '"content":"123","delivery_state":"pending","from_contact":false,"sent_at":"2020-10-25T21:24:54.560Z",'
        '"source":"sms","sender":{"id":"airy-core-anonymous"}}}}'
    )


def test_text_content_is_embedded_only_as_object_or_array() -> None:
    text = altered(MESSAGE, content_form="auto")
    assert '"content":[ 1 ],"delivery_state"' in body_of(altered(text, content="[ 1 ]"))
    assert '"content":"null","delivery_state"' in body_of(altered(text, content="null"))
    assert '"content":null,"delivery_state"' in body_of(altered(text, content=None))
    assert '"content":null,"delivery_state"' in body_of(altered(MESSAGE, content="null"))


def test_a_channel_and_a_deleted_one() -> None:
    expected = ChannelUpdated(id="ch1", source="facebook", source_channel_id="fb-page-id-1", connected=True)
    assert event_of(CHANNEL) == expected
    assert event_of(altered(CHANNEL, connected="DISCONNECTED")) == altered(expected, connected=False)
    for options in (SILENT, DELETES):
        assert event_of(CHANNEL_GONE, options) == altered(expected, connected=False)


def test_a_tag() -> None:
    assert event_of(altered(TAG, id=5, color="RED")) == TagUpdated(id="5", name="flag", color="tag-red")


def test_deleted_messages_and_tags_with_deletes() -> None:
    assert event_of(MESSAGE_GONE, DELETES) == MessageDeleted(id="m1", conversation_id="c1", channel_id="ch1")
    assert event_of(TAG_GONE, DELETES) == TagDeleted(id="t1")


@pytest.mark.parametrize(
    "gone", [MESSAGE_GONE, TAG_GONE, altered(MESSAGE_GONE, channel_id=None), altered(TAG_GONE, id=b"")]
)
def test_deleted_messages_and_tags_without_deletes(gone: ChangedObject) -> None:
    translation = translate([gone], SILENT)
    assert evolve(translation, ended=()) == Translation(events=(), faults=(), value_faults=0)
    assert dict(translation.ended).keys() <= {"message.updated", "tag.updated"}


def test_metadata_is_the_full_object_with_its_owners() -> None:
    row = altered(
        METADATA, entries=(entry("contact.displayName", "Grace"), entry("isUserTyping", 1, "bool")), channel_id=9
    )
    assert event_of(row) == MetadataUpdated(
        subject="conversation",
        identifier="c1",
        metadata=Json('{"contact":{"displayName":"Grace"},"isUserTyping":true}'),
        conversation_id="c1",
        channel_id="9",
    )


def test_metadata_without_rows_is_empty() -> None:
    assert body_of(METADATA) == (
        '{"type":"metadata.updated","payload":{"subject":"conversation","identifier":"c1","metadata":{}}}'
    )


def test_metadata_of_unknown_subject_has_no_owner() -> None:
    event = event_of(altered(METADATA, conversation_id=None, channel_id=None))
    assert (event.conversation_id, event.channel_id) == (None, None)


def test_value_faults_are_counted_over_the_batch() -> None:
    pairs = [
        altered(METADATA, identifier="c1", entries=(entry("a", "x", "number"), entry("b", "x", "bool"))),
        altered(METADATA, identifier="c2", entries=(entry("a", "1", "number"), entry("b", "x", "what"))),
    ]
    translation = translate(pairs, SILENT)
    assert (translation.value_faults, translation.faults) == (3, ())
    assert len(translation.events) == 2


def test_bad_metadata_row_does_not_affect_others() -> None:
    translation = translate([altered(METADATA, entries=(entry("a", b"\xff"), entry("b", "1")))], SILENT)
    (event,) = translation.events
    assert isinstance(event, MetadataUpdated)
    assert event.metadata == '{"b":"1"}'
    assert translation.faults == (
        RowFault(table="metadata", key="conversation:c1:a", reason="value is not UTF-8 text"),
    )


REQUIRED: list[tuple[ChangedObject, str, str, str]] = [
    *((MESSAGE, column, "messages", "m1") for column in ("conversation_id", "channel_id", "source")),
    *((MESSAGE, column, "messages", "m1") for column in ("delivery_state", "from_contact", "sent_at")),
    *((MESSAGE_GONE, column, "messages", "m1") for column in ("conversation_id", "channel_id")),
    *((CHANNEL, column, "channels", "ch1") for column in ("source", "source_channel_id", "connected")),
    *((CHANNEL_GONE, column, "channels", "ch1") for column in ("source", "source_channel_id")),
    *((TAG, column, "tags", "t1") for column in ("name", "color")),
    *((row, "id", "messages", "NULL") for row in (MESSAGE, MESSAGE_GONE)),
    *((row, "id", "channels", "NULL") for row in (CHANNEL, CHANNEL_GONE)),
    *((row, "id", "tags", "NULL") for row in (TAG, TAG_GONE)),
    (METADATA, "subject", "metadata", "NULL:c1"),
    (METADATA, "identifier", "metadata", "conversation:NULL"),
]


@pytest.mark.parametrize(
    "row,column,table,key", REQUIRED, ids=[f"{type(row).__name__}.{of}" for row, of, *_ in REQUIRED]
)
def test_unexpected_null_is_a_fault(row: Any, column: str, table: str, key: str) -> None:  # noqa: ANN401 - a row of any kind
    assert faults_of(altered(row, **{column: None})) == (RowFault(table=table, key=key, reason=f"{column} is NULL"),)


@pytest.mark.parametrize(
    "column,value,reason",
    [
        ("id", b"\xff", "id is not UTF-8 text"),
        ("source", "\ud800", "source is not UTF-8 text"),
        ("sender_id", True, "sender_id is neither text nor an integer"),
        ("content", '{"secret": NaN}', "content is not valid JSON"),
        ("content", "[" * 501 + "]" * 501, "content is nested deeper than 500"),
        ("delivery_state", "secret", "delivery_state is not pending, failed or delivered"),
        ("from_contact", "secret", "from_contact is not a boolean"),
        ("sent_at", "infinity", "sent_at is not a time between the years 1 and 9999"),
        ("sent_at", math.nan, "sent_at is not a time"),
    ],
)
def test_a_fault_names_the_column_and_never_the_content(column: str, value: Value, reason: str) -> None:
    changed: dict[str, Any] = {column: value}
    key = r"b'\xff'" if column == "id" else "m1"
    assert faults_of(altered(MESSAGE, **changed)) == (RowFault(table="messages", key=key, reason=reason),)


@pytest.mark.parametrize("column", ["conversation_id", "channel_id"])
def test_metadata_whose_owner_cannot_be_read_is_a_fault(column: str) -> None:
    changed: dict[str, Any] = {column: b"\xff"}
    expected = RowFault(table="metadata", key="conversation:c1", reason=f"{column} is not UTF-8 text")
    assert faults_of(altered(METADATA, **changed)) == (expected,)


def test_absent_metadata_of_another_subject_is_no_fault() -> None:
    """If ``where`` excludes other subjects, each write of an excluded row results in such a pair."""
    assert translate([altered(METADATA, subject="Contact")], DELETES) == Translation(
        events=(), faults=(), value_faults=0
    )


def test_a_fault_stops_neither_its_batch_nor_its_order() -> None:
    batch: list[ChangedObject] = [
        TAG,
        altered(MESSAGE, sent_at="infinity"),
        CHANNEL,
        altered(CHANNEL, id=None),
        METADATA,
        MESSAGE,
        altered(TAG, color=b"\xff"),
        CHANNEL_GONE,
    ]
    translation = translate(iter(batch), SILENT)
    assert [event.object for event in translation.events] == [
        "tag:t1",
        "channel:ch1",
        "metadata:conversation:c1",
        "message:m1",
        "channel:ch1",
    ]
    assert [fault.table for fault in translation.faults] == ["messages", "channels", "tags"]


def test_nothing_altered() -> None:
    assert translate([], DELETES) == Translation(events=(), faults=(), value_faults=0)


SHAPES: dict[str, object] = {
    "message.updated": {
        "conversation_id": str,
        "channel_id": str,
        "message": {
            "id": str,
            "content": object,
            "delivery_state": str,
            "from_contact": bool,
            "sent_at": str,
            "source": str,
            "sender": {"id": str},
        },
    },
    "message.deleted": {"conversation_id": str, "channel_id": str, "message": {"id": str}},
    "metadata.updated": {"subject": str, "identifier": str, "metadata": dict},
    "channel.updated": {"id": str, "source": str, "source_channel_id": str, "connected": bool},
    "tag.updated": {"id": str, "name": str, "color": str},
    "tag.deleted": {"id": str},
}


def assert_shape(value: object, shape: object) -> None:
    """Assert that an object has exactly these keys in this order, with values of these types."""
    if isinstance(shape, dict):
        assert isinstance(value, dict)
        assert list(value) == list(shape)
        for name, inner in shape.items():
            assert_shape(value[name], inner)
    else:
        assert isinstance(shape, type)
        assert isinstance(value, shape)


@given(st.lists(any_object(), max_size=5), st.booleans())
def test_any_rows_become_strict_json_or_faults(rows: list[ChangedObject], deletes: bool) -> None:
    translation = translate(rows, EventsOptions(deletes=deletes))
    for event in translation.events:
        body, truncated = encode(event, 61_440)
        read = strictly_read(body)
        assert not truncated
        assert list(read) == ["type", "payload"]
        assert read["type"] == event.type
        assert_shape(read["payload"], SHAPES[event.type])
        assert deletes or not event.type.endswith(".deleted")
    for fault in translation.faults:
        assert fault.key.isprintable()
        assert len(fault.key) <= 3 * 80 + 2
        assert fault.reason.isascii()
    if deletes:
        others = [row for row in rows if not isinstance(row, Metadata)]
        faults = [fault for fault in translation.faults if fault.table != "metadata"]
        events = [event for event in translation.events if event.type != "metadata.updated"]
        assert len(events) + len(faults) == len(others)


@given(any_object(), st.integers(0, 300))
def test_encoded_event_is_within_its_limit_or_a_fault(row: ChangedObject, body_bytes_max: int) -> None:
    for event in translate([row], DELETES).events:
        whole, _ = encode(event, 10**9)
        try:
            body, truncated = encode(event, body_bytes_max)
        except EventTooLargeError:
            assert len(whole) > body_bytes_max
        else:
            assert len(body) <= body_bytes_max
            assert truncated is (len(whole) > body_bytes_max)
            assert_shape(strictly_read(body)["payload"], SHAPES[event.type])


@given(any_message())
def test_a_message_is_one_event_or_one_fault(row: Message) -> None:
    translation = translate([row], SILENT)
    assert len(translation.events) + len(translation.faults) == 1


@given(ANY_VALUE)
def test_no_value_gets_into_a_reason(value: Value) -> None:
    reasons = {fault.reason for fault in translate([altered(MESSAGE, content=value)], SILENT).faults}
    allowed = {"is not valid JSON", "is not UTF-8 text", "has too many digits"}
    assert reasons <= {f"content {problem}" for problem in allowed}
