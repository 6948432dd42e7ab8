"""The command ``init``: the file that it writes, its questions, its output, and each kind of failure."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from airy_trio.check.rows import ALL_MIN
from airy_trio.settings import load
from tests.application import Application, application
from tests.cli.test_progress import Terminal
from tests.cli.test_progress import running as on_terminal
from tests.command_line import CommandLine
from tests.init.schemas import create
from tests.postgres import PASSWORD_ROLE, Postgres
from tests.processes import Finished, run

PASSWORD = "correct-horse-battery"
MESSAGES = "create table messages (id integer primary key, conversation_id integer, body text, created_at timestamp)"


def failed(ended: Finished, code: int) -> str:
    """Return the only line of a command that failed with this exit code."""
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert "Traceback" not in ended.err
    assert PASSWORD not in ended.err
    [line] = ended.err.splitlines()
    assert line.startswith("airy-trio: ")
    return line.removeprefix("airy-trio: ")


@pytest.fixture
def todo(sqlite_application: Application) -> Application:
    create(sqlite_application, "todo")
    return sqlite_application


def test_output_in_order(todo: Application, tmp_path: Path, command_line: CommandLine) -> None:
    config = tmp_path / "my settings.toml"
    ended = command_line("init", todo.url, str(config))
    assert ended.code == 0
    parts = [
        r'messages  table "todos": named like messages, score ',
        r"  conversation_id    list_id                  refers to lists\n",
        r"metadata  no table: no table has keys",
        r"the newest rows, as they would be sent:\n(\{.*\}\n){4}",
        r"what migrate would run:\n-- sqlite",
        r'CREATE TRIGGER "airy_trio_messages_insert" after insert on "todos"',
        rf"wrote {config}; next:\n",
        rf"  airy-trio migrate --config '{config}'\n  airy-trio --config '{config}'\n\Z",
    ]
    assert re.search(".*".join(parts), ended.out, re.DOTALL), ended.out
    assert "not sure, took the best: message: no column shows whether a contact wrote it" in ended.err


def test_settings_are_written_although_no_row_can_be_converted(
    sqlite_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    sqlite_application.execute(
        "create table messages (id integer primary key, conversation_id integer, body text, created_at timestamp)",
        *(f"insert into messages values ({n}, null, 'Hi', '2024-05-01 10:00:00')" for n in range(ALL_MIN)),
    )
    config = tmp_path / "airy-trio.toml"
    ended = command_line("init", sqlite_application.url, str(config))
    assert (ended.code, config.exists()) == (0, True)
    assert f"{ALL_MIN} of the newest {ALL_MIN} by created_at cannot be converted" in ended.err


def test_written_file_is_accepted_by_check(
    any_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    """Names may need quotes, or contain a dot."""
    any_application.execute(
        'create table "in.box messages" (id integer primary key, "the ""room"" id" integer, body text, at timestamp)',
        "insert into \"in.box messages\" values (1, 1, 'Hi', '2024-05-01 10:00:00')",
    )
    config = tmp_path / "airy-trio.toml"
    ended = command_line("init", any_application.url, str(config))
    assert ended.code == 0, ended.err
    assert '"content":"Hi"' in ended.out
    settings = load(config, {})
    assert settings.tables.messages.columns["conversation_id"] == 'the "room" id'
    assert command_line("migrate", "--config", str(config)).code == 0
    assert command_line("check", "--config", str(config)).code == 0


def test_database_is_not_changed(any_application: Application, tmp_path: Path, command_line: CommandLine) -> None:
    any_application.execute(MESSAGES, "insert into messages values (1, 1, 'Hi', '2024-05-01 10:00:00')")
    catalogue = (
        "select string_agg(format('%s %s', relname, xmin), ',' order by oid) || "
        "(select count(*) from pg_trigger) || (select count(*) from pg_namespace) || (select count(*) from pg_proc) || "
        "(select xmin from messages) from pg_class where relkind in ('r', 'i', 'v') and relname not like 'pg\\_%'"
    )
    path = tmp_path / "app.db"

    def state() -> object:
        return any_application.scalar(catalogue) if any_application.dialect != "sqlite" else path.read_bytes()

    before, files = state(), sorted(tmp_path.iterdir())
    config = tmp_path / "airy-trio.toml"
    assert command_line("init", any_application.url, str(config)).code == 0
    assert state() == before
    assert sorted(tmp_path.iterdir()) == sorted([*files, config])


def test_existing_file_is_replaced_only_with_force(
    todo: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text("mine")
    for options in ((), ("--yes",)):
        line = failed(command_line("init", todo.url, str(config), *options), 2)
        assert line == f"{config}: this file exists and is not replaced; name another one, or add --force"
    assert config.read_text() == "mine"
    assert command_line("init", todo.url, str(config), "--force").code == 0
    assert 'name = "todos"' in config.read_text()


NO_TABLE = "no table has a primary key of one column and the columns of a message, channel or tag"


def absent(folder: Path) -> tuple[str, Path]:
    return f"sqlite:///{folder}/absent.db", folder / "a.toml"


def no_database(folder: Path) -> tuple[str, Path]:
    (folder / "notes.db").write_text("a text that is long enough to be taken for a header of SQLite " * 20)
    return f"sqlite:///{folder}/notes.db", folder / "a.toml"


def no_table(folder: Path) -> tuple[str, Path]:
    with application(f"sqlite:///{folder}/shop.db", create=True) as made:
        made.execute("create table products (id integer primary key, name text, description text, price real)")
    return f"sqlite:///{folder}/shop.db", folder / "a.toml"


def no_key(folder: Path) -> tuple[str, Path]:
    with application(f"sqlite:///{folder}/chat.db", create=True) as made:
        made.execute("create table messages (conversation_id text, number integer, content text, sent_at text)")
        return made.url, folder / "a.toml"


def unreachable(folder: Path) -> tuple[str, Path]:
    return f"postgresql://airy:{PASSWORD}@127.0.0.1:1/airy", folder / "a.toml"


def no_folder(folder: Path) -> tuple[str, Path]:
    return no_table(folder)[0], folder / "absent" / "a.toml"


@pytest.mark.parametrize(
    "make, code, words",
    [
        (lambda folder: ("inbox.db", folder / "a.toml"), 2, "database.url: found a string that is not a URL"),
        (lambda folder: ("mysql://airy@db/airy", folder / "a.toml"), 2, "found a mysql:// URL, expected sqlite:///FILE"),
        (lambda folder: (f"mysql://a:{PASSWORD}@db/a", folder / "a.toml"), 2, "database.url: found a mysql:// URL"),
        (lambda folder: ("${AIRY_TEST_UNSET}", folder / "a.toml"), 2, "not set in the environment: AIRY_TEST_UNSET"),
        (lambda folder: ("sqlite:///a.db", folder), 2, "this is a directory, not a settings file"),
        (no_folder, 2, "its folder does not exist"),
        (absent, 1, "absent.db does not exist (and is not created)"),
        (no_database, 1, "the database cannot be used: DatabaseError: file is not a database"),
        (no_key, 1, f"{NO_TABLE} (tables that can be read: 1)"),
        (no_table, 1, f"{NO_TABLE} (tables that can be read: 1)"),
        (unreachable, 1, "the database cannot be used: OperationalError: connection failed"),
    ],
    ids=[
        "no URL", "other database", "with password", "unset variable", "folder", "no folder", "no file", "no database",
        "no key", "no table", "unreachable",
    ],
)  # fmt: skip
def test_one_line_for_bad_input(
    make: Callable[[Path], tuple[str, Path]], code: int, words: str, tmp_path: Path, command_line: CommandLine
) -> None:
    url, file = make(tmp_path)
    assert words in failed(command_line("init", url, str(file)), code)
    assert not (tmp_path / "a.toml").exists()


def test_file_that_cannot_be_written(todo: Application, tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "a.toml").symlink_to(tmp_path / "absent" / "a.toml")  # root may write everywhere else
    ended = command_line("init", todo.url, str(tmp_path / "a.toml"))
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith(f"airy-trio: {tmp_path}/a.toml: the file cannot be written: ")


async def test_role_without_rights(postgres_application: Application, postgres: Postgres, tmp_path: Path) -> None:
    postgres_application.execute(MESSAGES)
    name = postgres_application.url.rpartition("/")[2]
    environ = {"DATABASE_URL": postgres.password_url(name)}
    line = failed(await run("init", "${DATABASE_URL}", str(tmp_path / "a.toml"), environ=environ), 1)
    assert "there is no table that can be read; on Postgres the role needs SELECT on the tables" in line


async def test_read_only_role_gets_a_file_and_a_warning(
    postgres_application: Application, postgres: Postgres, tmp_path: Path
) -> None:
    postgres_application.execute(MESSAGES, f'grant select on messages to "{PASSWORD_ROLE}"')
    url = postgres.password_url(postgres_application.url.rpartition("/")[2])
    ended = await run("init", url, str(tmp_path / "a.toml"), folder=tmp_path)
    assert ended.code == 0, ended.err
    assert (
        "airy-trio: warning: migrate would fail: database.url: the database cannot be used: Insufficient" in ended.err
    )
    assert "what migrate would run" not in ended.out
    as_owner = f"  airy-trio migrate --config {tmp_path}/a.toml --grant {PASSWORD_ROLE}    as the owner of the tables\n"
    assert as_owner in ended.out
    assert (tmp_path / "a.toml").exists()


def test_row_security_names_the_remedy(
    postgres_application: Application, postgres: Postgres, tmp_path: Path, command_line: CommandLine
) -> None:
    postgres_application.execute(
        MESSAGES, "alter table messages enable row level security", f'grant select on messages to "{PASSWORD_ROLE}"'
    )
    url = postgres.password_url(postgres_application.url.rpartition("/")[2])
    line = failed(command_line("init", url, str(tmp_path / "a.toml")), 1)
    assert "is under row level security" in line
    assert "BYPASSRLS" in line


def test_password_is_not_written(
    postgres_application: Application,
    postgres: Postgres,
    tmp_path: Path,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    postgres_application.execute(MESSAGES, f'grant select on messages to "{PASSWORD_ROLE}"')
    url, config = postgres.password_url(postgres_application.url.rpartition("/")[2]), tmp_path / "a.toml"
    monkeypatch.delenv("DATABASE_URL", raising=False)
    ended = command_line("init", url, str(config))
    assert postgres.password not in config.read_text() + ended.out + ended.err
    assert tomllib.loads(config.read_text())["database"]["url"] == "${DATABASE_URL}"
    shown = url.replace(postgres.password, "***")
    assert f"  export DATABASE_URL='{shown}'    with the password, which is not in the file\n" in ended.out
    # A variable that has the URL already is named instead, and there is nothing to export.
    monkeypatch.setenv("CHAT_URL", url)
    ended = command_line("init", url, str(config), "--force")
    assert tomllib.loads(config.read_text())["database"]["url"] == "${CHAT_URL}"
    assert "export" not in ended.out


def test_questions_on_a_terminal(sqlite_application: Application, tmp_path: Path) -> None:
    """Stdin and stderr are a terminal; the answers choose another table than the best one, and a column."""
    sqlite_application.execute(
        "create table chat_messages (id integer primary key, thread_id integer, user_id integer, text text, at text)",
        "create table posts (id integer primary key, topic_id integer, user_id integer, raw text, at text, desk int)",
    )
    config = tmp_path / "a.toml"
    with on_terminal("init", sqlite_application.url, str(config), stdin=True) as (terminal, process):
        answer(terminal, "which table has the messages", "posts")
        answer(terminal, "which column is its from_contact", "desk")
        terminal.rest()
        assert process.wait() == 0
    messages = load(config, {}).tables.messages
    assert messages.name == "posts"
    assert messages.columns["from_contact"] == "desk"


def test_existing_file_is_asked_for_on_a_terminal(todo: Application, tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text("mine")
    with on_terminal("init", todo.url, str(config), stdin=True) as (terminal, process):
        answer(terminal, "exists; replace it?", "n")
        assert "is not replaced" in terminal.rest()
        assert process.wait() == 2
    assert config.read_text() == "mine"


def test_yes_asks_nothing_on_a_terminal(todo: Application, tmp_path: Path) -> None:
    with on_terminal("init", todo.url, str(tmp_path / "a.toml"), "--yes", stdin=True) as (terminal, process):
        assert "not sure, took the best" in terminal.rest()
        assert process.wait() == 0


def answer(terminal: Terminal, question: str, text: str) -> None:
    terminal.until(question)
    terminal.write(f"{text}\n")


def test_names_do_not_control_the_terminal(
    sqlite_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    sqlite_application.execute(
        'create table messages (id integer primary key, "room\x1b\n_id" integer, body text, created_at text)',
        'create table "\x1b[31m_messages" (id integer primary key, body text, created_at text)',
    )
    ended = command_line("init", sqlite_application.url, str(tmp_path / "a.toml"))
    assert ended.code == 0
    assert "\x1b" not in ended.out.partition("what migrate would run")[0]
    assert "\x1b" not in ended.err
