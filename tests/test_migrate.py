"""Migrations are complete or have no effect, can be repeated, and do not disturb the application."""

import hashlib
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from airy_trio import migrate
from airy_trio.capture.feed import Consumer
from airy_trio.capture.lease import lock_file
from airy_trio.capture.mapping import KINDS
from airy_trio.database import SQLITE, DatabaseOptions, sqlite_path
from airy_trio.errors import MappingError, StartError
from airy_trio.log.sql import sql_store
from airy_trio.migrate import transactions
from tests.application import Application, application, only
from tests.capture.feeds import feed_of, read_all
from tests.command_line import CommandLine
from tests.newer_schema import STATES, home_of
from tests.older_schema import downgrade
from tests.postgres import PASSWORD_ROLE, Postgres

NO_CHANNELS = '[database.tables.channels]\nname = ""\n'
ONLY_TAGS = only(tags="")
WAITING = "select count(*) from pg_locks where not granted and relation = 'messages'::regclass"
THEIRS = set(KINDS)
FAILING = """
from alembic import op
revision, down_revision = "failing", "{previous}"
def upgrade():
    op.execute("create table half_done (x int)")
    op.execute("create nonsense")
"""


def contents(application: Application) -> list[tuple[Any, ...]]:
    """Return everything in a database: tables, columns, triggers, functions, schemas, and the rows of our tables."""
    with application.engine.connect() as connection:
        if application.dialect == "sqlite":
            rows = connection.exec_driver_sql("select type, name, sql from sqlite_master order by 1, 2").all()
            ours = [row.name for row in rows if row.type == "table" and row.name.startswith("airy_trio")]
        else:
            rows = connection.exec_driver_sql(
                """
                select 'column', table_schema || '.' || table_name, column_name || data_type
                from information_schema.columns where table_schema not in ('pg_catalog', 'information_schema')
                union all select 'schema', schema_name, '' from information_schema.schemata
                union all select 'function', oid::regprocedure::text, prosrc || xmin::text from pg_proc
                where pronamespace::regnamespace::text like 'airy%%'
                union all select 'trigger', tgname, tgrelid::regclass::text || xmin::text from pg_trigger
                order by 1, 2, 3
                """
            ).all()
            ours = sorted({row[1] for row in rows if row[0] == "column" and row[1].startswith("airy_trio")})
        tables = {name: connection.exec_driver_sql(f"select * from {name}").all() for name in ours}
    return [tuple(row) for row in rows] + [(name, *map(tuple, found)) for name, found in tables.items()]


def event_file(application: Application) -> Path:
    path = sqlite_path(application.url)
    return path.with_name(f"{path.name}.airy-trio.db")


def test_repeated_migration_changes_nothing(any_application: Application) -> None:
    settings = any_application.settings()
    first = migrate.migrate(settings, with_tables=True)
    assert first.made == ("channels", "messages", "metadata", "tags")
    assert first.watched == ("messages", "metadata", "channels", "tags")
    before = contents(any_application)
    second = migrate.migrate(settings, with_tables=True)
    assert (second.made, second.watched) == ((), first.watched)
    assert contents(any_application) == before


def test_default_tables_are_created_only_if_absent(any_application: Application) -> None:
    any_application.execute(
        "create table tags (id text primary key, name text, color text, mine text)",
        "create table labels (id text primary key, name text, color text)",
    )
    with pytest.raises(MappingError, match='there is no table "messages"'):
        any_application.run_migration(with_tables=False)
    columns = 'columns = { subject = "id", key = "name", value = "color" }'
    more = f'{NO_CHANNELS}[database.tables.metadata]\nname = "labels"\n{columns}'
    assert migrate.migrate(any_application.settings(more), with_tables=True).made == ("messages",)
    assert any_application.scalar("select count(mine) from tags") == 0


def test_view_of_the_same_name_is_not_replaced(any_application: Application) -> None:
    any_application.execute("create view tags as select 'a' as id")
    with pytest.raises(MappingError, match="a view cannot be watched"):
        any_application.run_migration(with_tables=True)


def test_faulty_mapping_leaves_nothing_behind(any_application: Application) -> None:
    any_application.execute("create table own (x text)")
    before = contents(any_application)
    with pytest.raises(MappingError):
        any_application.run_migration('[database.tables.tags]\ncolumns = { name = "titel" }', with_tables=True)
    assert contents(any_application) == before


@pytest.fixture(params=["changes", "log"])
def failing_migrations(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a migration that changes something and then fails."""
    for stream in STATES:
        migrate.revisions(stream)  # cached now: other tests need them without the added one
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    newest = max((folder / request.param).glob("0*.py")).read_text()
    (previous,) = [line.split('"')[1] for line in newest.splitlines() if line.startswith("revision")]
    (folder / request.param / "9999_failing.py").write_text(FAILING.format(previous=previous))
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)


@pytest.mark.usefixtures("failing_migrations")
@pytest.mark.parametrize("with_tables", [False, True])
def test_failed_migration_leaves_nothing_behind(any_application: Application, *, with_tables: bool) -> None:
    if not with_tables:
        any_application.execute("create table tags (id text, name text, color text)")
    before = contents(any_application)
    with pytest.raises(StartError, match=r"^(database|log)\.url: the database cannot be used: "):
        any_application.run_migration("" if with_tables else ONLY_TAGS, with_tables=with_tables)
    assert contents(any_application) == before
    if any_application.dialect == "sqlite":
        assert not event_file(any_application).exists()


def test_failed_trigger_leaves_nothing_behind(any_application: Application) -> None:
    """The change log is created before the triggers, and one of our names is already in use."""
    any_application.execute("create table tags (id text, name text, color text)")
    if any_application.dialect == "sqlite":
        any_application.execute(
            "create table other (x)", "create trigger airy_trio_x after insert on other begin select 1; end"
        )
        any_application.execute("create index airy_trio_change_state on other (x)")
    else:
        any_application.execute(
            "create schema airy_trio", "create function airy_trio.tags_insert() returns int language sql as 'select 1'"
        )
    before = contents(any_application)
    with pytest.raises(StartError, match=r"^database\.url: the database cannot be used: "):
        any_application.run_migration(ONLY_TAGS, with_tables=False)
    assert contents(any_application) == before


def test_fault_of_the_application_database_is_not_that_of_the_event_log(any_application: Application) -> None:
    """On SQLite the event log is in a file of its own, whose transaction is open meanwhile."""
    any_application.run_migration(ONLY_TAGS, with_tables=True)
    state = "airy_trio_change_state" if any_application.dialect == "sqlite" else "airy_trio.change_state"
    any_application.execute(f"alter table {state} rename column origin to gone")
    with pytest.raises(StartError, match=r"^database\.url: the database cannot be used: "):
        any_application.run_migration(ONLY_TAGS, with_tables=False)


@pytest.mark.parametrize("stream", ["changes", "log"])
def test_revisions_are_those_of_alembic(stream: migrate.Stream) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    config.set_main_option("version_locations", str(migrate.migrations_folder() / stream))
    config.set_main_option("path_separator", "newline")
    newest_first = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert migrate.revisions(stream) == tuple(reversed(newest_first))


def test_migrations_of_the_change_log_can_be_downgraded(any_application: Application) -> None:
    any_application.run_migration()
    source = any_application.scalar(f"select source from {any_application.log_table('change_state')}")
    with any_application.engine.connect() as connection, connection.begin():
        downgrade(connection, "changes", any_application.names, "changes_0001")
        assert {
            column["name"]
            for column in sa.inspect(connection).get_columns(
                any_application.names.bare("change_state"), any_application.names.table_schema
            )
        } == {"id", "origin", "consumer_epoch", "consumer_store"}
    any_application.run_migration()
    row = f"select source || ' ' || compatible_from from {any_application.log_table('change_state')}"
    again, compatible_from = any_application.scalar(row).split(" ")
    oldest = "changes_0002" if any_application.dialect == SQLITE else "changes_0005"
    assert (len(again), again != source, compatible_from) == (16, True, oldest)
    any_application.run_migration()
    assert any_application.scalar(row) == f"{again} {oldest}"


def test_alembic_of_the_application_is_unaffected(any_application: Application) -> None:
    any_application.execute(
        "create table alembic_version (version_num text)", "insert into alembic_version values ('theirs')"
    )
    any_application.run_migration()
    assert any_application.scalar("select version_num from alembic_version") == "theirs"
    assert any_application.scalar(
        f"select version_num from {any_application.log_table('changes_version')}"
    ) == migrate.head("changes")


def test_alembic_of_the_application_ignores_our_tables(any_application: Application) -> None:
    """Compare as Alembic's ``env.py`` does: the default schema on Postgres, with the documented filter on SQLite."""
    any_application.run_migration()
    found = sa.MetaData()
    found.reflect(any_application.engine, only=lambda name, _: name in THEIRS)

    def not_ours(name: str | None, type_: str, _parents: object) -> bool:
        return type_ != "table" or name is None or not name.startswith("airy_trio_")

    filtered: dict[str, Any] = {"include_name": not_ours} if any_application.dialect == "sqlite" else {}
    with any_application.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=filtered), found) == []
        removed = compare_metadata(MigrationContext.configure(connection), sa.MetaData())
    tables = {change[1].name for change in removed if change[0] == "remove_table"}
    if any_application.dialect == "sqlite":  # therefore the filter
        assert tables > THEIRS
    else:
        assert tables == THEIRS


def test_file_is_created_only_with_tables_and_private(tmp_path: Path) -> None:
    application = Application(f"sqlite:///{tmp_path}/new.db")
    path = sqlite_path(application.url)
    with pytest.raises(StartError, match="does not exist"):
        application.run_migration(with_tables=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MappingError):
        application.run_migration('[database.tables.tags]\nname = "labels"', with_tables=True)
    assert list(tmp_path.iterdir()) == []
    application.run_migration(with_tables=True)
    assert sorted(tmp_path.iterdir()) == [path, event_file(application)]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    application.engine.dispose()


def test_folder_or_missing_folder_is_rejected(tmp_path: Path) -> None:
    for url, words in ((f"sqlite:///{tmp_path}", "is not a file"), (f"sqlite:///{tmp_path}/no/x.db", "does not exist")):
        with pytest.raises(StartError, match=words):
            Application(url).run_migration(with_tables=False)
    with pytest.raises(StartError, match="cannot be created: No such file or directory"):
        Application(f"sqlite:///{tmp_path}/no/x.db").run_migration(with_tables=True)


@pytest.mark.parametrize("options", [(), ("--with-tables",)])
def test_file_that_is_mounted_without_its_folder_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine, options: Sequence[str]
) -> None:
    file, settings, mounts = (tmp_path / name for name in ("the app.db", "airy-trio.toml", "mountinfo"))
    file.touch()
    settings.write_text(f'[database]\nurl = "sqlite:///{file}"\n')
    seen = str(file).replace(" ", r"\040")
    mounts.write_text(f"36 35 8:1 /srv/app.db {seen} rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(migrate, "MOUNTS", mounts)
    finished = command_line("migrate", *options, "--config", str(settings))
    assert "the app.db is mounted without its folder" in finished.err
    assert file.stat().st_size == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports mount points there")
def test_mount_points_of_this_system_are_found() -> None:
    assert migrate._is_mount_point(Path("/proc"))  # noqa: SLF001 - no test may mount a file
    assert not migrate._is_mount_point(Path(__file__))  # noqa: SLF001 - the same


def test_existing_event_file_is_retained(sqlite_application: Application) -> None:
    sqlite_application.run_migration()
    epoch = "select epoch from airy_trio_log_state"
    events = Application(f"sqlite:///{event_file(sqlite_application)}")
    before = events.scalar(epoch)
    sqlite_application.run_migration()
    assert events.scalar(epoch) == before
    events.engine.dispose()


def test_memory_store_has_no_tables(any_application: Application) -> None:
    any_application.run_migration('[log]\nstore = "memory"')
    assert not any("event_log" in str(item) for item in contents(any_application))
    if any_application.dialect == "sqlite":
        assert not event_file(any_application).exists()


@pytest.mark.parametrize("prefix", ["postgresql://", "postgresql+psycopg://"])
def test_same_database_by_another_spelling_is_recognised(postgres_application: Application, prefix: str) -> None:
    url = prefix + postgres_application.url.partition("://")[2]
    postgres_application.run_migration(f'[log]\nurl = "{url}"')
    assert postgres_application.scalar("select count(*) from airy_trio.event_log") == 0


def test_sqlite_event_log_of_a_postgres_application(postgres_application: Application, tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    more = f'[log]\nurl = "sqlite:///{path}"\n'
    with pytest.raises(MappingError):
        postgres_application.run_migration(more, with_tables=False)
    assert not path.exists()
    postgres_application.run_migration(more)
    assert path.exists()
    assert not any("event_log" in str(item) for item in contents(postgres_application))


def test_first_resume_point_is_not_overwritten(any_application: Application) -> None:
    any_application.run_migration()
    origin = f"select origin from {any_application.log_table('change_state')}"
    before = any_application.scalar(origin)
    any_application.tag()
    any_application.run_migration()
    assert any_application.scalar(origin) == before


def test_concurrent_migrations_all_succeed(any_application: Application) -> None:
    any_application.execute("select 1")
    failures: list[Exception] = []

    def run() -> None:
        try:
            migrate.migrate(any_application.settings(), with_tables=True)
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    any_application.tag()
    assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1


@pytest.mark.slow
def test_writers_wait_half_a_second_behind_a_waiting_migration(
    postgres_application: Application,
) -> None:
    postgres_application.execute(
        *(f"create table {name} (id text, name text, color text)" for name in ("tags", "channels"))
    )
    columns = 'columns = { source = "name", source_channel_id = "color" }\nconstants = { connected = true }\n'
    settings = postgres_application.settings(only(tags="", channels=columns))
    done = threading.Event()
    waits: list[float] = []

    def write() -> None:
        while not done.is_set():
            for table in ("tags", "channels"):
                started = time.monotonic()
                postgres_application.execute(f"insert into {table} values ('{len(waits)}', 'x', 'y')")
                waits.append(time.monotonic() - started)

    migrating = threading.Thread(target=migrate.migrate, args=[settings])
    writing = threading.Thread(target=write)
    with postgres_application.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("insert into tags values ('open', 'x', 'y')")
        migrating.start()
        writing.start()
        migrating.join(2.5)
        assert migrating.is_alive()
    migrating.join()
    done.set()
    writing.join()
    assert max(waits) < 0.5 + 0.4  # plus the time of the machine
    assert len(waits) > 20
    postgres_application.tag("after")
    assert postgres_application.scalar("select count(*) from airy_trio.change_log where key_1 = 'after'") == 1


@pytest.mark.slow
def test_migration_of_the_change_log_causes_no_deadlock_with_writers(postgres_application: Application) -> None:
    """A writer locks its table, then its partition, and then the change log; so must the migration."""
    postgres_application.execute(
        "create table tags (id text, name text, color text) partition by list (name)",
        "create table a_tags partition of tags for values in ('flag')",
    )
    settings = postgres_application.run_migration()
    with postgres_application.engine.begin() as connection:
        names = postgres_application.names
        downgrade(connection, "changes", names, "changes_0004")
        for table in ("tags", "channels"):  # so that the migration has to replace triggers
            connection.exec_driver_sql(f"alter table {table} disable trigger {names.trigger(table, 'delete')}")
    done = threading.Event()
    failures: list[Exception] = []

    def write(table: str) -> None:
        try:
            while not done.is_set():
                with postgres_application.engine.begin() as connection:
                    for _ in range(2):
                        connection.exec_driver_sql(f"update {table} set id = id")
                        time.sleep(0.005)
        except Exception as error:  # noqa: BLE001 - the test reports it
            failures.append(error)

    postgres_application.tag()
    postgres_application.channel()
    writers = [threading.Thread(target=write, args=[table]) for table in ("tags", "channels") * 2]
    for writing in writers:
        writing.start()
    try:
        migrate.migrate(settings)
    finally:
        done.set()
        for writing in writers:
            writing.join()
    assert failures == []
    seq = "from information_schema.columns where table_name = 'change_log' and column_name = 'seq'"
    assert postgres_application.scalar(f"select count(*) {seq}") == 0


@pytest.mark.slow
def test_migration_of_the_change_log_ends_no_writer_as_a_deadlock(postgres_application: Application) -> None:
    """Postgres looks for one after a second of waiting. Transactions end one after the other, as the tables are locked.

    The migration locks channels, messages, metadata and tags, in this order.
    """
    settings = postgres_application.run_migration()
    with postgres_application.engine.begin() as connection:
        downgrade(connection, "changes", postgres_application.names, "changes_0004")
    engine = postgres_application.engine
    with engine.connect() as messages, engine.connect() as metadata, engine.connect() as tags:
        for connection, table in ((messages, "messages"), (metadata, "metadata"), (tags, "tags")):
            connection.exec_driver_sql(f"delete from {table}")
        migrating = threading.Thread(target=migrate.migrate, args=[settings])
        migrating.start()
        ends = [threading.Timer(0.3, messages.commit), threading.Timer(0.7, metadata.commit)]
        while postgres_application.scalar(WAITING) == 0:
            time.sleep(0.01)
        for end in ends:
            end.start()
        tags.exec_driver_sql("delete from channels")
        tags.commit()
        migrating.join()
    assert postgres_application.scalar("select version_num from airy_trio.changes_version") == migrate.head("changes")


def test_tables_of_the_application_are_locked_after_the_event_log_is_up_to_date(
    postgres_application: Application,
) -> None:
    """The log may be in a database that does not answer, or wait for the recorder."""
    settings = postgres_application.run_migration()
    with postgres_application.engine.begin() as connection:
        downgrade(connection, "log", postgres_application.names, "log_0008")
        downgrade(connection, "changes", postgres_application.names, "changes_0004")
    statements = migrate.preview(settings)
    (of_log,) = (place for place, line in enumerate(statements) if "ADD COLUMN folded" in line)
    (of_changes,) = (place for place, line in enumerate(statements) if "DROP COLUMN seq" in line)
    assert of_log < of_changes


def test_lock_that_is_never_free_is_reported(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres_application.execute("create table tags (id text, name text, color text)")
    monkeypatch.setattr(transactions, "LOCK_TRIES_MAX", 1)
    monkeypatch.setattr(transactions, "LOCK_PAUSE_S", 0)
    before = contents(postgres_application)
    with postgres_application.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("insert into tags values ('open', 'x', 'y')")
        with pytest.raises(StartError, match="a transaction had a mapped table locked"):
            postgres_application.run_migration(ONLY_TAGS, with_tables=False)
    assert contents(postgres_application) == before


def test_pending_migrations_are_reported(any_application: Application) -> None:
    any_application.execute("select 1")
    options = DatabaseOptions(url=any_application.url)

    def pending() -> list[str]:
        with any_application.engine.connect() as connection:
            return [*migrate.schema_of(connection, "changes", options).faults]

    assert pending() == ["airy_trio has not been installed here; run: airy-trio migrate --config FILE"]
    any_application.run_migration()
    assert pending() == []
    any_application.execute(f"update {any_application.log_table('changes_version')} set version_num = 'changes_0001'")
    head = migrate.head("changes")
    assert pending() == [
        f"airy_trio is at changes_0001, this version needs {head}; run: airy-trio migrate --config FILE"
    ]


def test_unknown_older_schema_is_one_line(any_application: Application) -> None:
    settings = any_application.run_migration()
    any_application.execute(f"update {any_application.log_table('changes_version')} set version_num = 'changes_0000'")
    with pytest.raises(StartError, match=r"^airy_trio cannot be migrated: Can't locate revision") as caught:
        migrate.migrate(settings)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("stream", ["changes", "log"])
def test_fresh_and_upgraded_schema_work_with_the_same_versions(
    any_application: Application, stream: migrate.Stream
) -> None:
    settings = any_application.run_migration()
    home = home_of(any_application, stream)
    compatible_from = f"select compatible_from from {home.log_table(STATES[stream])}"
    fresh = home.scalar(compatible_from)
    with home.engine.begin() as connection:
        downgrade(connection, stream, home.names, f"{stream}_0001")
    migrate.migrate(settings)
    assert home.scalar(compatible_from) == fresh <= migrate.head(stream)
    home.engine.dispose()


TRIGGER_TEXTS = {
    ("changes_0005", "postgresql"): "095584217557d757",
    ("changes_0005", "sqlite"): "7ea62c11fb07a455",
}
"""Digests of the triggers of the default tables by revision.

If a digest differs, servers of the previous version would treat the new triggers as those of another mapping. If this
revision has been released, add a migration to ``migrations/changes``, even an empty one. Then put its name and the
digest here.
"""


def test_changed_triggers_come_with_a_migration(any_application: Application) -> None:
    any_application.run_migration("[events]\ndeletes = true\n")
    texts = (
        "select sql from sqlite_master where type = 'trigger' order by name"
        if any_application.dialect == "sqlite"
        else "select prosrc from pg_proc where pronamespace = 'airy_trio'::regnamespace order by proname"
    )
    with any_application.engine.connect() as connection:
        found = "\n".join(connection.exec_driver_sql(texts).scalars())
    digest = hashlib.sha256(found.encode()).hexdigest()[:16]
    assert TRIGGER_TEXTS[migrate.head("changes"), any_application.dialect] == digest


def test_migrations_are_next_to_the_package_or_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (migrate.migrations_folder() / "env.py").is_file()
    package = tmp_path / "airy_trio"
    (package / "migrations").mkdir(parents=True)
    monkeypatch.setattr(migrate, "__file__", str(package / "migrate" / "__init__.py"))
    assert migrate.migrations_folder() == package / "migrations"


def test_path_with_special_characters_for_alembic(
    sqlite_application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "50% of: all, %(here)s"
    shutil.copytree(migrate.migrations_folder(), folder)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    sqlite_application.run_migration()


def test_names_that_need_quoting(any_application: Application) -> None:
    any_application.execute('create table "50%s a:b ""t" (id text, name text, color text)')
    settings = any_application.run_migration(
        ONLY_TAGS + '[database.tables.tags]\nname = "50%s a:b \\"t"', with_tables=False
    )
    any_application.execute("""insert into "50%s a:b ""t" (id) values ('t1')""")
    assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1
    if any_application.dialect == "postgresql":
        migrate.migrate(settings, grant="postgres")
    migrate.remove(settings)
    any_application.execute("""insert into "50%s a:b ""t" (id) values ('t2')""")


def test_upgrade_with_names_that_need_quoting(postgres_application: Application) -> None:
    postgres_application.execute('create table "50%s \\:a ""t" (id text, name text, color text)')
    settings = postgres_application.run_migration(
        ONLY_TAGS + '[database.tables.tags]\nname = "50%s :a \\"t"', with_tables=False
    )
    with postgres_application.engine.begin() as connection:
        downgrade(connection, "changes", postgres_application.names, "changes_0004")
    migrate.migrate(settings)
    postgres_application.execute("""insert into "50%s \\:a ""t" (id) values ('t1')""")
    assert postgres_application.scalar("select count(*) from airy_trio.change_log") == 1


def test_preview_changes_nothing_and_can_be_run_by_hand(any_application: Application) -> None:
    any_application.execute(*(f"create table {name} (id text, name text, color text)" for name in ("tags", "own")))
    before = contents(any_application)
    settings = any_application.settings(ONLY_TAGS)
    statements = migrate.preview(settings)
    assert contents(any_application) == before
    assert not any(line.lower().startswith(("select", "set", "lock", "pragma")) for line in statements)
    sections: dict[str, list[str]] = {}
    section: list[str] = []
    for line in statements:
        if line.startswith("-- "):
            section = sections.setdefault(line.removeprefix("-- "), [])
        else:
            section.append(line)
    assert sections.keys() == {
        any_application.url,
        *([f"sqlite:///{event_file(any_application)}"] if any_application.dialect == "sqlite" else []),
    }
    for url, lines in sections.items():
        by_hand = Application(url, create=True)
        with by_hand.engine.begin() as connection:
            driver: Any = connection.connection.driver_connection
            for line in lines:
                driver.execute(line)
        by_hand.engine.dispose()
    assert migrate.preview(settings) == []
    any_application.tag()
    assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1


def test_preview_creates_no_file_and_shows_no_password(tmp_path: Path, postgres: Postgres) -> None:
    application = Application(f"sqlite:///{tmp_path}/new.db")
    assert any("CREATE TABLE messages" in line for line in migrate.preview(application.settings(), with_tables=True))
    assert list(tmp_path.iterdir()) == []
    url = postgres.password_url("postgres")
    with pytest.raises(StartError) as caught:
        migrate.preview(Application(url).settings())
    assert postgres.password not in str(caught.value)


def test_preview_fails_as_the_migration_would(any_application: Application) -> None:
    any_application.execute("select 1")
    with pytest.raises(MappingError):
        migrate.preview(any_application.settings())


@pytest.mark.parametrize("store", ["sql", "memory"])
def test_removing_restores_the_previous_state(any_application: Application, store: str) -> None:
    any_application.execute(
        "create table tags (id text primary key, name text unique, color text)",
        "create table alembic_version (version_num text)",
        "create view v as select * from tags",
    )
    before = contents(any_application)
    settings = any_application.settings(f'{ONLY_TAGS}[log]\nstore = "{store}"')
    migrate.migrate(settings)
    assert contents(any_application) != before
    any_application.tag()
    if any_application.dialect == "sqlite":
        event_file(any_application).with_name("app.db.airy-trio.lock").touch()
    migrate.remove(settings)
    assert [item for item in contents(any_application) if item[1] != "sqlite_sequence"] == before
    if any_application.dialect == "sqlite":
        assert [path.name for path in event_file(any_application).parent.iterdir()] == ["app.db"]
    migrate.remove(settings)
    migrate.migrate(settings)


@pytest.mark.parametrize(
    "stream, lost",
    [("changes", "change_log"), ("changes", "changes_version"), ("log", "log_state"), ("log", "acknowledged")],
)
def test_missing_table_is_reported_until_removal(
    any_application: Application, stream: migrate.Stream, lost: str
) -> None:
    settings = any_application.migrate()
    home = home_of(any_application, stream)
    home.execute(f"drop table {home.log_table(lost)}")
    reason = f"airy_trio is incomplete; missing tables: {home.names.bare(lost)}; run: airy-trio migrate --remove "
    with home.engine.connect() as connection:
        schema = migrate.schema_of(connection, stream, settings.database)
    assert schema.incomplete
    assert schema.faults[0].startswith(reason)
    with pytest.raises(StartError, match=f"^(database|log): {reason}"):
        migrate.migrate(settings)
    migrate.remove(settings)
    migrate.migrate(settings)


def test_removal_and_an_append_lock_in_the_same_order(postgres_application: Application) -> None:
    """An append changes the state and then adds events, so the removal locks these tables in the same order."""
    settings = postgres_application.migrate()
    state, engine = "airy_trio.log_state", postgres_application.engine
    with engine.connect() as appending:
        appending.exec_driver_sql(f"update {state} set last = last")
        removing = threading.Thread(target=migrate.remove, args=[settings])
        removing.start()
        while postgres_application.scalar(WAITING.replace("messages", state)) == 0:
            time.sleep(0.01)
        appending.exec_driver_sql("set local lock_timeout = '100ms'")
        appending.exec_driver_sql("select from airy_trio.event_log")
        appending.commit()
        removing.join()
    assert postgres_application.scalar("select to_regclass('airy_trio.event_log')") is None


def test_tables_of_the_application_with_our_names_are_not_removed(any_application: Application) -> None:
    if any_application.dialect != SQLITE:
        any_application.execute("create schema airy_trio")
    tables = [any_application.log_table(name) for name in ("change_log", "change_state")]
    for table in tables:
        any_application.execute(f"create table {table} (id text)")
    settings = any_application.settings()
    migrate.remove(settings)
    assert [any_application.scalar(f"select count(*) from {table}") for table in tables] == [0, 0]
    with any_application.engine.connect() as connection:
        assert not migrate.schema_of(connection, "changes", settings.database).incomplete


def test_version_without_a_row_is_named(any_application: Application) -> None:
    """While a dump is being restored, the tables exist before they have their rows."""
    settings = any_application.migrate()
    any_application.execute(f"delete from {any_application.log_table('changes_version')}")
    with any_application.engine.connect() as connection:
        (fault,) = migrate.schema_of(connection, "changes", settings.database).faults
    version = any_application.names.bare("changes_version")
    assert fault.startswith(f"airy_trio is incomplete; {version} has no row; run: ")


def test_removing_by_a_symbolic_link_includes_the_lock_file(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    (tmp_path / "app.db").touch()
    link.symlink_to(tmp_path / "app.db")
    with application(f"sqlite:///{link}") as linked:
        settings = linked.run_migration()
        lock_file(link, settings.database.schema).touch()
        migrate.remove(settings)
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "link.db"}


def test_removing_includes_triggers_of_an_older_mapping(any_application: Application) -> None:
    any_application.execute(*(f"create table {name} (id text, name text, color text)" for name in ("tags", "labels")))
    before = contents(any_application)
    settings = any_application.settings(ONLY_TAGS)
    migrate.migrate(settings)
    migrate.remove(any_application.settings(ONLY_TAGS + '[database.tables.tags]\nname = "labels"'))
    assert [item for item in contents(any_application) if item[1] != "sqlite_sequence"] == before


def test_removing_retains_foreign_objects_in_our_schema(postgres_application: Application) -> None:
    settings = postgres_application.run_migration()
    postgres_application.execute("create table airy_trio.theirs (x int)")
    migrate.remove(settings)
    assert postgres_application.scalar("select count(*) from airy_trio.theirs") == 0
    assert (
        postgres_application.scalar("select count(*) from pg_class where relnamespace = 'airy_trio'::regnamespace") == 1
    )


def test_removing_retains_an_event_file_with_foreign_tables(sqlite_application: Application) -> None:
    settings = sqlite_application.run_migration()
    events = Application(f"sqlite:///{event_file(sqlite_application)}")
    events.execute("create table theirs (x)")
    events.engine.dispose()
    migrate.remove(settings)
    assert events.scalar("select count(*) from sqlite_master where name not like 'sqlite%'") == 1
    events.engine.dispose()


def test_removing_from_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="does not exist"):
        migrate.remove(Application(f"sqlite:///{tmp_path}/x.db").settings())


def test_removing_includes_events_in_another_postgres(postgres_application: Application, postgres: Postgres) -> None:
    other = Application(postgres.url(postgres.create_database()))
    more = f'[log]\nurl = "{other.url}"'
    before = contents(other)
    settings = postgres_application.run_migration(more)
    assert other.scalar("select count(*) from airy_trio.log_state") == 1
    migrate.remove(settings)
    assert contents(other) == before
    other.engine.dispose()


async def test_granted_role_can_do_all_that_a_server_does(
    postgres_application: Application, postgres: Postgres
) -> None:
    postgres_application.execute("create schema chat", "create table chat.tags (id text, name text, color text)")
    settings = postgres_application.settings(ONLY_TAGS + '[database.tables.tags]\nname = "chat.tags"')
    migrate.migrate(settings, grant=PASSWORD_ROLE)
    database = sa.make_url(postgres_application.url).database
    assert database is not None
    server = Application(postgres.password_url(database))
    try:
        async with feed_of(server, settings) as feed:
            postgres_application.execute("insert into chat.tags values ('t1', 'flag', 'red')")
            objects, after, _ = await read_all(feed, await feed.origin())
            assert len(objects) == 1
            await feed.adopt(Consumer("epoch", "store"))
            assert await feed.trim(after, 10) == 1
            await feed.restart()
        store = sql_store(server.writing(), server.writing(), server.names)
        head = (await store.bounds()).head
        await store.append(head, [], after)
        await store.begin_epoch(head, after)
        await store.aclose()
        with server.engine.connect() as connection:
            assert migrate.schema_of(connection, "changes", settings.database).faults == ()
            assert migrate.schema_of(connection, "log", settings.database).faults == ()
        for forbidden in ("insert into chat.tags values ('t2')", "create table airy_trio.x (x int)"):
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                server.execute(forbidden)
    finally:
        server.engine.dispose()
        postgres_application.execute(f"drop owned by {PASSWORD_ROLE}")


def test_grant_to_missing_role_or_on_sqlite_is_an_error(any_application: Application) -> None:
    any_application.execute("select 1")
    before = contents(any_application)
    with pytest.raises(StartError) as caught:
        migrate.migrate(any_application.settings(), with_tables=True, grant="absent")
    [fault] = caught.value.faults
    no_role = '--grant absent: the Postgres at database.url has no role "absent"'
    no_roles = "--grant absent: SQLite has no roles; the permissions of the file decide"
    assert fault == (no_roles if any_application.dialect == SQLITE else no_role)
    assert contents(any_application) == before
