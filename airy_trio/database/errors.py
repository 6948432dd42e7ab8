"""What a database answers where it does not do what was asked, and whether waiting heals it."""

import sqlite3
from typing import Final

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from airy_trio.errors import AiryTrioError, Unavailable

ANSWERS = (SQLAlchemyError, psycopg.Error, sqlite3.Error)
"""What ``translated`` tells: a unit of work may also speak to the driver itself."""

_POSTGRES_HEALS = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
_POSTGRES_LIMIT_CLASS = "54"  # of SQLSTATE: too large for the server; it stays so, though psycopg calls it operational
_SQLITE_HEALS = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA,
})  # fmt: skip
_SQLITE_HEALS_TOO = frozenset({  # the file is moved, or its shared memory is being set up or recovered by another
    sqlite3.SQLITE_READONLY_RECOVERY, sqlite3.SQLITE_READONLY_CANTLOCK, sqlite3.SQLITE_READONLY_ROLLBACK,
    sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_READONLY_CANTINIT,
})  # fmt: skip


_IDLE: Final = {"57P05": "idle_session_timeout", "25P03": "idle_in_transaction_session_timeout"}
"""SQLSTATEs of sessions that Postgres closes because we did not use them for as long as this setting allows."""


class DatabaseError(AiryTrioError):
    """What the database answered, told without parameters; ``sqlstate`` where there is one."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(DatabaseError, Unavailable):
    """The database is away, busy, or has cut the connection."""


class DatabaseRefused(DatabaseError):
    """The database answers, and what was asked is not possible as things are."""


def translated(error: Exception) -> Exception:
    """Tell an error of SQLAlchemy or of a driver in our own terms, without parameters.

    What is neither an answer of the database nor its absence is a mistake of ours, and is given back as it is.
    """
    match error:
        case sa.exc.TimeoutError():
            return DatabaseUnavailable("TimeoutError: all connections are in use")
        case DBAPIError():
            driver, cut_off = error.orig, error.connection_invalidated
        case _:
            driver, cut_off = error, False
    match driver:
        case psycopg.Error():
            too_large = (driver.sqlstate or "").startswith(_POSTGRES_LIMIT_CLASS)
            heals = cut_off or (isinstance(driver, _POSTGRES_HEALS) and not too_large)
        case sqlite3.Error():
            code = getattr(driver, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            heals = code & 0xFF in _SQLITE_HEALS or code in _SQLITE_HEALS_TOO
        case _:
            return error
    kind = DatabaseUnavailable if heals else DatabaseRefused
    return kind(_primary_message(driver), getattr(driver, "sqlstate", None))


def is_refusal(error: Exception) -> bool:
    """Whether the database answered that what was asked is not possible: ``translated`` makes it a refusal."""
    return isinstance(translated(error), DatabaseRefused)


def _primary_message(error: BaseException) -> str:
    diagnostic = getattr(error, "diag", None)
    primary = getattr(diagnostic, "message_primary", None)
    sqlstate = getattr(error, "sqlstate", None)
    text = primary or " ".join(str(error).split()) or "no answer"
    if sqlstate in _IDLE:  # a recorder sets these itself: Postgres' own words would read as a fault of the database
        text = (
            f"this process was too busy to use its session within {_IDLE[sqlstate]}, so the database closed it; "
            "it needs more CPU time"
        )
    return f"{type(error).__name__}{f' {sqlstate}' if sqlstate else ''}: {text}"
