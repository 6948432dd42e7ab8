"""``airy-trio check``: every problem, a line for each."""

import sys
from pathlib import Path

import click

from airy_trio.cli.starting import CONFIG, loaded


@click.command(short_help="Everything that is wrong, in one run.")
@CONFIG
def check(config: Path | None) -> None:
    """Look at the settings, the database, the mapping, the triggers and the event store, and change nothing.

    Of each mapped table the newest thousand rows are read, to name those that cannot be converted and values that the
    mapping does not list. Exit code 1 if the server would not start or not work; warnings alone leave it at 0.

    \b
    Example:
      airy-trio check --config config/prod.toml
    """  # noqa: D301 - click's mark for lines that stay as they are
    settings = loaded(config)
    from airy_trio import check as work

    report = work.check(settings)
    for note in report.of("note"):
        click.echo(note)
    for warning in report.of("warning"):
        click.echo(f"airy-trio: warning: {warning}", err=True)
    problems = report.of("problem")
    for problem in problems:
        click.echo(f"airy-trio: {problem}", err=True)
    sys.exit(1 if problems else 0)
