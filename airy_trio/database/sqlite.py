"""Notice commits to an SQLite file by other processes: SQLite sends no notifications, so the file is polled.

``FileVersions`` is exact: the data version of an open connection changes with every commit by others. Reading it takes
a thread. ``SqliteWatch`` says when that is worth it, from the modification times of the file and its WAL. Reading these
takes microseconds and no thread, but they are only a hint: their resolution is some milliseconds, a commit becomes
visible after its data was written, and a file system may not report them. So the version is read now and then in any
case.
"""

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio.database.connections import DedicatedConnection
from airy_trio.database.errors import DatabaseUnavailable

SETTLED_S: Final = 0.05
"""Nothing was written for this long: poll less often."""
COMMIT_S: Final = 0.006
"""After a write, a commit mostly becomes visible in this time, because it goes to the disk first."""


@frozen(kw_only=True)
class Pace:
    """Intervals in seconds: between two checks of the times (``poll_s``), and between two looks whatever they say.

    The ``settled`` ones hold while nothing has been written for ``SETTLED_S``.
    """

    poll_s: float
    look_s: float
    poll_settled_s: float
    look_settled_s: float


EAGER: Final = Pace(poll_s=0.001, look_s=0.004, poll_settled_s=0.002, look_settled_s=0.05)
"""For the one process that reads an application's file."""
SPARING: Final = Pace(poll_s=0.004, look_s=0.25, poll_settled_s=0.02, look_settled_s=0.25)
"""For the processes that serve clients, which need the CPU time."""

_Written = tuple[int, int] | None


class SqliteWatch:
    """The pauses of one task between two looks. ``path``: the file; while it is None, each pause is short."""

    def __init__(self, pace: Pace = EAGER) -> None:
        self.path: Path | None = None
        self._pace = pace
        self._written: tuple[_Written, _Written] | None = None
        self._touched_at = 0.0
        self._looked_at = 0.0

    def begin(self) -> None:
        """Assume that something was written just now."""
        self._touched_at = trio.current_time()
        self._looked_at = 0.0

    async def pause(self) -> None:
        """Sleep until it is worth looking: when something was written, and now and then."""
        while True:
            settled = trio.current_time() - self._touched_at > SETTLED_S
            await trio.sleep(self._pace.poll_settled_s if settled else self._pace.poll_s)
            now, look_s = trio.current_time(), self._pace.look_settled_s if settled else self._pace.look_s
            if self.touched():
                self._touched_at = now
            elif now - self._touched_at > COMMIT_S and now - self._looked_at < look_s:
                continue
            self._looked_at = now
            return

    def touched(self) -> bool:
        """Return whether the file or its WAL was written since the last call, according to their times and sizes."""
        if self.path is None:
            return True
        before, self._written = self._written, (_written(self.path), _written(Path(f"{self.path}-wal")))
        return self._written != before


def _written(path: Path) -> _Written:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@frozen
class FileVersion:
    """The version and the identity of a file. ``data`` is comparable within one connection (``generation``) only."""

    generation: int
    data: int
    schema: int
    file: tuple[int, int]


class FileVersions:
    """Reads the version of the file that a connection has open."""

    def __init__(self, connection: DedicatedConnection, pace: Pace = EAGER) -> None:
        self._connection = connection
        self.watch = SqliteWatch(pace)
        """When to ask; it has the path from the first answer on."""

    async def ask(self) -> FileVersion:
        """Return the version, which changes with every commit by others.

        Raises ``DatabaseUnavailable`` if the file is gone.
        """
        return await self._connection.run(self._ask, transaction=False)

    def _ask(self, connection: sa.Connection) -> FileVersion:
        driver: Any = connection.connection.driver_connection
        if self.watch.path is None:
            self.watch.path = Path(driver.execute("PRAGMA database_list").fetchone()[2])
        try:
            file = self.watch.path.stat()
        except OSError as error:
            message = f"the SQLite file {self.watch.path} is gone: {error.strerror}"
            raise DatabaseUnavailable(message) from None
        (data,) = driver.execute("PRAGMA data_version").fetchone()
        (schema,) = driver.execute("PRAGMA schema_version").fetchone()
        return FileVersion(self._connection.generation, int(data), int(schema), (file.st_dev, file.st_ino))
