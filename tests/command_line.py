"""The command line, run in this process."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Protocol

import click
import pytest
import structlog

from airy_trio import cli
from tests.processes import Finished

GROUP = cli.airy_trio


def accept_command(line: str) -> None:
    """Parse a command line as the program does, without running it. Raises ``click.UsageError``."""
    program, *words = shlex.split(line, comments=True)
    assert program == "airy-trio", line
    if words and not words[0].startswith("-"):
        parent = click.Context(GROUP, **GROUP.context_settings)
        name, command, words = GROUP.resolve_command(parent, words)
        assert command is not None
        command.make_context(name, words, parent=parent)
    else:
        with contextlib.suppress(click.exceptions.Exit):  # --version
            GROUP.make_context(program, words)


class CommandLine(Protocol):
    """Runs ``airy-trio`` with arguments to its end."""

    def __call__(self, *arguments: str) -> Finished: ...


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    """Run the command line in this process, for commands that do not serve: a new process takes most of a second."""

    def main(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["airy-trio", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Finished(ended.value.code, out, err)

    yield main
    structlog.reset_defaults()
