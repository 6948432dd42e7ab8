"""``airy-trio migrate``: our tables and triggers, and on request the default tables, all or nothing.

One transaction for each database, on SQLite too; nothing is left behind by one that fails. On Postgres the whole
is tried again where a lock cannot be had soon: who writes to a table that gets a trigger waits behind us, so we must
not wait long behind an open transaction (findings on the data layer, 1).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from attrs import frozen
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.changes import default_tables, points, triggers
from airy_trio.changes.changelog import ChangeLog
from airy_trio.changes.inspection import absent, inspect
from airy_trio.database import (
    LOCK_CLASS,
    POSTGRES,
    SQLITE,
    DatabaseError,
    DatabaseOptions,
    Names,
    postgres_engine,
    quote_identifier,
    sqlite_engine,
    sqlite_path,
    translated,
)
from airy_trio.errors import StartError
from airy_trio.settings import Settings

logger = structlog.get_logger(__name__)

Stream = Literal["changes", "log"]

LOCK_TIMEOUT = "500ms"
LOCK_TRIES_MAX = 60
LOCK_PAUSE_S = 0.5
LOCK_NOT_AVAILABLE: Final = "55P03"
FILE_MODE = 0o600


@frozen(kw_only=True)
class Migrated:
    """What a migration did: the default tables that it made, and the kinds of object that are watched now."""

    made: tuple[str, ...]
    watched: tuple[str, ...]


def migrate(settings: Settings, *, with_tables: bool = False) -> Migrated:
    """Bring both databases up to date; again is without effect. Synchronous: it may wait for locks for a minute.

    Raises ``StartError`` or ``DatabaseError``; nothing is left behind then.
    """
    options = settings.database
    database_url = options.direct_url or options.url
    if sa.make_url(database_url).get_backend_name() == SQLITE and not with_tables:
        require_file(sqlite_path(database_url))
    for attempt in range(1, LOCK_TRIES_MAX + 1):
        try:
            with _transaction(database_url, options) as connection:
                return _migrate(connection, settings, with_tables=with_tables)
        except DatabaseError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            logger.info("an open transaction is in the way; trying again", attempt=attempt, of=LOCK_TRIES_MAX)
            time.sleep(LOCK_PAUSE_S)
    raise StartError(
        [f"database: some transaction has had a table of the mapping locked in each of {LOCK_TRIES_MAX} tries"]
    )


def migrate_log(url: str, options: DatabaseOptions) -> None:
    """Bring the ``sql`` store's database alone up to date. Raises ``DatabaseError``."""
    with _transaction(url, options) as connection:
        _upgrade(connection, "log", options)


def require_file(path: Path) -> None:
    """Refuse an SQLite file that is not there: only ``migrate --with-tables`` makes one. Raises ``StartError``."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise StartError([f"database.url: the SQLite file {path} {what} (and is not created)"])


def _migrate(connection: sa.Connection, settings: Settings, *, with_tables: bool) -> Migrated:
    """Everything in one order: what takes long first, then the triggers, for which the application waits."""
    options = settings.database
    names = Names(connection.dialect.name, options.schema)
    _alone(connection)
    made = default_tables.create(connection, absent(connection, settings.tables)) if with_tables else []
    tables = inspect(connection, settings.tables)
    _upgrade(connection, "changes", options)
    with _store(connection, settings) as store:
        if store is not None:
            _upgrade(store, "log", options)
        triggers.install(connection, tables, names, deletes=settings.events.deletes)
        log = ChangeLog(names)
        if log.origin(connection) is None:
            log.set_origin(connection, points.first(connection))
    return Migrated(made=tuple(made), watched=tuple(tables))


@contextmanager
def _store(connection: sa.Connection, settings: Settings) -> Iterator[sa.Connection | None]:
    """A transaction where the ``sql`` store is, the same one if that is here. It ends before the one given does."""
    options = settings.database
    if settings.log.store != "sql":
        yield None
    elif _address(settings.log.location(options.url)) in map(_address, (options.url, options.direct_url)):
        yield connection
    else:
        with _transaction(settings.log.location(options.url), options) as store:
            yield store


def _address(url: str) -> sa.URL | None:
    """A URL to compare: without the driver, which may be left out."""
    return sa.make_url(url).set(drivername=sa.make_url(url).get_backend_name()) if url else None


def pending(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> Iterator[str]:
    """A line where the database is not at the newest migration of a stream, or is beyond it."""
    config = _config(stream)
    names = Names(connection.dialect.name, options.schema)
    context = MigrationContext.configure(
        connection,
        opts={"version_table": names.bare(f"{stream}_version"), "version_table_schema": names.table_schema},
    )
    current, newest = context.get_current_revision(), ScriptDirectory.from_config(config).get_current_head()
    if current is None:
        yield f"{names.schema} has not been installed here; run: airy-trio migrate --config FILE"
    elif current != newest:
        yield f"{names.schema} is at {current}, this version needs {newest}; run: airy-trio migrate --config FILE"


def _upgrade(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> None:
    names = Names(connection.dialect.name, options.schema)
    config = _config(stream)
    config.attributes.update(connection=connection, names=names, stream=stream)
    _alone(connection)
    if names.dialect == POSTGRES:
        connection.exec_driver_sql(f"create schema if not exists {quote_identifier(names.schema)}")
    command.upgrade(config, "head")


def _alone(connection: sa.Connection) -> None:
    """Wait until no other migration runs in this database; on SQLite the transaction itself sees to that."""
    if connection.dialect.name == POSTGRES:
        connection.execute(sa.text("select pg_advisory_xact_lock(:lock_class, 0)"), {"lock_class": LOCK_CLASS})


def _config(stream: Stream) -> Config:
    folder = migrations_folder()
    config = Config()
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / stream).replace("%", "%%"))
    return config


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).with_name("migrations")
    return inside if inside.is_dir() else Path(__file__).parent.with_name("migrations")


@contextmanager
def _transaction(url: str, options: DatabaseOptions) -> Iterator[sa.Connection]:
    """A transaction in a database, which on SQLite may be made by it; then it goes again if the transaction fails."""
    created = None
    if sa.make_url(url).get_backend_name() == POSTGRES:
        engine = postgres_engine(
            url, connect_timeout_s=options.connect_timeout_s, settings={"lock_timeout": LOCK_TIMEOUT}
        )
    else:
        path = sqlite_path(url)
        created = _create_file(path)
        engine = sqlite_engine(path)
    committed = False
    try:
        with engine.connect() as connection, connection.execution_options(immediate=True).begin():
            yield connection
        committed = True
    except SQLAlchemyError as error:
        raise translated(error) from None
    finally:
        engine.dispose()
        if created is not None and not committed:
            created.unlink(missing_ok=True)


def _create_file(path: Path) -> Path | None:
    """Make an empty file that only its owner reads; None where there is one already. Raises ``StartError``."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE))
    except FileExistsError:
        return None
    except OSError as error:
        raise StartError([f"the SQLite file {path} cannot be created: {error.strerror}"]) from None
    return path
