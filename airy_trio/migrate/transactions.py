"""The transactions of a migration. If one fails, nothing is left behind, not even a file that it created.

To create a trigger, Postgres needs a lock that conflicts with writers. While we wait for it behind an open transaction,
all later writers of the application wait behind us. So we wait for ``LOCK_TIMEOUT`` only, let them pass, and try again.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import (
    LEASE_CLASS,
    POSTGRES,
    SQLITE,
    DatabaseError,
    DatabaseOptions,
    create_private_file,
    dialect_of,
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

LOCK_TIMEOUT: Final = "500ms"
LOCK_TRIES_MAX = 60
# As long as an attempt may wait for a lock. Writers queue behind that wait, so they have half of the time.
LOCK_PAUSE_S = 0.5
Waiting = Callable[[int], None]
"""Receives the number of the attempt that found no lock."""
LOCK_NOT_AVAILABLE: Final = "55P03"
"""The SQLSTATE of a lock time-out."""
_CHANGING: Final = ("create", "alter", "drop", "insert", "update", "delete", "grant")


def retry_while_locked(work: Callable[[], T], waiting: Waiting | None) -> T:
    """Do the work; repeat it as long as a lock is not available. Raises ``StartError`` after ``LOCK_TRIES_MAX`` tries.

    ``waiting``: called before each pause; without it, a line is logged.
    """
    for attempt in range(1, LOCK_TRIES_MAX + 1):
        try:
            return work()
        except DatabaseError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            if waiting is None:
                logger.info("table locked by an open transaction; trying again", attempt=attempt, of=LOCK_TRIES_MAX)
            else:
                waiting(attempt)
            time.sleep(LOCK_PAUSE_S)
    raise StartError(
        [f"database: a transaction had a mapped table locked in each of {LOCK_TRIES_MAX} tries; end it and try again"]
    )


@contextmanager
def transaction(
    url: str, options: DatabaseOptions, *, record: list[str] | None = None, read_only: bool = False
) -> Iterator[sa.Connection]:
    """Begin a transaction, once no other migration runs in this database.

    An SQLite file is created if it does not exist, and removed if the transaction fails. ``record`` gets all changes,
    as SQL; with it the transaction is a preview, which is rolled back at the end. ``read_only``: take no locks and
    create no file. Raises ``StartError``.
    """
    created = None
    if dialect_of(url) == POSTGRES:
        settings = {} if read_only else {"lock_timeout": LOCK_TIMEOUT}
        engine = postgres_engine(url, connect_timeout_s=options.connect_timeout_s, settings=settings)
    else:
        path = sqlite_path(url)
        database = sqlite_path(options.url) if dialect_of(options.url) == SQLITE else path
        created = None if read_only else _create_file(path, database)
        engine = sqlite_engine(path, mode="ro" if read_only else "rw")
    if record is not None:
        _record(engine, f"-- {shown(url)}", record)
    committed = False
    try:
        with (
            errors_of(url, options),
            engine.connect() as connection,
            connection.execution_options(immediate=not read_only).begin() as begun,
        ):
            # No table has the oid 0, so this is not the key of a lease (``PostgresLease``). The lock time-out applies
            # to this lock too, so a second migration is retried like one that finds a table locked.
            if connection.dialect.name == POSTGRES and not read_only:  # on SQLite BEGIN IMMEDIATE excludes others
                connection.execute(sa.text("select pg_advisory_xact_lock(:lock_class, 0)"), {"lock_class": LEASE_CLASS})
            yield connection
            if record is not None:
                begun.rollback()
        committed = record is None
    finally:
        engine.dispose()
        if created is not None and not committed:
            created.unlink(missing_ok=True)


@contextmanager
def errors_of(url: str, options: DatabaseOptions) -> Iterator[None]:
    """Translate errors of the database at ``url``. The translated error names the setting that has this URL.

    Raises ``StartError``, and ``DatabaseError`` if a lock is not available, which ``retry_while_locked`` handles.
    """
    try:
        yield
    except SQLAlchemyError as error:
        fault = translated(error)
        if not isinstance(fault, DatabaseError) or fault.sqlstate == LOCK_NOT_AVAILABLE:
            raise fault from None
        settings_of = {options.url: "database.url", options.direct_url: "database.direct_url"}
        setting = settings_of.get(url, "log.url")
        raise StartError([f"{setting}: the database cannot be used: {fault}"]) from None


def _create_file(path: Path, database: Path) -> Path | None:
    """See ``create_private_file``. Return None if the file exists. Raises ``StartError``."""
    try:
        os.close(create_private_file(path, database))
    except FileExistsError:
        return None
    except OSError as error:
        raise StartError([f"the SQLite file {path} cannot be created: {error.strerror}"]) from None
    return path


def _record(engine: sa.Engine, heading: str, record: list[str]) -> None:
    """Record the changes made through this engine, after its heading if the last one was of another engine."""

    @event.listens_for(engine, "before_cursor_execute")
    def record_statement(
        connection: sa.Connection,
        _cursor: object,
        statement: str,
        parameters: Any,  # noqa: ANN401 - a row, or many
        _context: object,
        many: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> None:
        if statement.split(None, 1)[0].lower() in _CHANGING:
            if heading != next((line for line in reversed(record) if line.startswith("-- ")), None):
                record.append(heading)
            rows = parameters if many else [parameters]
            record.extend(f"{_filled(connection, statement, row).strip()};" for row in rows)


def _filled(connection: sa.Connection, statement: str, parameters: Any) -> str:  # noqa: ANN401 - of the driver
    """Return a statement with its parameters filled in, which can be run by hand."""
    if connection.dialect.name == POSTGRES:
        if not parameters:
            return statement.replace("%%", "%")
        driver: Any = connection.connection.driver_connection
        return psycopg.ClientCursor(driver).mogrify(statement, parameters)
    literals = ["null" if p is None else quote_text(p) if isinstance(p, str) else str(p) for p in parameters]
    return "".join(part + literal for part, literal in zip(statement.split("?"), [*literals, ""], strict=True))
