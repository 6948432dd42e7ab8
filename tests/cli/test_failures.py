"""Every command and every way in which it can fail: one clear line, the right exit code, no traceback, no secret."""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from attrs import frozen

from airy_trio.cli import airy_trio
from tests.application import application
from tests.postgres import PASSWORD_ROLE, Postgres
from tests.processes import run

PASSWORD = "correct-horse-battery"  # noqa: S105 - looked for where it must not be
ARGUMENTS: dict[str, Sequence[str]] = {
    "": (),
    "check": (),
    "explain": ("tag", "t1"),
    "migrate": (),
    "tail": (),
    "verify": ("--seconds", "2"),
}
"""Every command that has settings, with what else it needs; "" serves."""
WITHOUT_SETTINGS = {"completion", "demo"}


@frozen
class World:
    """What a case may break."""

    folder: Path
    postgres: Postgres
    closed_port: int

    def config(self, text: str) -> Path:
        path = self.folder / "airy-trio.toml"
        path.write_text(text + "[listener]\nport = 0\n[admin]\nport = 0\n")
        return path

    def on(self, url: str, more: str = "") -> Path:
        return self.config(f'[database]\nurl = "{url}"\nconnect_timeout_s = 0.1\n{more}')

    def migrated(self) -> str:
        url = f"sqlite:///{self.folder}/app.db"
        with application(url, create=True) as made:
            made.migrate()
        return url


@pytest.fixture
def world(tmp_path: Path, postgres: Postgres) -> Iterator[World]:
    with closing(socket.socket()) as bound:  # a port that is ours and on which nobody listens
        bound.bind(("127.0.0.1", 0))
        yield World(tmp_path, postgres, bound.getsockname()[1])


def unreachable(world: World) -> Path:
    return world.on(f"postgresql://airy:{PASSWORD}@127.0.0.1:{world.closed_port}/airy")


def without_schema_rights(world: World) -> Path:
    return world.on(world.postgres.password_url("postgres"))


def missing_table(world: World) -> Path:
    return world.on(world.migrated(), '[database.tables.tags]\nname = "labels"\n')


def missing_migrations(world: World) -> Path:
    with application(f"sqlite:///{world.folder}/app.db", create=True) as made:
        made.migrate()
        made.execute("drop table airy_trio_changes_version")
    with application(f"sqlite:///{world.folder}/app.db.airy-trio.db") as log:
        log.execute("drop table airy_trio_log_version")
    return world.on(f"sqlite:///{world.folder}/app.db")


def unreachable_store(world: World) -> Path:
    return world.on(
        world.migrated(), f'[log]\nurl = "postgresql://airy:{PASSWORD}@127.0.0.1:{world.closed_port}/log"\n'
    )


@frozen(kw_only=True)
class Case:
    """What is wrong, the exit code and words of the line. ``without``: commands that it does not concern."""

    name: str
    make: Callable[[World], Path]
    code: int
    words: str
    without: frozenset[str] = frozenset()


def wrong_password(world: World) -> Path:
    return world.on(world.postgres.password_url("postgres", PASSWORD))


CASES = (
    Case(name="no file", make=lambda world: world.folder / "absent.toml", code=2, words="there is no such file"),
    Case(name="no TOML", make=lambda world: world.config("[database\n"), code=2, words="not TOML"),
    Case(
        name="unset variable",
        make=lambda world: world.config('[database]\nurl = "${AIRY_TEST_UNSET}"\n'),
        code=2,
        words="AIRY_TEST_UNSET",
    ),
    Case(name="unreachable database", make=unreachable, code=1, words="refused"),
    Case(name="wrong password", make=wrong_password, code=1, words=f'failed for user "{PASSWORD_ROLE}"'),
    Case(
        name="no rights",
        make=without_schema_rights,
        code=1,
        words=f'"{PASSWORD_ROLE}" may not make',
        without=frozenset({*ARGUMENTS} - {"verify"}),  # of the others no table is there, which is told first
    ),
    Case(
        name="missing table",
        make=missing_table,
        code=1,
        words='there is no table "labels"',
        without=frozenset({"tail", "verify"}),  # which do not look at it
    ),
    Case(
        name="missing migrations",
        make=missing_migrations,
        code=1,
        words="has not been installed here",
        without=frozenset({"explain", "migrate", "verify"}),  # one tells it, one does it, one has its own
    ),
    Case(
        name="unreachable store",
        make=unreachable_store,
        code=1,
        words="refused",
        without=frozenset({"explain", "verify"}),  # one tells it, one has its own
    ),
)


@pytest.mark.parametrize(
    "command, case",
    [
        pytest.param(command, case, id=f"{command or 'serve'}, {case.name}")
        for case in CASES
        for command in ARGUMENTS
        if command not in case.without
    ],
)
async def test_one_clear_line_and_the_right_exit_code(command: str, case: Case, world: World) -> None:
    config = case.make(world)
    ended = await run(*filter(None, [command]), "--config", str(config), *ARGUMENTS[command])
    assert ended.code == case.code, ended.err
    assert case.words in ended.err
    assert "Traceback" not in ended.err
    assert PASSWORD not in ended.err + ended.out
    told = [line for line in ended.err.splitlines() if not line.startswith("{")]  # what is logged before is JSON
    assert told
    assert [line for line in told if not re.match(r"airy-trio: \S", line)] == []


@pytest.mark.parametrize("command", [*ARGUMENTS, *sorted(WITHOUT_SETTINGS)])
async def test_unknown_options(command: str) -> None:
    ended = await run(*filter(None, [command]), "--nonsense")
    assert (ended.code, ended.out) == (2, "")
    assert "No such option" in ended.err
    assert "Traceback" not in ended.err


def test_the_table_has_every_command() -> None:
    assert {*ARGUMENTS} - {""} | WITHOUT_SETTINGS == set(airy_trio.commands)
