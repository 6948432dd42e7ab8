"""``airy-trio migrate``: install our tables and triggers, and on request the default tables, completely or not at all.

There is one transaction for each database, also on SQLite, so a failed migration leaves nothing behind. The tables are
defined in ``migrations/``, the triggers in ``capture/``. This module decides the order. Installing the triggers comes
last, because the application's writers wait for it; removing them comes first, because a transaction of the application
that has fired one holds locks on our tables, and waiting for those while we hold a lock on one of its tables would be a
deadlock.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from attrs import frozen

from airy_trio.capture import mapping, postgres_triggers, resume_points, triggers
from airy_trio.capture.change_log import TABLE, ChangeLog
from airy_trio.capture.inspection import inspect, missing_default_tables
from airy_trio.capture.triggers import Firing
from airy_trio.database import POSTGRES, SQLITE, DatabaseOptions, Names, quote_identifier, sqlite_path
from airy_trio.errors import StartError
from airy_trio.migrate.streams import Stream, ahead, downgrade, pending, upgrade
from airy_trio.migrate.transactions import LOCK_TRIES_MAX, Waiting, read_only, retry_while_locked, transaction
from airy_trio.settings import Settings
from airy_trio.settings.cross_checks import log_is_in

__all__ = [
    "LOCK_TRIES_MAX",
    "Migrated",
    "ahead",
    "encoding_faults",
    "log_is_here",
    "migrate",
    "migrate_log",
    "pending",
    "preview",
    "remove",
    "require_file",
]

_SETTINGS: Final[Mapping[Stream, str]] = {"changes": "database", "log": "log"}
"""The table of the settings with which a line about a stream begins, as in ``check``."""
ANY_TEXT: Final = frozenset({"UTF8", "SQL_ASCII"})
"""The encodings of a Postgres database that can store any text."""


@frozen(kw_only=True)
class Migrated:
    """The result of a migration: the default tables that it created, and the kinds of object that are watched now.

    ``left``: a line for each schema of a newer version, which was not changed.
    """

    made: tuple[str, ...]
    watched: tuple[str, ...]
    left: tuple[str, ...] = ()


class _OnlyPreviewedError(Exception):
    """Rolls back the transaction of a preview."""


def migrate(
    settings: Settings,
    *,
    with_tables: bool = False,
    grant: str | None = None,
    firing: Firing | None = None,
    waiting: Waiting | None = None,
) -> Migrated:
    """Bring both databases up to date. Safe to repeat. Synchronous; it may wait for locks for a minute.

    A schema of a newer version, with its triggers, is not changed: there is no downgrade.

    ``grant``: a Postgres role that is granted the rights that a server needs. ``firing``: when the Postgres triggers
    fire; None does not change it. ``waiting``: called with the number of the attempt each time that a lock is not free,
    at most ``LOCK_TRIES_MAX`` times. Raises ``StartError``; then nothing was changed.
    """
    return _perform(settings, None, waiting, with_tables=with_tables, grant=grant, firing=firing)


def preview(
    settings: Settings,
    *,
    with_tables: bool = False,
    grant: str | None = None,
    firing: Firing | None = None,
    waiting: Waiting | None = None,
) -> list[str]:
    """Return the SQL statements that ``migrate`` would run now. They are run and rolled back. Raises as it does."""
    record: list[str] = []
    with suppress(_OnlyPreviewedError):
        _perform(settings, record, waiting, with_tables=with_tables, grant=grant, firing=firing)
    return record


def remove(settings: Settings, *, waiting: Waiting | None = None) -> None:
    """Remove everything of ours: triggers, tables, schema, files. The default tables are the application's and stay.

    Raises ``StartError``; then nothing was changed.
    """
    _require_possible(settings, with_tables=False, grant=None, firing=None)
    if settings.changes.reads_only:
        retry_while_locked(lambda: _remove_only_log(settings), waiting)
        return
    retry_while_locked(lambda: _remove(settings), waiting)
    options = settings.database
    if sa.make_url(options.url).get_backend_name() == SQLITE:
        path = sqlite_path(options.url)
        path.with_name(f"{path.name}.airy-trio.lock").unlink(missing_ok=True)


def migrate_log(url: str, options: DatabaseOptions) -> None:
    """Bring only the database of an ``sql`` store up to date. Raises ``StartError``."""
    with transaction(url, options) as connection:
        upgrade(connection, "log", _names(connection, options))


def require_file(path: Path) -> None:
    """Raise ``StartError`` if an SQLite file does not exist: only ``migrate --with-tables`` creates one."""
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise StartError([f"database.url: the SQLite file {path} {fault} (and is not created)"])


def log_is_here(settings: Settings) -> bool:
    """Return whether events are stored in the application's database itself."""
    return log_is_in(settings.database, settings.log)


def encoding_faults(connection: sa.Connection, settings: Settings) -> Iterator[str]:
    """Yield a line if the Postgres database of the event log cannot store every id of the application's database."""
    if connection.dialect.name == POSTGRES and not log_is_here(settings):
        encoding = connection.exec_driver_sql("show server_encoding").scalar_one()
        if encoding not in ANY_TEXT:
            yield (
                f"log.url: the encoding of this database is {encoding}, which cannot store every id; "
                "name a database that was created with ENCODING 'UTF8'"
            )


def _perform(  # noqa: PLR0913 - the options of a migration
    settings: Settings,
    record: list[str] | None,
    waiting: Waiting | None,
    *,
    with_tables: bool,
    grant: str | None,
    firing: Firing | None,
) -> Migrated:
    """Migrate; or with ``record`` add the statements to it, roll back, and raise ``_OnlyPreviewedError``."""
    _require_possible(settings, with_tables=with_tables, grant=grant, firing=firing)
    migrate_once = _migrate_only_log if settings.changes.reads_only else _migrate

    def attempt() -> Migrated:
        if record is not None:
            record.clear()
        return migrate_once(settings, record, with_tables=with_tables, grant=grant, firing=firing)

    return retry_while_locked(attempt, waiting)


def _require_possible(settings: Settings, *, with_tables: bool, grant: str | None, firing: Firing | None) -> None:
    url = _address(settings)
    if sa.make_url(url).get_backend_name() == SQLITE:
        if firing is not None:
            raise StartError([f"--triggers {firing}: SQLite has no replica roles; its triggers always fire"])
        if grant is not None:
            raise StartError([f"--grant {grant}: SQLite has no roles; the permissions of the file decide"])
        if not with_tables:
            require_file(sqlite_path(url))


def _migrate(
    settings: Settings, record: list[str] | None, *, with_tables: bool, grant: str | None, firing: Firing | None
) -> Migrated:
    """Make one attempt. Slow steps come first, the triggers last, because the application's writers wait for them."""
    with transaction(_address(settings), settings.database, record=record) as connection:
        names = _names(connection, settings.database)
        newer = _newer(connection, "changes", settings.database)
        made = []
        if with_tables and newer is None:  # else the tables would have no triggers
            made = mapping.create_default_tables(connection, missing_default_tables(connection, settings.tables))
        tables = inspect(connection, settings.tables, holds_log=log_is_here(settings))
        if newer is None:
            upgrade(connection, "changes", names)
        with _store(connection, settings, record) as store:
            if store is not None:
                _require_encoding(store, settings)
            left = [newer, None if store is None else _upgrade_log(store, settings.database)]
            if grant is not None:
                _grant(connection, postgres_triggers.grant_statements(grant, tables, names))
            if grant is not None and store is not None and store is not connection and store.dialect.name == POSTGRES:
                _grant(store, postgres_triggers.grant_statements(grant, {}, names))
            if newer is None:
                triggers.install(connection, tables, names, deletes=settings.events.deletes, firing=firing)
                log = ChangeLog(names)
                if log.origin(connection) is None:
                    log.set_origin(connection, resume_points.first(connection, names.quoted(TABLE)))
            if record is not None:
                record.extend(f"-- {line}" for line in left if line is not None)
                raise _OnlyPreviewedError
    return Migrated(made=tuple(made), watched=tuple(tables), left=tuple(line for line in left if line is not None))


def _migrate_only_log(
    settings: Settings, record: list[str] | None, *, with_tables: bool, grant: str | None, firing: Firing | None
) -> Migrated:
    """Make one attempt for ``updated_at`` capture: only the event log is changed."""
    if with_tables:
        raise StartError(['--with-tables: changes.capture is "updated_at", which writes nothing into the database'])
    if grant is not None:
        raise StartError(
            [f'--grant {grant}: changes.capture is "updated_at", which needs only SELECT on the mapped tables']
        )
    if firing is not None:
        raise StartError([f'--triggers {firing}: changes.capture is "updated_at", which needs no triggers'])
    with read_only(_address(settings), settings.database) as connection:
        tables = inspect(connection, settings.tables, watermarks=True, holds_log=log_is_here(settings))
    left = None
    if settings.log.store == "sql":
        with transaction(settings.log.location(settings.database.url), settings.database, record=record) as store:
            _require_encoding(store, settings)
            left = _upgrade_log(store, settings.database)
            if record is not None:
                record.extend([] if left is None else [f"-- {left}"])
                raise _OnlyPreviewedError
    return Migrated(made=(), watched=tuple(tables), left=() if left is None else (left,))


def _upgrade_log(store: sa.Connection, options: DatabaseOptions) -> str | None:
    """Bring the ``log`` stream up to date, or return a line why it was not changed. Raises ``StartError``."""
    newer = _newer(store, "log", options)
    if newer is None:
        upgrade(store, "log", _names(store, options))
    return newer


def _newer(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> str | None:
    """Return a line if the schema is of a newer version, or raise ``StartError`` if we do not work with it."""
    newer = ahead(connection, stream, options)
    if newer is None:
        return None
    if faults := list(pending(connection, stream, options)):
        raise StartError(f"{_SETTINGS[stream]}: {fault}" for fault in faults)
    return f"{_SETTINGS[stream]}: {newer}, with which this version works: nothing done to its tables and triggers"


def _require_removable(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> None:
    """Raise ``StartError`` if the schema is of a newer version, because it may have more than we would remove."""
    newer = ahead(connection, stream, options)
    if newer is not None:
        raise StartError([f"{_SETTINGS[stream]}: {newer}: nothing removed; run migrate --remove of that version"])


def _remove_only_log(settings: Settings) -> None:
    store_file = _store_file(settings)
    if settings.log.store != "sql" or (store_file is not None and not store_file.is_file()):
        return
    with transaction(settings.log.location(settings.database.url), settings.database) as store:
        _require_removable(store, "log", settings.database)
        downgrade(store, "log", _names(store, settings.database))
        _drop_schema(store, _names(store, settings.database))
        emptied = store_file is not None and not sa.inspect(store).get_table_names()
    if store_file is not None and emptied:
        _unlink(store_file)


def _unlink(file: Path) -> None:
    """Remove an SQLite file, with the files of SQLite and of the lease next to it."""
    for ending in ("", "-wal", "-shm", ".airy-trio.lock"):
        file.with_name(file.name + ending).unlink(missing_ok=True)


def _grant(connection: sa.Connection, statements: Iterator[str]) -> None:
    for statement in statements:
        connection.execute(sa.text(statement.replace(":", "\\:")))


def _remove(settings: Settings) -> None:
    """Make one attempt, with the triggers first (see above)."""
    options = settings.database
    store_file, emptied = _store_file(settings), False
    with transaction(_address(settings), options) as connection:
        names = _names(connection, options)
        _require_removable(connection, "changes", options)
        triggers.remove(connection, names)
        downgrade(connection, "changes", names)
        if store_file is None or store_file.is_file():
            with _store(connection, settings) as store:
                if store is not None:
                    _require_removable(store, "log", options)
                    downgrade(store, "log", _names(store, options))
                    _drop_schema(store, _names(store, options))
                    emptied = store_file is not None and not sa.inspect(store).get_table_names()
        _drop_schema(connection, names)
    if store_file is not None and emptied:
        _unlink(store_file)


def _drop_schema(connection: sa.Connection, names: Names) -> None:
    """Drop our schema unless it has tables or functions of others."""
    if names.dialect == POSTGRES:
        used = sa.text(
            "select exists (select from pg_class where relnamespace = to_regnamespace(:schema)) "
            "or exists (select from pg_proc where pronamespace = to_regnamespace(:schema))"
        )
        schema = quote_identifier(names.schema)
        if not connection.execute(used, {"schema": schema}).scalar_one():
            connection.exec_driver_sql(f"drop schema if exists {schema}")


@contextmanager
def _store(
    connection: sa.Connection, settings: Settings, record: list[str] | None = None
) -> Iterator[sa.Connection | None]:
    """Yield a transaction on the database of an ``sql`` store: the given one if it is the same, else a nested one."""
    options = settings.database
    if settings.log.store != "sql":
        yield None
    elif log_is_here(settings):
        yield connection
    else:
        with transaction(settings.log.location(options.url), options, record=record) as store:
            yield store


def _require_encoding(store: sa.Connection, settings: Settings) -> None:
    if faults := list(encoding_faults(store, settings)):
        raise StartError(faults)


def _store_file(settings: Settings) -> Path | None:
    """Return the SQLite file of an ``sql`` store, if it has one of its own."""
    if settings.log.store != "sql":
        return None
    location = settings.log.location(settings.database.url)
    is_file = sa.make_url(location).get_backend_name() == SQLITE
    return sqlite_path(location) if is_file and not log_is_here(settings) else None


def _address(settings: Settings) -> str:
    return settings.database.direct_url or settings.database.url


def _names(connection: sa.Connection, options: DatabaseOptions) -> Names:
    return Names(connection.dialect.name, options.schema)
