"""What every command begins with, and how it ends where it cannot do its work: one message, one exit code."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from airy_trio.cli.logs import configure_logging
from airy_trio.errors import AiryTrioError, FaultsError

if TYPE_CHECKING:
    from airy_trio.settings import Settings

T = TypeVar("T")

CONFIG = click.option("--config", "config", metavar="FILE", type=click.Path(path_type=Path), help="The settings file.")


def loaded(config: Path | None) -> "Settings":
    """The settings of the file that was named, with the log set up as they say. Ends the program where they are wrong.

    Raises ``click.UsageError`` where no file was named.
    """
    if config is None:
        message = "Missing option '--config FILE'."
        raise click.UsageError(message)
    from airy_trio import settings

    found = told(lambda: settings.load(config, os.environ))
    configure_logging(found.logging.level, found.logging.format)
    return found


def told(work: Callable[[], T]) -> T:
    """Do the work; end the program with one clear message if it cannot be done."""
    try:
        return work()
    except AiryTrioError as error:
        lines = error.faults if isinstance(error, FaultsError) else (str(error),)
        for line in lines:
            click.echo(f"airy-trio: {line}", err=True)
        sys.exit(error.exit_code)
