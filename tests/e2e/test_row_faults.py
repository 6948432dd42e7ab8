"""Rows that cannot be converted, each among good ones in one transaction: reported, counted and skipped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from airy_trio.database import SQLITE
from tests.admin.serving import Port, free_port
from tests.application import Application, application
from tests.clients.client_processes import stompman
from tests.e2e.route import configure, events_of, listening
from tests.postgres import Postgres
from tests.processes import Program, json_object, server

TIMEOUT_S = 40.0
DEPTH = 10_000
TAG = "insert into tags values ({}, 'flag', 'red')"
UNTIMELY = "sent_at is not a time between the years 1 and 9999"
TOO_DEEP = "content is nested deeper than 500"
NAMELESS = {
    TAG.format("null"): ("tags", "id is NULL"),
    "insert into channels values ('ch1', null, 'x', true)": ("channels", "source is NULL"),
    "insert into metadata (subject, identifier, key) values ('message', null, 'k')": ("metadata", "identifier is NULL"),
}
LENIENT_TABLES = (  # the default tables without their constraints
    "create table tags (id text, name text, color text)",
    "create table channels (id text, source text, source_channel_id text, connected boolean)",
    "create table metadata (subject text, identifier text, key text, value text, value_type text, updated_at {moment})",
    """
    create table messages (id text, conversation_id text, channel_id text, content {json}, delivery_state text,
    from_contact boolean, sent_at {time}, source text, sender_id text)
    """,
)


def message(*, content: str = "null", sent_at: str = "'2024-01-01'", conversation: str = "'c1'") -> str:
    """Return a message with its values as SQL. Its id names the special value."""
    id_ = (content + sent_at + conversation).replace("'", "")[-30:]
    return (
        f"insert into messages values ('{id_}', {conversation}, 'ch1', {content}, 'failed', true, {sent_at}, 's', '')"
    )


def deep(cast: str = "") -> str:
    return f"'{'[' * DEPTH}{']' * DEPTH}'{cast}"


ON_SQLITE = NAMELESS | {
    TAG.format("'a' || char(0) || 'b'"): ("tags", "id has a NUL"),
    TAG.format("cast(x'ff41' as text)"): ("tags", "id is not UTF-8 text"),
    "insert into tags values ('t', cast(x'c3' as text), 'red')": ("tags", "name is not UTF-8 text"),
    "insert into channels values ('ch' || char(0), 's', 'x', true)": ("channels", "id has a NUL"),
    "insert into metadata (subject, identifier, key) values ('message', 'm' || char(0), 'k')": (
        "metadata",
        "identifier has a NUL",
    ),
    "insert into metadata values ('message', 'm', 'k', 'v', 'text', 'NaN')": ("metadata", "updated_at is not a time"),
    message(conversation="'c' || char(0)"): ("messages", "conversation_id has a NUL"),
    message(conversation="null"): ("messages", "conversation_id is NULL"),
    message(sent_at="null"): ("messages", "sent_at is NULL"),
    message(sent_at="9e999"): ("messages", UNTIMELY),
    message(sent_at="-9e999"): ("messages", UNTIMELY),
    message(sent_at="'infinity'"): ("messages", UNTIMELY),
    message(sent_at="'0044-03-15 12:00:00 BC'"): ("messages", UNTIMELY),
    message(sent_at="'NaN'"): ("messages", UNTIMELY),
    message(content=deep()): ("messages", TOO_DEEP),
    message(content="'NaN'"): ("messages", "content is not valid JSON"),
    message(content="cast(x'22ff22' as text)"): ("messages", "content is not UTF-8 text"),
}
ON_POSTGRES = NAMELESS | {
    message(conversation="null"): ("messages", "conversation_id is NULL"),
    message(sent_at="null"): ("messages", "sent_at is NULL"),
    message(sent_at="'infinity'"): ("messages", UNTIMELY),
    message(sent_at="'-infinity'"): ("messages", UNTIMELY),
    message(sent_at="'0044-03-15 12:00:00 BC'"): ("messages", UNTIMELY),
    message(sent_at="'294276-12-31'"): ("messages", UNTIMELY),
    message(content=deep()): ("messages", TOO_DEEP),
    "insert into metadata values ('message', 'm', 'k', 'v', 'text', 'NaN')": ("metadata", "updated_at is not a time"),
}
NOT_A_NUMBER = {
    message(sent_at="'NaN'"): ("messages", UNTIMELY),
    message(sent_at="'Infinity'"): ("messages", UNTIMELY),
    message(sent_at="-1e15"): ("messages", UNTIMELY),
    "insert into metadata values ('message', 'm', 'k', 'v', 'text', 'NaN')": ("metadata", "updated_at is not a time"),
}
OUT_OF_RANGE = (
    "messages",
    "cannot be read: the database refuses one of its values, or where fails on it (DatetimeFieldOverflow 22008)",
)
WITHOUT_ENCODING = {
    TAG.format(r"convert_from('\xff41', 'SQL_ASCII')"): ("tags", "id is not UTF-8 text"),
    r"insert into tags values ('t', convert_from('\xc3', 'SQL_ASCII'), 'red')": ("tags", "name is not UTF-8 text"),
    message(content=r"convert_from('\xff', 'SQL_ASCII')"): ("messages", "content is not UTF-8 text"),
}
Faults = Mapping[str, tuple[str, str]]


def prepare(writing: Application, *, json: str = "json", time: str = "timestamptz", moment: str = "float8") -> None:
    """Create tables that accept what the default ones reject. ``moment``: the type of ``metadata.updated_at``."""
    if writing.dialect == SQLITE:
        time = moment = "any"
    writing.execute(*(table.format(json=json, time=time, moment=moment) for table in LENIENT_TABLES))


async def assert_skipped(writing: Application, faults: Faults, folder: Path, more: str = "") -> None:
    """Write all in one transaction, each between two good rows, and check events, log and metrics."""
    config = configure(writing, folder, more)
    port = Port(free_port())
    config.write_text(config.read_text().replace("[admin]\nport = 0", f"[admin]\nport = {port.number}"))
    good = [f"good-{number}" for number in range(len(faults) + 1)]
    pairs = zip((TAG.format(f"'{id_}'") for id_ in good), faults, strict=False)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours, stompman(serving.url) as theirs:
            with writing.engine.begin() as connection:
                for statement in [part for pair in pairs for part in pair]:
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(TAG.format(f"'{good[-1]}'"))
            received = await ours.upto(lambda event: event.object == ("tag", good[-1]))
            assert [event.object[1] for event in received if event.type == "tag.updated"] == good
            rest = [event.payload for event in received if event.type != "tag.updated"]
            assert [pair["metadata"] for pair in rest] == [{} for _ in rest]  # bad rows of metadata are left out
            assert events_of(await theirs.messages(len(received))) == received
            assert (await port.samples())["airy_trio_row_faults_total", ()] == len(faults)
            assert await serving.terminate() == 0
    counted = Counter((fault["table"], fault["reason"]) for fault in named(serving))
    assert (counted - Counter(faults.values()), Counter(faults.values()) - counted) == ({}, {})
    assert all(fault["key"] for fault in named(serving))


def named(program: Program) -> Sequence[Mapping[str, Any]]:
    records = map(json_object, program.err.all)
    return [record for record in records if record.get("event") == "row fault"]


@pytest.mark.parametrize("log", ["sqlite", "postgres"])
async def test_row_faults_of_sqlite(
    log: str, request: pytest.FixtureRequest, sqlite_application: Application, tmp_path: Path
) -> None:
    """The log is in Postgres, which can store less than an SQLite file."""
    sqlite_application.execute("select 1")
    prepare(sqlite_application)
    url = f"sqlite:///{tmp_path}/e.db" if log == "sqlite" else request.getfixturevalue("postgres_database")
    await assert_skipped(sqlite_application, ON_SQLITE, tmp_path, f'[log]\nurl = "{url}"\n')


async def test_row_faults_of_postgres(postgres_application: Application, tmp_path: Path) -> None:
    database = postgres_application.url.rpartition("/")[2]
    postgres_application.execute(f"alter database {database} set max_stack_depth = '7MB'")  # needed to parse such JSON
    postgres_application.engine.dispose()
    prepare(postgres_application, json="jsonb")
    await assert_skipped(postgres_application, ON_POSTGRES, tmp_path)


@pytest.mark.parametrize("type_", ["numeric", "double precision", "real"])
async def test_row_faults_of_invalid_numbers(postgres_application: Application, tmp_path: Path, type_: str) -> None:
    prepare(postgres_application, time=type_, moment=type_)
    timeless = {statement.replace("'2024-01-01'", "0"): fault for statement, fault in NOT_A_NUMBER.items()}
    await assert_skipped(postgres_application, timeless, tmp_path)


@pytest.mark.parametrize("type_, time", [("date", "5874897-12-31"), ("timestamp", "294276-12-31 23:59:59")])
async def test_row_faults_of_times_beyond_the_range_of_a_cast(
    postgres_application: Application, tmp_path: Path, type_: str, time: str
) -> None:
    prepare(postgres_application, time=type_)
    zone = '[database.tables.messages]\ntime_zone = "America/New_York"\n'
    await assert_skipped(postgres_application, {message(sent_at=f"'{time}'"): OUT_OF_RANGE}, tmp_path, zone)


async def test_row_faults_of_a_database_without_encoding(postgres: Postgres, tmp_path: Path) -> None:
    """Its log is in the same database."""
    name = postgres.create_database(encoding="SQL_ASCII")
    with application(postgres.url(name)) as writing:
        prepare(writing, json="text")
        await assert_skipped(writing, WITHOUT_ENCODING, tmp_path)
    postgres.drop_database(name)
