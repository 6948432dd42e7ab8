"""Whether an SQLite file has changed since: its data version, its schema version, and whether it is still that file."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from attrs import frozen

from airy_trio.database.answers import DatabaseUnavailable
from airy_trio.database.session import Session
from airy_trio.database.sqlite_watch import EAGER, Pace, SqliteWatch


@frozen
class Version:
    """SQLite's data version, which means something within one connection only; its schema version; and the file."""

    generation: int
    data: int
    schema: int
    file: tuple[int, int]


class VersionOf:
    """Asks for the version of the file that a session has open."""

    def __init__(self, session: Session, pace: Pace = EAGER) -> None:
        self._session = session
        self.watch = SqliteWatch(pace)
        """When to ask; it knows the file from the first answer on."""

    async def ask(self) -> Version:
        """What changes with every commit by others. Raises ``DatabaseUnavailable`` where the file is not there."""
        return await self._session.run(self._ask, transaction=False)

    def _ask(self, connection: sa.Connection) -> Version:
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
        return Version(self._session.generation, int(data), int(schema), (file.st_dev, file.st_ino))
