"""Transactions of a migration: all or nothing, the file that one has made included, and patient where it must wait.

On Postgres who writes to a table that gets a trigger waits behind us, so we must not wait long behind an open
transaction: we give up soon and try again.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import (
    LOCK_CLASS,
    POSTGRES,
    DatabaseError,
    DatabaseOptions,
    postgres_engine,
    quote_text,
    shown,
    sqlite_engine,
    sqlite_path,
    translated,
)
from airy_trio.errors import StartError

logger = structlog.get_logger(__name__)

T = TypeVar("T")

LOCK_TIMEOUT = "500ms"
LOCK_TRIES_MAX = 60
LOCK_PAUSE_S = 0.5
Waiting = Callable[[int], None]
LOCK_NOT_AVAILABLE: Final = "55P03"
FILE_MODE = 0o600
_CHANGING = ("create", "alter", "drop", "insert", "update", "delete", "grant")


def patiently(work: Callable[[], T], waiting: Waiting | None) -> T:
    """Do a piece of work again where it could not have a lock. Raises ``StartError`` where it never can.

    ``waiting``: is told how often it could not, before each pause, in place of the log.
    """
    for attempt in range(1, LOCK_TRIES_MAX + 1):
        try:
            return work()
        except DatabaseError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            if waiting is None:
                logger.info("an open transaction is in the way; trying again", attempt=attempt, of=LOCK_TRIES_MAX)
            else:
                waiting(attempt)
            time.sleep(LOCK_PAUSE_S)
    raise StartError(
        [f"database: some transaction has had a table of the mapping locked in each of {LOCK_TRIES_MAX} tries"]
    )


def alone(connection: sa.Connection) -> None:
    """Wait until no other migration runs in this database; on SQLite the transaction itself sees to that."""
    if connection.dialect.name == POSTGRES:
        connection.execute(sa.text("select pg_advisory_xact_lock(:lock_class, 0)"), {"lock_class": LOCK_CLASS})


@contextmanager
def transaction(url: str, options: DatabaseOptions, *, record: list[str] | None = None) -> Iterator[sa.Connection]:
    """A transaction in a database, which on SQLite may be made by it; then it goes again if the transaction fails.

    ``record``: takes what it changes, as SQL. Raises ``StartError``.
    """
    created = None
    if sa.make_url(url).get_backend_name() == POSTGRES:
        engine = postgres_engine(
            url, connect_timeout_s=options.connect_timeout_s, settings={"lock_timeout": LOCK_TIMEOUT}
        )
    else:
        path = sqlite_path(url)
        created = _create_file(path)
        engine = sqlite_engine(path)
    if record is not None:
        _record(engine, f"-- {shown(url)}", record)
    committed = False
    try:
        with engine.connect() as connection, connection.execution_options(immediate=True).begin():
            yield connection
        committed = True
    except SQLAlchemyError as error:
        raise _told(translated(error), url, options) from None
    finally:
        engine.dispose()
        if created is not None and not committed:
            created.unlink(missing_ok=True)


@contextmanager
def read_only(url: str, options: DatabaseOptions) -> Iterator[sa.Connection]:
    """A look into a database that must not be written to. Raises ``DatabaseError``."""
    if sa.make_url(url).get_backend_name() == POSTGRES:
        engine = postgres_engine(url, connect_timeout_s=options.connect_timeout_s)
    else:
        engine = sqlite_engine(sqlite_path(url), mode="ro")
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except SQLAlchemyError as error:
        raise _told(translated(error), url, options) from None
    finally:
        engine.dispose()


def _told(error: Exception, url: str, options: DatabaseOptions) -> Exception:
    """A database that cannot be used, with the setting that names it; what is tried again stays as it is."""
    if not isinstance(error, DatabaseError) or error.sqlstate == LOCK_NOT_AVAILABLE:
        return error
    settings = {options.url: "database.url", options.direct_url: "database.direct_url"}
    return StartError([f"{settings.get(url, 'log.url')}: the database cannot be used: {error}"])


def _create_file(path: Path) -> Path | None:
    """Make an empty file that only its owner reads; None where there is one already. Raises ``StartError``."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE))
    except FileExistsError:
        return None
    except OSError as error:
        raise StartError([f"the SQLite file {path} cannot be created: {error.strerror}"]) from None
    return path


def _record(engine: sa.Engine, heading: str, record: list[str]) -> None:
    """Record what is changed by this engine, below its heading where another one's came last."""

    @event.listens_for(engine, "before_cursor_execute")
    def take(  # SQLAlchemy's signature
        connection: sa.Connection,
        _cursor: object,
        statement: str,
        parameters: Any,  # noqa: ANN401 - a row, or many
        _context: object,
        many: bool,  # noqa: FBT001 - SQLAlchemy's
    ) -> None:
        if statement.split(None, 1)[0].lower() in _CHANGING:
            if heading != next((line for line in reversed(record) if line.startswith("-- ")), None):
                record.append(heading)
            rows = parameters if many else [parameters]
            record.extend(f"{_filled(connection, statement, row).strip()};" for row in rows)


def _filled(connection: sa.Connection, statement: str, parameters: Any) -> str:  # noqa: ANN401 - the driver's
    """A statement with its parameters, as it could be run by hand."""
    if connection.dialect.name == POSTGRES:
        if not parameters:
            return statement.replace("%%", "%")
        driver: Any = connection.connection.driver_connection
        return psycopg.ClientCursor(driver).mogrify(statement, parameters)
    return _with_literals(statement, parameters)


def _with_literals(statement: str, parameters: Sequence[object]) -> str:
    parts = statement.split("?")
    literals = ["null" if p is None else quote_text(p) if isinstance(p, str) else str(p) for p in parameters]
    return "".join(part + literal for part, literal in zip(parts, [*literals, ""], strict=True))
