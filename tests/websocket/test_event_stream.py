"""The bytes of event streams, read back by the rules of the HTML standard."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.websocket.event_stream import COMMENT, event, is_stream_path, named_event, stream_head
from tests.event_stream import Parser, StreamEvent

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["\n", "\r", "\r\n", "\n\n", "\t"]))
def test_json_with_any_line_ends_arrives_as_the_same_value(value: object, separator: str) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(f",{separator}", f":{separator}"))
    text = separator + text + separator
    (received,) = Parser().feed(event("abcdef-1", text.encode()))
    assert (received.id, received.json) == ("abcdef-1", value)


def test_body_without_line_ends_arrives_octet_for_octet() -> None:
    body = '{"a":" : data: id: \\n \\u2028 \u2028 \ufeff ä"}'
    assert Parser().feed(event("abcdef-1", body.encode())) == [StreamEvent("message", body, "abcdef-1")]


def test_events_follow_each_other_with_comments_between_them() -> None:
    parser = Parser()
    stream = stream_head(None, 1234).partition(b"\r\n\r\n")[2]
    stream += (
        COMMENT + named_event("subscribed", b"{}", "a-1") + COMMENT + event("a-2", b"1") + named_event("end", b"2")
    )
    found = [one for octet in stream for one in parser.feed(bytes([octet]))]
    assert found == [
        StreamEvent("subscribed", "{}", "a-1"),
        StreamEvent("message", "1", "a-2"),
        StreamEvent("end", "2", "a-2"),
    ]
    assert (parser.comments, parser.retry) == (2, 1234)


@pytest.mark.parametrize(
    "path, prefix, expected",
    [
        ("/events", "/events", True),
        ("/events/", "/events", True),
        ("/events/a/b", "/events", True),
        ("/eventsa", "/events", False),
        ("/", "/events", False),
        ("/events", "", False),
        ("/", "", False),
        ("/a/b/c", "/a/b", True),
    ],
)
def test_stream_paths(path: str, prefix: str, *, expected: bool) -> None:
    assert is_stream_path(path, prefix) is expected
