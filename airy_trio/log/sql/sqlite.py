"""An SQLite file of events: written durably, and still the one that was opened, for it may be removed or replaced.

SQLite goes on with the file that it has open, wherever its name points by now: what is appended then is in no file that
anybody finds again, and a connection opened later reads another history. Both show in the file's identity, which costs
microseconds to ask for. Refuses to know what is in the file.

The bell of an event log in an SQLite file: nobody rings it, but the file shows that somebody has committed.

Whoever waits asks for the file's data version, which a connection of its own tells in a fraction of what a look at the
log costs, and when is told by the file's times (``sqlite_watch``).
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import sqlalchemy as sa
import structlog
import trio

from airy_trio.database import DatabaseError, DedicatedConnection, sqlite_engine
from airy_trio.database.sqlite import SPARING, FileVersion, FileVersions
from airy_trio.log.store import StoreReplaced

SELDOM_S: Final = 0.05


class FileNotifications:
    """One connection that is asked, opened by the first who waits."""

    def __init__(self, path: Path) -> None:
        self._session = DedicatedConnection(sqlite_engine(path))
        self._version = FileVersions(self._session, SPARING)
        self._seen: FileVersion | None = None

    async def wait(self, *, seldom: bool = False) -> None:
        """Return when somebody has committed since the last call, or where that cannot be told.

        ``seldom``: look each ``SELDOM_S`` only, for who mostly is the one that commits.
        """
        before = self._seen
        while True:
            try:
                version = await self._version.ask()
            except DatabaseError:  # the look at the log tells what it is
                self._seen = None
                await self._version.watch.pause()
                return
            self._seen = version
            if version != before:
                return
            if seldom:
                await trio.sleep(SELDOM_S)
            else:
                await self._version.watch.pause()

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._session.aclose()


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
