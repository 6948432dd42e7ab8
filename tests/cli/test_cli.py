"""The program as a command: what `test_failures` does not list, `migrate` and `check`, and their exit codes."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing
from attrs import frozen

from airy_trio import __version__, app
from airy_trio.cli.commands import run_until_signalled
from airy_trio.cli.logs import configure_logging
from tests.application import Application
from tests.command_line import CommandLine
from tests.postgres import Postgres
from tests.processes import Finished, json_object, run, server

PASSWORD = "correct-horse-battery"
POSTGRES_URL = f"postgresql://airy:{PASSWORD}@127.0.0.1/airy"
JSON_LOGS = '[listener]\nport = 0\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
QUICK = "connect_timeout_s = 0.1\n"
NO_BACKFILL = (
    "log.keep_current: replay:current does not have channel.updated, tag.updated completely; a server has to record a "
    "backfill; if none waits for that, run: airy-trio backfill --config FILE\n"
)
"""What ``check`` notes before the first backfill."""


@frozen
class Here:
    """A folder with a settings file in it."""

    folder: Path

    def config(self, text: str) -> str:
        path = self.folder / "airy-trio.toml"
        path.write_text(text)
        return str(path)

    def on(self, url: str, more: str = "") -> str:
        """Return settings of a server on a database, with a short time-out."""
        return self.config(f'[database]\nurl = "{url}"\n{QUICK}{more}{JSON_LOGS}')


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def message_of(finished: Finished, code: int) -> str:
    """Return the only message of a program that failed with this exit code."""
    messages = [line for line in finished.err.splitlines() if not json_object(line)]
    assert finished.code == code, finished.err
    assert finished.out == ""
    assert "Traceback" not in finished.err
    assert PASSWORD not in finished.err
    assert len(messages) == 1, messages
    assert messages[0].startswith("airy-trio: ")
    return messages[0].removeprefix("airy-trio: ")


# The command line and the settings: exit 2


def test_all_faults_of_the_settings_at_once(here: Here, command_line: CommandLine) -> None:
    config = here.config(f'[database]\nurl = "{POSTGRES_URL}"\nshema = ""\n[replay]\nwindow_s = -1\n')
    finished = command_line("--config", config)
    assert finished.code == 2
    assert len(finished.err.splitlines()) == 2
    assert PASSWORD not in finished.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "Missing option '--config FILE'."),
        (("migrate",), "Missing option '--config FILE'."),
        (("--confg", "x"), "No such option"),
        (("serve",), "No such command 'serve'."),
        (("--config", "x", "migrate"), "airy-trio migrate --config FILE"),
        (("demo", "--events", "0"), "0 is not in the range x>=1."),
    ],
)
def test_wrong_command_line(arguments: tuple[str, ...], message: str, command_line: CommandLine) -> None:
    finished = command_line(*arguments)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Usage: airy-trio")
    assert message in finished.err


def test_version_and_help(command_line: CommandLine) -> None:
    assert command_line("--version") == Finished(0, f"airy-trio, version {__version__}\n", "")
    shown = command_line("--help")
    assert (shown.code, shown.err) == (0, "")
    assert all(command in shown.out for command in ("demo", "migrate", "--config"))


@pytest.fixture
def raising() -> Iterator[Callable[[int, object], None]]:
    """Set a handler of SIGTERM that raises, as the command line does."""

    def end(_number: int, _frame: object) -> None:
        sys.exit(1)

    before = signal.signal(signal.SIGTERM, end)
    yield end
    signal.signal(signal.SIGTERM, before)


async def signal_at_the_end() -> None:
    """Send SIGTERM while Trio ends, as a system task."""
    try:
        await trio.sleep_forever()
    finally:
        signal.raise_signal(signal.SIGTERM)


def test_further_signals_at_the_end_of_a_command_are_ignored(raising: Callable[[int, object], None]) -> None:
    async def work() -> None:
        trio.lowlevel.spawn_system_task(signal_at_the_end)
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    run_until_signalled(work)
    assert signal.getsignal(signal.SIGTERM) is raising


def test_further_signals_at_the_end_of_a_server_are_ignored(raising: Callable[[int, object], None]) -> None:
    async def work() -> str:
        trio.lowlevel.spawn_system_task(signal_at_the_end)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
            await anext(signals)
        return "stopped"

    assert app.trio_run(work) == "stopped"
    assert signal.getsignal(signal.SIGTERM) is raising


# The database: exit 1


def test_missing_database(here: Here, postgres: Postgres, command_line: CommandLine) -> None:
    message = message_of(command_line("--config", here.on(postgres.url("absent"))), 1)
    assert 'database "absent" does not exist' in message


def test_missing_triggers(any_application: Application, here: Here, command_line: CommandLine) -> None:
    any_application.migrate()
    any_application.execute("drop table tags", "create table tags (id text primary key, name text, color text)")
    message = message_of(command_line("--config", here.on(any_application.url)), 1)
    assert re.search(r'table "tags" \(tags\) has no trigger .*; run: airy-trio migrate --config FILE', message)


def test_triggers_of_another_mapping(any_application: Application, here: Here, command_line: CommandLine) -> None:
    any_application.migrate()
    config = here.on(any_application.url, '[database.tables.messages]\ncolumns = { channel_id = "source" }\n')
    message = message_of(command_line("--config", config), 1)
    assert message.startswith('table "messages" (messages) has triggers of another ')
    assert message.endswith("; run: airy-trio migrate --config FILE")


# The port and the store: exit 1


async def test_memory_store_next_to_another_server(any_application: Application, here: Here) -> None:
    any_application.migrate()
    with trio.fail_after(40):
        async with server(Path(here.on(any_application.url))):
            config = here.on(any_application.url, '[log]\nstore = "memory"\n')
            message = message_of(await run("--config", config), 1)
    assert message.startswith("another server records the changes of this database into another event log (")


# Migrate


@pytest.mark.slow
async def test_migrate_installs_what_the_server_needs(here: Here) -> None:
    config = here.on(f"sqlite:///{here.folder}/new.db")
    made = await run("migrate", "--with-tables", "--config", config)
    assert (made.code, made.err) == (0, "")
    assert "made the tables" in made.out
    again = await run("migrate", "--config", config)
    assert (again.code, again.err) == (0, "")
    assert again.out == "watching messages, metadata, channels, tags\n"
    with trio.fail_after(40):
        async with server(Path(config)) as serving:
            assert await serving.terminate() == 0


def test_preview_without_anything_to_do_is_a_comment(
    sqlite_application: Application, here: Here, command_line: CommandLine
) -> None:
    sqlite_application.migrate()
    finished = command_line("migrate", "--sql", "--config", here.on(sqlite_application.url))
    assert (finished.code, finished.out) == (0, "-- nothing to do\n")


# Check


def test_check_of_a_correct_database(sqlite_application: Application, here: Here, command_line: CommandLine) -> None:
    sqlite_application.migrate()
    finished = command_line("check", "--config", here.on(sqlite_application.url))
    assert finished == Finished(0, f"watching messages, metadata, channels, tags\n{NO_BACKFILL}", "")


def test_check_reports_each_problem_on_a_line(
    sqlite_application: Application, here: Here, command_line: CommandLine
) -> None:
    sqlite_application.migrate()
    sqlite_application.execute("drop table tags", "drop table channels")
    finished = command_line("check", "--config", here.on(sqlite_application.url))
    assert (finished.code, finished.out) == (1, NO_BACKFILL)
    assert [line.partition(".name: ")[0] for line in finished.err.splitlines()] == [
        "airy-trio: database.tables.channels",
        "airy-trio: database.tables.tags",
    ]


def test_check_with_warnings_only(postgres_application: Application, here: Here, command_line: CommandLine) -> None:
    postgres_application.migrate()
    finished = command_line("check", "--config", here.on(postgres_application.url))
    assert finished.code == 0
    assert finished.err.startswith("airy-trio: warning: database.url: fsync is off: ")


def test_check_with_a_row_that_cannot_be_sent(
    sqlite_application: Application, here: Here, command_line: CommandLine
) -> None:
    sqlite_application.migrate()
    sqlite_application.execute("insert into tags values ('t1', cast(x'ff' as text), 'red')")
    finished = command_line("check", "--config", here.on(sqlite_application.url))
    assert finished.code == 0
    assert "airy-trio: warning: database.tables.tags: 1 of the newest 1 by id cannot be converted" in finished.err


def test_migrate_previews_installs_and_removes(
    any_application: Application, here: Here, command_line: CommandLine
) -> None:
    any_application.execute("select 1")
    config = here.on(any_application.url)
    shown = command_line("migrate", "--sql", "--with-tables", "--config", config)
    assert shown.code == 0
    assert shown.out.startswith("-- ")
    assert "CREATE TABLE messages" in shown.out
    assert command_line("migrate", "--config", config).code == 1  # nothing was changed
    assert command_line("migrate", "--with-tables", "--config", config).code == 0
    assert command_line("migrate", "--remove", "--config", config) == Finished(0, "removed\n", "")
    Path(config).write_text(Path(config).read_text() + '[log]\nstore = "redis"\nurl = "redis://a:s3cret@b"\n')
    kept = "kept: the events and durable subscriptions in the event store redis://a:***@b; delete them there"
    assert command_line("migrate", "--remove", "--config", config) == Finished(0, f"removed\n{kept}\n", "")
    assert "has not been installed here" in message_of(command_line("--config", config), 1)


def test_migrate_cannot_grant_on_sqlite(sqlite_application: Application, here: Here, command_line: CommandLine) -> None:
    sqlite_application.migrate()
    message = message_of(command_line("migrate", "--grant", "server", "--config", here.on(sqlite_application.url)), 1)
    assert message == "--grant server: SQLite has no roles; the permissions of the file decide"


@pytest.mark.parametrize("alone", ["--remove", "--adopt-log"])
@pytest.mark.parametrize("other", [("--sql",), ("--with-tables",), ("--grant", "server"), ("--triggers", "always")])
def test_option_cannot_be_combined_with_others(
    alone: str, other: tuple[str, ...], here: Here, command_line: CommandLine
) -> None:
    finished = command_line("migrate", alone, *other, "--config", here.on("sqlite:///x.db"))
    assert finished.code == 2
    assert f"{alone} cannot be combined with other options" in finished.err


def test_closed_stderr_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, written = os.pipe()
    os.close(reading)
    stderr = os.fdopen(written, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("info", "json")
    structlog.get_logger().warning("row fault")
    with pytest.raises(BrokenPipeError):
        stderr.write("not read\n")
    with contextlib.suppress(BrokenPipeError):
        stderr.close()
