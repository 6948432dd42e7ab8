"""The help of the command line: every command has examples, and accepts them."""

import re
import subprocess
import sys

import click
import pytest

from tests.command_line import GROUP, accept_command

COMMANDS: dict[str, click.Command] = {"": GROUP, **GROUP.commands}
HEAVY = ("airy_trio.settings", "alembic", "psycopg", "sqlalchemy", "prometheus_client")


def examples(command: click.Command) -> list[str]:
    lines = (line.strip() for line in (command.help or "").splitlines())
    starts = (re.sub(r"^source <\((.*?)\)", r"\1", line) for line in lines)
    return [re.split(r" {2,}| [>|] ", line)[0] for line in starts if line.startswith("airy-trio ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_accepts_its_examples(name: str) -> None:
    found = examples(COMMANDS[name])
    assert found
    for example in found:
        accept_command(example)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.get_short_help_str(limit=100)
    assert command is GROUP or not command.get_short_help_str().endswith("...")
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    code = "import sys, airy_trio.cli; print(*sorted(set(sys.modules) & set(sys.argv[1:])))"
    ended = subprocess.run([sys.executable, "-c", code, *HEAVY], check=True, capture_output=True, text=True)
    assert ended.stdout.split() == []
