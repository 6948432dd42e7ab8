"""The bell of an event log in an SQLite file: nobody rings it, but the file shows that somebody has committed.

Whoever waits asks for the file's data version, which a connection of its own tells in a fraction of what a look at the
log costs, and when is told by the file's times (``sqlite_watch``).
"""

from pathlib import Path
from typing import Final

import trio

from airy_trio.database import DatabaseError, Session, sqlite_engine
from airy_trio.database.sqlite_version import Version, VersionOf
from airy_trio.database.sqlite_watch import SPARING

SELDOM_S: Final = 0.05


class FileBell:
    """One connection that is asked, opened by the first who waits."""

    def __init__(self, path: Path) -> None:
        self._session = Session(sqlite_engine(path))
        self._version = VersionOf(self._session, SPARING)
        self._seen: Version | None = None

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
