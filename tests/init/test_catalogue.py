"""The catalogue of a real database: keys, references, types, and only tables that can be watched and read."""

import sqlalchemy as sa

from airy_trio.database import Database
from airy_trio.init import catalogue
from airy_trio.init.catalogue import FoundTable
from tests.application import Application
from tests.postgres import PASSWORD_ROLE, Postgres


def look(application: Application) -> dict[str, FoundTable]:
    found = Database(application.engine).run_sync(lambda connection: catalogue.look(connection, application.names))
    return {table.label: table for table in found}


def rows(application: Application, table: FoundTable) -> list[dict[str, object]]:
    found = Database(application.engine).run_sync(lambda connection: catalogue.sample(connection, table))
    return [dict(row) for row in found]


def test_keys_references_and_types(any_application: Application) -> None:
    any_application.migrate()  # our own tables are not found
    any_application.execute(
        "create table rooms (id integer primary key, name varchar(20), slug text unique, open boolean, at timestamp)",
        "create table lines (room int references rooms (id), number int, said json, primary key (room, number))",
        "create table members (room integer, who text, unique (who))",
    )
    found = look(any_application)
    assert {*found} == {"messages", "metadata", "channels", "tags", "rooms", "lines", "members"}
    assert {name: found[name].key for name in ("rooms", "lines", "members")} == {
        "rooms": "id", "lines": None, "members": "who",
    }  # fmt: skip
    families = {column.name: column.family for column in found["rooms"].columns.values()}
    assert families == {"id": "integer", "name": "text", "slug": "text", "open": "flag", "at": "time"}
    assert found["lines"].columns["room"].target == "rooms"
    assert found["lines"].columns["said"].family == "json"


def test_sample_has_the_newest_rows_and_the_beginning_of_texts(any_application: Application) -> None:
    any_application.execute(
        'create table notes (id integer primary key, "a : b" text, done boolean)',
        *(f"insert into notes values ({number}, 'x', true)" for number in range(catalogue.ROWS_MAX + 1)),
        f"update notes set \"a : b\" = '{'é' * 500}' where id = {catalogue.ROWS_MAX}",
    )
    found = rows(any_application, look(any_application)["notes"])
    assert len(found) == catalogue.ROWS_MAX
    assert found[0]["a : b"] == "é" * catalogue.TEXT_CHARS_MAX
    yes, _ = look(any_application)["notes"].columns["done"].bits
    assert {str(row["done"]) for row in found} == {yes}
    assert str(found[-1]["id"]) == "1"


def test_views_partitions_and_tables_of_others_are_not_found(
    postgres_application: Application, postgres: Postgres
) -> None:
    postgres_application.execute(
        "create schema chat",
        "create table chat.lines (id int, at timestamptz, said text, primary key (id, at)) partition by range (at)",
        "create table chat.lines_1 partition of chat.lines default",
        "create view chat.recent as select * from chat.lines",
        "create table posts (id int primary key, body text)",
        "create table posts_of_2026 () inherits (posts)",
        "create table django_migrations (id int primary key, name text)",
        "create table secrets (id int primary key, body text)",
        f'grant usage on schema chat to "{PASSWORD_ROLE}"',
        f'grant select on chat.lines to "{PASSWORD_ROLE}"',
    )
    assert {*look(postgres_application)} == {"chat.lines", "posts_of_2026", "secrets"}
    name = postgres_application.url.rpartition("/")[2]
    role = Application(postgres.password_url(name))
    try:
        found = look(role)
    finally:
        role.engine.dispose()
    assert {*found} == {"chat.lines"}
    assert (found["chat.lines"].schema, found["chat.lines"].key) == ("chat", "id")


def test_name_that_the_settings_reject_is_not_found(any_application: Application) -> None:
    any_application.execute(
        'create table "a\x1bb" (id integer primary key)', "create table lines (id integer primary key)"
    )
    assert {*look(any_application)} == {"lines"}


def test_virtual_tables_are_not_found(sqlite_application: Application) -> None:
    sqlite_application.execute(
        "create table lines (id integer primary key, said text)", "create virtual table search using fts5(said)"
    )
    assert {*look(sqlite_application)} == {"lines"}


def test_sample_of_a_table_that_is_refused_is_empty(postgres_application: Application) -> None:
    table = FoundTable(schema="public", name="absent", columns={}, key="id")
    assert rows(postgres_application, table) == []
    with postgres_application.engine.begin() as connection:  # the refusal does not end its transaction
        assert [*catalogue.sample(connection, table)] == []
        assert connection.execute(sa.text("select 1")).scalar() == 1
