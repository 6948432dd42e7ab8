"""The progress of a drill, as a bar on the terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

TICK_S = 1


@contextmanager
def progress_bar(label: str, seconds: float) -> Iterator[None]:
    """Show a bar during the block, which takes about ``seconds``. Nothing is written if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    with click.progressbar(length=round(seconds), label=label, file=sys.stderr, show_eta=False) as bar:

        def turn() -> None:
            while not ended.wait(TICK_S):
                bar.update(TICK_S)

        turning = threading.Thread(target=turn)  # a thread, so that it does not add to the load of the event loop
        turning.start()
        try:
            yield
        finally:
            ended.set()
            turning.join()
