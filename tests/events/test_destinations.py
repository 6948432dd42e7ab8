"""Destinations: their names and their events."""

from urllib.parse import quote

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.events.destinations import (
    EVERYTHING,
    Destination,
    Everything,
    OfChannel,
    OfConversation,
    OfType,
    UnknownDestinationError,
    covers,
    destinations_of,
    parse,
    within,
)
from airy_trio.events.models import TYPES, Json, MetadataUpdated, TagUpdated
from tests.events.rows import ANY_TEXT


@frozen
class Placed:
    """The attributes that determine destinations."""

    type: str
    channel_id: str | None
    conversation_id: str | None


def test_everything() -> None:
    assert parse("/events") == EVERYTHING == Everything()


@pytest.mark.parametrize("type_", TYPES)
def test_each_type(type_: str) -> None:
    assert parse(f"/events/{type_}") == OfType(type_)


@pytest.mark.parametrize(
    "encoded,decoded",
    [
        ("ch1", "ch1"),
        ("a%2Fb", "a/b"),
        ("Gr%C3%BC%C3%9Fe", "Grüße"),
        ("%25", "%"),
        ("a%20b+c", "a b+c"),
        ("%00", "\x00"),
    ],
)
def test_ids_are_percent_encoded(encoded: str, decoded: str) -> None:
    assert parse(f"/events/channel/{encoded}") == OfChannel(decoded)
    assert parse(f"/events/conversation/{encoded}") == OfConversation(decoded)


@given(st.text(min_size=1))
def test_every_id_can_be_subscribed_to(id_: str) -> None:
    assert parse(f"/events/channel/{quote(id_, safe='')}") == OfChannel(id_)
    assert parse(f"/events/conversation/{quote(id_, safe='')}") == OfConversation(id_)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "events",
        "/events/",
        "/Events",
        "/events ",
        "/events/message",
        "/events/MESSAGE.UPDATED",
        "/eventss",
        "/events/channel",
        "/events/channel/",
        "/events/conversation/",
        "/events/channel/a/b",
        "/events/tag/t1",
        "/events/message.updated/",
        "/events/channel/%FF",
        "/events/channel/\ud800",
        "/topic/events",
        "x/events",
    ],
)
def test_unknown_destinations(text: str) -> None:
    with pytest.raises(UnknownDestinationError):
        parse(text)


@given(ANY_TEXT | ANY_TEXT.map("/events/".__add__) | ANY_TEXT.map("/events/channel/".__add__))
def test_any_text_is_a_destination_or_refused(text: str) -> None:
    try:
        parse(text)
    except UnknownDestinationError:
        assert text != "/events"
    else:
        assert text == "/events" or text.startswith("/events/")


def test_an_event_belongs_to_all_type_channel_and_conversation() -> None:
    event = Placed("message.updated", "ch1", "c1")
    assert destinations_of(event) == (EVERYTHING, OfType("message.updated"), OfChannel("ch1"), OfConversation("c1"))


def test_unknown_ids_have_no_destination() -> None:
    tag = TagUpdated(id="t1", name="flag", color="tag-red")
    assert destinations_of(tag) == (EVERYTHING, OfType("tag.updated"))
    metadata = MetadataUpdated(
        subject="channel", identifier="ch1", metadata=Json("{}"), conversation_id=None, channel_id="ch1"
    )
    assert destinations_of(metadata) == (EVERYTHING, OfType("metadata.updated"), OfChannel("ch1"))
    assert destinations_of(Placed("metadata.updated", None, "c1"))[2:] == (OfConversation("c1"),)


@given(st.sampled_from(TYPES), st.none() | st.text(min_size=1), st.none() | st.text(min_size=1))
def test_every_destination_of_an_event_can_be_named(type_: str, channel: str | None, talk: str | None) -> None:
    found = destinations_of(Placed(type_, channel, talk))
    names = ["/events", f"/events/{type_}"]
    names += [f"/events/channel/{quote(channel, safe='')}"] if channel is not None else []
    names += [f"/events/conversation/{quote(talk, safe='')}"] if talk is not None else []
    assert tuple(parse(text) for text in names) == found


CHANNELS = st.frozensets(st.sampled_from(("ch1", "ch2", "ch3")), max_size=3)
NAMED = st.sampled_from(
    (
        EVERYTHING,
        OfType("message.updated"),
        OfType("tag.updated"),
        OfChannel("ch1"),
        OfChannel("ch2"),
        OfConversation("c1"),
    )
)


@given(
    NAMED,
    CHANNELS,
    CHANNELS,
    st.sampled_from(("message.updated", "tag.updated")),
    st.sampled_from((None, "ch1", "ch2")),
    st.sampled_from((None, "c1", "c2")),
)
def test_destination_within_channels(  # noqa: PLR0917 - drawn
    destination: Destination,
    channels: frozenset[str],
    others: frozenset[str],
    type_: str,
    channel: str | None,
    talk: str | None,
) -> None:
    event = Placed(type_, channel, talk)
    left = within(destination, channels)
    allowed = covers(destination, event) and channel in channels
    assert allowed == (left is not None and covers(left, event))
    again = None if left is None else within(left, others)
    assert (allowed and channel in others) == (again is not None and covers(again, event))


def test_within_no_channel_or_one_channel() -> None:
    assert within(EVERYTHING, frozenset()) is None
    assert within(OfChannel("ch1"), frozenset({"ch2", "ch3"})) is None
    assert within(EVERYTHING, frozenset({"ch1"})) == OfChannel("ch1")
    assert within(OfChannel("ch1"), frozenset({"ch1", "ch2"})) == OfChannel("ch1")
