"""Inspection: all faults of a mapping together, each with its setting, and tables without faults."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from airy_trio.capture.inspection import inspect, inspect_again
from airy_trio.capture.mapping import KINDS, Tables
from airy_trio.errors import MappingError
from tests.application import Application, application, only
from tests.postgres import PASSWORD_ROLE, Postgres

VIRTUAL_SINCE = 18
CHAT = (
    "create table chat (id text, body text, sent_at text, source text)",
    "create view seen as select * from chat",
    "create table labels (id text, title text)",
    "create table attributes (owner text, name text)",
)


def inspected(application: Application, more: str = "") -> Tables:
    with application.engine.begin() as connection:
        return inspect(connection, application.settings(more).tables)


def faults(application: Application, more: str = "") -> tuple[str, ...]:
    with pytest.raises(MappingError) as caught:
        inspected(application, more)
    return caught.value.faults


def test_an_empty_database_lacks_every_table(any_application: Application) -> None:
    assert [fault.partition(" (")[0] for fault in faults(any_application)] == [
        f'database.tables.{kind}.name: there is no table "{kind}" in the database' for kind in KINDS
    ]


def test_all_faults_of_all_tables_at_once(any_application: Application) -> None:
    any_application.execute(*CHAT)
    found = faults(
        any_application,
        """
        [database.tables.messages]
        name = "chat"
        columns = { content = "bodi", sender_id = "author" }
        constants = { channel_id = "web", conversation_id = "1", delivery_state = "delivered" }
        [database.tables.metadata]
        name = "attributes"
        columns = { subject = "owner", key = "name", value_type = "type" }
        [database.tables.channels]
        name = "seen"
        [database.tables.tags]
        name = "other.labels"
        """,
    )
    assert [fault.partition(" (")[0] for fault in found] == [
        'database.tables.messages.columns.content: table "chat" has no column "bodi", perhaps "body"',
        'database.tables.messages.columns.from_contact: table "chat" has no column "from_contact"',
        'database.tables.messages.columns.sender_id: table "chat" has no column "author"',
        'database.tables.metadata.columns.value: table "attributes" has no column "value"',
        'database.tables.metadata.columns.value_type: table "attributes" has no column "type"',
        'database.tables.channels.name: "seen" is not a table; a view cannot be watched',
        'database.tables.tags.name: there is no table "other.labels" in the database, perhaps "labels"',
    ]
    assert found[0].endswith("(columns: body, id, sent_at, source)")


def test_a_missing_table_has_a_hint_with_the_most_similar_name(any_application: Application) -> None:
    any_application.execute('create table "ticketLabel" (id text, name text, color text)')
    (fault,) = faults(any_application, only(tags='name = "ticketLabels"'))
    assert fault.startswith(
        'database.tables.tags.name: there is no table "ticketLabels" in the database, perhaps "ticketLabel" ('
    )


def test_the_hint_of_a_missing_table_on_postgres_has_its_schema(postgres_application: Application) -> None:
    postgres_application.execute("create schema crm", 'create table crm."Label" (id int8, name text, color text)')
    for name in ("Label", "crm.label"):
        assert ', perhaps "crm.Label" (' in faults(postgres_application, only(tags=f'name = "{name}"'))[0]


def test_mapping_every_table_to_nothing_is_a_fault(any_application: Application) -> None:
    assert faults(any_application, only(tags='name = ""')) == (
        "database.tables: every table is mapped to nothing, so there is nothing to watch",
    )


@pytest.mark.parametrize(
    "kind, constants, names",
    [
        ("tags", '{ id = "1", color = "red" }', "id"),
        ("metadata", '{ subject = "message", identifier = "1" }', "subject and identifier"),
        ("metadata", '{ subject = "message:1" }', "subject and identifier"),
    ],
)
def test_a_table_without_key_columns_is_a_fault(
    any_application: Application, kind: str, constants: str, names: str
) -> None:
    any_application.execute("create table t (key text, value text, name text)")
    assert faults(any_application, only(**{kind: f'name = "t"\nconstants = {constants}'})) == (
        f"database.tables.{kind}.constants: without a column for {names} rows cannot be distinguished",
    )


@pytest.mark.parametrize("where", ["secret = 1", "name ==== 'x'", "name = 'x') or (", "1=1) or (1=1", "1=1 limit 1"])
def test_a_where_that_is_not_a_condition_is_a_fault(any_application: Application, where: str) -> None:
    any_application.migrate()
    (fault,) = faults(any_application, only(tags=f'where = "{where}"'))
    assert fault.startswith('database.tables.tags.where: not a condition over the columns of "tags": ')


@pytest.mark.parametrize(
    "where", ["name <> 'x' -- or so", "name not in ('a::b', ':c', '%d')", '\\"name\\" is not null']
)
def test_a_where_with_unusual_characters_is_accepted(any_application: Application, where: str) -> None:
    any_application.migrate()
    assert inspected(any_application, only(tags=f'where = "{where}"')).keys() == {"tags"}


def test_a_table_with_a_where_is_tried_once_without_it(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    statements: list[str] = []

    def record(_1: object, _2: object, statement: str, *_: object) -> None:
        statements.append(statement)

    sa.event.listen(sqlite_application.engine, "before_cursor_execute", record)
    inspected(sqlite_application, only(tags="where = \"name <> 'x'\""))
    assert sum(statement.startswith("SAVEPOINT") for statement in statements) == 2  # without, and with it


def test_a_where_on_a_table_that_cannot_be_read_is_no_fault(postgres_application: Application) -> None:
    """A missing right may be granted again, and the mapping is not wrong."""
    postgres_application.migrate()
    with postgres_application.engine.begin() as connection:
        tables = inspect(connection, postgres_application.settings(only(tags="where = \"name <> 'x'\"")).tables)
        connection.exec_driver_sql(f'set local role "{PASSWORD_ROLE}"')
        assert inspect_again(connection, tables, wheres=True) == tables


def test_faults_leave_the_transaction_usable(any_application: Application) -> None:
    any_application.migrate()
    with any_application.engine.begin() as connection:
        with pytest.raises(MappingError):
            inspect(connection, any_application.settings(only(tags="where = 'nothing'")).tables)
        assert connection.execute(sa.text("select 1")).scalar() == 1


def test_names_that_need_quoting(any_application: Application) -> None:
    any_application.execute('create table "Weird ""Tags" ("tag id" text, "Name:x" text, "50%" text)')
    more = only(tags='name = "Weird \\"Tags"\ncolumns = { id = "tag id", name = "Name:x", color = "50%" }')
    table = inspected(any_application, more)["tags"]
    assert [column.name for column in table.columns.values()] == ["tag id", "Name:x", "50%"]


def test_sqlite_finds_names_in_any_case(sqlite_application: Application) -> None:
    sqlite_application.execute("create table Tags (ID text, Name text, COLOR text)")
    table = inspected(sqlite_application, only(tags='name = "main.tags"\ncolumns = { color = "Color" }'))["tags"]
    assert table.name == "Tags"
    assert [column.name for column in table.columns.values()] == ["ID", "Name", "COLOR"]


def test_sqlite_virtual_tables_and_other_schemas_are_faults(sqlite_application: Application) -> None:
    sqlite_application.execute("create virtual table tags using fts5(id, name, color)")
    assert faults(sqlite_application, only(tags="")) == (
        'database.tables.tags.name: "tags" is a virtual table, which has no triggers',
    )
    assert "there is no table" in faults(sqlite_application, only(tags='name = "temp.tags"'))[0]


def test_postgres_names_with_schema_and_case(postgres_application: Application) -> None:
    postgres_application.execute(
        "create schema chat", 'create table chat."a.b" (id int8, name text, color text)', "create schema tags"
    )
    table = inspected(postgres_application, only(tags='name = ["chat", "a.b"]'))["tags"]
    assert (table.schema, table.name) == ("chat", "a.b")
    assert "there is no table" in faults(postgres_application, only(tags='name = "chat.A"'))[0]


def test_postgres_parents_by_inheritance_are_faults(postgres_application: Application) -> None:
    postgres_application.execute(
        "create table tags (id text, name text, color text)", "create table more_tags () inherits (tags)"
    )
    (fault,) = faults(postgres_application, only(tags=""))
    assert fault.startswith('database.tables.tags.name: "tags" has child tables that inherit from it')


def test_postgres_domains_are_read_as_their_base_types(postgres_application: Application) -> None:
    postgres_application.execute(
        "create domain short as varchar(4)",
        "create domain shorter as short",
        "create domain number as int check (value > 5)",
        "create table tags (id number, name shorter, color char(3))",
    )
    columns = inspected(postgres_application, only(tags=""))["tags"].columns
    assert [(column.type, column.sql_type) for column in columns.values()] == [
        ("integer", "integer"),
        ("text", "character varying"),
        ("text", "bpchar"),
    ]


def test_a_missing_right_to_read_is_a_fault(postgres_application: Application, postgres: Postgres) -> None:
    postgres_application.migrate()
    database = sa.make_url(postgres_application.url).database
    assert database is not None
    other = Application(postgres.password_url(database))
    (fault,) = faults(other, only(tags=""))
    other.engine.dispose()
    assert fault.startswith('database.tables.tags.name: "tags" cannot be read: InsufficientPrivilege 42501: ')


def test_time_column_that_postgres_cannot_order_is_a_fault(postgres_application: Application) -> None:
    """The query for the channel of a conversation's metadata orders the messages by time."""
    postgres_application.migrate()
    postgres_application.execute(
        "drop index messages_conversation", "alter table messages alter sent_at type json using to_json(sent_at)"
    )
    (fault,) = faults(postgres_application)
    assert fault.startswith('database.tables.messages.name: "messages" cannot be read: ')
    assert "ordering operator" in fault


def test_virtual_column_that_triggers_would_log_is_a_fault(postgres: Postgres) -> None:
    """Postgres would reject the writes of the application. A stored generated column is no fault."""
    form = "virtual" if postgres.binaries.version >= VIRTUAL_SINCE else "stored"
    with application(postgres.url(postgres.create_database())) as generated:
        generated.execute(
            f"create table channels (id text, source text generated always as ('s' || id) {form}, "
            f"source_channel_id text, connected boolean generated always as (id is not null) {form}, "
            "updated_at timestamptz)",
            f"create table tags (id text generated always as ('t' || name) {form}, name text, color text)",
        )
        if form == "virtual":
            assert faults(generated, only(channels="", tags="")) == tuple(
                f'database.tables.{kind}.columns.{field}: "{field}" of "{kind}" is a virtual generated column, which '
                "triggers cannot read; create it as STORED, or map another column"
                for kind, field in (("channels", "source"), ("tags", "id"))
            )
        else:
            assert set(inspected(generated, only(channels="", tags=""))) == {"channels", "tags"}
        with generated.engine.begin() as connection:
            assert inspect(connection, generated.settings(only(channels="")).tables, watermarks=True)


def test_inspection_that_waits_for_a_locked_table_keeps_no_other(postgres_application: Application) -> None:
    """If it kept one, a migration of two tables would end in a deadlock. A server inspects every few seconds."""
    postgres_application.migrate()
    waits = sa.text("select count(*) from pg_locks where not granted and relation = cast('tags' as regclass)")
    with ThreadPoolExecutor() as threads:
        with postgres_application.engine.begin() as migration:
            migration.exec_driver_sql("alter table tags add more int")
            found = threads.submit(inspected, postgres_application)
            while not migration.execute(waits).scalar_one():
                assert not found.done()
            migration.exec_driver_sql("lock table messages, metadata, channels in access exclusive mode nowait")
        assert set(found.result()) == set(KINDS)


def test_text_of_the_mapping_that_the_event_log_cannot_store(postgres: Postgres) -> None:
    with application(postgres.url(postgres.create_database(encoding="LATIN1"))) as latin:
        latin.execute("create table chat (id text, body text, sent_at text, kind text)")
        tables = latin.settings(
            only(
                messages="""
                name = "chat"
                columns = { content = "body", channel_id = "kind" }
                constants.conversation_id = "会"
                constants.source = "会"
                constants.sender_id = "1"
                constants.delivery_state = "delivered"
                constants.from_contact = true
                values.channel_id = { web = "é", phone = "☎" }
                """
            )
        ).tables
        with latin.engine.begin() as connection:
            with pytest.raises(MappingError) as caught:
                inspect(connection, tables, holds_log=True)
            assert inspect(connection, tables)
    assert caught.value.faults == tuple(
        f'database.tables.messages.{setting}: "{text}" has a character that the database\'s encoding, LATIN1, lacks; '
        "use another text, or store the event log elsewhere (log.url)"
        for setting, text in {"constants.conversation_id": "会", "values.channel_id.phone": "☎"}.items()
    )
