"""The promises of every change feed, on real SQLite and real Postgres."""

import pytest
import trio

from airy_trio.capture.feed import (
    Channel,
    ChannelGone,
    Consumer,
    Message,
    MessageGone,
    Metadata,
    MetadataEntry,
    ResumePointLost,
    Tag,
    TagGone,
)
from airy_trio.database import SQLITE
from airy_trio.errors import StartError
from tests.application import Application
from tests.capture.feeds import feed_of, read_all

NO_CHANNELS = '[database.tables.channels]\nname = ""\n'


async def test_a_row_of_each_kind_comes_once_with_its_columns(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        any_application.message()
        any_application.metadata("conversation", "c1", "a.b", "1", "number")
        any_application.channel()
        any_application.tag()
        message, metadata, channel, tag = (await read_all(feed, start))[0]
    assert isinstance(message, Message)
    assert (message.id, message.conversation_id, message.channel_id) == ("m1", "c1", "ch1")
    assert (message.content, message.content_form) == ('{"text": "Hello World"}', "auto")
    assert str(message.from_contact) in {"1", "true"}
    assert metadata == Metadata(
        subject="conversation",
        identifier="c1",
        entries=(MetadataEntry(key="a.b", value="1", value_type="number", updated_at=None),),
        time_zone=message.time_zone,
        conversation_id="c1",
        channel_id="ch1",
    )
    assert isinstance(channel, Channel)
    assert (channel.id, channel.source, channel.source_channel_id) == ("ch1", "facebook", "fb-page-id-1")
    assert tag == Tag(id="t1", name="flag", color="tag-red")


async def test_rows_from_before_the_migration_are_not_sent(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    async with feed_of(any_application, settings) as feed:
        batch = await feed.read(await feed.origin(), 10)
    assert (batch.objects, batch.changes, batch.more) == ((), 0, False)


async def test_object_is_read_once_at_its_newest_change(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        any_application.tag("t1", name="old")
        any_application.tag("t2")
        any_application.execute("update tags set name = 'new' where id = 't1'")
        objects, _, batches = await read_all(feed, start)
    assert objects == [Tag(id="t2", name="flag", color="tag-red"), Tag(id="t1", name="new", color="tag-red")]
    assert sum(batch.changes for batch in batches) == 3


async def test_changes_of_an_unknown_kind_are_an_error(any_application: Application) -> None:
    """The triggers of a newer version have logged these changes. If the recorder skipped them, they would be lost."""
    settings = any_application.migrate(NO_CHANNELS)
    token = ", 'x'" if any_application.dialect == SQLITE else ""
    columns = "kind, operation, key_1, at, token" if token else "kind, operation, key_1"
    at = ", 0" if token else ""
    async with feed_of(any_application, settings) as feed:
        after = (await feed.read(await feed.origin(), 1000)).resume_point
        log = any_application.log_table("change_log")
        any_application.execute(f"insert into {log} ({columns}) values ('channels', 'U', 'ch1'{at}{token})")
        batch = await feed.read(after, 1000)
        assert (batch.objects, batch.changes) == ((), 1)  # of a kind without a table
        any_application.execute(f"insert into {log} ({columns}) values ('notes', 'U', 'n1'{at}{token})")
        with pytest.raises(StartError, match='changes of "notes"') as caught:
            await feed.read(batch.resume_point, 1000)
    assert caught.value.faults[0].endswith("upgrade this server")


async def test_deleted_rows_have_the_fields_of_their_last_event(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.message()
    any_application.channel()
    any_application.tag()
    async with feed_of(any_application, settings) as feed:
        _, start, _ = await read_all(feed, await feed.origin())
        any_application.execute("delete from messages", "delete from channels", "delete from tags")
        objects, _, _ = await read_all(feed, start)
    assert objects == [
        MessageGone(id="m1", conversation_id="c1", channel_id="ch1"),
        ChannelGone(id="ch1", source="facebook", source_channel_id="fb-page-id-1"),
        TagGone(id="t1"),
    ]


async def test_an_object_created_and_deleted_comes_only_as_deleted(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        any_application.tag()
        any_application.execute("delete from tags")
        assert (await read_all(feed, start))[0] == [TagGone(id="t1")]


async def test_a_changed_key_deletes_the_old_and_updates_the_new(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.message()
    any_application.metadata("message", "m1", "k", "v")
    async with feed_of(any_application, settings) as feed:
        _, start, _ = await read_all(feed, await feed.origin())
        any_application.execute("update messages set id = 'm2'", "update metadata set identifier = 'm2'")
        old, new, old_pair, new_pair = (await read_all(feed, start))[0]
    assert old == MessageGone(id="m1", conversation_id="c1", channel_id="ch1")
    assert isinstance(new, Message)
    assert new.id == "m2"
    assert isinstance(old_pair, Metadata)
    assert (old_pair.identifier, old_pair.entries) == ("m1", ())
    assert isinstance(new_pair, Metadata)
    assert (new_pair.identifier, len(new_pair.entries), new_pair.conversation_id) == ("m2", 1, "c1")


async def test_metadata_of_different_subjects_never_mixes(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        for subject in ("conversation", "message", "channel"):
            any_application.metadata(subject, "1", "who", subject)
        objects, _, _ = await read_all(feed, start)
    assert [(o.subject, [e.value for e in o.entries]) for o in objects if isinstance(o, Metadata)] == [
        ("conversation", ["conversation"]),
        ("message", ["message"]),
        ("channel", ["channel"]),
    ]


async def test_metadata_belongs_to_its_subjects_conversation_and_channel(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.message(id="m1", channel_id="ch1", sent_at="2020-01-01T00:00:00Z")
    any_application.message(id="m2", channel_id="ch2", sent_at="2021-01-01T00:00:00Z")
    async with feed_of(any_application, settings) as feed:
        _, start, _ = await read_all(feed, await feed.origin())
        any_application.metadata("message", "m1", "k", "v")
        any_application.metadata("conversation", "c1", "k", "v")
        any_application.metadata("channel", "ch9", "k", "v")
        any_application.metadata("message", "unknown", "k", "v")
        any_application.metadata("conversation", "unknown", "k", "v")
        objects, _, _ = await read_all(feed, start)
    assert [(o.conversation_id, o.channel_id) for o in objects if isinstance(o, Metadata)] == [
        ("c1", "ch1"),
        ("c1", "ch2"),  # the channel of the newest message
        (None, "ch9"),
        (None, None),
        (None, None),
    ]


async def test_a_metadata_pair_whose_last_row_is_deleted_is_empty(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.metadata("channel", "ch1", "k", "v")
    async with feed_of(any_application, settings) as feed:
        _, start, _ = await read_all(feed, await feed.origin())
        any_application.execute("delete from metadata")
        (found,) = (await read_all(feed, start))[0]
    assert isinstance(found, Metadata)
    assert (found.subject, found.identifier, found.entries) == ("channel", "ch1", ())


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_a_large_difference_comes_in_pages_without_repetition(any_application: Application, limit: int) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        for number in range(7):
            any_application.tag(f"t{number}")
        objects, after, batches = await read_all(feed, start, limit)
        assert [tag.id for tag in objects if isinstance(tag, Tag)] == [f"t{number}" for number in range(7)]
        assert max(batch.changes for batch in batches) <= limit
        any_application.tag("last")
        assert [tag.id for tag in (await read_all(feed, after, limit))[0] if isinstance(tag, Tag)] == ["last"]


async def test_reading_again_after_the_same_point_gives_the_same(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        any_application.tag()
        assert (await read_all(feed, start))[0] == (await read_all(feed, start))[0]


async def test_a_rolled_back_change_is_not_sent(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        with any_application.engine.connect() as connection, connection.begin() as transaction:
            connection.exec_driver_sql("insert into tags values ('t1', 'flag', 'red')")
            transaction.rollback()
        any_application.tag("t2")
        assert [tag.id for tag in (await read_all(feed, start))[0] if isinstance(tag, Tag)] == ["t2"]


async def test_waiting_ends_soon_after_a_commit(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        batch = await feed.read(await feed.origin(), 10)

        async def read_when_woken() -> None:
            nonlocal batch
            while not batch.changes:
                await feed.wait()
                batch = await feed.read(batch.resume_point, 10)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_when_woken)
                await trio.to_thread.run_sync(any_application.tag)
    assert len(batch.objects) == 1


async def test_trimming_deletes_recorded_changes_and_moves_the_origin(any_application: Application) -> None:
    settings = any_application.migrate()
    log = any_application.log_table("change_log")
    async with feed_of(any_application, settings) as feed:
        for number in range(5):
            any_application.tag(f"t{number}")
        _, after, _ = await read_all(feed, await feed.origin())
        any_application.tag("later")
        assert await feed.trim(after, 2) == 2
        assert await feed.trim(after, 100) in {2, 3}  # SQLite retains the newest recorded row for its token
        assert await feed.trim(after, 100) == 0
        assert any_application.scalar(f"select count(*) from {log}") in {1, 2}
        assert await feed.origin() == after
        assert [tag.id for tag in (await read_all(feed, await feed.origin()))[0] if isinstance(tag, Tag)] == ["later"]


async def test_a_point_before_trimmed_changes_is_lost(any_application: Application) -> None:
    """As with a copy of the event log from before its first event."""
    async with feed_of(any_application, any_application.migrate()) as feed:
        first = await feed.origin()
        for number in range(3):
            any_application.tag(f"t{number}")
        _, after, _ = await read_all(feed, first)
        assert await feed.trim(after, 100)
        await feed.aclose()  # a start compares the recorded point with the history
        with pytest.raises(ResumePointLost, match="trimmed"):
            await feed.read(first, 10)
        await feed.read(after, 10)


async def test_restart_discards_the_visible_changes(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        any_application.tag("before")
        point = await feed.restart()
        assert await feed.origin() == point
        any_application.tag("after")
        objects, _, _ = await read_all(feed, point)
    assert [tag.id for tag in objects if isinstance(tag, Tag)] == ["after"]


async def test_the_consumer_is_stored_next_to_the_changes(any_application: Application) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        assert await feed.consumer() is None
        await feed.adopt(Consumer("k7f3q9", "memory"))
        assert await feed.consumer() == Consumer("k7f3q9", "memory")


async def test_a_batch_is_as_old_as_its_oldest_change(any_application: Application) -> None:
    settings = any_application.migrate()
    age_of = {
        "sqlite": "update {} set at = at - 7000 where seq = 1",
        "postgresql": "update {} set at = at - interval '7 seconds' where key_1 = 't1'",
    }
    async with feed_of(any_application, settings) as feed:
        origin = await feed.origin()
        assert (await feed.read(origin, 10)).age_s is None
        any_application.tag("t1")
        any_application.tag("t2")
        any_application.execute(age_of[any_application.dialect].format(any_application.log_table("change_log")))
        batch = await feed.read(origin, 10)
        assert batch.age_s == pytest.approx(7, abs=2)
        assert (await feed.read(batch.resume_point, 10)).age_s is None
