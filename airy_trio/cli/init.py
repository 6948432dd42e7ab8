"""``airy-trio init``: the command, its questions and its output."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from airy_trio.cli.commands import lock_progress
from airy_trio.cli.logs import configure_logging
from airy_trio.errors import SettingsError, StartError
from airy_trio.terminal import one_line, shortened

if TYPE_CHECKING:
    from airy_trio.init import Draft

DEFAULT: Final = Path("airy-trio.toml")
_CHARS_MAX: Final = 2000
"""How much of an event is printed."""


@click.command(short_help="Write a settings file for a database.")
@click.argument("url")
@click.argument("file", default=DEFAULT, type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="If it is not sure, choose the best candidate without asking.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def init(url: str, file: Path, *, yes: bool, force: bool) -> None:
    """Examine a database and write a settings file for it, airy-trio.toml by default. Changes nothing in the database.

    Proposes for each kind of object the table and the columns that fit best. Prints what was found and why, up to ten
    events as they would be sent, and the statements that `migrate` would run. On a terminal it asks if it is not
    sure. A URL with a password is not written to the file, which then refers to an environment variable instead.

    \b
    Examples:
      airy-trio init sqlite:///inbox.db
      airy-trio init postgresql://airy@localhost/chat config/chat.toml
      airy-trio init "$DATABASE_URL" --yes
    """
    configure_logging("error", "auto")
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    mode = _mode_for(file, force=force, asks=asks)
    from airy_trio import init as implementation

    taken: list[str] = []

    def take_best(question: str, _answers: Sequence[str], best: str) -> str:
        taken.append(f"{question}: {best}")
        return best

    draft = implementation.draft(url, os.environ, _ask if asks else take_best)
    for line in draft.found:
        _print(line)
    for answer in taken:
        click.echo(f"airy-trio: not sure, took the best: {answer}", err=True)
    _show_events(draft)
    try:
        with file.open(mode, encoding="utf-8") as opened:
            opened.write(draft.text)
    except OSError as error:
        raise SettingsError([f"{file}: the file cannot be written: {error.strerror}"]) from None
    _show_next(draft, file, may_migrate=_show_statements(draft))


def _ask(question: str, answers: Sequence[str], best: str) -> str:
    answer: str = click.prompt(question, type=click.Choice(answers), default=best, err=True)
    return answer


def _mode_for(file: Path, *, force: bool, asks: bool) -> Literal["w", "x"]:
    """Return the mode in which to open the file: "x" must create it. Raises ``SettingsError`` if it is not free."""
    if file.is_dir():
        raise SettingsError([f"{file}: this is a directory, not a settings file"])
    if not file.parent.is_dir():
        raise SettingsError([f"{file}: its folder does not exist"])
    if not file.exists():
        return "x"
    if force or (asks and click.confirm(f"{file} exists; replace it?", err=True)):
        return "w"
    raise SettingsError([f"{file}: this file exists and is not replaced; name another one, or add --force"])


def _show_events(draft: "Draft") -> None:
    for warning in draft.warnings:
        click.echo(f"airy-trio: warning: {warning}", err=True)
    _print("")
    _print("the newest rows, as they would be sent:" if draft.events else "no rows that could be sent")
    for body in draft.events:
        _print(shortened(body, _CHARS_MAX))


def _show_statements(draft: "Draft") -> bool:
    """Print what ``migrate`` would do. If it would fail, warn and return False; the file is valid all the same."""
    from airy_trio import migrate

    try:
        with lock_progress() as waiting:
            statements = migrate.preview(draft.settings, waiting=waiting)
    except StartError as error:
        for fault in error.faults:
            click.echo(f"airy-trio: warning: migrate would fail: {fault}", err=True)
        return False
    _print("")
    _print("what migrate would run:" if statements else "migrate would change nothing")
    for statement in statements:
        click.echo(statement)
    return True


def _show_next(draft: "Draft", file: Path, *, may_migrate: bool) -> None:
    import sqlalchemy as sa

    url, name = sa.make_url(draft.settings.database.url), shlex.quote(str(file))
    _print("")
    _print(f"wrote {file}; next:")
    if draft.variable:
        value = shlex.quote(url.set(query={}).render_as_string(hide_password=True))
        _print(f"  export {draft.variable}={value}    with the password, which is not in the file")
    as_owner = ""
    if not may_migrate and url.username is not None:
        as_owner = f" --grant {shlex.quote(url.username)}    as the owner of the tables"
    _print(f"  airy-trio migrate --config {name}{as_owner}")
    _print(f"  airy-trio --config {name}")


def _print(line: str) -> None:
    """Print a line. Names and values are the database's, and must not control the terminal."""
    click.echo(one_line(line))
