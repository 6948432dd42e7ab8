"""A foreign schema before ``migrate`` and after ``migrate --remove``, compared by dump."""

import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing

import psycopg
import pytest
import sqlalchemy as sa

from airy_trio import migrate
from airy_trio.database import sqlite_path
from tests.application import Application
from tests.postgres import SUPERUSER, Postgres

MAPPING = """
[database.tables.messages]
name = MESSAGES
columns = { conversation_id = "Conversation", channel_id = "channel", content = "Body" }
constants = { delivery_state = "delivered", from_contact = true, sent_at = 0, source = "x", sender_id = "y" }
[database.tables.metadata]
name = ""
[database.tables.channels]
name = "inbox"
columns = { source = "kind", source_channel_id = "id" }
constants = { connected = true }
[database.tables.tags]
columns = { color = "Colour:1" }
"""
ON_SQLITE = MAPPING.replace("MESSAGES", "'Messages \"of\" 1'")
ON_POSTGRES = MAPPING.replace("MESSAGES", "['Chat', 'Messages \"of\" 1']")

SQLITE_SCHEMA = """
create table "Messages ""of"" 1" (
    id integer primary key autoincrement, "Conversation" integer not null,
    channel text references inbox (id) on delete cascade, "Body" json check (json_valid("Body"))
);
create index "by conversation" on "Messages ""of"" 1" ("Conversation") where channel is not null;
create table inbox (id text primary key, kind text collate nocase unique) without rowid;
create table tags (id text primary key, name text, "Colour:1" text generated always as (lower(name)) stored);
create table "an audit" (what text, at text default current_timestamp);
create trigger audit after insert on tags begin insert into "an audit" (what) values ('tag ' || new.id); end;
create trigger "Messages ""of"" 1_insert" before insert on "Messages ""of"" 1" when new.channel = ''
    begin select raise(abort, 'no channel'); end;
create view newest as select max(id) as id, "Conversation" from "Messages ""of"" 1" group by 2;
create trigger through instead of insert on newest
    begin insert into "Messages ""of"" 1" ("Conversation") values (new."Conversation"); end;
create virtual table words using fts5 (body);
create table alembic_version (version_num text not null);
insert into alembic_version values ('theirs');
pragma user_version = 7;
"""
POSTGRES_SCHEMA = """
create schema "Chat";
create type "Chat".mood as enum ('good', 'bad');
create table "Chat"."Messages ""of"" 1" (
    id bigint generated always as identity, "Conversation" uuid not null, channel int not null, "Body" jsonb,
    how "Chat".mood default 'good', at timestamptz default now(), primary key (id, at)
) partition by range (at);
create table "Chat"."old ones" partition of "Chat"."Messages ""of"" 1"
    for values from (minvalue) to ('2020-01-01');
create table "Chat".rest partition of "Chat"."Messages ""of"" 1" default;
create function "Chat".note() returns trigger language plpgsql set search_path = pg_catalog, "Chat"
    as $$begin new."Body" := coalesce(new."Body", '{}'); return new; end$$;
create trigger note before insert or update on "Chat"."Messages ""of"" 1" for each row execute function "Chat".note();
create table inbox (id serial primary key, kind text unique, constraint named check (kind <> ''));
create function ping() returns trigger language plpgsql as $$begin perform pg_notify('t', ''); return null; end$$;
create trigger ping after insert on inbox referencing new table as new_rows for each statement execute function ping();
create table tags (id text primary key, name text, "Colour:1" text generated always as (lower(name)) stored);
create trigger ping after truncate on tags for each statement execute function ping();
alter table tags disable trigger ping;
create rule shadow as on delete to tags do also notify shadow;
alter table tags enable row level security;
create policy anyone on tags using (true);
grant insert, update on tags to airy_password;
comment on table tags is 'ours; not theirs';
create materialized view counted as select count(*) from inbox;
create publication everything for all tables;
alter default privileges in schema public grant insert on tables to airy_password;
create table alembic_version (version_num text not null);
"""
POSTGRES_ROWS = """
insert into inbox (kind) values ('x');
insert into "Chat"."Messages ""of"" 1" ("Conversation", channel) values (gen_random_uuid(), 1);
insert into tags values ('t1', 'RED');
"""
SQLITE_ROWS = """
insert into inbox values ('x', 'x');
insert into "Messages ""of"" 1" ("Conversation", channel) values (1, 'x');
insert into tags values ('t1', 'RED');
"""
SQLITE_ROWS_GONE = """
delete from tags; delete from "Messages ""of"" 1"; delete from inbox; delete from "an audit";
delete from sqlite_sequence where name = 'Messages "of" 1';
"""


def dump_of(postgres: Postgres, application: Application, *options: str) -> Sequence[str]:
    """Return the dump of a database. Skips the test if there is no ``pg_dump``."""
    program = postgres.binaries.folder / "pg_dump"
    if not program.exists():
        pytest.skip("no pg_dump next to this Postgres")
    where = ["--host", "127.0.0.1", "--port", str(postgres.port), "--username", SUPERUSER]
    name = sa.make_url(application.url).database or ""
    dump = subprocess.run([program, *where, *options, name], check=True, capture_output=True, text=True).stdout
    return [line for line in dump.splitlines() if not line.startswith(("\\restrict ", "\\unrestrict "))]  # at random


def assert_watched(application: Application) -> None:
    """Assert that a row of each kind was recorded as a change, so that ``--remove`` has something to remove."""
    log = application.log_table("change_log")
    assert application.scalar(f"select count(distinct kind) from {log}") == 3


def test_schema_in_postgres_is_restored(postgres: Postgres, postgres_application: Application) -> None:
    url = postgres_application.url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute(POSTGRES_SCHEMA)
    schema = dump_of(postgres, postgres_application, "--schema-only")
    settings = postgres_application.settings(ON_POSTGRES)
    migrate.migrate(settings)
    with psycopg.connect(url) as connection:
        connection.execute(POSTGRES_ROWS)
    assert_watched(postgres_application)
    rows = dump_of(postgres, postgres_application, "--data-only", "--exclude-schema", "airy_trio")
    migrate.remove(settings)
    assert dump_of(postgres, postgres_application, "--schema-only") == schema
    assert dump_of(postgres, postgres_application, "--data-only") == rows


def test_schema_in_sqlite_is_restored(sqlite_application: Application) -> None:
    path = sqlite_path(sqlite_application.url)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SQLITE_SCHEMA)
        before = list(connection.iterdump())
    settings = sqlite_application.settings(ON_SQLITE)
    migrate.migrate(settings)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SQLITE_ROWS)
        assert_watched(sqlite_application)
        connection.executescript(SQLITE_ROWS_GONE)
    migrate.remove(settings)
    with closing(sqlite3.connect(path)) as connection:
        assert list(connection.iterdump()) == before
        assert connection.execute("pragma user_version").fetchone() == (7,)
