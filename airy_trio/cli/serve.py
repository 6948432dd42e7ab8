"""``airy-trio --config FILE``: the server itself, and the group that the other commands are in."""

import os
from functools import partial
from pathlib import Path
from typing import cast

import click
import trio

from airy_trio.cli.starting import CONFIG, loaded, told
from airy_trio.version import __version__


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`airy-trio COMMAND --help` says more of each command. Exit code 1: database, mapping, triggers, store or "
    "port; 2: command line or settings.",
)
@CONFIG
@click.version_option(__version__, prog_name="airy-trio")
@click.pass_context
def airy_trio(context: click.Context, config: Path | None) -> None:
    """Tell every connected client what changes in a Postgres or SQLite database.

    Without a command it serves until SIGINT or SIGTERM; SIGHUP has it read credentials and certificate again.

    \b
    Examples:
      airy-trio demo                                try it, with nothing but Python
      airy-trio migrate --config config/prod.toml   once, and after an update
      airy-trio check --config config/prod.toml     is everything as it should be?
      airy-trio --config config/prod.toml           serve
    """  # noqa: D301 - click's mark for lines that stay as they are
    if context.invoked_subcommand is not None:
        if config is not None:
            message = f"--config belongs after the command: airy-trio {context.invoked_subcommand} --config FILE"
            raise click.UsageError(message)
        return
    chosen = loaded(config)
    from airy_trio import app, settings

    told(lambda: trio.run(partial(app.run, chosen, reread=lambda: settings.load(cast("Path", config), os.environ))))
