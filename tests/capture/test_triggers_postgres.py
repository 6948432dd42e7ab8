"""The changes that the triggers of Postgres log. The triggers never make the application's writes fail."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from airy_trio import migrate
from airy_trio.capture import triggers
from airy_trio.capture.feed import MessageGone, Tag, TagGone
from airy_trio.capture.inspection import inspect
from airy_trio.settings import Settings
from tests.application import Application, only
from tests.capture.feeds import feed_of, read_all
from tests.postgres import PASSWORD_ROLE, Postgres

MERGE_SINCE = 15
OUTDATED = "has triggers of another mapping or version:"
RUN = "; run: airy-trio migrate --config FILE"


@pytest.fixture
def application(postgres_application: Application) -> Application:
    postgres_application.migrate()
    return postgres_application


def logged(application: Application) -> list[tuple[Any, ...]]:
    """Return operation and first key of each change, in order, and empty the log."""
    with application.engine.begin() as connection:
        rows = connection.exec_driver_sql(
            "select operation, key_1 from airy_trio.change_log order by txid, at, ctid"
        ).all()
        connection.exec_driver_sql("delete from airy_trio.change_log")
    return [tuple(row) for row in rows]


def raw_connection(application: Application) -> psycopg.Connection:
    url = sa.make_url(application.url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def faults(application: Application, settings: Settings) -> list[str]:
    with application.engine.begin() as connection:
        tables = inspect(connection, settings.tables)
        return list(triggers.faults(connection, tables, application.names, deletes=settings.events.deletes))


def test_one_statement_that_writes_many_rows(application: Application) -> None:
    application.execute("insert into tags select 't' || n, 'flag', 'red' from generate_series(1, 3) n")
    application.execute("update tags set name = 'other' where id <> 't2'")
    application.execute("delete from tags")
    assert logged(application) == [
        *(("U", f"t{n}") for n in (1, 2, 3)),
        ("U", "t1"),
        ("U", "t3"),
        *(("D", id_) for id_ in ("t2", "t1", "t3")),
    ]


def test_upsert_merge_and_copy(application: Application, postgres: Postgres) -> None:
    upsert = "insert into tags values ('t1', '{}', 'red') on conflict (id) do update set name = excluded.name"
    application.execute(upsert.format("old"), upsert.format("new"))
    application.execute("insert into tags values ('t1', 'ignored', 'red') on conflict do nothing")
    with raw_connection(application) as connection, connection.cursor().copy("copy tags from stdin") as copy:
        copy.write("t2\tflag\tred\nt3\tflag\tred\n")
    assert logged(application) == [("U", "t1"), ("U", "t1"), ("U", "t2"), ("U", "t3")]
    if postgres.binaries.version >= MERGE_SINCE:
        application.execute(
            "merge into tags using (values ('t3'), ('t4')) as wanted(id) on tags.id = wanted.id "
            "when matched then delete when not matched then insert values (wanted.id, 'flag', 'red')"
        )
        assert sorted(logged(application)) == [("D", "t3"), ("U", "t4")]


def test_a_foreign_key_cascade(application: Application) -> None:
    application.execute(
        "alter table messages add foreign key (channel_id) references channels on delete cascade on update cascade"
    )
    application.channel()
    application.message()
    logged(application)
    application.execute("update channels set id = 'ch2'")
    assert logged(application) == [("D", "ch1"), ("U", "ch2"), ("U", "m1")]
    application.execute("delete from channels")
    assert logged(application) == [("D", "ch2"), ("D", "m1")]


def test_keys_that_move_and_swap_in_one_statement(application: Application) -> None:
    application.execute(
        "alter table tags drop constraint tags_pkey, add primary key (id) deferrable initially deferred"
    )
    for id_ in ("a", "b", "c"):
        application.tag(id_)
    logged(application)
    application.execute("update tags set id = case id when 'a' then 'b' else 'a' end where id <> 'c'")
    assert sorted(logged(application)) == [("U", "a"), ("U", "b")]
    application.execute("update tags set id = chr(ascii(id) + 1)")
    changes = logged(application)
    assert changes[0] == ("D", "a")
    assert sorted(changes[1:]) == [("U", "b"), ("U", "c"), ("U", "d")]


def test_moving_many_keys_does_not_take_quadratic_time(application: Application) -> None:
    application.execute("insert into tags select 't' || n, 'flag', 'red' from generate_series(1, 20000) n")
    logged(application)
    application.execute("set local statement_timeout = '10s'", "update tags set id = 'moved-' || id")
    assert len(logged(application)) == 40_000


async def test_truncate_logs_messages_only_if_their_deletion_matters(postgres_application: Application) -> None:
    kept = '[log]\nkeep_current = ["message.updated"]'
    for deletes, more in ((False, ""), (True, "[events]\ndeletes = true"), (True, kept)):
        settings = postgres_application.migrate(more)
        postgres_application.message()
        postgres_application.tag()
        async with feed_of(postgres_application, settings) as feed:
            _, after, _ = await read_all(feed, await feed.origin())
            postgres_application.execute("truncate messages, tags")
            gone = (await read_all(feed, after))[0]
        tag, message = TagGone(id="t1"), MessageGone(id="m1", conversation_id="c1", channel_id="ch1")
        assert {type(changed) for changed in gone} == ({MessageGone, TagGone} if deletes else {TagGone})
        assert set(gone) <= {tag, message}


def test_a_renamed_table_is_still_watched_and_truncated(application: Application) -> None:
    application.tag()
    application.execute('alter table tags rename to "Old %s tags"')
    with raw_connection(application) as connection:
        connection.execute("insert into \"Old %s tags\" values ('t2', 'flag', 'red')")
        connection.execute('truncate "Old %s tags"')
    assert logged(application) == [("U", "t1"), ("U", "t2"), ("D", "t1"), ("D", "t2")]


@pytest.mark.parametrize(
    "change, key, channel, keys",
    [
        ("rename column channel_id to inbox_id", "id", "inbox_id", {"m1", "m2"}),
        ("drop column channel_id", "id", "sender_id", {"m1", "m2"}),
        ("alter column channel_id type int using 5", "id", None, {"m1", "m2"}),
        ("rename column id to message_id", "message_id", "channel_id", {None}),
        ("drop column id, add column message_id text", "message_id", "channel_id", {None}),
    ],
)
def test_a_changed_column_never_makes_a_write_fail(
    application: Application, change: str, key: str, channel: str | None, keys: set[str | None]
) -> None:
    application.message()
    insert = "insert into messages ({}, {}, conversation_id, delivery_state, from_contact, sent_at, source) "
    with raw_connection(application) as writer:  # its plans are cached before the change
        writer.execute("update messages set source = 'a'")
        application.execute(f"alter table messages {change}")
        logged(application)
        values = f"values ('m2', {'7' if channel is None else repr('7')}, 'c2', 'pending', true, now(), 'b')"
        writer.execute(insert.format(key, channel or "channel_id") + values)
        writer.execute("update messages set source = 'c'")
        writer.execute("delete from messages")
        writer.execute("truncate messages")
    changes = logged(application)
    assert [operation for operation, _ in changes] == ["U", "U", "U", "D", "D"]
    assert {found for _, found in changes} == keys


ALTERED_KEYS = {
    "another type": ["alter table tags alter id type bigint"],
    "another column": ["alter table tags drop id", "alter table tags add id int"],
    "columns that exchange their names": [
        "alter table tags add new_id bigint",
        "alter table tags rename id to old_id",
        "alter table tags rename new_id to id",
    ],
}


@pytest.mark.parametrize("altered", ALTERED_KEYS)
@pytest.mark.parametrize("firing", ["origin", "always"])
def test_row_triggers_log_an_altered_key_in_open_sessions(
    postgres_application: Application, altered: str, firing: triggers.Firing
) -> None:
    partitioned = " partition by list (name)" if firing == "origin" else ""
    postgres_application.execute(f"create table tags (id int, name text, color text){partitioned}")
    if partitioned:
        postgres_application.execute("create table tags_flag partition of tags default")
    migrate.migrate(postgres_application.settings(only(tags="")), firing=firing)

    def write(writer: psycopg.Connection) -> None:
        writer.execute("insert into tags (id, name) values (1, 'flag')")
        writer.execute("update tags set id = 2")
        writer.execute("delete from tags")

    with raw_connection(postgres_application) as writer:
        write(writer)  # its plans are cached before the change
        postgres_application.execute(*ALTERED_KEYS[altered])
        write(writer)
        with writer.transaction():
            for statement in ALTERED_KEYS["another type"]:
                writer.execute(statement.replace("bigint", "text").encode())
            write(writer)
    assert logged(postgres_application) == 3 * [("U", "1"), ("D", "1"), ("U", "2"), ("D", "2")]


def test_row_triggers_of_a_restored_dump_are_no_fault(postgres_application: Application) -> None:
    """Its tables have other numbers in the catalogue. A migration renews the functions."""
    postgres_application.execute(*PARTITIONED)
    settings = postgres_application.migrate()
    oid = postgres_application.scalar("select 'messages'::regclass::oid::text")
    body = postgres_application.scalar("select pg_get_functiondef('airy_trio.messages_insert'::regproc)")
    with raw_connection(postgres_application) as connection:
        connection.execute(body.replace(f"'{oid}'::regclass", "'1'::regclass"))
    assert faults(postgres_application, settings) == []
    assert any("messages_insert" in line for line in migrate.preview(settings))
    migrate.migrate(settings)
    assert migrate.preview(settings) == []


@pytest.mark.parametrize("name", ["key_1", "key_2", "old_1", "airy_row", "airy_rows", "found", "new", "old", "tg_op"])
@pytest.mark.parametrize("partitioned", ["", " partition by list (name)"])
def test_columns_with_names_that_the_functions_use(
    postgres_application: Application, name: str, partitioned: str
) -> None:
    postgres_application.execute(f"create table tags ({name} text, name text, color text){partitioned}")
    if partitioned:
        postgres_application.execute("create table tags_flag partition of tags for values in ('flag')")
    mapped = f'columns = {{ id = "{name}" }}'
    postgres_application.run_migration(only(tags=mapped), with_tables=False)
    postgres_application.execute(
        "insert into tags values ('t1', 'flag', 'red')", f"update tags set {name} = 't2'", "truncate tags"
    )
    assert logged(postgres_application) == [("U", "t1"), ("D", "t1"), ("U", "t2"), ("D", "t2")]


@pytest.fixture
def plain_role(application: Application) -> Iterator[psycopg.Connection]:
    """Yield a session of a role that may write the application's tables and has no rights on ours."""
    role = f'"{PASSWORD_ROLE}"'
    with raw_connection(application) as connection:
        connection.execute(f"grant select, insert, update, delete, truncate on tags, messages to {role}")
        connection.execute(f"set role {role}")
        yield connection
        connection.execute("reset role")
        connection.execute(f"reassign owned by {role} to current_user")
        connection.execute(f"drop owned by {role}")


def test_role_without_rights_on_our_schema_can_write(application: Application, plain_role: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        plain_role.execute("select * from airy_trio.change_log")
    plain_role.execute("insert into tags values ('t1', 'flag', 'red')")
    plain_role.execute("update tags set id = 't2'")
    plain_role.execute("truncate tags")
    assert logged(application) == [("U", "t1"), ("D", "t1"), ("U", "t2"), ("D", "t2")]


@pytest.mark.parametrize("denied", ["the right to read", "row security"])
def test_truncate_succeeds_if_its_trigger_cannot_read(
    application: Application, plain_role: psycopg.Connection, denied: str
) -> None:
    """Its trigger reads the table as the role that ran the migration."""
    role = f'"{PASSWORD_ROLE}"'
    application.tag()
    application.execute(
        f"alter function airy_trio.tags_truncate() owner to {role}",
        f"grant usage on schema airy_trio to {role}",
        f"grant insert on airy_trio.change_log to {role}",
    )
    if denied == "row security":
        application.execute(
            "create policy tenant on tags using (id = current_setting('app.tenant'))",
            "alter table tags enable row level security",
        )
    else:
        application.execute(f"revoke select on tags from {role}")
    warnings: list[str | None] = []
    plain_role.add_notice_handler(lambda warning: warnings.append(warning.message_primary))
    plain_role.execute("truncate tags")
    assert application.scalar("select count(*) from tags") == 0
    assert logged(application) == [("U", "t1")]
    (warning,) = warnings
    assert warning is not None
    assert warning.startswith("airy-trio cannot read public.tags and does not send the deletion of its rows: ")


def test_truncate_fails_if_its_deletions_cannot_be_logged_now(application: Application) -> None:
    """As every other write does: the application tries again. Otherwise the deletions would never be sent."""
    application.tag()
    application.execute(
        "create function fill() returns trigger language plpgsql as $$ begin raise disk_full; end $$",
        "create trigger fill before insert on airy_trio.change_log for each row execute function fill()",
    )
    with pytest.raises(sa.exc.OperationalError, match="DiskFull"):
        application.execute("truncate tags")
    application.execute("drop trigger fill on airy_trio.change_log", "truncate tags")
    assert logged(application) == [("U", "t1"), ("D", "t1")]


def test_lastval_of_the_application_is_unchanged(application: Application, plain_role: psycopg.Connection) -> None:
    """Some object-relational mappers read the id of a new row by it."""
    plain_role.execute("insert into tags values ('t1', 'flag', 'red')")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):  # the session has not used a sequence yet
        plain_role.execute("select lastval()")
    plain_role.execute("create temp sequence orders start 7")
    plain_role.execute("select nextval('orders')")
    for statement in (
        "insert into tags values ('t2', 'flag', 'red')",
        "update tags set id = 't3' where id = 't2'",
        "delete from tags where id = 't3'",
        "truncate tags",
    ):
        plain_role.execute(statement.encode())
        assert plain_role.execute("select lastval()").fetchone() == (7,)
    assert len(logged(application)) == 6


def test_change_of_many_keys_after_one_in_a_session(application: Application) -> None:
    """Postgres plans a function's statement for its first call in a session, here for one row."""
    rows = 20_000
    application.execute(
        "insert into messages select 't' || n, 'c1', 'ch1', 'hello', 'pending', true, now(), 'facebook', 'u1' "
        f"from generate_series(1, {rows}) n"
    )
    with closing(raw_connection(application)) as connection:
        connection.execute("update messages set id = 'a' || id where id = 't1'")
        connection.execute("set statement_timeout = '20s'")
        connection.execute("update messages set id = 'b' || id")
    changes = logged(application)
    assert len(changes) == rows + 2 + 2 * rows
    assert sorted(changes[rows : rows + 2]) == [("D", "t1"), ("U", "at1")]
    gone = {key for operation, key in changes[rows + 2 :] if operation == "D"}
    assert gone == {"at1", *(f"t{n}" for n in range(2, rows + 1))}


def test_key_that_was_null_is_not_deleted(application: Application) -> None:
    application.execute("alter table tags drop constraint tags_pkey, alter id drop not null")
    application.execute("insert into tags values (null, 'flag', 'red')", "update tags set id = 't1'")
    application.execute(
        "update tags set id = null",
        "alter table metadata drop constraint metadata_pkey, alter identifier drop not null",
    )
    assert logged(application) == [("U", None), ("U", "t1"), ("D", "t1"), ("U", None)]
    application.execute("insert into metadata (subject, key, value) values ('c1', 'k', 'v')")
    application.execute("update metadata set identifier = 'i'")
    assert logged(application) == [("U", "c1"), ("U", "c1")]


def test_changed_key_that_its_collation_considers_equal(application: Application) -> None:
    application.execute(
        "create collation any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "alter table tags alter id type text collate any_case",
        "insert into tags values ('t1', 'flag', 'red')",
        "update tags set id = 'T1'",
    )
    assert logged(application) == [("U", "t1"), ("D", "t1"), ("U", "T1")]


def test_triggers_ignore_the_search_path_of_the_application(
    application: Application, plain_role: psycopg.Connection
) -> None:
    plain_role.execute("create temp table change_log (x int)")
    plain_role.execute("create function pg_temp.now() returns timestamptz language sql as 'select null::timestamptz'")
    plain_role.execute("set search_path = pg_temp, public")
    plain_role.execute("insert into public.tags values ('t1', 'flag', 'red')")
    assert logged(application) == [("U", "t1")]


@pytest.mark.parametrize(
    "type_, value, setting",
    [
        ("timestamptz", "2020-01-01 10:00Z", "timezone = 'Asia/Tokyo'"),
        ("date", "2020-01-31", "datestyle = 'SQL, DMY'"),
        ("interval", "1 day", "intervalstyle = 'postgres'"),
        ("bytea", r"\xff", "bytea_output = 'escape'"),
        ("float8", "1000000000000000.125", "extra_float_digits = 0"),
    ],
)
async def test_keys_whose_text_depends_on_the_session(
    postgres_application: Application, type_: str, value: str, setting: str
) -> None:
    postgres_application.execute(f"create table tags (id {type_} primary key, name text, color text)")
    settings = postgres_application.migrate(only(tags=""), with_tables=False)
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        with raw_connection(postgres_application) as writer:
            writer.execute(f"set {setting}")
            writer.execute(f"insert into tags values ('{value}', 'flag', 'red')")
            (tag,), point, _ = await read_all(feed, start)
            writer.execute("delete from tags")
        (gone,), _, _ = await read_all(feed, point)
    assert isinstance(tag, Tag)
    assert gone == TagGone(id=tag.id)


def test_functions_without_the_settings_of_their_key_are_outdated(postgres_application: Application) -> None:
    postgres_application.execute("create table tags (id date primary key, name text, color text)")
    settings = postgres_application.migrate(only(tags=""), with_tables=False)
    postgres_application.execute(
        "alter function airy_trio.tags_insert() reset all",
        "alter function airy_trio.tags_insert() set search_path = pg_catalog, pg_temp",
    )
    assert faults(postgres_application, settings) == [f'table "tags" (tags) {OUTDATED} airy_trio_tags_insert{RUN}']
    postgres_application.migrate(only(tags=""), with_tables=False)
    assert faults(postgres_application, settings) == []


def test_other_settings_of_a_function_are_no_fault(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    postgres_application.execute("alter function airy_trio.tags_insert() set work_mem = '8MB'")
    assert faults(postgres_application, settings) == []


PARTITIONED = (
    """
    create table messages (
        id text, conversation_id text, channel_id text, content text, delivery_state text, from_contact boolean,
        sent_at timestamptz, source text, sender_id text
    ) partition by list (source)
    """,
    "create table messages_a partition of messages for values in ('a')",
    "create table messages_b partition of messages for values in ('b')",
)


async def test_existing_and_later_partitions_are_watched(postgres_application: Application) -> None:
    postgres_application.execute(*PARTITIONED)
    settings = postgres_application.migrate()
    assert faults(postgres_application, settings) == []
    insert = "insert into {} (id, conversation_id, channel_id, source) values ('{}', 'c1', 'ch1', '{}')"
    postgres_application.execute("create table messages_c partition of messages for values in ('c')")
    postgres_application.execute(
        insert.format("messages", "m1", "a"),
        insert.format("messages_b", "m2", "b"),
        insert.format("messages_c", "m3", "c"),
    )
    assert logged(postgres_application) == [("U", "m1"), ("U", "m2"), ("U", "m3")]
    postgres_application.execute("update messages set source = 'b' where id = 'm1'", "delete from messages_c")
    changes = logged(postgres_application)
    assert changes[-1] == ("D", "m3")
    assert {key for _, key in changes[:-1]} == {"m1"}
    async with feed_of(postgres_application, settings) as feed:
        after = await feed.restart()
        postgres_application.execute("update messages set source = 'a' where id = 'm1'")
        (moved,) = (await read_all(feed, after))[0]
    assert not isinstance(moved, MessageGone)


def test_a_partition_itself_can_be_mapped(postgres_application: Application) -> None:
    postgres_application.execute(*PARTITIONED)
    more = '[database.tables.messages]\nname = "messages_a"'
    assert faults(postgres_application, postgres_application.migrate(more)) == []
    postgres_application.execute("insert into messages (id, source) values ('m1', 'a'), ('m2', 'b')")
    assert logged(postgres_application) == [("U", "m1")]


def test_missing_disabled_and_outdated_triggers_are_faults(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    assert faults(postgres_application, settings) == []
    mapped = postgres_application.settings("[database.tables.messages]\ncolumns = { channel_id = 'source' }")
    assert faults(postgres_application, mapped) == [
        f'table "messages" (messages) {OUTDATED} airy_trio_messages_delete, airy_trio_messages_update{RUN}'
    ]
    postgres_application.execute(
        "drop trigger airy_trio_tags_insert on tags", "alter table tags disable trigger airy_trio_tags_delete"
    )
    assert faults(postgres_application, settings) == [
        f'table "tags" (tags) has no trigger airy_trio_tags_insert{RUN}',
        f'table "tags" (tags) has triggers that are switched off: airy_trio_tags_delete{RUN}',
    ]
    postgres_application.migrate()
    assert faults(postgres_application, settings) == []
    postgres_application.tag()
    postgres_application.execute("delete from tags")
    assert logged(postgres_application) == [("U", "t1"), ("D", "t1")]


async def test_another_mapping_leaves_no_trigger_on_the_old_table(postgres_application: Application) -> None:
    postgres_application.execute("create table labels (id text primary key, name text, color text)")
    postgres_application.migrate()
    more = '[database.tables.tags]\nname = "labels"\n[database.tables.channels]\nname = ""'
    settings = postgres_application.migrate(more)
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        postgres_application.tag("old")
        postgres_application.channel()
        postgres_application.execute("insert into labels values ('new', 'flag', 'red')")
        objects, _, batches = await read_all(feed, start)
    assert objects == [Tag(id="new", name="flag", color="red")]
    assert sum(batch.changes for batch in batches) == 1


def test_two_kinds_may_share_a_table(postgres_application: Application) -> None:
    postgres_application.execute("create table things (id text primary key, name text, color text, source text)")
    more = (
        '[database.tables.tags]\nname = "things"\n[database.tables.channels]\nname = "things"\n'
        'columns = { source_channel_id = "name" }\nconstants = { connected = true }\n'
    )
    settings = postgres_application.migrate(more)
    assert faults(postgres_application, settings) == []
    postgres_application.execute("insert into things (id) values ('x')")
    assert logged(postgres_application) == [("U", "x"), ("U", "x")]
