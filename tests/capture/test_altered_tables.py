"""The application alters its tables while a server runs: each event has the current values of the row."""

import pytest
import sqlalchemy as sa

from airy_trio.capture import objects
from airy_trio.capture.feed import Message, Tag
from airy_trio.capture.inspection import inspect_again
from airy_trio.capture.mapping import Tables
from airy_trio.database import SQLITE
from airy_trio.errors import MappingError
from airy_trio.events.translate import EventsOptions, translate
from tests.application import Application, only
from tests.capture.feeds import before_objects, feed_of, read_all
from tests.capture.watched import ONLY_TAGS, names, watching

BERLIN = '[database.tables.messages]\ntime_zone = "Europe/Berlin"\n'
ALTERED = {
    "int to bigint": ("id", "int", "bigint", "3000000000"),
    "int to text": ("id", "int", "text", "x"),
    "text to jsonb": ("content", "text", "jsonb", '{"a": 1}'),
    "timestamp to timestamptz": ("sent_at", "timestamp", "timestamptz", "2020-06-01 12:00+00"),
    "timestamptz to timestamp": ("sent_at", "timestamptz", "timestamp", "2020-06-01 12:00"),
}
REWRITING = {
    "a column with a volatile default": ["alter table tags add more float default random()"],
    "a copy in its place": [
        "create table copied (like tags including all)",
        "insert into copied select * from tags",
        "drop table tags",
        "alter table copied rename to tags",
    ],
}


def insert(column: str, value: str) -> str:
    row = {
        "id": "1", "conversation_id": "c1", "channel_id": "ch1", "content": '"hi"', "delivery_state": "pending",
        "from_contact": "true", "sent_at": "2020-01-01 12:00", "source": "s", "sender_id": "x",
    } | {column: value}  # fmt: skip
    values = ", ".join(f"'{text}'" for text in row.values())
    return f"insert into messages ({', '.join(row)}) values ({values})"


@pytest.mark.parametrize("altered", ALTERED)
async def test_column_of_another_type_is_read_as_that_type(postgres_application: Application, altered: str) -> None:
    column, before, after, value = ALTERED[altered]
    using = " using content::jsonb" if after == "jsonb" else ""
    settings = postgres_application.migrate(BERLIN)
    postgres_application.execute(f"alter table messages alter {column} type {before} using null")
    async with feed_of(postgres_application, settings) as feed:
        point = (await feed.read(await feed.origin(), 1000)).resume_point
        postgres_application.execute(insert("source", "before"))
        point = (await feed.read(point, 1000)).resume_point
        postgres_application.execute(
            "delete from messages",
            f"alter table messages alter {column} type {after}{using}",
            insert(column, value),
            "insert into metadata (subject, identifier, key) values ('conversation', 'c1', 'k')",
        )
        batch = await feed.read(point, 1000)
        assert (await feed.read(batch.resume_point, 1000)).changes == 0
    async with feed_of(postgres_application, settings) as restarted:
        assert (await read_all(restarted, point))[0] == list(batch.objects)
    translation = translate(batch.objects, EventsOptions())
    assert translation.faults == ()
    assert [event.type for event in translation.events] == ["message.updated", "metadata.updated"]


@pytest.mark.parametrize("rewriting", REWRITING)
async def test_table_rewritten_after_the_snapshot_loses_no_row(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch, rewriting: str
) -> None:
    """The table is empty in the older snapshot."""
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = (await feed.read(await feed.origin(), 1000)).resume_point
        postgres_application.tag("t1")
        before_objects(monkeypatch, lambda: postgres_application.execute(*REWRITING[rewriting]))
        batch = await feed.read(point, 1000)
    assert batch.objects == (Tag(id="t1", name="flag", color="tag-red"),)


async def test_partitions_rewritten_after_the_snapshot_lose_no_row(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres_application.execute(
        "create table tags (id text, name text, color text) partition by hash (id)",
        *(f"create table tags_{n} partition of tags for values with (modulus 2, remainder {n})" for n in (0, 1)),
    )
    settings = postgres_application.migrate(ONLY_TAGS, with_tables=False)
    async with feed_of(postgres_application, settings) as feed:
        point = (await feed.read(await feed.origin(), 1000)).resume_point
        postgres_application.execute(*(f"insert into tags values ('t{n}', 'flag', 'red')" for n in range(9)))
        before_objects(
            monkeypatch, lambda: postgres_application.execute("alter table tags add more float default random()")
        )
        batch = await feed.read(point, 1000)
        assert names(batch.objects) == [(f"t{n}", "flag") for n in range(9)]


async def test_type_changed_after_the_snapshot_gives_no_wrong_event(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres does not rewrite the table for these types if the session's time zone is UTC."""
    settings = postgres_application.migrate(BERLIN)
    async with feed_of(postgres_application, settings) as feed:
        point = (await feed.read(await feed.origin(), 1000)).resume_point
        postgres_application.message()
        before_objects(
            monkeypatch, lambda: postgres_application.execute("alter table messages alter sent_at type timestamp")
        )
        batch = await feed.read(point, 1000)
    async with feed_of(postgres_application, settings) as restarted:
        assert (await read_all(restarted, point))[0] == list(batch.objects)


async def test_updated_at_reads_a_column_of_another_type(postgres_application: Application) -> None:
    postgres_application.execute("create table tags (id text, name text, color text, updated_at timestamptz)")
    async with watching(postgres_application) as feed:
        after = await feed.origin()
        postgres_application.execute("insert into tags values ('1', 'one', 'red', '2020-10-25')")
        _, after, _ = await read_all(feed, after)
        postgres_application.execute(
            "alter table tags alter id type bigint using 3000000000, "
            "alter updated_at type bigint using extract(epoch from updated_at) * 1000",
            "insert into tags select id + 1, 'two', color, updated_at + 60000 from tags",
        )
        objects, _, _ = await read_all(feed, after)
    assert names(objects)[-1] == ("3000000001", "two")


async def test_sqlite_reads_a_table_recreated_with_its_triggers(sqlite_application: Application) -> None:
    """Then no trigger is missing."""
    settings = sqlite_application.migrate()
    async with feed_of(sqlite_application, settings) as feed:
        _, point, _ = await read_all(feed, await feed.origin())
        with sqlite_application.engine.begin() as connection:
            made, *triggers = connection.exec_driver_sql(
                "select sql from sqlite_master where tbl_name = 'messages' and sql is not null and type <> 'index' "
                "order by type"
            ).scalars()
            connection.exec_driver_sql("drop table messages")
            connection.exec_driver_sql(made.replace("content TEXT", "content JSON"))
            for trigger in triggers:
                connection.exec_driver_sql(trigger)
        sqlite_application.message()
        (message,) = (await read_all(feed, point))[0]
    assert isinstance(message, Message)
    assert message.content_form == "json"


async def test_schema_change_of_another_table_changes_nothing(any_application: Application) -> None:
    async with feed_of(any_application, any_application.migrate()) as feed:
        _, point, _ = await read_all(feed, await feed.origin())
        any_application.execute("create table other (x int)", "create index more on tags (name)")
        any_application.tag()
        assert len((await read_all(feed, point))[0]) == 1
        assert any_application.dialect == SQLITE or len((await read_all(feed, point, 10**4))[0]) == 1


async def test_table_that_returns_after_a_refused_read_is_read(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an application replaces a table by renaming two, each in its own transaction."""

    def return_before(connection: sa.Connection, tables: Tables, *, wheres: bool) -> Tables:
        monkeypatch.undo()
        postgres_application.execute("alter table renamed rename to tags")
        return inspect_again(connection, tables, wheres=wheres)

    monkeypatch.setattr(objects, "inspect_again", return_before)
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        _, point, _ = await read_all(feed, await feed.origin())
        postgres_application.tag("t1")
        postgres_application.execute("alter table tags rename to renamed")
        assert names((await read_all(feed, point))[0]) == [("t1", "flag")]


async def test_missing_column_of_a_where_is_a_fault_of_the_mapping(any_application: Application) -> None:
    """Then the changes wait and the server goes on."""
    any_application.execute("create table tags (id text primary key, name text, color text, hidden int)")
    settings = any_application.migrate(only(tags='where = "hidden is null"'), with_tables=False)
    async with feed_of(any_application, settings) as feed:
        _, point, _ = await read_all(feed, await feed.origin())
        any_application.tag("t1")
        any_application.execute("alter table tags rename hidden to secret")
        with pytest.raises(MappingError, match=r'^database.tables.tags.where: .* "tags": .*\bhidden\b'):
            await feed.read(point, 1000)
        any_application.execute("alter table tags rename secret to hidden")
        assert names((await read_all(feed, point))[0]) == [("t1", "flag")]
