"""Bars on stderr for what takes long, where that is a terminal; where it is none, nothing is written."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click


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
