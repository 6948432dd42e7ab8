"""The command line: ``airy-trio --config FILE`` serves; the other commands are in ``commands``.

Errors are reported on stderr in plain words, without a traceback: exit code 2 for the command line and the settings, 1
for the database, the mapping, the triggers, the store or the port. A command imports its implementation when it runs,
so that ``--help`` and shell completion answer quickly.
"""

import errno
import os
import sys
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, cast

import click
import structlog

from airy_trio import __version__
from airy_trio.cli.commands import COMMANDS, CONFIG, load_settings
from airy_trio.cli.init import init
from airy_trio.errors import AiryTrioError, lines_of
from airy_trio.terminal import discard_stdout, unwritable

__all__ = ["airy_trio", "main"]

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def main() -> NoReturn:
    """Run the command line. If a command raises ``AiryTrioError``, print its lines, without a traceback, and exit."""
    try:
        airy_trio(prog_name="airy-trio")
    except AiryTrioError as error:
        for line in lines_of(error):
            click.echo(f"airy-trio: {line}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        discard_stdout()
        click.echo(f"airy-trio: {unwritable(error)}", err=True)
        sys.exit(AiryTrioError.exit_code)
    raise AssertionError  # click has exited


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="See also `airy-trio COMMAND --help`. Exit code 1: database, mapping, triggers, store or port; 2: command "
    "line or settings.",
)
@CONFIG
@click.option(
    "--worker",
    type=(int, int, int, int),
    hidden=True,
    help="The number of this worker, how many there are, port and descriptor; added by the server.",
)
@click.version_option(__version__, prog_name="airy-trio")
@click.pass_context
def airy_trio(context: click.Context, config: Path | None, worker: tuple[int, int, int, int] | None) -> None:
    """Send the changes of a Postgres or SQLite database to every connected client.

    Without a command it serves until SIGINT or SIGTERM. On SIGHUP it reads credentials and certificate again.

    \b
    Examples:
      airy-trio demo                                try it, with nothing but Python
      airy-trio init postgresql://airy@db/chat      write a settings file for a database
      airy-trio migrate --config config/prod.toml   once, and after an update
      airy-trio check --config config/prod.toml     look for problems
      airy-trio --config config/prod.toml           serve
    """
    if context.invoked_subcommand is not None:
        if config is not None:
            message = f"--config belongs after the command: airy-trio {context.invoked_subcommand} --config FILE"
            raise click.UsageError(message)
        return
    settings = load_settings(config)
    file = cast("Path", config)
    from airy_trio import app
    from airy_trio.app import supervisor
    from airy_trio.settings import load

    if worker is not None:  # every log line names the worker
        this = supervisor.Worker(*worker)
        structlog.contextvars.bind_contextvars(worker=supervisor.RECORDER if this.records else this.number)
        serve = partial(app.run, this.settings(settings), this.stay_with_parent, worker=this.number)
        app.trio_run(partial(serve, reread=lambda: this.reread(load(file, os.environ))))
    elif settings.listener.workers > 1:
        sys.exit(app.trio_run(partial(supervisor.supervise, settings, file)))
    else:
        app.trio_run(partial(app.run, settings, reread=lambda: load(file, os.environ)))


for command in (*COMMANDS, init):
    airy_trio.add_command(command)
