"""Every command with every kind of failure: one clear line, the right exit code, no traceback, no secret."""

import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trio
from attrs import frozen

from airy_trio import migrate
from airy_trio.cli import airy_trio
from tests.application import application
from tests.command_line import CommandLine
from tests.newer_schema import move_ahead, newer
from tests.postgres import Postgres
from tests.processes import AIRY_TRIO, run

PASSWORD = "correct-horse-battery"
ARGUMENTS: dict[str, Sequence[str]] = {
    "": (),
    "backfill": (),
    "check": (),
    "explain": ("tag", "t1"),
    "health": (),
    "migrate": (),
    "tail": (),
    "verify": ("--seconds", "2"),
}
"""Every command that has settings, with its other arguments; "" serves."""
WITHOUT_SETTINGS = {"completion", "demo", "init"}
ASKS_NO_DATABASE = frozenset({"health"})


@frozen
class World:
    """The parts that a case may break. ``closed_port`` has no listener; ``taken_port`` is used by another program."""

    folder: Path
    postgres: Postgres
    closed_port: int
    taken_port: int
    make_database: Callable[[], str]

    def config(self, text: str, *, port: int = 0, admin_port: int = 0, more: str = "") -> Path:
        path = self.folder / "airy-trio.toml"
        path.write_text(f"{text}[listener]\nport = {port}\n{more}[admin]\nport = {admin_port}\n")
        return path

    def on(self, url: str, more: str = "") -> Path:
        return self.config(f'[database]\nurl = "{url}"\nconnect_timeout_s = 0.1\n{more}')

    def migrated(self) -> str:
        url = f"sqlite:///{self.folder}/app.db"
        with application(url, create=True) as made:
            made.migrate()
        return url


@pytest.fixture
def world(tmp_path: Path, postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[World]:
    def make_database() -> str:
        url: str = request.getfixturevalue("postgres_database")
        return url

    with closing(socket.socket()) as bound, closing(socket.create_server(("127.0.0.1", 0))) as taken:
        bound.bind(("127.0.0.1", 0))  # a bound port on which no program listens
        yield World(tmp_path, postgres, bound.getsockname()[1], taken.getsockname()[1], make_database)


def unreachable(world: World) -> Path:
    return world.on(f"postgresql://airy:{PASSWORD}@127.0.0.1:{world.closed_port}/airy")


def without_schema_rights(world: World) -> Path:
    return world.on(world.postgres.password_url("postgres"))


def no_database_file(world: World) -> Path:
    return world.on(f"sqlite:///{world.folder}/absent.db")


def not_a_database(world: World) -> Path:
    (world.folder / "notes.db").write_text("a text that is long enough to be taken for a header of SQLite " * 20)
    return world.on(f"sqlite:///{world.folder}/notes.db")


def without_grants(world: World) -> Path:
    """Migrate as another role, and grant nothing to the one in the settings."""
    url = world.make_database()
    with application(url) as made:
        made.migrate()
    name = url.rpartition("/")[2]
    return world.on(world.postgres.password_url(name))


def port_in_use(world: World) -> Path:
    return world.config(f'[database]\nurl = "{world.migrated()}"\n', port=world.taken_port)


def admin_port_in_use(world: World) -> Path:
    return world.config(f'[database]\nurl = "{world.migrated()}"\n', admin_port=world.taken_port)


def no_certificate(world: World) -> Path:
    files = f'tls_certificate = "{world.folder}/absent.pem"\ntls_key = "{world.folder}/absent.key"\n'
    return world.config(f'[database]\nurl = "{world.migrated()}"\n', more=files)


def store_in_memory(world: World) -> Path:
    return world.on(world.migrated(), '[log]\nstore = "memory"\n')


def unreachable_redis(world: World) -> Path:
    return world.on(
        world.migrated(), f'[log]\nstore = "redis"\nurl = "redis://u:{PASSWORD}@127.0.0.1:{world.closed_port}/0"\n'
    )


def missing_table(world: World) -> Path:
    return world.on(world.migrated(), '[database.tables.tags]\nname = "labels"\n')


def missing_migrations(world: World) -> Path:
    with application(f"sqlite:///{world.folder}/app.db", create=True) as made:
        migrate.remove(made.migrate())
    (world.folder / "app.db.airy-trio.db").touch()  # else `tail` would report a missing file
    return world.on(f"sqlite:///{world.folder}/app.db")


def newer_schema(world: World) -> Path:
    with application(f"sqlite:///{world.folder}/app.db", create=True) as made:
        made.migrate()
        for stream in ("changes", "log"):
            move_ahead(made, stream, newer(stream))
    return world.on(f"sqlite:///{world.folder}/app.db")


def unreachable_store(world: World) -> Path:
    return world.on(
        world.migrated(), f'[log]\nurl = "postgresql://airy:{PASSWORD}@127.0.0.1:{world.closed_port}/log"\n'
    )


@frozen(kw_only=True)
class Case:
    """A fault, the exit code, and words of the line. ``without``: commands that it does not affect.

    ``here``: whether the case can run in this process. If not, a library leaves objects to the garbage collector, which
    emits a warning. The reference shows the cases as a table.
    """

    name: str
    make: Callable[[World], Path]
    code: int
    words: str
    without: frozenset[str] = frozenset()
    here: bool = True

    @property
    def commands(self) -> list[str]:
        """Return the commands that the fault affects; "" is the one that serves."""
        return [command for command in ARGUMENTS if command not in self.without]


def wrong_password(world: World) -> Path:
    return world.on(world.postgres.password_url("postgres", PASSWORD))


CASES = (
    Case(
        name="the settings file does not exist",
        make=lambda world: world.folder / "absent.toml",
        code=2,
        words="there is no such file",
    ),
    Case(
        name="the settings file is not TOML", make=lambda world: world.config("[database\n"), code=2, words="not TOML"
    ),
    Case(
        name="the settings name a variable that is not set",
        make=lambda world: world.config('[database]\nurl = "${AIRY_TEST_UNSET}"\n'),
        code=2,
        words="AIRY_TEST_UNSET",
    ),
    Case(
        name="the settings file is a folder",
        make=lambda world: world.folder,
        code=2,
        words="is a directory, not a settings file",
    ),
    Case(
        name="there is no such setting",
        make=lambda world: world.on("sqlite:///a.db", "bogus = 1\n"),
        code=2,
        words="database.bogus: ",
    ),
    Case(
        name="a setting has an impossible value",
        make=lambda world: world.config('[database]\nurl = "sqlite:///a.db"\n', port=70000),
        code=2,
        words="listener.port: found integer 70000, expected a number from 0 to 65535",
    ),
    Case(
        name="no Postgres answers at that address",
        make=unreachable,
        code=1,
        words="url: the database cannot be used: OperationalError: connection failed",
        without=ASKS_NO_DATABASE,
    ),
    Case(
        name="the password is wrong",
        make=wrong_password,
        code=1,
        words="password authentication failed for user ",
        without=ASKS_NO_DATABASE,
    ),
    Case(
        name="the SQLite file does not exist",
        make=no_database_file,
        code=1,
        words="absent.db does not exist",
        without=ASKS_NO_DATABASE | frozenset({"tail"}),  # does not read it
    ),
    Case(
        name="the SQLite file is not a database",
        make=not_a_database,
        code=1,
        words="database.url: the database cannot be used: DatabaseError: file is not a database",
        without=ASKS_NO_DATABASE | frozenset({"tail"}),  # the same
    ),
    Case(
        name="the port is in use",
        make=port_in_use,
        code=1,
        words="listener: cannot listen on 127.0.0.1:",
        without=frozenset({*ARGUMENTS} - {""}),
    ),
    Case(
        name="the admin port is in use",
        make=admin_port_in_use,
        code=1,
        words="admin: cannot listen on 127.0.0.1:",
        without=frozenset({*ARGUMENTS} - {""}),
    ),
    Case(
        name="the certificate does not exist",
        make=no_certificate,
        code=1,
        words="listener.tls_certificate: ",
        without=frozenset({*ARGUMENTS} - {"", "check"}),
    ),
    Case(
        name="the event store is in the memory of the server",
        make=store_in_memory,
        code=1,
        words='log.store: "memory" is inside the server',
        without=frozenset({*ARGUMENTS} - {"tail"}),  # explain reports it, verify has its own
    ),
    Case(
        name="no Redis answers at that address",
        make=unreachable_redis,
        code=1,
        words=": the event store cannot be used: ConnectionError",
        here=False,
        without=ASKS_NO_DATABASE | {"backfill", "explain", "migrate", "verify"},  # need none, reports it, has its own
    ),
    Case(
        name="nothing was granted to the role",
        make=without_grants,
        code=1,
        words="permission denied for ",
        without=ASKS_NO_DATABASE | frozenset({"verify"}),
    ),
    Case(
        name="the role may not create a schema",
        make=without_schema_rights,
        code=1,
        words=" may not create the scratch schema of verify",
        without=frozenset({*ARGUMENTS} - {"verify"}),  # the others report missing tables first
    ),
    Case(
        name="a mapped table does not exist",
        make=missing_table,
        code=1,
        words='there is no table "labels"',
        without=ASKS_NO_DATABASE | frozenset({"tail", "verify"}),  # do not read it
    ),
    Case(
        name="`migrate` has not been run",
        make=missing_migrations,
        code=1,
        words="has not been installed here",
        without=ASKS_NO_DATABASE
        | frozenset({"explain", "migrate", "verify"}),  # one reports it, one does it, one has its own
    ),
    Case(
        name="the schema is of a newer version that dropped support for this one",
        make=newer_schema,
        code=1,
        words="of a newer version of airy-trio, with which this version does not work; install the newer version",
        without=ASKS_NO_DATABASE | frozenset({"explain", "verify"}),  # one reports it, one has its own schema
    ),
    Case(
        name="no database answers at the address of the event log",
        make=unreachable_store,
        code=1,
        words="log.url: the database cannot be used: OperationalError: connection failed",
        without=ASKS_NO_DATABASE | {"backfill", "explain", "verify"},  # need none, reports it, has its own
    ),
)


@pytest.mark.parametrize(
    "command, case",
    [
        pytest.param(command, case, id=f"{command or 'serve'}, {case.name}")
        for case in CASES
        for command in case.commands
    ],
)
def test_one_clear_line_and_the_right_exit_code(
    command: str, case: Case, world: World, command_line: CommandLine
) -> None:
    config = case.make(world)
    arguments = (*filter(None, [command]), "--config", str(config), *ARGUMENTS[command])
    ended = command_line(*arguments) if case.here else trio.run(run, *arguments)
    assert ended.code == case.code, ended.err
    assert case.words in ended.err
    assert "Traceback" not in ended.err
    assert PASSWORD not in ended.err + ended.out
    assert not (world.folder / "absent.db").exists()
    lines = [line for line in ended.err.splitlines() if not line.startswith("{")]  # log lines are JSON
    assert lines
    assert len(lines) == len(set(lines))
    if case.code == 2:  # the command has done nothing
        assert (len(lines), ended.out) == (1, "")
    assert [line for line in lines if not re.match(r"airy-trio: \S", line)] == []


@pytest.mark.parametrize("command", [*ARGUMENTS, *sorted(WITHOUT_SETTINGS)])
def test_unknown_options(command: str, command_line: CommandLine) -> None:
    ended = command_line(*filter(None, [command]), "--nonsense")
    assert (ended.code, ended.out) == (2, "")
    assert "No such option" in ended.err
    assert "Traceback" not in ended.err


def test_the_table_has_every_command() -> None:
    assert {*ARGUMENTS} - {""} | WITHOUT_SETTINGS == set(airy_trio.commands)


@pytest.mark.slow
def test_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*AIRY_TRIO, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "airy-trio: cannot write to stdout: No space left on device\n")


@pytest.mark.slow
def test_command_works_if_the_standard_streams_are_closed(tmp_path: Path) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "sqlite:///{tmp_path}/app.db"\n')
    command = [*AIRY_TRIO, "migrate", "--with-tables", "--config", str(config)]
    subprocess.run(["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=True)
    assert (tmp_path / "app.db").exists()
