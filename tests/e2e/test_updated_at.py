"""Read-only databases through the whole server: changes are captured by ``updated_at``."""

import contextlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import sqlite_path
from tests.application import Application, application
from tests.capture.watched import ONLY_TAGS, SECOND_US, START_US, Watched
from tests.command_line import CommandLine
from tests.docs.pages import parts
from tests.e2e.route import assert_in_order, listening
from tests.processes import AIRY_TRIO, Server, run, running, server

TIMEOUT_S = 50.0
ROLE = "watcher"
UNPRIVILEGED = (sys.executable, str(Path(__file__).parents[1] / "unprivileged.py"))


def config_for(url: str, log_url: str, folder: Path, *, more: str = "") -> Path:
    config = folder / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{url}"\n{ONLY_TAGS}[changes]\ncapture = "updated_at"\n{more}'
        f'[log]\nurl = "{log_url}"\n[listener]\nport = 0\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
    )
    return config


@pytest.fixture
def reader(postgres_application: Application) -> Iterator[str]:
    """The URL of a role with the rights that the page lists, on the tags."""
    Watched(postgres_application)
    [rights] = parts("how-to/read-only.md", "sql")
    rights = rights.replace("schema chat", "schema public").replace("chat.messages", "tags")
    postgres_application.execute(
        f"create role {ROLE} login", *rights.strip().split(";\n"), "revoke create on schema public from public"
    )
    yield sa.make_url(postgres_application.url).set(username=ROLE).render_as_string(hide_password=False)
    postgres_application.execute(f"drop owned by {ROLE}", f"drop role {ROLE}")


def objects(application: Application) -> list[str]:
    """Return all objects in the database except the system's own."""
    with application.engine.begin() as connection:
        found = connection.exec_driver_sql(
            "select relname from pg_class where relnamespace not in "
            "(select oid from pg_namespace where nspname like 'pg\\_%%' or nspname = 'information_schema') "
            "union all select nspname from pg_namespace union all select tgname from pg_trigger order by 1"
        )
        return [row[0] for row in found]


async def test_role_with_select_only_is_enough(postgres_application: Application, reader: str, tmp_path: Path) -> None:
    writing = postgres_application
    insert = "insert into tags values ('{}', 'flag', 'red', clock_timestamp())"
    writing.execute(insert.format("from before"))
    before = objects(writing)
    config = config_for(reader, f"sqlite:///{tmp_path}/events.db", tmp_path)
    with trio.fail_after(TIMEOUT_S):
        done = await run("migrate", "--config", str(config))
        assert (done.code, done.out) == (0, "watching tags by updated_at: nothing is installed in their database\n")
        checked = await run("check", "--config", str(config))
        assert checked.code == 0, checked.err
        assert "watching tags by updated_at; it cannot see deleted rows" in checked.out
        async with server(config) as serving, listening(serving) as ours:
            warning = await serving.record("capture by updated_at", overlap_s=5.0)
            assert "deleted rows" in warning["cannot_see"]
            assert (await ours.next()).object == ("tag", "from before")  # tags are kept, so the log begins with them
            writing.execute(insert.format("t1"))
            first = await ours.next()
            assert first.object == ("tag", "t1")
            with writing.engine.connect() as late, late.begin():
                late.exec_driver_sql(insert.format("committed late"))
                writing.execute(insert.format("t2"))
                second = await ours.next()
                await serving.kill()
        writing.execute(insert.format("while it was away"))
        async with server(config) as serving, server(config) as other:
            async with listening(other, after=second.position) as ours:
                writing.execute(insert.format("t3"))
                last = await ours.upto(lambda event: event.object == ("tag", "t3"))
            assert await serving.terminate() == 0
            async with listening(other, after=last[-1].position) as ours:  # this server records now
                writing.execute(insert.format("t4"))
                last += await ours.upto(lambda event: event.object == ("tag", "t4"))
            assert await other.terminate() == 0
    assert_in_order([first, second, *last])
    assert [event.object[1] for event in (first, second)] == ["t1", "t2"]
    new = {event.object[1] for event in last} - {"from before", "t1", "t2"}  # which the overlap repeats
    assert new == {"committed late", "t3", "t4", "while it was away"}
    assert objects(writing) == before


def test_table_without_updated_at_is_an_error(
    postgres_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    postgres_application.execute("create table tags (id text primary key, name text, color text, changed timestamp)")
    config = config_for(postgres_application.url, f"sqlite:///{tmp_path}/events.db", tmp_path)
    for command in ((), ("migrate",), ("check",)):
        done = command_line(*command, "--config", str(config))
        assert done.code == 1
        assert 'database.tables.tags.columns.updated_at: changes.capture = "updated_at" needs a column' in done.err
    assert not (tmp_path / "events.db").exists()


@pytest.mark.parametrize("command", [("--with-tables",), ("--grant", ROLE)])
def test_migrate_installs_nothing_in_the_database(
    postgres_application: Application, tmp_path: Path, command: tuple[str, ...], command_line: CommandLine
) -> None:
    Watched(postgres_application)
    config = config_for(postgres_application.url, f"sqlite:///{tmp_path}/events.db", tmp_path)
    done = command_line("migrate", *command, "--config", str(config))
    assert done.code == 1
    assert done.err.startswith(f'airy-trio: {" ".join(command)}: changes.capture is "updated_at", which ')


def test_migrate_and_removal_change_only_the_log(
    sqlite_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    Watched(sqlite_application)
    events = tmp_path / "events.db"
    config = config_for(sqlite_application.url, f"sqlite:///{events}", tmp_path)
    application = sqlite_path(sqlite_application.url)
    before = application.read_bytes()
    previewed = command_line("migrate", "--sql", "--config", str(config))
    assert previewed.code == 0
    assert "event_log" in previewed.out
    assert "change_log" not in previewed.out
    assert not events.exists()
    assert command_line("migrate", "--config", str(config)).code == 0
    assert events.exists()
    assert command_line("migrate", "--remove", "--config", str(config)).code == 0
    assert not events.exists()
    assert application.read_bytes() == before


def test_log_of_a_newer_version_is_not_changed(
    sqlite_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    Watched(sqlite_application)
    config = config_for(sqlite_application.url, f"sqlite:///{tmp_path}/events.db", tmp_path)
    assert command_line("migrate", "--config", str(config)).code == 0
    with application(f"sqlite:///{tmp_path}/events.db") as events:
        events.execute("update airy_trio_log_version set version_num = 'log_9999'")
        for command in (("migrate",), ("migrate", "--sql")):
            done = command_line(*command, "--config", str(config))
            assert (done.code, done.err) == (0, "")
            assert "log: airy_trio is at log_9999" in done.out
            assert done.out.endswith(": nothing done to its tables and triggers\n")
        removed = command_line("migrate", "--remove", "--config", str(config))
        assert removed.code == 1
        assert ": nothing removed; " in removed.err
        assert events.scalar("select version_num from airy_trio_log_version") == "log_9999"


@asynccontextmanager
async def unprivileged(config: Path) -> AsyncIterator[Server]:
    async with running(Server, [*UNPRIVILEGED, *AIRY_TRIO, "--config", str(config)]) as serving:
        serving.port = (await serving.record("listening"))["port"]
        yield serving


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root passes over modes")
@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
async def test_read_only_file_is_enough(tmp_path: Path, journal_mode: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    file = folder / "app.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"pragma journal_mode = {journal_mode}")
    writing = Application(f"sqlite:///{file}", create=True)
    with writing.engine.connect():  # stays open, as in a running application; WAL mode needs that
        watched = Watched(writing, "iso")
        watched.tag("from before", START_US)
        file.chmod(0o444)
        folder.chmod(0o555)
        config = config_for(f"sqlite:///{file}", f"sqlite:///{tmp_path}/events.db", tmp_path)
        try:
            with trio.fail_after(TIMEOUT_S):
                async with unprivileged(config) as serving, listening(serving) as ours:
                    assert (await ours.next()).object == ("tag", "from before")
                    watched.tag("t1", START_US + SECOND_US)
                    first = await ours.next()
                    await serving.kill()
                watched.tag("while it was away", START_US + 2 * SECOND_US)
                async with unprivileged(config) as serving, listening(serving, after=first.position) as ours:
                    watched.tag("t2", START_US + 3 * SECOND_US)
                    following = await ours.upto(lambda event: event.object == ("tag", "t2"))
                    assert await serving.terminate() == 0
        finally:
            folder.chmod(0o755)
    writing.engine.dispose()
    assert_in_order([first, *following])
    assert first.object == ("tag", "t1")
    # A restart repeats the overlap.
    assert [event.object[1] for event in following] == ["from before", "t1", "while it was away", "t2"]
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"app.db"}


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root passes over modes")
async def test_unwritable_event_log_is_reported_with_its_setting(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    writing = Application(f"sqlite:///{folder}/app.db", create=True)
    Watched(writing)
    writing.engine.dispose()
    folder.chmod(0o555)
    config = config_for(f"sqlite:///{folder}/app.db", "", tmp_path)
    try:
        with trio.fail_after(TIMEOUT_S):
            done = await trio.run_process(
                [*UNPRIVILEGED, *AIRY_TRIO, "--config", str(config)],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
    finally:
        folder.chmod(0o755)
    assert done.returncode == 1
    message = done.stderr.decode().splitlines()[-1]
    assert (
        message
        == f"airy-trio: log.url: the SQLite file {folder}/app.db.airy-trio.db cannot be created: Permission denied"
    )
