"""Checks of an SQLite file: the library, rights, durability. Nothing is written."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

VERSION_MIN: Final = (3, 35)
SYNCHRONOUS_FULL: Final = 2


def file_refusals() -> Iterator[str]:
    """Yield a line if the SQLite library of this Python is too old."""
    if sqlite3.sqlite_version_info < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        yield f"this Python has SQLite {sqlite3.sqlite_version}, {needed} or newer is needed"


def missing_file_rights(path: Path) -> Iterator[str]:
    """Yield a line if the file cannot be written, or its folder, where SQLite and the lease create further files."""
    if path.exists() and not os.access(path, os.W_OK):
        yield f"the file {path} cannot be written by this user"
    if not path.parent.is_dir():
        yield f"the folder {path.parent} does not exist"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield f"this user cannot create files in {path.parent}"


def try_to_write(connection: sa.Connection) -> None:
    """Write something and roll it back. Raises the driver's error if that is not possible.

    ``BEGIN IMMEDIATE`` is not enough: on a read-only file it succeeds, with a transaction that only reads.
    """
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    connection.rollback()


def durability(path: Path) -> Iterator[str]:
    """Yield a line if a connection that sets nothing, as the application's may be, commits without waiting for disk."""
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as plain:
        (synchronous,) = plain.execute("PRAGMA synchronous").fetchone()
    plain.close()
    yield from undurable(synchronous)


def undurable(synchronous: int) -> Iterator[str]:
    """Yield a line if this value of ``PRAGMA synchronous`` is less than FULL."""
    if synchronous < SYNCHRONOUS_FULL:
        yield (
            f"this SQLite is built with synchronous = {synchronous}: unless the application sets FULL, a power failure "
            "may undo its commits after clients have received their events"
        )
