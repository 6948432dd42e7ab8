"""Whether an SQLite file has changed since: its data version, its schema version, and whether it is still that file."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from attrs import frozen

from airy_trio.database import DatabaseUnavailable, Session


@frozen
class Version:
    """SQLite's data version, which means something within one connection only; its schema version; and the file."""

    generation: int
    data: int
    schema: int
    file: tuple[int, int]


_Written = tuple[int, int] | None


class VersionOf:
    """Asks for the version of the file that a session has open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._path: Path | None = None
        self._written: tuple[_Written, _Written] | None = None

    async def ask(self) -> Version:
        """What changes with every commit by others. Raises ``DatabaseUnavailable`` where the file is not there."""
        return await self._session.run(self._ask, transaction=False)

    def touched(self) -> bool:
        """Whether the file or its WAL was written since this was last asked, as their times tell; without a thread.

        Those stand still for some milliseconds, and a commit is seen after what it has written: a hint, no more.
        """
        if self._path is None:
            return True
        before, self._written = self._written, (_written(self._path), _written(Path(f"{self._path}-wal")))
        return self._written != before

    def _ask(self, connection: sa.Connection) -> Version:
        driver: Any = connection.connection.driver_connection
        if self._path is None:
            self._path = Path(driver.execute("PRAGMA database_list").fetchone()[2])
        try:
            file = self._path.stat()
        except OSError as error:
            message = f"the SQLite file {self._path} is not there any more: {error.strerror}"
            raise DatabaseUnavailable(message) from None
        (data,) = driver.execute("PRAGMA data_version").fetchone()
        (schema,) = driver.execute("PRAGMA schema_version").fetchone()
        return Version(self._session.generation, int(data), int(schema), (file.st_dev, file.st_ino))


def _written(path: Path) -> _Written:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
