"""Commands in the sentences of the documentation: the program accepts them, and the Makefile has the targets."""

import re
import shlex
from pathlib import Path
from typing import Final

import click
import pytest

from tests.command_line import GROUP, accept_command

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
TEXTS: Final = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *DOCS)
PROGRAMS: Final = "airy-trio|curl|docker|make|npm|pip|python3?|systemctl"
INLINE: Final = re.compile(rf"(?<!`)`((?:{PROGRAMS}) [^`]*)`(?!`)")
BLOCK: Final = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
OTHERS: Final = {
    "curl -N http://127.0.0.1:8080/events": "tests/e2e/test_curl.py reads an event stream with curl",
    "pip install '.[redis]'": "`make newcomer` runs it, from the comment in the systemd unit",
    "python -m tests.clients.table --write": "it changes a page; tests/clients compares the page with its source",
    "systemctl reload": "CI runs no systemd; tests/e2e/test_tls.py runs the unit's ExecReload",
    "systemctl reload airy-trio": "the same",
}
"""How else these commands are tested, or why they are not."""


def commands(text: str) -> list[str]:
    """Return the commands in the sentences of a text. The name of a program alone is none."""
    return [" ".join(command.split()) for command in INLINE.findall(BLOCK.sub("", text))]


def accept(command: str, makefile: str, script: str) -> None:
    """Check that a command exists. Raises ``click.UsageError`` or ``AssertionError``."""
    program, *words = shlex.split(command)
    match program:
        case "airy-trio":
            try:
                accept_command(command)
            except click.MissingParameter:
                assert words in [[name] for name in GROUP.commands], command  # a sentence names it without arguments
        case "make":
            for word in words:
                pattern = rf"^{re.escape(word.partition('=')[0])} \?=" if "=" in word else rf"^{re.escape(word)}:"
                assert re.search(pattern, makefile, re.MULTILINE), command
        case "npm":
            assert command in script
        case _:
            assert command in OTHERS, command


@pytest.mark.parametrize("name", TEXTS)
def test_commands_in_sentences_exist(name: str) -> None:
    makefile, script = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in commands((ROOT / name).read_text()):
        accept(command, makefile, script)


def test_list_of_other_commands_is_current() -> None:
    found = {command for name in TEXTS for command in commands((ROOT / name).read_text())}
    assert {*OTHERS} <= found


@pytest.mark.parametrize(
    "text",
    [
        "`airy-trio chek`",
        "`airy-trio check --confg FILE`",
        "`airy-trio migrate\n--sq`",
        "`airy-trio explain message`",
        "`make tset`",
        "`make drill DRIL=1`",
        "`npm run`",
        "`docker run`",
    ],
)
def test_command_that_does_not_exist_is_an_error(text: str) -> None:
    [command] = commands(text)
    with pytest.raises((click.UsageError, AssertionError)):
        accept(command, "drill: ## drills\nDRILL ?= tests\n", "npm ci")
