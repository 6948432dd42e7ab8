"""What can be wrong with an SQLite file itself: the library, rights, durability. Writes nothing."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

VERSION_MIN: Final = (3, 35)
SYNCHRONOUS_FULL: Final = 2


def file_refusals() -> Iterator[str]:
    """A line where this Python's SQLite is too old."""
    if sqlite3.sqlite_version_info < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        yield f"this Python has SQLite {sqlite3.sqlite_version}, {needed} or newer is needed"


def missing_file_rights(path: Path) -> Iterator[str]:
    """A line where the file, or its folder, in which other files come to lie, cannot be written."""
    if path.exists() and not os.access(path, os.W_OK):
        yield f"the file {path} cannot be written by this user"
    if not path.parent.is_dir():
        yield f"the folder {path.parent} does not exist"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield f"no files can be made in {path.parent} by this user"


def try_to_write(connection: sa.Connection) -> None:
    """Begin to write, and take it back. Raises the driver's error where that is not possible.

    ``BEGIN IMMEDIATE`` does not tell: of a file that can only be read it makes a transaction that only reads.
    """
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    connection.rollback()


def durability(path: Path) -> Iterator[str]:
    """A line where connections that set nothing themselves, as the application's may be, commit without waiting."""
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as plain:
        (synchronous,) = plain.execute("PRAGMA synchronous").fetchone()
    plain.close()
    yield from undurable(synchronous)


def undurable(synchronous: int) -> Iterator[str]:
    """The line for a value of ``PRAGMA synchronous``, where it is less than FULL."""
    if synchronous < SYNCHRONOUS_FULL:
        yield (
            f"this SQLite is built with synchronous = {synchronous}: unless the application sets FULL, a loss of power "
            "may undo commits of its own whose events clients have seen"
        )
