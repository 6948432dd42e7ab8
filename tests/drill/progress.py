"""How far a drill is, as a bar on the terminal; nothing where nobody looks."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

TICK_S = 1


@contextmanager
def going_on(label: str, seconds: float) -> Iterator[None]:
    """A bar for as long as the block takes, which is about so many seconds."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    with click.progressbar(length=round(seconds), label=label, file=sys.stderr, show_eta=False) as bar:

        def turn() -> None:
            while not ended.wait(TICK_S):
                bar.update(TICK_S)

        turning = threading.Thread(target=turn)  # of its own: the drill's loop is what is tormented
        turning.start()
        try:
            yield
        finally:
            ended.set()
            turning.join()
