"""Each finding of ``check``, produced on a real database."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
import sqlalchemy as sa
import trio

from airy_trio import app
from airy_trio.app.build import opened_store
from airy_trio.capture import mapping
from airy_trio.capture.mapping import FIELDS
from airy_trio.check import Report, check
from airy_trio.check.servers import DURABLE
from airy_trio.database import POSTGRES
from airy_trio.log.current import Marks
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import StateChange
from airy_trio.settings import parse
from tests.application import Application, application
from tests.check.fake_pooler import pooled
from tests.pgbouncer import through
from tests.postgres import Postgres

ROLE: Final = "check_role"
TIMEOUT_S = 30.0
NOT_COMPLETE = "log.keep_current: replay:current does not have channel.updated, tag.updated completely"
CONSTANT_CONVERSATION = '[database.tables.messages]\nconstants = { conversation_id = "all" }\n'


def problems(report: Report) -> tuple[str, ...]:
    return report.of("problem")


def warned(report: Report) -> set[str]:
    """Return the warnings without those about durability, which the Postgres of the tests does not need."""
    return {line for line in report.of("warning") if "fsync" not in line and "full_page_writes" not in line}


def test_correct_database_has_no_findings(any_application: Application) -> None:
    report = check(any_application.migrate())
    assert (problems(report), warned(report)) == ((), set())
    remedy = "a server has to record a backfill; if none waits for that, run: airy-trio backfill --config FILE"
    assert report.of("note") == (
        "watching messages, metadata, channels, tags",
        f"{NOT_COMPLETE}; {remedy}",
    )


def test_backfill_that_is_not_complete_is_reported(any_application: Application) -> None:
    settings = any_application.migrate()
    types = frozenset({"channel.updated", "tag.updated"})
    marks = str(Marks(types=types, kept=types, begun={"tag.updated": ("token", 0)}, whole={"channel.updated": 1}))

    async def begin() -> None:
        async with opened_store(settings, create=False) as store:
            head, change = (await store.bounds()).head, StateChange(generation="first0", marks=marks)
            await store.append(head, [], "point", state=change)

    trio.run(begin)
    report = check(settings)
    remedy = "if none is running and a server records, run: airy-trio backfill --config FILE"
    assert report.of("note")[-1] == f"{NOT_COMPLETE}; a backfill has begun and is not complete yet; {remedy}"


@pytest.mark.parametrize("partitioned", [False, True])
def test_missing_index_for_owners_of_metadata_is_reported(any_application: Application, *, partitioned: bool) -> None:
    any_application.migrate()
    any_application.execute("drop index messages_conversation")
    if partitioned and any_application.dialect == POSTGRES:
        any_application.execute(
            "alter table messages rename to messages_1",
            "create table messages (like messages_1) partition by hash (id)",
            "alter table messages attach partition messages_1 for values with (modulus 1, remainder 0)",
        )
    settings = any_application.settings()
    (warning,) = warned(check(settings))
    finding, _, rest = warning.partition("; run: ")
    assert finding == (
        'table "messages" (messages) has no index that begins with "conversation_id", so each change of a '
        "conversation's metadata reads the whole table"
    )
    level = "AUTOCOMMIT" if any_application.dialect == POSTGRES else "SERIALIZABLE"
    with any_application.engine.connect().execution_options(isolation_level=level) as connection:
        connection.exec_driver_sql(rest.partition(";")[0])
        connection.commit()
    assert warned(check(settings)) == set()


@pytest.mark.parametrize("more", ['[database.tables.metadata]\nname = ""\n', CONSTANT_CONVERSATION])
def test_no_index_is_needed_without_owners_of_metadata(any_application: Application, more: str) -> None:
    any_application.migrate(more)
    any_application.execute("drop index messages_conversation")
    assert warned(check(any_application.settings(more))) == set()


def test_nothing_is_changed(any_application: Application, tmp_path: Path) -> None:
    with any_application.engine.begin() as connection:
        mapping.create_default_tables(connection, FIELDS)
    before = sorted(tmp_path.iterdir())
    check(any_application.settings())
    assert sorted(tmp_path.iterdir()) == before
    with any_application.engine.begin() as connection:
        assert set(sa.inspect(connection).get_table_names()) == set(FIELDS)
        assert not sa.inspect(connection).has_table("change_log", schema=any_application.names.table_schema)


def test_correct_file_is_not_written(sqlite_application: Application, tmp_path: Path) -> None:
    settings = sqlite_application.migrate()
    before = (tmp_path / "app.db").read_bytes()
    assert problems(check(settings)) == ()
    assert (tmp_path / "app.db").read_bytes() == before


def test_many_problems_in_one_run(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    any_application.execute("drop table tags")
    settings = any_application.settings(
        '[database.tables.messages]\ncolumns = { sent_at = "sent" }\nwhere = "no condition"\n'
        f'[log]\nurl = "sqlite:///{tmp_path}/absent/log.db"\n'
    )
    found = problems(check(settings))
    assert [line.partition(":")[0] for line in found] == [
        "database.tables.messages.columns.sent_at",
        "database.tables.tags.name",
        "log.url",
    ]
    assert found[2] == f"log.url: the folder {tmp_path}/absent does not exist"


def test_not_migrated(any_application: Application) -> None:
    with any_application.engine.begin() as connection:
        mapping.create_default_tables(connection, FIELDS)
    report = check(any_application.settings())
    missing = "airy_trio has not been installed here; run: airy-trio migrate --config FILE"
    assert problems(report)[0] == f"database: {missing}"
    migrating = check(any_application.settings("migrate = true\n"))
    assert problems(migrating) == ()
    assert migrating.of("note")[0].startswith(f"database: {missing} (database.migrate is true")


def test_missing_triggers(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.execute("drop table tags", "create table tags (id text primary key, name text, color text)")
    (missing,) = problems(check(settings))
    assert missing.startswith('table "tags" (tags) has no trigger')


def test_missing_sqlite_log_file_is_a_note(sqlite_application: Application, tmp_path: Path) -> None:
    settings = sqlite_application.migrate()
    log = tmp_path / "app.db.airy-trio.db"
    log.unlink()
    report = check(settings)
    assert problems(report) == ()
    assert f"log.url: the SQLite file {log} does not exist; the server creates it" in report.of("note")
    assert not log.exists()


def test_sqlite_file_without_write_permission(sqlite_application: Application, tmp_path: Path) -> None:
    settings = sqlite_application.migrate()
    sqlite_application.engine.dispose()
    with (tmp_path / "app.db").open("r+b") as file:
        file.seek(18)
        file.write(b"\x7f")  # a format for which every SQLite may read but not write
    (finding,) = problems(check(settings))
    assert finding == (
        f"database.url: the database cannot be used: "
        f"OperationalError: attempt to write a readonly database ({tmp_path / 'app.db'})"
    )


@pytest.fixture
def stranger(postgres_application: Application) -> Iterator[str]:
    """Return the URL of a migrated database for a role that may only read the application's tables."""
    postgres_application.migrate()
    postgres_application.execute(f"create role {ROLE} login", f"grant select on all tables in schema public to {ROLE}")
    yield sa.make_url(postgres_application.url).set(username=ROLE).render_as_string(hide_password=False)
    postgres_application.execute(f"drop owned by {ROLE}", f"drop role {ROLE}")


def test_missing_rights_are_reported_with_the_grants(stranger: str) -> None:
    usage = f'role "{ROLE}" lacks a right; as the owner: GRANT USAGE ON SCHEMA "airy_trio" TO "{ROLE}"'
    found = problems(check(parse(f'[database]\nurl = "{stranger}"\n', {})))
    assert {f"database.url: {usage}", f"log.url: {usage}"} <= set(found)
    assert all("; as the owner: GRANT " in line for line in found)


async def test_server_needs_exactly_the_rights_that_check_demands(
    stranger: str, postgres_application: Application
) -> None:
    text = f'[database]\nurl = "{stranger}"\n[log]\nretain_events = 1\n[listener]\nport = 0\n[admin]\nport = 0\n'
    settings = parse(text, {})
    with trio.fail_after(TIMEOUT_S):
        while found := problems(await trio.to_thread.run_sync(check, settings)):
            postgres_application.execute(*{line.partition("; as the owner: ")[2] for line in found})
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            for number in range(3):
                postgres_application.tag(f"t{number}")
            while not postgres_application.scalar("select last from airy_trio.log_state"):  # noqa: ASYNC110 - see below
                await trio.lowlevel.checkpoint()
            trimmed = (
                "select (select count(*) = 0 from airy_trio.change_log) "
                "and (select count(*) = 1 from airy_trio.event_log)"
            )
            while not postgres_application.scalar(trimmed):  # noqa: ASYNC110 - a table has no event for this
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


def test_mapped_table_without_the_right_to_read(stranger: str, postgres_application: Application) -> None:
    postgres_application.execute(f"revoke select on tags from {ROLE}")
    found = problems(check(parse(f'[database]\nurl = "{stranger}"\n', {})))
    assert any(line.startswith('database.tables.tags.name: "tags" cannot be read: ') for line in found)


def test_role_that_only_reads_is_a_problem(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f"alter database {name} set default_transaction_read_only = on")
    only_reads = 'role "postgres" only reads (default_transaction_read_only is on), but airy-trio must write'
    assert f"database.url: {only_reads}" in problems(check(settings))


def test_disabled_durability_is_a_warning(postgres_application: Application, tmp_path: Path) -> None:
    settings = postgres_application.migrate()
    warnings = check(settings).of("warning")
    assert f"database.url: fsync is off: {DURABLE['fsync']}" in warnings  # of a Postgres for tests
    assert not any("synchronous_commit" in line for line in warnings)
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f'alter database "{name}" set synchronous_commit = off')
    assert not any("synchronous_commit" in line for line in check(settings).of("warning"))
    more = f'[changes]\ncapture = "updated_at"\n[log]\nurl = "sqlite:///{tmp_path}/log.db"\n'
    reading = check(postgres_application.settings(more)).of("warning")
    assert f"database.url: synchronous_commit is off: {DURABLE['synchronous_commit']}" in reading


async def test_pooler_is_reported_unless_direct_url_avoids_it(postgres_application: Application) -> None:
    postgres_application.migrate()
    with trio.fail_after(TIMEOUT_S):
        async with pooled(postgres_application.url) as url:
            through = parse(f'[database]\nurl = "{url}"\n', {})
            around = parse(f'[database]\nurl = "{url}"\ndirect_url = "{postgres_application.url}"\n', {})
            found = await trio.to_thread.run_sync(check, through)
            assert problems(found) == ()
            (finding,) = warned(found)
            assert finding.startswith("database.url: this goes through a pooler or another proxy")
            found = await trio.to_thread.run_sync(check, around)
            assert (problems(found), warned(found)) == ((), set())


def test_pooler_without_direct_url_is_reported(postgres_application: Application, pgbouncer: int) -> None:
    postgres_application.migrate()
    url = through(postgres_application.url, pgbouncer)
    found = check(parse(f'[database]\nurl = "{url}"\n', {}))
    assert problems(found) == ()
    (finding,) = warned(found)
    assert finding.startswith(
        "database.url: this goes through a pooler or another proxy, but the lease needs a session"
    )


def test_application_on_the_same_pool_is_reported(postgres_application: Application, pgbouncer: int) -> None:
    direct, url = postgres_application.migrate().database.url, through(postgres_application.url, pgbouncer)
    settings = parse(f'[database]\nurl = "{url}"\ndirect_url = "{direct}"\n', {})
    assert warned(check(settings)) == set()
    pooled = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(pooled, application_name="shop") as shop:
        shop.execute("select 1")
        (finding,) = warned(check(settings))
    assert finding == (
        'database.url: other programs use the pooler as the same role "postgres" (shop) and share its connections '
        "with this server; give this server its own role"
    )


def test_pooler_before_the_event_log_is_reported(
    sqlite_application: Application, postgres_database: str, pgbouncer: int
) -> None:
    url = through(postgres_database, pgbouncer)
    sqlite_application.migrate(f'[log]\nurl = "{postgres_database}"\n')
    found = check(sqlite_application.settings(f'[log]\nurl = "{url}"\n'))
    assert problems(found) == ()
    (finding,) = warned(found)
    assert finding.startswith(
        "log.url: this goes through a pooler or another proxy, but appends and LISTEN need a session"
    )


def test_check_leaves_nothing_behind_in_a_pooler(postgres_application: Application, pgbouncer: int) -> None:
    postgres_application.migrate()
    url = through(postgres_application.url, pgbouncer)
    check(parse(f'[database]\nurl = "{url}"\n', {}))
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as application_:
        assert application_.execute("show row_security").fetchall() == [("on",)]


def test_row_level_security_is_reported(stranger: str, postgres_application: Application) -> None:
    postgres_application.execute("alter table tags enable row level security")
    found = problems(check(parse(f'[database]\nurl = "{stranger}"\n', {})))
    assert found[0] == (
        f'database.tables.tags.name: "tags" is under row level security, which would hide rows from the role "{ROLE}"; '
        f'as a superuser: ALTER ROLE "{ROLE}" BYPASSRLS, or connect as the table\'s owner (without FORCE ROW LEVEL '
        "SECURITY)"
    )


def test_log_database_with_a_limited_encoding_is_a_problem(sqlite_application: Application, postgres: Postgres) -> None:
    sqlite_application.migrate()
    url = postgres.url(postgres.create_database(encoding="LATIN1"))
    (finding,) = problems(check(sqlite_application.settings(f'[log]\nurl = "{url}"\n')))
    assert finding == (
        "log.url: the encoding of this database is LATIN1, which cannot store every id; name a database that was "
        "created with ENCODING 'UTF8'"
    )


def test_direct_url_to_another_database_is_a_problem(postgres_application: Application, postgres: Postgres) -> None:
    postgres_application.migrate()
    with application(postgres.url(postgres.create_database())) as other:
        other.migrate()
        settings = postgres_application.settings(f'direct_url = "{other.url}"\n')
        assert problems(check(settings)) == (
            "database.direct_url: this is another database than the one of database.url",
        )


def test_changes_recorded_into_another_log_are_a_warning(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    state = any_application.log_table("change_state")
    any_application.execute(f"update {state} set consumer_epoch = 'abcdef', consumer_store = 'the other one'")
    (finding,) = warned(check(any_application.settings()))
    assert finding.startswith("log: the changes are recorded into another event log (the other one)")


def test_stores_that_are_not_sql(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    memory = check(sqlite_application.settings('[log]\nstore = "memory"\n'))
    assert problems(memory) == ()
    assert 'log.store: "memory" ends with the process; after each start clients must reload' in memory.of("note")
    (finding,) = problems(check(sqlite_application.settings('[log]\nstore = "absent"\n')))
    assert finding.startswith('log.store: there is no event store "absent"')


def test_fault_in_a_task_of_a_store_is_reported_with_its_setting(
    sqlite_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def opened(_url: str) -> AsyncGenerator[MemoryStore]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            yield MemoryStore()

    async def refused() -> None:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("airy_trio.check.find_store", lambda _name: opened)
    found = problems(check(sqlite_application.migrate('[log]\nstore = "redis"\nurl = "redis://127.0.0.1:1/0"\n')))
    assert found == ("log.store: the event store cannot be used: [Errno 111] Connection refused",)
