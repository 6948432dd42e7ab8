"""The command line: ``airy-trio --config FILE`` serves; the other commands have a module each.

Everything that can go wrong is told on stderr in plain words, never as a traceback: exit 2 for the command line and
the settings, 1 for the database, the mapping, the triggers, the store or the port. A command imports what it runs when
it runs, so that ``--help`` and the completion of a shell answer at once.
"""

from typing import NoReturn

from airy_trio.cli.commands import check, completion, demo, explain, migrate, tail, verify
from airy_trio.cli.serve import airy_trio

__all__ = ["airy_trio", "main"]

for command in (check, completion, demo, explain, migrate, tail, verify):
    airy_trio.add_command(command)


def main() -> NoReturn:
    """Run the command line."""
    airy_trio(prog_name="airy-trio")
    raise AssertionError  # click has ended the program
