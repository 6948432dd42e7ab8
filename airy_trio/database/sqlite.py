"""Whether an SQLite file has changed since: its data version, its schema version, and whether it is still that file.

When it is worth asking an SQLite file whether it has changed: it tells nobody, but its times and its WAL's do.

Asking for them costs microseconds and no thread. They stand still for some milliseconds, and a commit is seen after
what it has written; so they are a hint, and whoever waits looks by itself as well.
"""

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio.database.connections import DedicatedConnection
from airy_trio.database.errors import DatabaseUnavailable

SETTLED_S: Final = 0.05  # without anything written
COMMIT_S: Final = 0.006  # from what is written to where it is seen, mostly: it goes to the disk first


@frozen(kw_only=True)
class Pace:
    """How often a file's times are asked for, how often it is looked at whatever they say, and both when settled.

    A file system may keep its times to itself.
    """

    poll_s: float
    look_s: float
    poll_settled_s: float
    look_settled_s: float


EAGER: Final = Pace(poll_s=0.001, look_s=0.004, poll_settled_s=0.002, look_settled_s=0.05)
"""For the one process that reads an application's file."""
SPARING: Final = Pace(poll_s=0.004, look_s=0.25, poll_settled_s=0.02, look_settled_s=0.25)
"""For each that serves: what it takes is its clients'."""

_Written = tuple[int, int] | None


class SqliteWatch:
    """The pauses between the looks of one task. ``path``: of the file, once that is known; until then each is short."""

    def __init__(self, pace: Pace = EAGER) -> None:
        self.path: Path | None = None
        self._pace = pace
        self._written: tuple[_Written, _Written] | None = None
        self._touched_at = 0.0
        self._looked_at = 0.0

    def begin(self) -> None:
        """Take it that something was written just now."""
        self._touched_at = trio.current_time()
        self._looked_at = 0.0

    async def pause(self) -> None:
        """Sleep until it is worth looking: when something has been written, and now and then."""
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
        """Whether the file or its WAL was written since this was last asked, as their times tell."""
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
    """SQLite's data version, which means something within one connection only; its schema version; and the file."""

    generation: int
    data: int
    schema: int
    file: tuple[int, int]


class FileVersions:
    """Asks for the version of the file that a session has open."""

    def __init__(self, session: DedicatedConnection, pace: Pace = EAGER) -> None:
        self._session = session
        self.watch = SqliteWatch(pace)
        """When to ask; it knows the file from the first answer on."""

    async def ask(self) -> FileVersion:
        """What changes with every commit by others. Raises ``DatabaseUnavailable`` where the file is not there."""
        return await self._session.run(self._ask, transaction=False)

    def _ask(self, connection: sa.Connection) -> FileVersion:
        driver: Any = connection.connection.driver_connection
        if self.watch.path is None:
            self.watch.path = Path(driver.execute("PRAGMA database_list").fetchone()[2])
        try:
            file = self.watch.path.stat()
        except OSError as error:
            message = f"the SQLite file {self.watch.path} is not there any more: {error.strerror}"
            raise DatabaseUnavailable(message) from None
        (data,) = driver.execute("PRAGMA data_version").fetchone()
        (schema,) = driver.execute("PRAGMA schema_version").fetchone()
        return FileVersion(self._session.generation, int(data), int(schema), (file.st_dev, file.st_ino))
