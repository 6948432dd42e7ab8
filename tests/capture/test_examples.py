"""The worked examples in config/ are correct: real tables of that shape give the expected events."""

from collections.abc import Sequence
from pathlib import Path

from airy_trio.events.models import (
    ChannelUpdated,
    Event,
    Json,
    MessageDeleted,
    MessageUpdated,
    MetadataUpdated,
    TagUpdated,
)
from airy_trio.events.translate import EventsOptions, translate
from airy_trio.migrate import migrate
from airy_trio.settings import Settings, load
from tests.application import Application
from tests.capture.example_tables import AIRY, CHATWOOT, CHATWOOT_MESSAGE
from tests.capture.feeds import feed_of, read_all

CONFIG = Path(__file__).parents[2] / "config"


def example(application: Application, name: str, tables: Sequence[str]) -> Settings:
    application.execute(*tables)
    settings = load(CONFIG / name, {"DATABASE_URL": application.url})
    migrate(settings)
    return settings


async def events(application: Application, settings: Settings, *statements: str, **parameters: object) -> list[Event]:
    async with feed_of(application, settings) as feed:
        start = await feed.restart()
        application.execute(*statements, **parameters)
        translation = translate((await read_all(feed, start))[0], EventsOptions(deletes=True))
    assert translation.faults == ()
    return list(translation.events)


async def test_airy(any_application: Application) -> None:
    settings = example(any_application, "airy.toml", AIRY)
    assert await events(
        any_application,
        settings,
        "insert into messages values ('m1', 'c1', 'ch1', :content, 'DELIVERED', true, 1603661094560, 'facebook', 's1')",
        "insert into metadata values ('conversation:c1', 'contact.displayName', 'Grace', 'text', 1603661094560)",
        "insert into metadata values ('conversation:c1', 'isUserTyping', 'true', 'bool', 1603661094561)",
        "insert into channels values ('ch1', 'facebook', 'page-1', 'CONNECTED')",
        "insert into tags values ('t1', 'flag', 'RED')",
        content='{"text":"Hello"}',
    ) == [
        MessageUpdated(
            id="m1",
            conversation_id="c1",
            channel_id="ch1",
            content=Json('{"text":"Hello"}'),
            delivery_state="delivered",
            from_contact=True,
            sent_at="2020-10-25T21:24:54.560Z",
            source="facebook",
            sender_id="s1",
        ),
        MetadataUpdated(
            subject="conversation",
            identifier="c1",
            metadata=Json('{"contact":{"displayName":"Grace"},"isUserTyping":true}'),
            conversation_id="c1",
            channel_id="ch1",
        ),
        ChannelUpdated(id="ch1", source="facebook", source_channel_id="page-1", connected=True),
        TagUpdated(id="t1", name="flag", color="tag-red"),
    ]


async def test_chatwoot(postgres_application: Application) -> None:
    settings = example(postgres_application, "chatwoot.toml", CHATWOOT)
    found = await events(
        postgres_application,
        settings,
        CHATWOOT_MESSAGE.format("Hi", 0, "false", 0, 5),
        CHATWOOT_MESSAGE.format("Hello", 1, "false", 3, "null"),
        CHATWOOT_MESSAGE.format("between us", 1, "true", 0, 9),
        CHATWOOT_MESSAGE.format("Ada closed it", 2, "false", 0, "null"),
        "insert into inboxes (channel_id, account_id, name, channel_type) values (4, 1, 'Web', 'Channel::WebWidget')",
        "insert into inboxes (channel_id, account_id, name, channel_type) values (5, 1, 'Mail', 'Channel::Email')",
        "insert into labels (title) values ('urgent')",
    )
    first, second, private, activity, web, mail, label = found
    assert first == MessageUpdated(
        id="1",
        conversation_id="7",
        channel_id="3",
        content=Json('"Hi"'),
        delivery_state="delivered",
        from_contact=True,
        sent_at="2020-10-25T21:24:54.560Z",
        source="chatwoot",
        sender_id="5",
    )
    assert isinstance(second, MessageUpdated)
    assert (second.from_contact, second.delivery_state, second.sender_id) == (False, "failed", "airy-core-anonymous")
    assert private == MessageDeleted(id="3", conversation_id="7", channel_id="3")
    assert activity == MessageDeleted(id="4", conversation_id="7", channel_id="3")
    assert web == ChannelUpdated(id="1", source="chatplugin", source_channel_id="4", connected=True)
    assert mail == ChannelUpdated(id="2", source="Channel::Email", source_channel_id="5", connected=True)
    assert label == TagUpdated(id="1", name="urgent", color="#1f93ff")
    (gone,) = await events(postgres_application, settings, "delete from inboxes where id = 1")
    assert gone == ChannelUpdated(id="1", source="chatplugin", source_channel_id="4", connected=False)
