"""Checks of the newest rows: rows that cannot be converted, and values that the mapping does not list."""

import pytest

from airy_trio.check import Report, check, rows
from tests.application import Application, only

COLUMNS = (
    "(id text primary key, conversation_id text, channel_id text, content text, delivery_state text, "
    "from_contact boolean, sent_at {time}, source text, sender_id text)"
)
MESSAGES = "database.tables.messages"
SECRET = "a secret that no report may hold"


@pytest.fixture
def lenient(any_application: Application) -> Application:
    """A database whose messages have columns that accept any value."""
    return with_lenient_messages(any_application)


def with_lenient_messages(application: Application) -> Application:
    time = "timestamptz" if application.dialect == "postgresql" else "text"
    application.execute(f"create table messages {COLUMNS.format(time=time)}")
    return application


def mapped(application: Application, options: str) -> Report:
    """Check a database with this mapping of the messages."""
    return check(application.migrate(f"[{MESSAGES}]\n{options}\n"))


def of_tables(report: Report) -> list[str]:
    return [line for line in report.of("warning") if line.startswith("database.tables.")]


def test_rows_that_cannot_be_converted_are_counted_by_reason(lenient: Application) -> None:
    for number in range(3):
        lenient.message(id=f"bad{number}", sent_at=None, content=SECRET)
    lenient.message(id="unowned", channel_id=None)
    lenient.message(id="good")
    report = check(lenient.migrate())
    assert report.of("problem") == ()
    newest = "of the newest 5 by sent_at cannot be converted and would not be sent"
    untimely, unowned = of_tables(report)
    assert untimely.startswith(f"{MESSAGES}: 3 {newest}: sent_at is NULL; one is bad")
    assert unowned == f"{MESSAGES}: 1 {newest}: channel_id is NULL; one is unowned"
    assert SECRET not in str(report)


@pytest.mark.parametrize("good", [0, 1])
def test_mapping_that_converts_no_row_is_a_problem(lenient: Application, good: int) -> None:
    for number in range(rows.ALL_MIN):
        lenient.message(id=f"m{number}", sent_at=None if number >= good else "2020-01-01T00:00:00Z")
    report = check(lenient.migrate())
    (warning,) = of_tables(report)
    assert f"{rows.ALL_MIN - good} of the newest {rows.ALL_MIN} by sent_at cannot be converted" in warning
    finding = "none of the newest rows can be converted, so the server would send nothing of this table"
    assert report.of("problem") == (() if good else (f"{MESSAGES}: {finding}",))


@pytest.mark.parametrize(
    "unit, reported",
    [(10**6, "has no time in any row, so the server"), (1000, None), (1, "has no time after 1970, so a row that")],
)
def test_unit_of_updated_at_is_checked(any_application: Application, unit: int, reported: str | None) -> None:
    any_application.execute("create table tags (id text primary key, name text, color text, updated_at bigint)")
    for number in range(rows.ALL_MIN):
        values = f"('t{number}', 'flag', 'red', {(1_600_000_000 + number) * unit})"
        any_application.execute(f"insert into tags values {values}")
    polled = '[changes]\ncapture = "updated_at"\n[log]\nstore = "memory"\n'
    report = check(any_application.settings(only(tags="") + polled))
    column = 'database.tables.tags.columns.updated_at: "updated_at"'
    found = [line for line in report.of("problem") + report.of("warning") if line.startswith(column)]
    assert [line.startswith(f"{column} {reported}") for line in found] == ([] if reported is None else [True])


@pytest.mark.parametrize("unit, is_reported", [(1000, False), (1, True)])
def test_unit_of_sent_at_is_checked(any_application: Application, unit: int, is_reported: bool) -> None:
    any_application.execute(f"create table messages {COLUMNS.format(time='bigint')}")
    for number in range(rows.ALL_MIN):
        row = f"'m{number}', 'c', 'ch', 'x', 'pending', true, {(1_600_000_000 + number) * unit}, 'here', 'me'"
        any_application.execute(f"insert into messages values ({row})")
    found = [line for line in of_tables(check(any_application.migrate())) if "sent_at" in line]
    newest = f"the newest {rows.ALL_MIN} by sent_at; numbers are milliseconds since 1970, and text is ISO 8601"
    line = f'{MESSAGES}.columns.sent_at: "sent_at" has no time after 1970 in {newest}'
    assert found == ([line] if is_reported else [])


def test_metadata_of_several_rows_counts_once(any_application: Application) -> None:
    settings = any_application.migrate()
    for number in range(rows.ALL_MIN):
        for key in ("a", "b"):
            any_application.metadata("contact", str(number), key, "v")
    (problem,) = check(settings).of("problem")
    assert problem.startswith("database.tables.metadata: none of the newest rows can be converted")


def test_rows_of_other_kinds_are_checked_too(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.metadata("contact", "m1", "k", "v")
    any_application.metadata("message", "m1", ".".join("k" * 600), "v")
    any_application.execute("alter table tags rename color to colour", "alter table tags add color text")
    any_application.execute("insert into tags (id, name, colour) values ('t1', 'flag', 'red')")
    contact, nested, subjects, tag = of_tables(check(settings))
    metadata = "database.tables.metadata: 1 of the newest 2 by updated_at cannot be converted and would not be sent"
    assert contact == f"{metadata}: subject is not conversation, channel or message; one is contact:m1"
    assert nested.startswith(f"{metadata}: key is nested deeper than 500; one is message:m1:k.k.")
    assert subjects.startswith('database.tables.metadata.values.subject: does not list "contact", found in ')
    assert tag.startswith("database.tables.tags: 1 of the newest 1 by id cannot be converted")
    assert tag.endswith(": color is NULL; one is t1")


def test_text_that_is_not_utf8_is_reported(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate()
    sqlite_application.execute("insert into tags values ('t1', cast(x'ff41' as text), 'red')")
    (finding,) = of_tables(check(settings))
    assert finding.endswith("name is not UTF-8 text; one is t1")


def test_only_the_newest_rows_are_read(lenient: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_MAX", 2)
    lenient.message(id="z", sent_at="2020-01-01T00:00:00Z", source=None)
    lenient.message(id="b", sent_at="2021-01-01T00:00:00Z")
    lenient.message(id="a", sent_at="2022-01-01T00:00:00Z")
    assert of_tables(check(lenient.migrate())) == []
    lenient.message(id="0", sent_at="2023-01-01T00:00:00Z", source=None)
    (finding,) = of_tables(check(lenient.migrate()))
    assert finding.startswith(f"{MESSAGES}: 1 of the newest 2 by sent_at ")


def test_metadata_without_a_time_comes_last(any_application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_MAX", 1)
    settings = any_application.migrate()
    any_application.metadata("message", "m1", "k", "v")
    any_application.metadata("contact", "m2", "k", "v")
    any_application.execute("update metadata set updated_at = '2020-01-01T00:00:00Z' where identifier = 'm2'")
    finding, _ = of_tables(check(settings))
    assert finding.endswith("one is contact:m2")


def test_rows_excluded_by_the_mapping_are_not_read(lenient: Application) -> None:
    lenient.message(id="draft", sent_at=None)
    assert of_tables(mapped(lenient, 'where = "sent_at is not null"')) == []


def test_unlisted_values_are_reported(lenient: Application) -> None:
    for number, source in enumerate(("theirs", "ours", "x" * 50, "b", "c", "d", "e", "f")):
        lenient.message(id=f"m{number}", source=source, delivery_state="sent")
    first, states, sources = of_tables(mapped(lenient, 'values = { source = { "theirs" = "ours" } }'))
    assert "delivery_state is not pending, failed or delivered" in first
    assert states == (
        f'{MESSAGES}.values.delivery_state: does not list "sent", found in the newest 8 by sent_at; '
        'a row with such a value would not be sent; list each: delivery_state = { "THEIRS" = "OURS" }'
    )
    assert sources.startswith(f"{MESSAGES}.values.source: does not list ")
    assert f'"{"x" * 39}…"' in sources
    assert sources.count('"') == 2 * rows.SHOWN_MAX + 4
    assert " and 1 more, found in the newest 8 by sent_at; a row with such a value is sent unchanged" in sources


def test_listed_values_have_no_findings(lenient: Application) -> None:
    lenient.message(id="m1", source="theirs", delivery_state="sent")
    lenient.message(id="m2", source="ours", delivery_state="PENDING")
    values = 'values = { source = { "theirs" = "ours" }, delivery_state = { "sent" = "delivered" } }'
    assert of_tables(mapped(lenient, values)) == []


SLOW = {
    "postgresql": "pg_sleep(1) is not null",
    "sqlite": (
        "(with recursive n(i) as (select length(id) union all select i + 1 from n where i < 1000000000) "
        "select count(*) from n) > 0"
    ),
}


def test_slow_query_is_abandoned(lenient: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TIMEOUT_S", 0.2)
    lenient.message()
    report = mapped(lenient, f'where = "{SLOW[lenient.dialect]}"')
    assert (report.of("problem"), of_tables(report)) == ((), [])
    assert f"{MESSAGES}: its newest rows were not checked: reading them takes longer than 0.2 s" in str(report)


def test_slow_order_by_time_falls_back_to_the_key(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(rows, "ROWS_MAX", 1)
    with_lenient_messages(postgres_application)
    for number in range(8):  # the query by time reads all eight, the query by key reads one
        postgres_application.message(id=f"m{number}", source=None)
    (finding,) = of_tables(mapped(postgres_application, 'where = "pg_sleep(0.1) is not null"'))
    assert finding.startswith(f"{MESSAGES}: 1 of the newest 1 by id cannot be converted")


def test_failed_query_is_reported_without_the_value(postgres_application: Application) -> None:
    settings = postgres_application.migrate('[database.tables.tags]\nwhere = "name::int > 0"')
    postgres_application.tag(name=SECRET)
    report = check(settings)
    failed = "its newest rows cannot be read: a value cannot be cast (SQLSTATE 22P02)"
    assert report.of("problem") == (f"database.tables.tags: {failed}",)
    assert SECRET not in str(report)


def test_query_cannot_write(postgres_application: Application) -> None:
    with_lenient_messages(postgres_application).message()
    postgres_application.execute(
        "create table calls (x int)",
        "create function included() returns boolean language sql as 'insert into calls values (1); select true'",
    )
    (finding,) = mapped(postgres_application, 'where = "included()"').of("problem")
    assert "cannot execute INSERT in a read-only transaction" in finding
    assert postgres_application.scalar("select count(*) from calls") == 0
