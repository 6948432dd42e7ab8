"""Every wrong way to start the program: one clear message on stderr, the right exit code, nothing else."""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog
import trio
from attrs import frozen

from airy_trio import __version__
from airy_trio.capture import mapping
from airy_trio.capture.mapping import FIELDS
from airy_trio.cli.logs import configure_logging
from tests.application import Application
from tests.command_line import CommandLine
from tests.postgres import PASSWORD_ROLE, Postgres
from tests.processes import Finished, json_object, run, server

PASSWORD = "correct-horse-battery"
POSTGRES_URL = f"postgresql://airy:{PASSWORD}@127.0.0.1/airy"
JSON_LOGS = '[listener]\nport = 0\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
QUICK = "connect_timeout_s = 0.1\n"
NO_BACKFILL = (
    "log.keep_current: replay:current does not have channel.updated, tag.updated completely; run: airy-trio backfill "
    "--config FILE\n"
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


@pytest.mark.parametrize(
    "text, message",
    [
        (f'[database]\nurl = "{POSTGRES_URL}"\n[listner]\n', "listner: unknown setting; did you mean listener?"),
        (
            f'[database]\nurl = "{POSTGRES_URL}"\n[listener]\nport = "8080"\n',
            'listener.port: found string "8080", expected an integer',
        ),
        (
            f'[database]\nurl = "{POSTGRES_URL}"\n[listener]\nport = 65536\n',
            "listener.port: found integer 65536, expected a number from 0 to 65535",
        ),
        (
            f'[database]\nurl = "{POSTGRES_URL}"\n[logging]\nlevel = "loud"\n',
            'logging.level: found string "loud", expected',
        ),
        ('[database]\nurl = "${AIRY_TEST_UNSET}"\n', "database.url: "),
        ("[listener]\n", "database.url: missing"),
        (f'[database]\nurl = "{POSTGRES_URL}"\nurl = "again"\n', "not TOML"),
    ],
    ids=["unknown key", "wrong type", "out of bounds", "unknown word", "unset variable", "no url", "no TOML"],
)
@pytest.mark.parametrize("command", [(), ("migrate",)], ids=["serve", "migrate"])
def test_wrong_settings(
    text: str, message: str, command: tuple[str, ...], here: Here, command_line: CommandLine
) -> None:
    assert message in message_of(command_line(*command, "--config", here.config(text)), 2)


def test_missing_settings_file(here: Here, command_line: CommandLine) -> None:
    path = str(here.folder / "absent.toml")
    assert message_of(command_line("--config", path), 2) == f"{path}: there is no such file"


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


@pytest.mark.slow
async def test_unset_variable_as_a_process(here: Here) -> None:
    config = here.config('[database]\nurl = "${AIRY_TEST_UNSET}"\n')
    assert "AIRY_TEST_UNSET" in message_of(await run("--config", config), 2)


# The database: exit 1


@pytest.mark.parametrize("command", [(), ("migrate",)], ids=["serve", "migrate"])
def test_missing_sqlite_file_is_reported_and_not_created(
    command: tuple[str, ...], here: Here, command_line: CommandLine
) -> None:
    path = here.folder / "absent.db"
    before = sorted(here.folder.iterdir())
    message = message_of(command_line(*command, "--config", here.on(f"sqlite:///{path}")), 1)
    assert message == f"database.url: the SQLite file {path} does not exist (and is not created)"
    assert [file.name for file in here.folder.iterdir() if file not in before] == ["airy-trio.toml"]


def test_file_that_is_not_a_database(here: Here, command_line: CommandLine) -> None:
    (here.folder / "notes.db").write_text("this is a text, and it is long enough to be taken for a header" * 10)
    message = message_of(command_line("--config", here.on(f"sqlite:///{here.folder}/notes.db")), 1)
    assert "file is not a database" in message


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Yield a bound port on which no program listens."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        yield port


@pytest.mark.parametrize("command", [(), ("migrate",)], ids=["serve", "migrate"])
def test_unreachable_database(
    command: tuple[str, ...], here: Here, closed_port: int, command_line: CommandLine
) -> None:
    url = f"postgresql://airy:{PASSWORD}@127.0.0.1:{closed_port}/airy"
    message = message_of(command_line(*command, "--config", here.on(url)), 1)
    assert "refused" in message
    assert message.startswith("database.url: the database cannot be used: ")


async def test_wrong_password_as_a_process(here: Here, postgres: Postgres) -> None:
    url = postgres.password_url("postgres", PASSWORD)
    message = message_of(await run("--config", here.on(url)), 1)
    assert f'password authentication failed for user "{PASSWORD_ROLE}"' in message


def test_missing_database(here: Here, postgres: Postgres, command_line: CommandLine) -> None:
    message = message_of(command_line("--config", here.on(postgres.url("absent"))), 1)
    assert 'database "absent" does not exist' in message


def test_missing_table(any_application: Application, here: Here, command_line: CommandLine) -> None:
    any_application.migrate()
    config = here.on(any_application.url, '[database.tables.messages]\nname = "chats"\n')
    for command in ((), ("migrate",)):
        message = message_of(command_line(*command, "--config", config), 1)
        assert 'database.tables.messages.name: there is no table "chats" in the database' in message


def test_missing_column(any_application: Application, here: Here, command_line: CommandLine) -> None:
    any_application.migrate()
    config = here.on(any_application.url, '[database.tables.messages]\ncolumns = { sent_at = "sent" }\n')
    message = message_of(command_line("--config", config), 1)
    assert (
        'database.tables.messages.columns.sent_at: table "messages" has no column "sent", perhaps "sent_at"' in message
    )


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


def test_not_migrated(any_application: Application, here: Here, command_line: CommandLine) -> None:
    with any_application.engine.begin() as connection:
        mapping.create_default_tables(connection, FIELDS)
    message = message_of(command_line("--config", here.on(any_application.url)), 1)
    assert message == "database: airy_trio has not been installed here; run: airy-trio migrate --config FILE"


# The port and the store: exit 1


async def test_port_in_use(sqlite_application: Application, here: Here) -> None:
    sqlite_application.migrate()
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        config = here.config(f'[database]\nurl = "{sqlite_application.url}"\n[listener]\nport = {port}\n')
        message = message_of(await run("--config", config), 1)
    assert message == f"listener: cannot listen on 127.0.0.1:{port}: Address already in use"


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


def test_check_of_wrong_settings(here: Here, command_line: CommandLine) -> None:
    assert "listner: unknown setting" in message_of(
        command_line("check", "--config", here.config(f'[database]\nurl = "{POSTGRES_URL}"\n[listner]\n')), 2
    )
    assert command_line("check").code == 2


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
