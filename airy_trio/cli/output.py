"""Lines for whoever reads our output, who may leave: then we end as quietly."""

import os
import sys

import click

from airy_trio.terminal import coloured


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
