"""The changes that the triggers of SQLite log."""

from typing import Any

import pytest
import sqlalchemy as sa

from airy_trio import migrate
from airy_trio.capture import triggers
from airy_trio.capture.feed import Tag, TagGone
from airy_trio.capture.inspection import inspect
from airy_trio.settings import Settings
from tests.application import Application
from tests.capture.feeds import NO_LOG, feed_of, read_all

OUTDATED = "has triggers of another mapping or version:"
RUN = "; run: airy-trio migrate --config FILE"


@pytest.fixture
def application(sqlite_application: Application) -> Application:
    sqlite_application.migrate()
    return sqlite_application


def logged(application: Application) -> list[tuple[Any, ...]]:
    with application.engine.begin() as connection:
        rows = connection.exec_driver_sql("select operation, key_1 from airy_trio_change_log order by seq").all()
        connection.exec_driver_sql("delete from airy_trio_change_log")
    return [tuple(row) for row in rows]


def faults(application: Application, settings: Settings) -> list[str]:
    with application.engine.begin() as connection:
        tables = inspect(connection, settings.tables)
        return list(triggers.faults(connection, tables, application.names, deletes=False))


def test_one_statement_that_writes_many_rows(application: Application) -> None:
    application.execute("insert into tags values ('a', 'x', 'red'), ('b', 'x', 'red')")
    application.execute("update tags set name = 'y'", "delete from tags")
    assert logged(application) == [(operation, id_) for operation in "UUD" for id_ in "ab"]


def test_upsert_and_ignore(application: Application) -> None:
    upsert = "insert into tags values ('a', '{}', 'red') on conflict (id) do update set name = excluded.name"
    application.execute(upsert.format("x"), upsert.format("y"))
    application.execute("insert or ignore into tags values ('a', 'z', 'red')")
    assert logged(application) == [("U", "a"), ("U", "a")]


def test_replacing_the_row_of_the_same_key_is_an_update(application: Application) -> None:
    application.execute(
        "insert or replace into tags values ('a', 'x', 'red')", "replace into tags values ('a', 'y', 'red')"
    )
    assert logged(application) == [("U", "a"), ("U", "a")]


def test_keys_that_swap_log_every_row(application: Application) -> None:
    application.execute("insert into tags values ('a', 'x', 'red'), ('b', 'y', 'red')")
    logged(application)
    application.execute(
        "update tags set id = 'tmp' where id = 'a'",
        "update tags set id = 'a' where id = 'b'",
        "update tags set id = 'b' where id = 'tmp'",
    )
    changes = logged(application)
    assert {key: operation for operation, key in changes} == {"a": "U", "b": "U", "tmp": "D"}


UNIQUE = (
    "create table tags (id text primary key, name text unique, color text)",
    "create table tags (id text primary key, name text, color text, unique (name))",
    "create table tags (id text primary key, name text collate nocase unique, color text) without rowid",
    "create table tags (number integer primary key, id text unique, name text unique, color text)",
    "create table tags (id text, name text primary key, color text)",
)


@pytest.mark.parametrize("table", UNIQUE)
async def test_a_row_that_replaces_another_object_logs_its_deletion(
    sqlite_application: Application, table: str
) -> None:
    sqlite_application.execute(table)
    settings = sqlite_application.migrate(NO_LOG)
    insert = "insert or replace into tags (id, name, color) values ('{}', '{}', 'red')"
    async with feed_of(sqlite_application, settings) as feed:
        for recursive in ("on", "off"):
            setting = f"pragma recursive_triggers = {recursive}"
            sqlite_application.execute(setting, "delete from tags", insert.format("a", "x"))
            sqlite_application.execute(insert.format("b", "y"))
            _, after, _ = await read_all(feed, await feed.origin())
            sqlite_application.execute(setting, insert.format("c", "x"))
            objects, after, _ = await read_all(feed, after)
            assert objects == [TagGone(id="a"), Tag(id="c", name="x", color="red")], recursive
            sqlite_application.execute("update or replace tags set name = 'x' where id = 'b'")
            objects, after, _ = await read_all(feed, after)
            assert objects == [TagGone(id="c"), Tag(id="b", name="x", color="red")], recursive


@pytest.mark.parametrize("write", ["update tags set id = 'a'", "insert or replace into tags values ('a', 'n', 'red')"])
async def test_key_that_differs_only_by_collation_is_another_object(
    sqlite_application: Application, write: str
) -> None:
    sqlite_application.execute("create table tags (id text primary key collate nocase, name text, color text)")
    settings = sqlite_application.migrate(NO_LOG)
    async with feed_of(sqlite_application, settings) as feed:
        sqlite_application.execute("insert into tags values ('A', 'n', 'red')")
        _, after, _ = await read_all(feed, await feed.origin())
        sqlite_application.execute(write)
        assert (await read_all(feed, after))[0] == [TagGone(id="A"), Tag(id="a", name="n", color="red")]


async def test_an_ignored_insert_leaves_the_other_row_present(sqlite_application: Application) -> None:
    sqlite_application.execute(UNIQUE[0])
    settings = sqlite_application.migrate(NO_LOG)
    async with feed_of(sqlite_application, settings) as feed:
        sqlite_application.tag("a", name="x")
        _, after, _ = await read_all(feed, await feed.origin())
        sqlite_application.execute("insert or ignore into tags values ('b', 'x', 'red')")
        assert (await read_all(feed, after))[0] == [Tag(id="a", name="x", color="tag-red")]


async def test_a_row_replaced_by_its_row_number_is_deleted(sqlite_application: Application) -> None:
    sqlite_application.execute("create table tags (number integer primary key, id text, name text, color text)")
    settings = sqlite_application.migrate(NO_LOG)
    async with feed_of(sqlite_application, settings) as feed:
        sqlite_application.execute("insert into tags values (1, 'a', 'x', 'red')")
        _, after, _ = await read_all(feed, await feed.origin())
        sqlite_application.execute("replace into tags values (1, 'b', 'x', 'red')")
        assert (await read_all(feed, after))[0] == [TagGone(id="a"), Tag(id="b", name="x", color="red")]


def test_default_tables_need_no_trigger_before_the_write(application: Application) -> None:
    names = application.scalar("select group_concat(name) from sqlite_master where type = 'trigger'")
    assert "before" not in names
    assert len(names.split(",")) == 12


def test_the_application_need_not_trust_the_schema(application: Application) -> None:
    with application.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        driver.create_function("lower", 1, str.lower)
        connection.exec_driver_sql("pragma trusted_schema = off")
        connection.exec_driver_sql("insert into tags values ('a', 'x', 'red')")
    assert logged(application) == [("U", "a")]


def test_the_results_of_the_applications_driver_are_unchanged(sqlite_application: Application) -> None:
    sqlite_application.execute("create table tags (number integer primary key, id text, name text unique, color text)")
    sqlite_application.migrate()
    with sqlite_application.engine.begin() as connection:
        connection.exec_driver_sql("insert into tags values (7, 'a', 'x', 'red')")
        cursor = connection.exec_driver_sql("replace into tags values (9, 'b', 'x', 'red')")
        assert (cursor.lastrowid, cursor.rowcount) == (9, 1)
        assert connection.exec_driver_sql("update tags set color = 'blue'").rowcount == 1


def test_missing_and_outdated_triggers_are_faults(application: Application) -> None:
    settings = application.settings()
    assert faults(application, settings) == []
    mapped = application.settings("[database.tables.messages]\ncolumns = { channel_id = 'source' }")
    assert faults(application, mapped) == [
        f'table "messages" (messages) {OUTDATED} airy_trio_messages_delete, airy_trio_messages_update{RUN}'
    ]
    application.execute("drop trigger airy_trio_tags_insert")
    assert faults(application, settings) == [f'table "tags" (tags) has no trigger airy_trio_tags_insert{RUN}']
    application.migrate()
    assert faults(application, settings) == []


def test_triggers_on_a_renamed_table_are_faults(application: Application) -> None:
    application.execute("alter table tags rename to old_tags", "create table tags (id text, name text, color text)")
    (fault,) = faults(application, application.settings())
    assert fault.startswith('table "tags" (tags) has no trigger airy_trio_tags_delete')
    application.migrate()
    application.execute("insert into old_tags values ('a', 'x', 'red')", "insert into tags values ('b', 'x', 'red')")
    assert logged(application) == [("U", "b")]


def test_an_unmapped_kind_loses_its_triggers(application: Application) -> None:
    application.migrate('[database.tables.tags]\nname = ""')
    application.tag()
    assert logged(application) == []


def test_a_later_unique_index_makes_triggers_outdated(application: Application) -> None:
    application.execute("create unique index tag_names on tags (name)")
    (fault,) = faults(application, application.settings())
    assert "airy_trio_tags_before_insert, airy_trio_tags_before_update" in fault


@pytest.mark.parametrize("way", ["removed", "mapped again"])
def test_a_column_used_by_a_trigger_is_dropped_as_documented(application: Application, way: str) -> None:
    """SQLite applies a rename to the trigger, but rejects dropping a column that the trigger uses."""
    application.execute("alter table messages rename column channel_id to inbox")
    application.execute("insert into messages values ('m1', 'c', 'ch', '', 'failed', true, 0, 's', null)")
    assert logged(application) == [("U", "m1")]
    with pytest.raises(sa.exc.OperationalError, match="error in trigger airy_trio_messages_"):
        application.execute("alter table messages drop column inbox")
    without = "[database.tables.messages]\nconstants = { channel_id = 'the only one' }\n"
    if way == "removed":
        migrate.remove(application.settings())
    else:
        application.migrate(without)
    application.execute("alter table messages drop column inbox")
    application.migrate(without)
    application.execute("update messages set content = 'x'", "delete from messages")
    assert logged(application) == [("U", "m1"), ("D", "m1")]


def test_a_column_that_was_unique_is_dropped_as_documented(sqlite_application: Application) -> None:
    sqlite_application.execute(
        "create table tags (id text primary key, name text, color text, slug text)",
        "create unique index tag_slugs on tags (slug)",
    )
    sqlite_application.migrate(NO_LOG)
    sqlite_application.execute("drop index tag_slugs")
    with pytest.raises(sa.exc.OperationalError, match="error in trigger airy_trio_tags_before_insert"):
        sqlite_application.execute("alter table tags drop column slug")
    sqlite_application.migrate(NO_LOG)
    sqlite_application.execute("alter table tags drop column slug")
    sqlite_application.tag()
    assert logged(sqlite_application) == [("U", "t1")]
