"""A connection of the scratch application, which knows nothing of us, to either database: plain SQL, no transaction.

Errors are the drivers' own: ``DRIVER_ERRORS``.
"""

import sqlite3
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
import sqlalchemy as sa

from airy_trio.database import SQLITE_BUSY_TIMEOUT_S

DRIVER_ERRORS: Final = (psycopg.Error, sqlite3.Error, sa.exc.SQLAlchemyError)


class Connection(Protocol):
    """One session."""

    begin: str
    """The statement that begins a transaction that will write."""

    def execute(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        """Run a statement, whose parameters are written ``?``, and give its rows."""
        ...

    def close(self) -> None:
        """Hang up, whatever is open. Idempotent."""
        ...


class PostgresConnection:
    """Of an engine of ours in AUTOCOMMIT, so that its URL, TLS and time-outs are the server's."""

    begin = "begin"

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = engine.connect()
        driver: Any = self._connection.connection.driver_connection
        self._driver: psycopg.Connection = driver
        self.backend = self._driver.info.backend_pid

    def execute(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        """See ``Connection``."""
        cursor = self._driver.execute(statement.replace("?", "%s").encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """See ``Connection``."""
        self._connection.invalidate()
        self._connection.close()


class SqliteConnection:
    """To a file that is there."""

    begin = "begin immediate"

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            path, isolation_level=None, timeout=4 * SQLITE_BUSY_TIMEOUT_S, check_same_thread=False
        )

    def execute(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        """See ``Connection``."""
        return self._connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """See ``Connection``."""
        self._connection.close()
