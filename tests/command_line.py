"""The command line, run in this process."""

import sys
from collections.abc import Iterator
from typing import Protocol

import pytest
import structlog

from airy_trio import cli
from tests.processes import Finished


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
