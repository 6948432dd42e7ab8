"""The events: their type names, and the identity of their objects."""

from airy_trio.events.models import (
    ChannelUpdated,
    Json,
    MessageDeleted,
    MessageUpdated,
    MetadataUpdated,
    TagDeleted,
    TagUpdated,
)

UPDATED = MessageUpdated(
    id="1",
    conversation_id="c1",
    channel_id="ch1",
    content=Json("{}"),
    delivery_state="pending",
    from_contact=True,
    sent_at="2020-10-25T21:24:54.560Z",
    source="facebook",
    sender_id="s",
)


def about(subject: str, identifier: str) -> MetadataUpdated:
    return MetadataUpdated(
        subject=subject, identifier=identifier, metadata=Json("{}"), conversation_id=None, channel_id=None
    )


def test_update_and_delete_have_the_same_object() -> None:
    assert UPDATED.object == MessageDeleted(id="1", conversation_id="c2", channel_id="ch2").object == "message:1"
    assert TagUpdated(id="1", name="flag", color="tag-red").object == TagDeleted(id="1").object == "tag:1"


def test_kinds_with_the_same_id_are_different_objects() -> None:
    channel = ChannelUpdated(id="1", source="facebook", source_channel_id="p", connected=True)
    objects = [
        UPDATED.object,
        channel.object,
        TagDeleted(id="1").object,
        about("message", "1").object,
        about("conversation", "1").object,
        about("channel", "1").object,
    ]
    assert len(set(objects)) == len(objects)


def test_channel_of_a_channel_and_of_a_tag() -> None:
    channel = ChannelUpdated(id="ch1", source="facebook", source_channel_id="p", connected=True)
    assert (channel.channel_id, channel.conversation_id) == ("ch1", None)
    for tag in (TagUpdated(id="1", name="flag", color="tag-red"), TagDeleted(id="1")):
        assert (tag.channel_id, tag.conversation_id) == (None, None)
