"""An SQLite file of events: written durably, and still the one that was opened, for it may be removed or replaced.

SQLite goes on with the file that it has open, wherever its name points by now: what is appended then is in no file that
anybody finds again, and a connection opened later reads another history. Both show in the file's identity, which costs
microseconds to ask for. Refuses to know what is in the file.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import sqlalchemy as sa
import structlog

from airy_trio.log.store import StoreReplaced

logger = structlog.get_logger(__name__)

T = TypeVar("T")


class SqlFile:
    """The file of an event store, known by device and inode from the first look on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None

    def watched(self, work: Callable[[sa.Connection], T]) -> Callable[[sa.Connection], T]:
        """Give a unit of work that counts only if the file is still the same at its end."""

        def unit(connection: sa.Connection) -> T:
            try:
                return work(connection)
            finally:
                self.look()

        return unit

    def look(self) -> None:
        """Raise ``StoreReplaced`` where the file is gone, or is another than at the first look."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._lost("was removed")
        identity = status.st_dev, status.st_ino
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            self._lost("was replaced by another file")

    def _lost(self, what: str) -> NoReturn:
        message = (
            f"log.url: the event log {self._path} {what} while it was open; "
            "the next start begins a new epoch, and clients load anew"
        )
        raise StoreReplaced(message)


def make_durable(connection: sqlite3.Connection, _record: object) -> None:
    """Let a new connection wait for the disk, and readers never lock the writer out."""
    connection.execute("PRAGMA synchronous = full")
    try:
        connection.execute("PRAGMA journal_mode = wal")  # stays with the file
    except sqlite3.OperationalError as error:  # somebody is reading just now; correct without it, only slower
        logger.warning("the event log's file is not in WAL mode yet", reason=str(error))
