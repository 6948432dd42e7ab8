"""Rows for the tests: valid ones to alter, and strategies for arbitrary ones."""

import json
from datetime import UTC, tzinfo
from typing import Any, TypeVar, get_args
from zoneinfo import ZoneInfo

from attrs import evolve
from hypothesis import strategies as st

from airy_trio.capture.feed import (
    ChangedObject,
    Channel,
    ChannelGone,
    ContentForm,
    Message,
    MessageGone,
    Metadata,
    MetadataEntry,
    Tag,
    TagGone,
    Value,
)

T = TypeVar("T")

BERLIN = ZoneInfo("Europe/Berlin")

MESSAGE = Message(
    id="m1",
    conversation_id="c1",
    channel_id="ch1",
    content='{"text": "Hello World"}',
    content_form="json",
    delivery_state="delivered",
    from_contact=True,
    sent_at="2020-10-25T21:24:54.560Z",
    time_zone=UTC,
    source="facebook",
    sender_id="github:12345",
)
MESSAGE_GONE = MessageGone(id="m1", conversation_id="c1", channel_id="ch1")
METADATA = Metadata(
    subject="conversation", identifier="c1", entries=(), time_zone=UTC, conversation_id="c1", channel_id="ch1"
)
CHANNEL = Channel(id="ch1", source="facebook", source_channel_id="fb-page-id-1", connected=True)
CHANNEL_GONE = ChannelGone(id="ch1", source="facebook", source_channel_id="fb-page-id-1")
TAG = Tag(id="t1", name="flag", color="tag-red")
TAG_GONE = TagGone(id="t1")


def altered(whole: T, **fields: Any) -> T:  # noqa: ANN401 - a column may have any value
    """Return a row or an event with other values in some fields."""
    unchecked: Any = whole
    altered_one: T = unchecked._replace(**fields) if isinstance(whole, tuple) else evolve(unchecked, **fields)
    return altered_one


def entry(
    key: Value, value: Value, value_type: Value = "text", updated_at: Value = "2020-10-25T21:24:54Z"
) -> MetadataEntry:
    """Make a row of metadata, by default with a fixed time."""
    return MetadataEntry(key=key, value=value, value_type=value_type, updated_at=updated_at)


def strictly_read(text: str | bytes) -> Any:  # noqa: ANN401 - what JSON holds
    """Parse strictly, with numbers as text. Raises for input that only Python's parser accepts."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(
        text.decode() if isinstance(text, bytes) else text, parse_constant=refuse, parse_int=str, parse_float=str
    )


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
).map(json.dumps)
LIKELY_TEXT = st.sampled_from(
    [
        "1",
        "0",
        "true",
        "F",
        "connected",
        "PENDING",
        "text",
        "number",
        "bool",
        "nullValue",
        "array",
        "object",
        "null",
        "conversation",
        "message",
        "channel",
        "a.b",
        "a",
        "a.b.c",
        ".",
        "-1.5e3",
        "NaN",
        "[",
        '{"a":',
        "red",
        "tag-",
        "2020-10-25 21:24:54.56+00",
        "1603661094560",
        "infinity",
        "-infinity",
        "0044-03-15 BC",
        "12020-01-01 00:00:00",
    ]
)
ANY_VALUE: st.SearchStrategy[Value] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**5000, -(10**5000), 2**53 + 1])
    | st.floats()
    | st.binary(max_size=10)
    | ANY_TEXT
    | JSON_TEXT
    | LIKELY_TEXT
    | st.datetimes().map(str)
)
_ZONES: st.SearchStrategy[tzinfo] = st.sampled_from([UTC, BERLIN, ZoneInfo("Pacific/Kiritimati")])
_ENTRIES = st.lists(
    st.builds(MetadataEntry, key=ANY_VALUE, value=ANY_VALUE, value_type=ANY_VALUE, updated_at=ANY_VALUE)
    | st.builds(
        MetadataEntry,
        key=st.text("ab.", max_size=5),
        value=ANY_VALUE,
        value_type=LIKELY_TEXT,
        updated_at=st.integers(0, 3),
    ),
    max_size=6,
).map(tuple)


def any_message() -> st.SearchStrategy[Message]:
    """Draw a message with one bad column, or with all bad."""
    column = st.sampled_from(sorted(set(_columns(MESSAGE)) - {"content_form", "time_zone"}))
    one_bad = st.builds(
        lambda name, value, form: Message(**{**_columns(MESSAGE), "content_form": form, name: value}),
        column,
        ANY_VALUE,
        st.sampled_from(get_args(ContentForm)),
    )
    all_bad = st.builds(
        Message,
        id=ANY_VALUE,
        conversation_id=ANY_VALUE,
        channel_id=ANY_VALUE,
        content=ANY_VALUE,
        content_form=st.sampled_from(get_args(ContentForm)),
        delivery_state=ANY_VALUE,
        from_contact=ANY_VALUE,
        sent_at=ANY_VALUE,
        time_zone=_ZONES,
        source=ANY_VALUE,
        sender_id=ANY_VALUE,
    )
    return one_bad | all_bad


def any_object() -> st.SearchStrategy[ChangedObject]:
    """Draw a row of any kind with any value in any column."""
    return st.one_of(
        any_message(),
        st.builds(MessageGone, id=ANY_VALUE, conversation_id=ANY_VALUE, channel_id=ANY_VALUE),
        st.builds(
            Metadata,
            subject=st.sampled_from(["conversation", "channel", "message"]) | ANY_VALUE,
            identifier=ANY_VALUE,
            entries=_ENTRIES,
            time_zone=_ZONES,
            conversation_id=ANY_VALUE,
            channel_id=ANY_VALUE,
        ),
        st.builds(Metadata, subject=st.just("channel"), identifier=ANY_TEXT, entries=_ENTRIES, time_zone=_ZONES),
        st.builds(Channel, id=ANY_VALUE, source=ANY_VALUE, source_channel_id=ANY_VALUE, connected=ANY_VALUE),
        st.builds(ChannelGone, id=ANY_VALUE, source=ANY_VALUE, source_channel_id=ANY_VALUE),
        st.builds(Tag, id=ANY_VALUE, name=ANY_VALUE, color=ANY_VALUE),
        st.builds(TagGone, id=ANY_VALUE),
    )


def _columns(row: Message) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Message.__annotations__}
