"""``migrate --to``: one stream up to a revision and no further, never back, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from airy_trio import migrate
from airy_trio.errors import StartError
from airy_trio.migrate import Stream, migrate_to, schema_of, stream_of
from tests.application import Application
from tests.command_line import CommandLine
from tests.newer_schema import home_of, move_ahead, newer
from tests.older_schema import downgrade
from tests.processes import Finished
from tests.test_migrate import contents, event_file

STREAMS: Sequence[Stream] = ("changes", "log")
SETTINGS = {"changes": "database", "log": "log"}
REVISIONS = [revision for stream in STREAMS for revision in migrate.revisions(stream)]


@pytest.fixture
def config(any_application: Application, tmp_path: Path) -> str:
    """The settings file of an application without default tables, in which nothing is installed."""
    any_application.execute("create table own (id int)")
    path = tmp_path / "airy-trio.toml"
    path.write_text(f'[database]\nurl = "{any_application.url}"\n[listener]\nport = 0\n[admin]\nport = 0\n')
    return str(path)


def revision_of(application: Application, stream: Stream) -> str | None:
    """Return the revision of a stream; None if it is not installed or, on SQLite, if its file does not exist."""
    if application.dialect == "sqlite" and stream == "log" and not event_file(application).exists():
        return None
    home = home_of(application, stream)
    with home.engine.connect() as connection:
        found = migrate.revision_of(connection, stream, home.names)
    home.engine.dispose()
    return found


def triggers_of(application: Application) -> list[str]:
    """Return the definitions of our triggers. A replaced Postgres function counts as a different one."""
    statement = (
        "select sql from sqlite_master where type = 'trigger' order by name"
        if application.dialect == "sqlite"
        else "select prosrc || xmin::text from pg_proc where pronamespace::regnamespace::text = 'airy_trio' order by 1"
    )
    with application.engine.connect() as connection:
        return list(connection.exec_driver_sql(statement).scalars())


@pytest.mark.parametrize("stream", STREAMS)
def test_stream_moves_step_by_step_and_alone(
    any_application: Application, config: str, command_line: CommandLine, stream: Stream
) -> None:
    [other] = set(STREAMS) - {stream}
    for revision in migrate.revisions(stream):
        line = f"{SETTINGS[stream]}: airy_trio is at {revision}"
        assert command_line("migrate", "--to", revision, "--config", config) == Finished(0, f"{line}\n", "")
        assert revision_of(any_application, stream) == revision
        assert command_line("migrate", "--to", revision, "--config", config) == Finished(0, f"{line} already\n", "")
    assert revision_of(any_application, other) is None
    assert triggers_of(any_application) == []

    assert command_line("migrate", "--with-tables", "--config", config).code == 0
    assert [revision_of(any_application, each) for each in STREAMS] == [migrate.head(each) for each in STREAMS]
    assert triggers_of(any_application) != []


@pytest.mark.parametrize("stream", STREAMS)
def test_installed_schema_moves_with_its_data(any_application: Application, stream: Stream) -> None:
    settings = any_application.run_migration()
    any_application.tag()
    triggers = triggers_of(any_application)
    home = home_of(any_application, stream)
    with home.engine.begin() as connection:
        downgrade(connection, stream, home.names, f"{stream}_0002")
    data = f"select count(*) from {home.log_table('change_log')}"
    if stream == "log":
        data = f"select epoch from {home.log_table('log_state')}"
    before = home.scalar(data)

    migrate_to(settings, f"{stream}_0003")
    assert revision_of(any_application, stream) == f"{stream}_0003"
    with home.engine.connect() as connection:
        reported = [*schema_of(connection, stream, settings.database).faults]
    newest = migrate.head(stream)
    needs = f"airy_trio is at {stream}_0003, this version needs {newest}; run: airy-trio migrate --config FILE"
    assert reported == ([] if newest == f"{stream}_0003" else [needs])
    assert home.scalar(data) == before
    assert triggers_of(any_application) == triggers

    migrate.migrate(settings)
    assert revision_of(any_application, stream) == migrate.head(stream)
    home.engine.dispose()


@pytest.mark.parametrize("stream", STREAMS)
def test_older_revision_is_an_error_and_changes_nothing(
    any_application: Application, config: str, command_line: CommandLine, stream: Stream
) -> None:
    any_application.run_migration()
    oldest, head = f"{stream}_0001", migrate.head(stream)

    def assert_refused(current: str, to: str) -> None:
        home = home_of(any_application, stream)
        before = contents(home)
        for preview in ((), ("--sql",)):
            refused = command_line("migrate", "--to", to, *preview, "--config", config)
            reason = f"airy_trio is at {current}, newer than {to}; nothing changed: there is no downgrade"
            assert refused == Finished(1, "", f"airy-trio: {SETTINGS[stream]}: {reason}\n")
        assert contents(home) == before
        home.engine.dispose()

    assert_refused(head, oldest)
    move_ahead(any_application, stream)
    assert_refused(newer(stream), head)


def test_unknown_revision_names_the_known_ones(
    any_application: Application, config: str, command_line: CommandLine
) -> None:
    before = contents(any_application)
    for unknown in ("log_9999", "head", "0001", ""):
        finished = command_line("migrate", "--to", unknown, "--config", config)
        assert (finished.code, finished.out) == (2, "")
        [error] = [line for line in finished.err.splitlines() if line.startswith("Error: ")]
        assert error.endswith(f"{unknown!r} is not a revision of this version; known are {', '.join(REVISIONS)}")
    assert contents(any_application) == before


@pytest.mark.parametrize("stream", STREAMS)
def test_preview_shows_the_step_and_changes_nothing(
    any_application: Application, config: str, command_line: CommandLine, stream: Stream
) -> None:
    any_application.run_migration()
    home = home_of(any_application, stream)
    with home.engine.begin() as connection:
        downgrade(connection, stream, home.names, f"{stream}_0001")
    before = contents(home)
    shown = command_line("migrate", "--sql", "--to", f"{stream}_0002", "--config", config)
    assert (shown.code, shown.err) == (0, "")
    assert contents(home) == before

    with home.engine.begin() as connection:
        for statement in shown.out.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement.replace("%", "%%") if home.dialect == "postgresql" else statement)
    assert revision_of(any_application, stream) == f"{stream}_0002"
    nothing = command_line("migrate", "--sql", "--to", f"{stream}_0002", "--config", config)
    assert nothing == Finished(0, "-- nothing to do\n", "")
    home.engine.dispose()


@pytest.mark.parametrize(
    "other", [("--with-tables",), ("--grant", "server"), ("--triggers", "always"), ("--backfill",)]
)
def test_only_the_preview_can_be_combined_with_it(other: tuple[str, ...], command_line: CommandLine) -> None:
    finished = command_line("migrate", "--to", "log_0001", *other, "--config", "absent.toml")
    assert finished.code == 2
    assert "--to cannot be combined with other options except --sql" in finished.err


@pytest.mark.parametrize("other", ["--remove", "--adopt-log"])
def test_removing_and_adopting_exclude_it(other: str, command_line: CommandLine) -> None:
    finished = command_line("migrate", "--to", "log_0001", other, "--config", "absent.toml")
    assert finished.code == 2
    assert f"{other} cannot be combined with other options" in finished.err


def test_stream_that_is_not_in_this_database_is_an_error(any_application: Application, tmp_path: Path) -> None:
    any_application.execute("create table own (id int)")
    before = contents(any_application)
    in_memory = any_application.settings('[log]\nstore = "memory"\n')
    with pytest.raises(StartError, match=r'^--to log_0001: log.store is "memory", which has no such tables$'):
        migrate_to(in_memory, "log_0001")
    log = f'[log]\nurl = "sqlite:///{tmp_path}/log.db"\n'
    read_only = any_application.settings(f'[changes]\ncapture = "updated_at"\n{log}')
    with pytest.raises(
        StartError, match=r"^--to changes_0001: changes.capture is .* writes nothing into the database$"
    ):
        migrate_to(read_only, "changes_0001")
    assert contents(any_application) == before


def test_file_is_not_created_for_it(tmp_path: Path) -> None:
    absent = Application(f"sqlite:///{tmp_path}/absent.db")
    for revision in ("changes_0001", "log_0001"):
        with pytest.raises(StartError, match=r"absent\.db does not exist"):
            migrate_to(absent.settings(), revision)
    assert list(tmp_path.iterdir()) == []


def test_step_waits_for_a_lock_in_short_tries(postgres_application: Application) -> None:
    settings = postgres_application.run_migration()
    with postgres_application.engine.begin() as connection:
        downgrade(connection, "log", postgres_application.names, "log_0006")
    with postgres_application.engine.connect() as recording:
        recording.execute(sa.text("select 1 from airy_trio.log_state for update"))
        attempts: list[int] = []

        def waiting(attempt: int) -> None:
            attempts.append(attempt)
            recording.rollback()

        [line] = migrate_to(settings, "log_0007", waiting=waiting)
    assert (line, attempts) == ("log: airy_trio is at log_0007", [1])


def test_each_revision_belongs_to_its_stream() -> None:
    assert [stream_of(revision) for revision in REVISIONS] == [revision.partition("_")[0] for revision in REVISIONS]
