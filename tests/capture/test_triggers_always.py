"""Triggers of Postgres that also fire for the writes of a replica role."""

from collections.abc import Iterator

import pytest
import trio

from airy_trio import migrate
from airy_trio.check import check
from airy_trio.errors import StartError
from airy_trio.settings import Settings
from tests.application import Application, application
from tests.capture.test_triggers_postgres import PARTITIONED, faults, logged
from tests.postgres import Postgres
from tests.replication import SUBSCRIPTION, Publisher, subscribed

TIMEOUT_S = 30.0
UPDATED_AT = '[changes]\ncapture = "updated_at"\n[log]\nstore = "memory"\n'


def states(application: Application) -> set[str]:
    """Return the firing modes of our triggers and their clones on partitions, in the letters of the catalogue."""
    rows = "select string_agg(distinct tgenabled::text, '') from pg_trigger where not tgisinternal"
    return set(application.scalar(rows))


def write_as_replica(application: Application, *statements: str) -> None:
    application.execute("set local session_replication_role = replica", *statements)


WRITES = (
    "insert into tags select 't' || n, 'flag', 'red' from generate_series(1, 2) n",
    "update tags set id = 't3' where id = 't1'",
    "delete from tags where id = 't2'",
    "truncate tags",
)
WRITTEN = [("U", "t1"), ("U", "t2"), ("D", "t1"), ("U", "t3"), ("D", "t2"), ("D", "t3")]


@pytest.fixture
def always(postgres_application: Application) -> Settings:
    """The settings of a database whose triggers were switched from "origin" to "always"."""
    settings = postgres_application.migrate()
    write_as_replica(postgres_application, *WRITES)
    assert logged(postgres_application) == []
    migrate.migrate(settings, firing="always")
    return settings


def test_a_replica_role_is_recorded(postgres_application: Application, always: Settings) -> None:
    write_as_replica(postgres_application, *WRITES)
    assert logged(postgres_application) == WRITTEN
    postgres_application.execute(*WRITES)
    assert logged(postgres_application) == WRITTEN
    assert faults(postgres_application, always) == []


def test_later_migrations_retain_it(postgres_application: Application, always: Settings) -> None:
    migrate.migrate(always)
    postgres_application.execute("drop table tags", "alter table messages disable trigger airy_trio_messages_insert")
    more = "[events]\ndeletes = true\n"  # another mapping, with one more trigger
    postgres_application.migrate(more)
    assert states(postgres_application) == {"A"}
    assert faults(postgres_application, postgres_application.settings(more)) == []
    write_as_replica(postgres_application, *WRITES)
    assert logged(postgres_application) == WRITTEN


def test_it_can_be_undone(postgres_application: Application, always: Settings) -> None:
    migrate.migrate(always, firing="origin")
    assert states(postgres_application) == {"O"}
    write_as_replica(postgres_application, *WRITES)
    assert logged(postgres_application) == []
    assert faults(postgres_application, always) == []


def test_second_switch_changes_nothing(postgres_application: Application, always: Settings) -> None:
    assert migrate.preview(always, firing="always") == []
    assert migrate.preview(always) == []
    preview = migrate.preview(always, firing="origin")
    assert any(line.startswith('create or replace trigger "airy_trio_tags_insert"') for line in preview)
    assert states(postgres_application) == {"A"}


def test_a_preview_shows_it(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    preview = migrate.preview(settings, firing="always")
    assert 'alter table "public"."tags" enable always trigger "airy_trio_tags_insert";' in preview
    assert states(postgres_application) == {"O"}


@pytest.mark.parametrize("state", ["disable trigger", "enable replica trigger"])
def test_triggers_that_do_not_fire_are_a_fault(postgres_application: Application, always: Settings, state: str) -> None:
    postgres_application.execute(f"alter table tags {state} airy_trio_tags_insert")
    (fault,) = faults(postgres_application, always)
    assert fault.startswith('table "tags" (tags) has triggers')
    migrate.migrate(always)
    assert states(postgres_application) == {"A"}


def test_triggers_that_a_restore_enabled_again_are_a_fault(postgres_application: Application, always: Settings) -> None:
    """``pg_restore --disable-triggers`` ends with ENABLE TRIGGER ALL, after which no trigger fires always."""
    postgres_application.execute("alter table tags disable trigger all", "alter table tags enable trigger all")
    (fault,) = faults(postgres_application, always)
    assert "airy_trio_tags_insert" in fault
    migrate.migrate(always)
    assert states(postgres_application) == {"A"}


def test_partitions_fire_always_too(postgres_application: Application) -> None:
    postgres_application.execute(*PARTITIONED)
    settings = postgres_application.migrate()
    migrate.migrate(settings, firing="always")
    postgres_application.execute("create table messages_c partition of messages for values in ('c')")
    assert states(postgres_application) == {"A"}
    write_as_replica(postgres_application, "insert into messages (id, source) values ('m1', 'a'), ('m2', 'c')")
    assert logged(postgres_application) == [("U", "m1"), ("U", "m2")]


@pytest.mark.parametrize("firing", ["origin", "always"])
def test_a_partition_whose_clone_does_not_fire_is_a_fault(postgres_application: Application, firing: str) -> None:
    postgres_application.execute(*PARTITIONED, "create table messages_c partition of messages default")
    settings = postgres_application.settings()
    migrate.migrate(settings, with_tables=True, firing="always" if firing == "always" else None)
    assert faults(postgres_application, settings) == []
    postgres_application.execute("alter table messages_b disable trigger airy_trio_messages_insert")
    (fault,) = faults(postgres_application, settings)
    assert fault.startswith('table "messages" (messages) has triggers')
    assert "airy_trio_messages_insert;" in fault
    migrate.migrate(settings)
    assert faults(postgres_application, settings) == []
    assert states(postgres_application) == {"A" if firing == "always" else "O"}


def test_firing_always_is_rejected_without_such_triggers(
    sqlite_application: Application, postgres_application: Application
) -> None:
    with pytest.raises(StartError, match="SQLite has no replica roles"):
        migrate.migrate(sqlite_application.settings(), with_tables=True, firing="always")
    with pytest.raises(StartError, match="which needs no triggers"):
        migrate.migrate(postgres_application.settings(UPDATED_AT), firing="always")


@pytest.fixture
def publisher(own_postgres: Postgres) -> Iterator[Publisher]:
    with Publisher.of(own_postgres) as made:
        yield made


@pytest.mark.parametrize("partitioned", [False, True])
async def test_rows_applied_by_a_subscription_are_recorded(publisher: Publisher, *, partitioned: bool) -> None:
    """The rows arrive from another database by logical replication, which fires no statement triggers."""
    with application(publisher.postgres.url(publisher.postgres.create_database())) as replica:
        if partitioned:
            replica.execute(
                "create table tags (id text primary key, name text, color text) partition by hash (id)",
                "create table tags_0 partition of tags for values with (modulus 1, remainder 0)",
            )
        settings = replica.migrate()
        with subscribed(replica, publisher):
            (warning,) = [line for line in check(settings).of("warning") if SUBSCRIPTION in line]
            assert warning.startswith("database.tables.tags: ")
            migrate.migrate(settings, firing="always")
            assert not any(SUBSCRIPTION in line for line in check(settings).of("warning"))
            publisher.execute(*WRITES)
            count = "select count(*) from airy_trio.change_log"
            with trio.fail_after(TIMEOUT_S):
                while replica.scalar(count) < len(WRITTEN):  # noqa: ASYNC110 - a table has no event for this
                    await trio.lowlevel.checkpoint()
            assert logged(replica) == WRITTEN
