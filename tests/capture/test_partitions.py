"""Partitions that join or leave a mapped table. Their rows appear and disappear without firing a trigger."""

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from airy_trio.capture.inspection import inspect
from airy_trio.capture.postgres_triggers import Partitions
from tests.application import Application
from tests.capture.test_triggers_postgres import logged
from tests.docs.pages import parts

PARTITIONED = (
    "create table tags (id text, name text, color text) partition by list (name)",
    "create table tags_a partition of tags for values in ('a')",
    "insert into tags values ('t1', 'a', 'red')",
)
MESSAGES = (
    """create table messages (
        id text, conversation_id text, channel_id text, content text, delivery_state text, from_contact boolean,
        sent_at timestamptz, source text, sender_id text
    ) partition by list (source)""",
    "create table messages_a partition of messages for values in ('a')",
    "insert into messages (id, source) values ('m1', 'a')",
)
JOINED = "a partition with rows has joined; rows written before that are not sent, an UPDATE sends them"
LEFT = "a partition was detached or dropped; its rows are not sent as deleted"

Check = Callable[[], list[tuple[str, str]]]


@pytest.fixture
def check(postgres_application: Application) -> Check:
    """Check the partitions of the tags; return event and partition of each log line. The first check is done."""
    postgres_application.execute(*PARTITIONED)
    settings = postgres_application.migrate()
    partitions = Partitions(deletes=False)

    def check() -> list[tuple[str, str]]:
        with capture_logs() as lines, postgres_application.engine.begin() as connection:
            partitions.check(connection, inspect(connection, settings.tables))
        return sorted((line["event"], line["partition"]) for line in lines)

    assert check() == []
    return check


@pytest.mark.parametrize("together", [False, True])
def test_rows_of_an_attached_partition_are_reported_once(
    postgres_application: Application, check: Check, *, together: bool
) -> None:
    statements = (
        "create table tags_b (like tags)",
        "insert into tags_b values ('t2', 'b', 'red')",
        "alter table tags attach partition tags_b for values in ('b')",
    )
    for some in [statements] if together else [[one] for one in statements]:
        postgres_application.execute(*some)
    assert check() == [(JOINED, "public.tags_b")]
    assert check() == []


def test_the_statement_of_the_report_sends_the_rows(postgres_application: Application) -> None:
    postgres_application.execute(*PARTITIONED, 'create table "Tags b" (like tags)')
    settings = postgres_application.migrate()
    partitions = Partitions(deletes=False)
    with capture_logs() as lines, postgres_application.engine.begin() as connection:
        partitions.check(connection, inspect(connection, settings.tables))
        connection.exec_driver_sql("insert into \"Tags b\" values ('t2', 'b', 'red')")
        connection.exec_driver_sql("alter table tags attach partition \"Tags b\" for values in ('b')")
        partitions.check(connection, inspect(connection, settings.tables))
    assert logged(postgres_application) == []
    (line,) = lines
    postgres_application.execute(line["statement"])
    assert logged(postgres_application) == [("U", "t2")]


def test_the_statement_of_the_page_sends_some_of_the_rows(postgres_application: Application) -> None:
    [statement] = parts("how-to/existing-schema.md", "sql")
    postgres_application.execute(*MESSAGES)
    postgres_application.migrate()
    postgres_application.execute(
        "create table messages_2026_11 (like messages)",
        "insert into messages_2026_11 (id, sent_at, source) "
        "values ('m1', now() - interval '2 days', 'b'), ('m2', now(), 'b')",
        "alter table messages attach partition messages_2026_11 for values in ('b')",
        statement,
    )
    assert logged(postgres_application) == [("U", "m2")]


def test_rows_of_a_partition_created_as_one_are_sent(postgres_application: Application, check: Check) -> None:
    logged(postgres_application)
    postgres_application.execute("create table tags_b partition of tags for values in ('b')")
    assert check() == []
    postgres_application.execute(
        "insert into tags values ('t2', 'b', 'red')",
        "create table tags_c partition of tags for values in ('c') partition by list (id)",
        "create table tags_c_3 partition of tags_c for values in ('t3')",
        "insert into tags values ('t3', 'c', 'red')",
    )
    assert check() == [(JOINED, "public.tags_c_3")], "filled since the last check"
    assert logged(postgres_application) == [("U", "t2"), ("U", "t3")]


def test_rows_deep_within_an_attached_partition_are_reported(postgres_application: Application, check: Check) -> None:
    postgres_application.execute(
        "create table tags_b (like tags) partition by list (id)",
        "create table tags_b_2 partition of tags_b for values in ('t2')",
        "create table tags_b_3 partition of tags_b for values in ('t3')",
        "insert into tags_b values ('t2', 'b', 'red')",
        "alter table tags attach partition tags_b for values in ('b')",
    )
    assert check() == [(JOINED, "public.tags_b_2")]


def test_an_empty_table_that_is_attached_is_not_reported(postgres_application: Application, check: Check) -> None:
    postgres_application.execute(
        "create table tags_b (like tags)", "alter table tags attach partition tags_b for values in ('b')"
    )
    assert check() == []
    postgres_application.execute("insert into tags values ('t2', 'b', 'red')")
    assert check() == []


def test_a_partition_attached_again_is_reported(postgres_application: Application, check: Check) -> None:
    """Rows that were written to the partition while it was detached were not recorded."""
    postgres_application.execute("alter table tags detach partition tags_a")
    postgres_application.execute("alter table tags attach partition tags_a for values in ('a')")
    assert check() == [(JOINED, "public.tags_a")]
    postgres_application.execute("alter table tags_a rename to tags_1")
    assert check() == []


@pytest.mark.parametrize("how", ["drop table tags_a", "alter table tags detach partition tags_a"])
def test_rows_of_a_removed_partition_are_reported(postgres_application: Application, check: Check, how: str) -> None:
    postgres_application.execute(how)
    assert check() == [(LEFT, "public.tags_a")]
    assert check() == []


def test_removed_messages_are_reported_only_if_deletes_are_events(postgres_application: Application) -> None:
    postgres_application.execute(*MESSAGES)
    settings = postgres_application.migrate()
    for deletes, reported in ((False, 0), (True, 1)):
        partitions = Partitions(deletes=deletes)
        with capture_logs() as lines, postgres_application.engine.begin() as connection:
            partitions.check(connection, inspect(connection, settings.tables))
            connection.exec_driver_sql("drop table messages_a")
            partitions.check(connection, inspect(connection, settings.tables))
            connection.rollback()
        assert len(lines) == reported
