"""Errors of both drivers in our own terms: whether trying again may help, and a message without parameters."""

import sqlite3
from typing import Final

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from airy_trio.errors import AiryTrioError, Unavailable

DRIVER_ERRORS: Final = (SQLAlchemyError, psycopg.Error, sqlite3.Error)
"""The errors that ``translated`` knows. A unit of work may also use the driver itself."""

_POSTGRES_UNAVAILABLE: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
# A class of SQLSTATE: too large for the server. psycopg counts it as operational, but trying again does not help.
_POSTGRES_LIMIT_CLASS: Final = "54"
_SQLITE_UNAVAILABLE: Final = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA,
})  # fmt: skip
# Extended codes: the file is being moved, or another process sets up or recovers its shared memory.
_SQLITE_UNAVAILABLE_EXTENDED: Final = frozenset({
    sqlite3.SQLITE_READONLY_RECOVERY, sqlite3.SQLITE_READONLY_CANTLOCK, sqlite3.SQLITE_READONLY_ROLLBACK,
    sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_READONLY_CANTINIT,
})  # fmt: skip
_IDLE: Final = {"57P05": "idle_session_timeout", "25P03": "idle_in_transaction_session_timeout"}
"""SQLSTATEs with which Postgres closes a session that was not used for as long as this setting allows."""


class DatabaseError(AiryTrioError):
    """An error of the database, without parameters. ``sqlstate``: None on SQLite and if there is none."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(DatabaseError, Unavailable):
    """The database is away or busy, or has closed the connection."""


class DatabaseRefused(DatabaseError):
    """The database has answered that the statement is not possible."""


def translated(error: Exception) -> Exception:
    """Return an error of SQLAlchemy or of a driver as a ``DatabaseError``, without parameters.

    An error that is neither an answer of the database nor its absence is a bug of ours and is returned unchanged.
    """
    match error:
        case sa.exc.TimeoutError():
            return DatabaseUnavailable("TimeoutError: all connections are in use")
        case DBAPIError():
            driver, disconnected = error.orig, error.connection_invalidated
        case _:
            driver, disconnected = error, False
    match driver:
        case psycopg.Error():
            too_large = (driver.sqlstate or "").startswith(_POSTGRES_LIMIT_CLASS)
            unavailable = disconnected or (isinstance(driver, _POSTGRES_UNAVAILABLE) and not too_large)
        case sqlite3.Error():
            code = getattr(driver, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            unavailable = code & 0xFF in _SQLITE_UNAVAILABLE or code in _SQLITE_UNAVAILABLE_EXTENDED
        case _:
            return error
    kind = DatabaseUnavailable if unavailable else DatabaseRefused
    return kind(_primary_message(driver), getattr(driver, "sqlstate", None))


def is_refusal(error: Exception) -> bool:
    """Return whether ``translated`` makes an error a ``DatabaseRefused``."""
    return isinstance(translated(error), DatabaseRefused)


def _primary_message(error: BaseException) -> str:
    diagnostic = getattr(error, "diag", None)
    primary = getattr(diagnostic, "message_primary", None)
    sqlstate = getattr(error, "sqlstate", None)
    text = primary or " ".join(str(error).split()) or "no answer"
    if sqlstate in _IDLE:  # a recorder sets these time-outs itself; Postgres' own message would blame the database
        text = (
            f"this process was too busy to use its session within {_IDLE[sqlstate]}, so the database closed it; "
            "it needs more CPU time"
        )
    return f"{type(error).__name__}{f' {sqlstate}' if sqlstate else ''}: {text}"
