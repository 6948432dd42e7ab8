"""Mappings of existing schemas, and the objects that the feed returns for them."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airy_trio.capture.feed import ChangedObject, Channel, Message, MessageGone, Metadata, Tag, TagGone
from airy_trio.database import POSTGRES, SQLITE
from airy_trio.events.models import Json, MessageUpdated
from airy_trio.events.translate import EventsOptions, translate
from tests.application import Application, only
from tests.capture.feeds import NO_LOG, feed_of, read_all


async def read(application: Application, more: str, *statements: str) -> list[ChangedObject]:
    settings = application.migrate(more + NO_LOG, with_tables=False)
    async with feed_of(application, settings) as feed:
        start = await feed.origin()
        application.execute(*statements)
        return (await read_all(feed, start))[0]


@pytest.mark.parametrize(
    "values, subject, identifier",
    [
        ('subject = { "Conversation" = "conversation" }', "Conversation", "c1"),
        ('identifier = { "1" = "c1" }', "conversation", "1"),
    ],
)
async def test_values_of_the_key_of_metadata(
    any_application: Application, values: str, subject: str, identifier: str
) -> None:
    any_application.execute("create table metadata (subject text, identifier text, key text, value text)")
    more = only(metadata=f"values = {{ {values} }}")
    (found,) = await read(any_application, more, f"insert into metadata values ('{subject}', '{identifier}', 'k', 'v')")
    assert isinstance(found, Metadata)
    assert (found.subject, found.identifier) == ("conversation", "c1")


async def test_names_that_need_quoting(any_application: Application) -> None:
    any_application.execute('create table "Weird Tags" ("tag id" text primary key, "name" text, "color:x" text)')
    more = only(tags='name = "Weird Tags"\ncolumns = { id = "tag id", color = "color:x" }')
    assert await read(
        any_application,
        more,
        """insert into "Weird Tags" values ('a''b', 'N', 'red')""",
        """insert into "Weird Tags" values ('c', 'N', 'red')""",
        """delete from "Weird Tags" where "tag id" = 'c'""",
    ) == [Tag(id="a'b", name="N", color="red"), TagGone(id="c")]


@pytest.mark.parametrize("name", ['"chat.tags"', '["chat", "ta.gs"]'])
async def test_mapped_table_may_be_in_another_schema(postgres_application: Application, name: str) -> None:
    table = 'chat."ta.gs"' if "ta.gs" in name else "chat.tags"
    postgres_application.execute("create schema chat", f"create table {table} (id text, name text, color text)")
    found = await read(postgres_application, only(tags=f"name = {name}"), f"insert into {table} values ('a', 'b', 'c')")
    assert found == [Tag(id="a", name="b", color="c")]


THREADS = """
    create table notes (
        id integer primary key, thread_id integer, body text, inbound integer, "when" bigint, private {bool},
        state integer
    )
"""
THREADS_MAPPED = only(
    messages="""
    name = "notes"
    where = "private = false"
    constants = { channel_id = "web", source = "chat" }
    [database.tables.messages.columns]
    conversation_id = "thread_id"
    content = "body"
    from_contact = "inbound"
    sent_at = "when"
    delivery_state = "state"
    sender_id = "thread_id"
    [database.tables.messages.values]
    from_contact = { "0" = true, "1" = false }
    delivery_state = { "3" = "failed" }
    conversation_id = { "7" = "seven" }
    """
)


def note(application: Application, id_: int, thread: int = 1, *, private: bool = False) -> None:
    application.execute(
        "insert into notes values (:id, :thread, 'hi', 0, 1600000000123, :private, 3)",
        id=id_, thread=thread, private=private,
    )  # fmt: skip


async def test_columns_constants_values_and_where(any_application: Application) -> None:
    any_application.execute(THREADS.format(bool="boolean"))
    settings = any_application.migrate(THREADS_MAPPED + NO_LOG, with_tables=False)
    async with feed_of(any_application, settings) as feed:
        after = await feed.origin()
        note(any_application, 1)
        note(any_application, 2, private=True)
        note(any_application, 3, thread=7)
        first, private, third = (await read_all(feed, after))[0]
        _, after, _ = await read_all(feed, after)
        any_application.execute("update notes set private = true where id = 1", "delete from notes where id = 3")
        hidden, gone = (await read_all(feed, after))[0]
    assert isinstance(first, Message)
    assert isinstance(third, Message)
    (event,) = translate([first], EventsOptions()).events
    assert event == MessageUpdated(
        id="1", conversation_id="1", channel_id="web", content=Json('"hi"'), delivery_state="failed", from_contact=True,
        sent_at="2020-09-13T12:26:40.123Z", source="chat", sender_id="1",
    )  # fmt: skip
    assert third.conversation_id == "seven"
    for changed, id_, conversation in ((private, "2", "1"), (hidden, "1", "1"), (gone, "3", "seven")):
        assert isinstance(changed, MessageGone)
        assert (str(changed.id), str(changed.conversation_id), changed.channel_id) == (id_, conversation, "web")


MESSAGES = (
    "create table messages (id {id}, conversation_id {id}, channel_id {id}, content {content}, delivery_state text, "
    "from_contact boolean, sent_at {time}, source text, sender_id {id})"
)


async def message_of(
    application: Application, types: Mapping[str, str], values: Mapping[str, Any], more: str = ""
) -> Message:
    types = {"id": "text", "content": "text", "time": "text"} | dict(types)
    application.execute(MESSAGES.format(**types))
    values = {"id": "m1", "content": "hi", "time": "2020-01-01T00:00:00Z"} | dict(values)
    casts = {name: f":{name}" if application.dialect == SQLITE else f"cast(:{name} as {types[name]})" for name in types}
    settings = application.migrate(only(messages=more) + NO_LOG, with_tables=False)
    async with feed_of(application, settings) as feed:
        start = await feed.origin()
        application.execute(
            "insert into messages (id, conversation_id, channel_id, content, sent_at, delivery_state, from_contact, "
            "source) values ({id}, {id}, {id}, {content}, {time}, 'pending', true, 'x')".format(**casts),
            **values,
        )
        (found,) = (await read_all(feed, start))[0]
    assert isinstance(found, Message)
    return found


def sent_at(message: Message) -> str:
    (event,) = translate([message], EventsOptions()).events
    assert isinstance(event, MessageUpdated)
    return event.sent_at


@pytest.mark.parametrize("type_, id_", [("integer", 2**31 - 1), ("bigint", 2**63 - 1), ("bigint", -5)])
async def test_integer_ids(any_application: Application, type_: str, id_: int) -> None:
    found = await message_of(any_application, {"id": type_}, {"id": id_})
    assert (str(found.id), str(found.conversation_id), str(found.channel_id)) == (str(id_),) * 3


@pytest.mark.parametrize("type_", ["uuid", "numeric", "varchar(40)", "char(40)", "double precision", "bytea"])
async def test_other_types_of_ids(postgres_application: Application, type_: str) -> None:
    id_: Any = {"uuid": uuid.UUID(int=7), "bytea": b"\x01"}.get(type_, "123")
    found = await message_of(postgres_application, {"id": type_}, {"id": id_})
    assert str(found.id).strip() == {"uuid": str(id_), "bytea": "\\x01"}.get(type_, "123")


@pytest.mark.parametrize("type_", ["text", "jsonb"])
async def test_content_form_of_the_mapping_overrides_the_type(any_application: Application, type_: str) -> None:
    found = await message_of(any_application, {"content": type_}, {"content": '{"a": 1}'}, 'content = "text"')
    assert (found.content, found.content_form) == ('{"a": 1}', "text")


@pytest.mark.parametrize("type_", ["json", "jsonb"])
async def test_json_content(any_application: Application, type_: str) -> None:
    found = await message_of(any_application, {"content": type_}, {"content": '{"a": 1}'})
    assert (found.content, found.content_form) == ('{"a": 1}', "json")


@pytest.mark.parametrize(
    "type_, value, zone, expected",
    [
        (
            "timestamptz",
            datetime(2020, 6, 1, 12, 0, 0, 999999, tzinfo=UTC),
            "Europe/Berlin",
            "2020-06-01T12:00:00.999Z",
        ),
        ("timestamp", datetime(2020, 6, 1, 12), "Europe/Berlin", "2020-06-01T10:00:00.000Z"),  # noqa: DTZ001 - as stored
        ("timestamp", datetime(2020, 1, 1, 12), "Europe/Berlin", "2020-01-01T11:00:00.000Z"),  # noqa: DTZ001 - as stored
        ("date", datetime(2020, 6, 1), "Europe/Berlin", "2020-05-31T22:00:00.000Z"),  # noqa: DTZ001 - as stored
        ("bigint", 1600000000123, "Europe/Berlin", "2020-09-13T12:26:40.123Z"),
        ("double precision", 1600000000123.5, "UTC", "2020-09-13T12:26:40.123Z"),
        ("numeric", 1600000000123, "UTC", "2020-09-13T12:26:40.123Z"),
        ("text", "2020-06-01 12:00:00", "Europe/Berlin", "2020-06-01T10:00:00.000Z"),
        ("text", "2020-06-01T12:00:00+02:00", "UTC", "2020-06-01T10:00:00.000Z"),
        ("text", "1600000000123", "UTC", "2020-09-13T12:26:40.123Z"),
    ],
)
async def test_times(postgres_application: Application, type_: str, value: object, zone: str, expected: str) -> None:
    with postgres_application.engine.begin() as connection:
        database = connection.exec_driver_sql("select current_database()").scalar()
        connection.exec_driver_sql(f"alter database {database} set timezone = 'Asia/Tokyo'")
        connection.exec_driver_sql(f"alter database {database} set datestyle = 'SQL, DMY'")
    postgres_application.engine.dispose()
    found = await message_of(postgres_application, {"time": type_}, {"time": value}, f'time_zone = "{zone}"')
    assert sent_at(found) == expected
    assert found.time_zone == ZoneInfo(zone)


@pytest.mark.parametrize(
    "value, zone, expected",
    [
        (1600000000123, "Europe/Berlin", "2020-09-13T12:26:40.123Z"),
        ("2020-06-01 12:00:00", "Europe/Berlin", "2020-06-01T10:00:00.000Z"),
        ("2020-06-01T12:00:00Z", "Europe/Berlin", "2020-06-01T12:00:00.000Z"),
    ],
)
async def test_times_in_sqlite(sqlite_application: Application, value: object, zone: str, expected: str) -> None:
    found = await message_of(sqlite_application, {"time": "any"}, {"time": value}, f'time_zone = "{zone}"')
    assert sent_at(found) == expected


@pytest.mark.parametrize("time", ["infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-01-01"])
async def test_impossible_times_do_not_fail_the_batch(postgres_application: Application, time: str) -> None:
    postgres_application.migrate()
    settings = postgres_application.settings()
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        postgres_application.message(id="bad", sent_at=time)
        postgres_application.message(id="good")
        translation = translate((await read_all(feed, start))[0], EventsOptions())
    assert [event.id for event in translation.events if isinstance(event, MessageUpdated)] == ["good"]
    assert [fault.key for fault in translation.faults] == ["bad"]


UNREADABLE = "the database refuses one of its values, or where fails on it"
FAILS_ON_SECRET = {
    SQLITE: ("json_extract(content, '$.private') is null", "not json: secret", "OperationalError SQLITE_ERROR"),
    POSTGRES: ("cast(content as int) > 0", "secret", "InvalidTextRepresentation 22P02"),
}


async def test_a_row_on_which_where_fails_affects_no_other_row(any_application: Application) -> None:
    where, secret, error = FAILS_ON_SECRET[any_application.dialect]
    any_application.migrate()
    settings = any_application.settings(f'[database.tables.messages]\nwhere = "{where}"\n')
    async with feed_of(any_application, settings) as feed:
        start = (await feed.read(await feed.origin(), 1000)).resume_point
        for id_, content in ("m1", "1"), ("bad", secret), ("m2", "2"), ("worse", secret):
            any_application.message(id=id_, content=content, conversation_id=f"c-{id_}")
            any_application.metadata("message", id_, "k", "v")
            any_application.metadata("conversation", f"c-{id_}", "k", "v")
        any_application.tag()
        batch = await feed.read(start, 1000)
        assert (await feed.read(batch.resume_point, 1000)).changes == 0
    translation = translate(batch.objects, EventsOptions())
    events = [(event.type, event.conversation_id) for event in translation.events]
    assert events == [
        (type_, f"c-{id_}")
        for id_ in ("m1", "m2")
        for type_ in ("message.updated", "metadata.updated", "metadata.updated")
    ] + [("tag.updated", None)]
    assert [(fault.table, fault.key, fault.reason) for fault in translation.faults] == [
        fault
        for id_ in ("bad", "worse")
        for fault in (
            ("messages", id_, f"cannot be read: {UNREADABLE} ({error})"),
            ("metadata", f"message:{id_}", f"its message cannot be read: {UNREADABLE} ({error})"),
            ("metadata", f"conversation:c-{id_}", f"its conversation cannot be read: {UNREADABLE} ({error})"),
        )
    ]


async def test_a_batch_full_of_unreadable_rows_is_read(postgres_application: Application) -> None:
    postgres_application.migrate()
    postgres_application.execute("alter table messages alter sent_at type date")
    async with feed_of(postgres_application, postgres_application.settings()) as feed:
        start = await feed.origin()
        postgres_application.execute(
            "insert into messages select 'm' || n, 'c', 'ch', '', 'failed', true, "
            "case when n % 3 = 0 then date '2020-01-01' else date '5874897-12-31' end, 's', 'x' "
            "from generate_series(1, 300) n"
        )
        (found, _, _) = await read_all(feed, start)
    readable = [changed.id for changed in found if isinstance(changed, Message)]
    assert readable == [f"m{n}" for n in range(3, 301, 3)]
    assert len(translate(found, EventsOptions()).faults) == 200


async def test_invalid_utf_8_in_a_database_without_encoding(postgres_application: Application) -> None:
    with postgres_application.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("create database ascii encoding 'SQL_ASCII' template template0")
    application = Application(postgres_application.url.rpartition("/")[0] + "/ascii")
    try:
        settings = application.migrate()
        async with feed_of(application, settings) as feed:
            start = await feed.origin()
            application.execute(
                "insert into tags values ('bad', convert_from('\\xff'::bytea, 'SQL_ASCII'), 'red')",
                "insert into tags values (:good, 'flag', 'red')",
                good="gööd",
            )
            objects, _, _ = await read_all(feed, start)
        assert objects == [Tag(id="bad", name=b"\xff", color="red"), Tag(id="gööd", name="flag", color="red")]
    finally:
        application.engine.dispose()
        with postgres_application.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("drop database ascii with (force)")


def entries(found: Metadata) -> list[tuple[Any, ...]]:
    return [(entry.key, entry.value, entry.value_type) for entry in found.entries]


async def test_metadata_in_the_form_of_airy(any_application: Application) -> None:
    any_application.execute(
        "create table metadata (subject text, key text, value text)",
        MESSAGES.format(id="text", content="text", time="text"),
    )
    first, second, third = await read(
        any_application,
        only(metadata="", messages=""),
        "insert into messages (id, conversation_id, channel_id) values ('m:1', 'c1', 'ch1')",
        "delete from messages",
        "insert into metadata values ('conversation:x:1', 'k', '1')",
        "insert into metadata values ('message:m', 'k', '2')",
    )
    assert isinstance(first, MessageGone)
    assert isinstance(second, Metadata)
    assert isinstance(third, Metadata)
    assert (second.subject, second.identifier, entries(second)) == ("conversation:x", "1", [("k", "1", None)])
    assert (third.subject, third.identifier, entries(third)) == ("message", "m", [("k", "2", None)])


async def test_metadata_of_one_subject_only(any_application: Application) -> None:
    any_application.execute(
        "create table facts (owner integer, key text, value text)", "create table m (id integer, c integer, i integer)"
    )
    more = only(
        metadata='name = "facts"\ncolumns = { identifier = "owner" }\n'
        'constants = { subject = "message", value_type = "number" }',
        messages='name = "m"\ncolumns = { conversation_id = "c", channel_id = "i" }\n'
        'constants = { content = "", delivery_state = "pending", from_contact = true, sent_at = 0, source = "x", '
        'sender_id = "y" }',
    )
    message, found = await read(
        any_application, more, "insert into m values (5, 6, 7)", "insert into facts values (5, 'k', '1')"
    )
    assert isinstance(message, Message)
    assert isinstance(found, Metadata)
    assert (found.subject, str(found.identifier), entries(found)) == ("message", "5", [("k", "1", "number")])
    assert (str(found.conversation_id), str(found.channel_id)) == ("6", "7")


async def test_metadata_row_excluded_by_where_is_not_sent(any_application: Application) -> None:
    any_application.execute("create table metadata (subject text, identifier text, key text, value text)")
    (found,) = await read(
        any_application,
        only(metadata="where = \"key <> 'secret'\""),
        "insert into metadata values ('channel', '1', 'secret', 's'), ('channel', '1', 'shown', 'v')",
    )
    assert isinstance(found, Metadata)
    assert entries(found) == [("shown", "v", None)]


@pytest.mark.parametrize(
    "type_, another",
    [
        ("smallint", "7"),
        ("uuid", "00000000-0000-0000-0000-000000000007"),
        ("numeric(4, 1)", "7"),
        ("varchar(1)", "7"),
        ("inet", "::7"),
    ],
)
async def test_metadata_of_an_impossible_id_does_not_fail_the_batch(
    postgres_application: Application, type_: str, another: str
) -> None:
    postgres_application.execute(
        MESSAGES.format(id=type_, content="text", time="text"),
        "create table metadata (subject text, identifier text, key text, value text)",
    )
    settings = postgres_application.migrate(only(metadata="", messages=""), with_tables=False)
    # Postgres casts the requested id only if there is a row to compare it with.
    postgres_application.execute("insert into messages (id, conversation_id) values (:id, :id)", id=another)
    async with feed_of(postgres_application, settings) as feed:
        point = await feed.origin()
        for identifier in ("x", "99999999999999999999", "00000000-0000-0000-0000-00000000000g", "1.5", "", "ä\\"):
            for subject in ("message", "conversation"):
                postgres_application.execute(
                    "insert into metadata values (:subject, :identifier, 'k', 'v')",
                    subject=subject,
                    identifier=identifier,
                )
            found, point, _ = await read_all(feed, point)
            assert [(o.subject, o.identifier, o.conversation_id) for o in found if isinstance(o, Metadata)] == [
                ("message", identifier, None),
                ("conversation", identifier, None),
            ]


async def test_channels_that_are_text(any_application: Application) -> None:
    any_application.execute("create table channels (id text, source text, source_channel_id text, connected text)")
    (found,) = await read(
        any_application, only(channels=""), "insert into channels values ('1', 'x', 'y', 'CONNECTED')"
    )
    assert found == Channel(id="1", source="x", source_channel_id="y", connected="CONNECTED")
