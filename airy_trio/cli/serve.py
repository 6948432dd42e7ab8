"""``airy-trio --config FILE``: the server itself, and the group that the other commands are in."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import structlog
import trio

from airy_trio.cli.output import CONFIG, loaded, told
from airy_trio.version import __version__

if TYPE_CHECKING:
    from airy_trio.settings import Settings


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`airy-trio COMMAND --help` says more of each command. Exit code 1: database, mapping, triggers, store or "
    "port; 2: command line or settings.",
)
@CONFIG
@click.option("--worker", "worker", hidden=True, help="Which of the workers this is; the server itself adds it.")
@click.version_option(__version__, prog_name="airy-trio")
@click.pass_context
def airy_trio(context: click.Context, config: Path | None, worker: str | None) -> None:
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
    file = cast("Path", config)
    if worker is not None:
        _work(chosen, file, worker)
    elif chosen.listener.workers > 1:
        from airy_trio.app import supervisor

        sys.exit(told(lambda: trio.run(supervisor.supervise, chosen, file)))
    else:
        from airy_trio import app, settings

        told(lambda: trio.run(partial(app.run, chosen, reread=lambda: settings.load(file, os.environ))))


def _work(chosen: "Settings", file: Path, words: str) -> None:
    """Serve as one of several workers, or record for them. Which one it is stands in every line of its log."""
    from airy_trio import app, settings
    from airy_trio.app.supervisor import RECORDER, worker_of
    from airy_trio.log.leadership import LeaderPreference

    worker = told(lambda: worker_of(words))
    name = RECORDER if worker.number == chosen.listener.recorder else worker.number
    structlog.contextvars.bind_contextvars(worker=name)

    def reread() -> settings.Settings:
        return worker.settings(settings.load(file, os.environ))

    preference = LeaderPreference()
    serve = partial(app.run, worker.settings(chosen), worker.parent(preference), reread=reread)
    told(lambda: trio.run(partial(serve, worker=worker.number, preference=preference)))
