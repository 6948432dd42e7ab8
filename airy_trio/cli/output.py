"""What the commands share: settings and errors, progress bars, Ctrl-C, and stdout."""

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
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def load_settings(config: Path | None) -> "Settings":
    """Load the settings file and configure logging as it says. Exits if the settings are wrong.

    Raises ``click.UsageError`` if no file was given.
    """
    if config is None:
        message = "Missing option '--config FILE'."
        raise click.UsageError(message)
    from airy_trio import settings

    loaded = exit_on_error(lambda: settings.load(config, os.environ))
    configure_logging(loaded.logging.level, loaded.logging.format)
    return loaded


def exit_on_error(work: Callable[[], T]) -> T:
    """Do the work. If it raises ``AiryTrioError``, print the message, a line for each fault, and exit."""
    try:
        return work()
    except AiryTrioError as error:
        lines = error.faults if isinstance(error, FaultsError) else (str(error),)
        for line in lines:
            click.echo(f"airy-trio: {line}", err=True)
        sys.exit(error.exit_code)


@contextlib.contextmanager
def progress_bar(label: str, length: int) -> Iterator[Callable[[float], None]]:
    """Return a function that takes the progress, from 0 to ``length``, and shows it as a bar on stderr.

    The bar appears with the first call and disappears with the block. Nothing is written if stderr is not a terminal.
    """
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def show(reached: float) -> None:
            if not bars and sys.stderr.isatty():
                made = click.progressbar(length=length, label=label, file=sys.stderr, show_eta=False)
                bars.append(stack.enter_context(made))
            for bar in bars:
                bar.update(max(0, min(length, int(reached)) - bar.pos))

        yield show


def run_until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    """Run an async function; SIGINT or SIGTERM cancels it, and is then not an error. Raises what it raises."""
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
    """Writes results to stdout, flushed line by line, and notes to stderr."""

    def __init__(self) -> None:
        self._coloured = coloured(sys.stdout)

    def write(self, text: str) -> bool:
        """Write a line; return False if the reader of a pipe has closed it."""
        try:
            click.echo(text, color=self._coloured)
        except BrokenPipeError:
            # Python flushes stdout when it exits, which would fail again and print a traceback.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the program exits
            return False
        return True

    def note(self, text: str) -> None:
        """Write a line for the operator."""
        click.echo(f"airy-trio: {text}", err=True)
