"""Lines for whoever reads our output, who may leave: then we end as quietly.

What every command begins with, and how it ends where it cannot do its work: one message, one exit code.

Bars on stderr for what takes long, where that is a terminal; where it is none, nothing is written.

Commands that run until Ctrl-C, which is no failure of theirs.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import trio

from airy_trio.cli.logs import configure_logging
from airy_trio.errors import AiryTrioError, FaultsError
from airy_trio.terminal import coloured

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


@contextlib.contextmanager
def bar(label: str, length: int) -> Iterator[Callable[[float], None]]:
    """A bar until the block ends; it is told how far things are, from 0 to ``length``. It shows with the first word."""
    with contextlib.ExitStack() as shown:
        made: list[Any] = []

        def go_on(reached: float) -> None:
            if not made and sys.stderr.isatty():
                made.append(
                    shown.enter_context(click.progressbar(length=length, label=label, file=sys.stderr, show_eta=False))
                )
            for one in made:
                one.update(max(0, min(length, int(reached)) - one.pos))

        yield go_on


SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    """Run a task to its end, or cancel it at SIGINT or SIGTERM. Raises what it raises."""
    trio.run(_until_signalled, work)


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:

        def cancel(_number: int, _frame: FrameType | None) -> None:
            token.run_sync_soon(scope.cancel)

        before = {number: signal.signal(number, cancel) for number in SIGNALS}
        try:
            await work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Stdout:
    """Events go to stdout, each at once; notes to stderr."""

    def __init__(self) -> None:
        self._coloured = coloured(sys.stdout)

    def write(self, text: str) -> bool:
        """Write a line; False where nobody reads any more."""
        try:
            click.echo(text, color=self._coloured)  # which flushes
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for what Python flushes at its end
            return False
        return True

    def note(self, text: str) -> None:
        """Tell a person something that is no event."""
        click.echo(f"airy-trio: {text}", err=True)
