"""The scratch place beside an SQLite file: a folder of a recognisable name on the same file system, with a lock in it.

The file of the application is not opened for more than the question which journal it keeps.
"""

import contextlib
import fcntl
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from attrs import evolve

from airy_trio import migrate
from airy_trio.check.sqlite import missing_rights, refusals
from airy_trio.database import SQLITE, sqlite_path, translated
from airy_trio.errors import StartError
from airy_trio.settings import Settings
from airy_trio.verify.connections import SqliteConnection
from airy_trio.verify.scratch import HEX_DIGITS, Place, deaf, name, settings_on

INFIX: Final = ".airy-trio-verify-"
LOCK: Final = "lock"
FRESH_S: Final = 60.0
"""A folder without a lock is one that is being made, if it is no older than this."""
LONG_MAX_S: Final = 1.0


class SqliteScratch(Place):
    """See ``Scratch``."""

    long_max_s = LONG_MAX_S

    def __init__(self, settings: Settings, path: Path) -> None:
        self._path = path
        super().__init__(settings, "tags", f"the folder {path.parent}", partial(SqliteConnection, path))

    def cut(self, *, recorder: bool) -> Iterator[str]:
        """See ``Scratch.cut``: a connection that dies in the middle of a transaction; no server to cut one."""
        if recorder:
            return
        connection = SqliteConnection(self._path)
        try:
            connection.execute(connection.begin)
            connection.execute(self.change, "cut off")
        finally:
            connection.close()
        yield "writers cut"


@contextlib.contextmanager
def sqlite_scratch(settings: Settings) -> Iterator[SqliteScratch]:
    """Make a place beside the file of the settings, having cleared away what killed runs left; clear it at the end.

    Raises ``StartError``.
    """
    path = sqlite_path(settings.database.url)
    migrate.require_file(path)
    if faults := [*refusals(), *(fault for fault in missing_rights(path) if str(path.parent) in fault)]:
        raise StartError(f"database.url: {fault}" for fault in faults)
    journal = _journal_of(path)
    _clear_stale(path)
    folder, lock = path.with_name(f"{path.name}{INFIX}{name()}"), None
    try:
        lock = _made(folder)
        made = folder / "app.db"
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as connection:
            connection.execute(f"pragma journal_mode = {journal}")
            connection.execute("create table tags (id text primary key, name text, color text)")
        options = evolve(settings.database, url=f"{SQLITE}:///{made}", direct_url="", schema="airy_trio", migrate=False)
        yield SqliteScratch(settings_on(options, "tags"), made)
    finally:
        with deaf():
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _made(folder: Path) -> int | None:
    """Make the folder and lock it. Raises ``StartError``."""
    try:
        folder.mkdir(mode=0o700)
        return _locked(folder / LOCK)
    except OSError as error:
        raise StartError([f"database.url: the folder {folder} cannot be made: {error.strerror}"]) from None


def _journal_of(path: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (mode,) = connection.execute("pragma journal_mode").fetchone()
    except sqlite3.Error as error:
        raise StartError([f"database.url: the database cannot be used: {translated(error)}"]) from None
    return "wal" if mode == "wal" else "delete"


def _clear_stale(path: Path) -> None:
    """Remove the places of runs that are dead: nobody holds their lock."""
    form = re.compile(re.escape(path.name + INFIX) + f"[0-9a-f]{{{HEX_DIGITS}}}")
    for folder in path.parent.iterdir():
        if form.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink() and _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    try:
        if not (folder / LOCK).exists():
            return time.time() - folder.stat().st_mtime > FRESH_S
        lock = _locked(folder / LOCK)
    except OSError:
        return False
    if lock is None:
        return False
    os.close(lock)
    return True


def _locked(path: Path) -> int | None:
    """The open file, locked; None where somebody else has locked it. The system unlocks it when the process dies."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
