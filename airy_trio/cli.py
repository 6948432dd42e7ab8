"""The command line: ``airy-trio --config FILE`` serves; ``migrate``, ``check`` and ``demo`` are beside it.

Everything that can go wrong is told on stderr in plain words, never as a traceback: exit 2 for the command line and
the settings, 1 for the database, the mapping, the triggers, the store or the port.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import click
import structlog
import trio

from airy_trio import __version__, app, check, demo, migrate, settings
from airy_trio.errors import AiryTrioError, FaultsError

T = TypeVar("T")

_CONFIG = click.option("--config", "config", metavar="FILE", type=click.Path(path_type=Path), help="The settings file.")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_CONFIG
@click.version_option(__version__, prog_name="airy-trio")
@click.pass_context
def airy_trio(context: click.Context, config: Path | None) -> None:
    """Tell every connected client what changes in a Postgres or SQLite database.

    `airy-trio --config config/prod.toml` runs the server until SIGINT or SIGTERM.
    """
    if context.invoked_subcommand is not None:
        if config is not None:
            message = f"--config belongs after the command: airy-trio {context.invoked_subcommand} --config FILE"
            raise click.UsageError(message)
        return
    loaded = _loaded(config)
    _told(lambda: trio.run(app.run, loaded))


@airy_trio.command("migrate")
@_CONFIG
@click.option("--with-tables", is_flag=True, help="Make our default tables where there are none.")
@click.option("--grant", metavar="ROLE", help="Give a role of Postgres what a server needs, and no more.")
@click.option("--sql", "preview", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--remove", is_flag=True, help="Take everything of ours away again, the events too.")
def migrate_command(config: Path | None, *, with_tables: bool, grant: str | None, preview: bool, remove: bool) -> None:
    """Add the change log and the triggers to the database; all or nothing, and again without harm."""
    if remove and (with_tables or grant is not None or preview):
        message = "--remove stands alone"
        raise click.UsageError(message)
    loaded = _loaded(config)
    if remove:
        _told(lambda: migrate.remove(loaded))
        click.echo("removed")
    elif preview:
        for statement in _told(lambda: migrate.preview(loaded, with_tables=with_tables, grant=grant)):
            click.echo(statement)
    else:
        done = _told(lambda: migrate.migrate(loaded, with_tables=with_tables, grant=grant))
        if done.made:
            click.echo(f"made the tables {', '.join(done.made)}")
        click.echo(f"watching {', '.join(done.watched)}")


@airy_trio.command("check")
@_CONFIG
def check_command(config: Path | None) -> None:
    """Look at the settings, the database, the mapping, the triggers and the event store, and change nothing.

    Exit code 1 where the server would not start or not work; warnings alone leave it at 0.
    """
    report = check.check(_loaded(config))
    for note in report.of("note"):
        click.echo(note)
    for warning in report.of("warning"):
        click.echo(f"airy-trio: warning: {warning}", err=True)
    problems = report.of("problem")
    for problem in problems:
        click.echo(f"airy-trio: {problem}", err=True)
    sys.exit(1 if problems else 0)


@airy_trio.command("demo")
@click.option("--events", type=click.IntRange(min=1), help="End after so many events.")
def demo_command(events: int | None) -> None:
    """Show it working: a temporary database, an application that writes to it, and a line for each event."""
    _configure_logging(settings.LoggingOptions(level="warning"))
    _told(lambda: demo.run(events_max=events))


def main() -> NoReturn:
    """Run the command line."""
    airy_trio(prog_name="airy-trio")
    raise AssertionError  # click has ended the program


class _Stderr:
    """Where log lines go; who reads them may leave, and a server goes on without."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _loaded(config: Path | None) -> settings.Settings:
    if config is None:
        message = "Missing option '--config FILE'."
        raise click.UsageError(message)
    loaded = _told(lambda: settings.load(config, os.environ))
    _configure_logging(loaded.logging)
    return loaded


def _told(work: Callable[[], T]) -> T:
    """Do the work; end the program with one clear message if it cannot be done."""
    try:
        return work()
    except AiryTrioError as error:
        lines = error.faults if isinstance(error, FaultsError) else (str(error),)
        for line in lines:
            click.echo(f"airy-trio: {line}", err=True)
        sys.exit(error.exit_code)


def _configure_logging(options: settings.LoggingOptions) -> None:
    """Log to stderr, as lines for a terminal or as JSON."""
    on_terminal = options.format == "console" or (options.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer()
    if on_terminal:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[options.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )
