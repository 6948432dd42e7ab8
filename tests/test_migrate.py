"""Our tables beside the application's: all or nothing, twice as once, never in the application's way."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airy_trio import migrate
from airy_trio.database import DatabaseError, DatabaseOptions, DatabaseRefused, sqlite_path
from airy_trio.errors import MappingError, StartError
from tests.application import Application

NO_CHANNELS = '[database.tables.channels]\nname = ""\n'
ONLY_TAGS = NO_CHANNELS + NO_CHANNELS.replace("channels", "messages") + NO_CHANNELS.replace("channels", "metadata")
FAILING = """
from alembic import op
revision, down_revision = "failing", "{previous}"
def upgrade():
    op.execute("create table half_done (x int)")
    op.execute("create nonsense")
"""


def contents(application: Application) -> list[tuple[Any, ...]]:
    """Everything that there is: tables, columns, triggers, functions, schemas, and the rows of our own tables."""
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


def test_twice_is_as_once(any_application: Application) -> None:
    settings = any_application.settings()
    first = migrate.migrate(settings, with_tables=True)
    assert first.made == ("channels", "messages", "metadata", "tags")
    assert first.watched == ("messages", "metadata", "channels", "tags")
    before = contents(any_application)
    second = migrate.migrate(settings, with_tables=True)
    assert (second.made, second.watched) == ((), first.watched)
    assert contents(any_application) == before


def test_the_default_tables_are_made_only_where_there_are_none(any_application: Application) -> None:
    any_application.execute(
        "create table tags (id text primary key, name text, color text, mine text)",
        "create table labels (id text primary key, name text, color text)",
    )
    with pytest.raises(MappingError, match='there is no table "messages"'):
        any_application.migrate(with_tables=False)
    columns = 'columns = { subject = "id", key = "name", value = "color" }'
    more = f'{NO_CHANNELS}[database.tables.metadata]\nname = "labels"\n{columns}'
    assert migrate.migrate(any_application.settings(more), with_tables=True).made == ("messages",)
    assert any_application.scalar("select count(mine) from tags") == 0


def test_a_view_of_that_name_is_not_made_a_table(any_application: Application) -> None:
    any_application.execute("create view tags as select 'a' as id")
    with pytest.raises(MappingError, match="a view cannot be watched"):
        any_application.migrate(with_tables=True)


def test_a_faulty_mapping_leaves_nothing(any_application: Application) -> None:
    any_application.execute("create table own (x text)")
    before = contents(any_application)
    with pytest.raises(MappingError):
        any_application.migrate('[database.tables.tags]\ncolumns = { name = "titel" }', with_tables=True)
    assert contents(any_application) == before


@pytest.fixture(params=["changes", "log"])
def failing_migrations(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migrations of this version, and one more in a stream that does something and then fails."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    newest = max((folder / request.param).glob("0*.py")).read_text()
    (previous,) = [line.split('"')[1] for line in newest.splitlines() if line.startswith("revision")]
    (folder / request.param / "9999_failing.py").write_text(FAILING.format(previous=previous))
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)


@pytest.mark.usefixtures("failing_migrations")
@pytest.mark.parametrize("with_tables", [False, True])
def test_a_failing_migration_leaves_nothing(any_application: Application, *, with_tables: bool) -> None:
    if not with_tables:
        any_application.execute("create table tags (id text, name text, color text)")
    before = contents(any_application)
    with pytest.raises(DatabaseRefused):
        any_application.migrate("" if with_tables else ONLY_TAGS, with_tables=with_tables)
    assert contents(any_application) == before
    if any_application.dialect == "sqlite":
        assert not event_file(any_application).exists()


def test_a_failing_trigger_leaves_nothing(any_application: Application) -> None:
    """The change log is made before the triggers; a table of that name but for the schema's prefix is in the way."""
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
    with pytest.raises(DatabaseError):
        any_application.migrate(ONLY_TAGS, with_tables=False)
    assert contents(any_application) == before


def test_the_applications_own_alembic_is_left_alone(any_application: Application) -> None:
    any_application.execute(
        "create table alembic_version (version_num text)", "insert into alembic_version values ('theirs')"
    )
    any_application.migrate()
    assert any_application.scalar("select version_num from alembic_version") == "theirs"
    assert (
        any_application.scalar(f"select version_num from {any_application.log_table('changes_version')}")
        == "changes_0001"
    )


def test_a_file_is_made_only_with_tables_and_is_private(tmp_path: Path) -> None:
    application = Application(f"sqlite:///{tmp_path}/new.db")
    path = sqlite_path(application.url)
    with pytest.raises(StartError, match="does not exist"):
        application.migrate(with_tables=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MappingError):
        application.migrate('[database.tables.tags]\nname = "labels"', with_tables=True)
    assert list(tmp_path.iterdir()) == []
    application.migrate(with_tables=True)
    assert sorted(tmp_path.iterdir()) == [path, event_file(application)]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    application.engine.dispose()


def test_a_folder_or_a_folder_that_is_missing_is_no_file(tmp_path: Path) -> None:
    for url, words in ((f"sqlite:///{tmp_path}", "is not a file"), (f"sqlite:///{tmp_path}/no/x.db", "does not exist")):
        with pytest.raises(StartError, match=words):
            Application(url).migrate(with_tables=False)
    with pytest.raises(StartError, match="cannot be created: No such file or directory"):
        Application(f"sqlite:///{tmp_path}/no/x.db").migrate(with_tables=True)


def test_an_event_file_that_is_there_is_kept(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    epoch = "select epoch from airy_trio_log_state"
    events = Application(f"sqlite:///{event_file(sqlite_application)}")
    before = events.scalar(epoch)
    sqlite_application.migrate()
    assert events.scalar(epoch) == before
    events.engine.dispose()


def test_the_memory_store_has_no_tables(any_application: Application) -> None:
    any_application.migrate('[log]\nstore = "memory"')
    assert not any("event_log" in str(item) for item in contents(any_application))
    if any_application.dialect == "sqlite":
        assert not event_file(any_application).exists()


@pytest.mark.parametrize("prefix", ["postgresql://", "postgresql+psycopg://"])
def test_the_store_in_the_same_database_by_another_spelling(postgres_application: Application, prefix: str) -> None:
    url = prefix + postgres_application.url.partition("://")[2]
    postgres_application.migrate(f'[log]\nurl = "{url}"')
    assert postgres_application.scalar("select count(*) from airy_trio.event_log") == 0


def test_the_store_in_an_sqlite_file_of_a_postgres(postgres_application: Application, tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    more = f'[log]\nurl = "sqlite:///{path}"\n'
    with pytest.raises(MappingError):
        postgres_application.migrate(more, with_tables=False)
    assert not path.exists()
    postgres_application.migrate(more)
    assert path.exists()
    assert not any("event_log" in str(item) for item in contents(postgres_application))


def test_the_first_resume_point_stays(any_application: Application) -> None:
    any_application.migrate()
    origin = f"select origin from {any_application.log_table('change_state')}"
    before = any_application.scalar(origin)
    any_application.tag()
    any_application.migrate()
    assert any_application.scalar(origin) == before


def test_two_at_once(any_application: Application) -> None:
    any_application.execute("select 1")
    failures: list[Exception] = []

    def run() -> None:
        try:
            migrate.migrate(any_application.settings(), with_tables=True)
        except Exception as error:  # noqa: BLE001 - told below
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
def test_behind_an_open_transaction_the_applications_writers_wait_half_a_second_at_most(
    postgres_application: Application,
) -> None:
    postgres_application.execute(
        *(f"create table {name} (id text, name text, color text)" for name in ("tags", "channels"))
    )
    columns = 'columns = { source = "name", source_channel_id = "color" }\nconstants = { connected = true }\n'
    settings = postgres_application.settings(ONLY_TAGS.replace(NO_CHANNELS, f"[database.tables.channels]\n{columns}"))
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
    assert max(waits) < 0.5 + 0.4  # and the time that the machine takes
    assert len(waits) > 20
    postgres_application.tag("after")
    assert postgres_application.scalar("select count(*) from airy_trio.change_log where key_1 = 'after'") == 1


def test_a_lock_that_is_never_had_is_told(postgres_application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres_application.execute("create table tags (id text, name text, color text)")
    monkeypatch.setattr(migrate, "LOCK_TRIES_MAX", 1)
    monkeypatch.setattr(migrate, "LOCK_PAUSE_S", 0)
    before = contents(postgres_application)
    with postgres_application.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("insert into tags values ('open', 'x', 'y')")
        with pytest.raises(StartError, match="some transaction has had a table of the mapping locked"):
            postgres_application.migrate(ONLY_TAGS, with_tables=False)
    assert contents(postgres_application) == before


def test_pending_migrations_are_told(any_application: Application) -> None:
    any_application.execute("select 1")
    options = DatabaseOptions(url=any_application.url)

    def told() -> list[str]:
        with any_application.engine.connect() as connection:
            return list(migrate.pending(connection, "changes", options))

    assert told() == ["airy_trio has not been installed here; run: airy-trio migrate --config FILE"]
    any_application.migrate()
    assert told() == []
    any_application.execute(f"update {any_application.log_table('changes_version')} set version_num = 'changes_0000'")
    assert told() == [
        "airy_trio is at changes_0000, this version needs changes_0001; run: airy-trio migrate --config FILE"
    ]


def test_the_migrations_are_beside_the_package_or_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (migrate.migrations_folder() / "env.py").is_file()
    package = tmp_path / "airy_trio"
    (package / "migrations").mkdir(parents=True)
    monkeypatch.setattr(migrate, "__file__", str(package / "migrate.py"))
    assert migrate.migrations_folder() == package / "migrations"


def test_a_path_that_is_special_to_alembic(
    sqlite_application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "50% of: all, %(here)s"
    shutil.copytree(migrate.migrations_folder(), folder)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    sqlite_application.migrate()
