"""``airy-trio migrate``: our tables and triggers, and on request the default tables, all or nothing.

One transaction for each database, on SQLite too; nothing is left behind by one that fails. What the tables are stands
in ``migrations/``, what the triggers are in ``changes/``; here is the order in which they come and go.
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
from airy_trio.capture.lease import lock_file
from airy_trio.capture.triggers import Firing
from airy_trio.database import POSTGRES, SQLITE, DatabaseOptions, Names, quote_identifier, sqlite_path
from airy_trio.errors import StartError
from airy_trio.migrate.streams import Stream, ahead, downgrade, pending, upgrade
from airy_trio.migrate.transactions import LOCK_TRIES_MAX, Waiting, alone, patiently, read_only, transaction
from airy_trio.settings import Settings

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
"""The table of the settings that a line about a stream begins with, as those of ``check`` do."""
ANY_TEXT: Final = frozenset({"UTF8", "SQL_ASCII"})
"""The encodings of a Postgres database that can store any text."""


@frozen(kw_only=True)
class Migrated:
    """What a migration did: the default tables that it made, and the kinds of object that are watched now.

    ``left``: a line for each schema of a newer version, which stays as it is.
    """

    made: tuple[str, ...]
    watched: tuple[str, ...]
    left: tuple[str, ...] = ()


class _OnlyPreviewedError(Exception):
    """Ends a transaction of which nothing is to stay."""


def migrate(
    settings: Settings,
    *,
    with_tables: bool = False,
    grant: str | None = None,
    firing: Firing | None = None,
    waiting: Waiting | None = None,
) -> Migrated:
    """Bring both databases up to date; again is without effect. Synchronous: it may wait for locks for a minute.

    A schema of a newer version stays as it is, with its triggers: nothing here takes an upgrade back.

    ``grant``: a role of Postgres that gets what a server needs. ``firing``: when the triggers of Postgres fire; None
    leaves that as it is. ``waiting``: called with the number of the attempt each time that a lock is not free, at most
    ``LOCK_TRIES_MAX`` times. Raises ``StartError``; nothing is left behind then.
    """
    _require_possible(settings, with_tables=with_tables, grant=grant, firing=firing)
    work = _migrate_log_alone if settings.changes.reads_only else _migrate
    return patiently(lambda: work(settings, None, with_tables=with_tables, grant=grant, firing=firing), waiting)


def preview(
    settings: Settings,
    *,
    with_tables: bool = False,
    grant: str | None = None,
    firing: Firing | None = None,
    waiting: Waiting | None = None,
) -> list[str]:
    """What ``migrate`` would do now, as statements of SQL. They are run and rolled back. Raises what it raises."""
    _require_possible(settings, with_tables=with_tables, grant=grant, firing=firing)

    def attempt() -> list[str]:
        record: list[str] = []
        work = _migrate_log_alone if settings.changes.reads_only else _migrate
        with suppress(_OnlyPreviewedError):
            work(settings, record, with_tables=with_tables, grant=grant, firing=firing)
        return record

    return patiently(attempt, waiting)


def remove(settings: Settings, *, waiting: Waiting | None = None) -> None:
    """Take everything of ours away: triggers, tables, schema, files. The default tables are the application's and stay.

    Raises ``StartError``; nothing is changed then.
    """
    _require_possible(settings, with_tables=False, grant=None, firing=None)
    if settings.changes.reads_only:
        patiently(lambda: _remove_log_alone(settings), waiting)
        return
    patiently(lambda: _remove(settings), waiting)
    options = settings.database
    if sa.make_url(options.url).get_backend_name() == SQLITE:
        lock_file(sqlite_path(options.url)).unlink(missing_ok=True)


def migrate_log(url: str, options: DatabaseOptions) -> None:
    """Bring the ``sql`` store's database alone up to date. Raises ``StartError``."""
    with transaction(url, options) as connection:
        alone(connection)
        upgrade(connection, "log", _names(connection, options))


def require_file(path: Path) -> None:
    """Refuse an SQLite file that is not there: only ``migrate --with-tables`` makes one. Raises ``StartError``."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise StartError([f"database.url: the SQLite file {path} {what} (and is not created)"])


def log_is_here(settings: Settings) -> bool:
    """Return whether events are stored in the application's database itself."""
    options = settings.database
    if settings.log.store != "sql":
        return False
    location = _without_driver(settings.log.location(options.url))
    return location in (_without_driver(url) for url in (options.url, options.direct_url) if url)


def encoding_faults(connection: sa.Connection, settings: Settings) -> Iterator[str]:
    """A line where a Postgres that stores the events of another database cannot store every id from there."""
    if connection.dialect.name == POSTGRES and not log_is_here(settings):
        encoding = connection.exec_driver_sql("show server_encoding").scalar_one()
        if encoding not in ANY_TEXT:
            yield (
                f"log.url: the encoding of this database is {encoding}, which cannot store every id; "
                "name a database that was created with ENCODING 'UTF8'"
            )


def _require_possible(settings: Settings, *, with_tables: bool, grant: str | None, firing: Firing | None) -> None:
    url = _address(settings)
    if sa.make_url(url).get_backend_name() == SQLITE:
        if firing is not None:
            raise StartError([f"--triggers {firing}: SQLite has no replica roles; its triggers always fire"])
        if grant is not None:
            raise StartError([f"--grant {grant}: SQLite has no roles; who may use the file is the system's matter"])
        if not with_tables:
            require_file(sqlite_path(url))


def _migrate(
    settings: Settings, record: list[str] | None, *, with_tables: bool, grant: str | None, firing: Firing | None
) -> Migrated:
    """Everything in one order: what takes long first, then the triggers, for which the application waits."""
    with transaction(_address(settings), settings.database, record=record) as connection:
        names = _names(connection, settings.database)
        alone(connection)
        newer = _newer(connection, "changes", settings.database)
        made = []
        if with_tables and newer is None:  # the tables would have no triggers
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


def _migrate_log_alone(
    settings: Settings, record: list[str] | None, *, with_tables: bool, grant: str | None, firing: Firing | None
) -> Migrated:
    """What ``updated_at`` capture needs: a place for the events. The application's database is only looked at."""
    if with_tables:
        raise StartError(['--with-tables: changes.capture is "updated_at", which writes nothing into the database'])
    if grant is not None:
        raise StartError(
            [f'--grant {grant}: changes.capture is "updated_at", which needs no right but SELECT on the mapped tables']
        )
    if firing is not None:
        raise StartError([f'--triggers {firing}: changes.capture is "updated_at", which needs no triggers'])
    with read_only(_address(settings), settings.database) as connection:
        tables = inspect(connection, settings.tables, watermarks=True, holds_log=log_is_here(settings))
    left = None
    if settings.log.store == "sql":
        with transaction(settings.log.location(settings.database.url), settings.database, record=record) as store:
            alone(store)
            _require_encoding(store, settings)
            left = _upgrade_log(store, settings.database)
            if record is not None:
                record.extend([] if left is None else [f"-- {left}"])
                raise _OnlyPreviewedError
    return Migrated(made=(), watched=tuple(tables), left=() if left is None else (left,))


def _upgrade_log(store: sa.Connection, options: DatabaseOptions) -> str | None:
    """Bring the ``log`` stream up to date, or give the line that says why its schema stays. Raises ``StartError``."""
    newer = _newer(store, "log", options)
    if newer is None:
        upgrade(store, "log", _names(store, options))
    return newer


def _newer(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> str | None:
    """A line if a newer version made a stream's schema. Raises ``StartError`` if this one does not work with it."""
    newer = ahead(connection, stream, options)
    if newer is None:
        return None
    if faults := list(pending(connection, stream, options)):
        raise StartError(f"{_SETTINGS[stream]}: {fault}" for fault in faults)
    return f"{_SETTINGS[stream]}: {newer}, with which this version works: nothing done to its tables and triggers"


def _require_removable(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> None:
    """Refuse to remove a schema that may have more than this version knows of. Raises ``StartError``."""
    newer = ahead(connection, stream, options)
    if newer is not None:
        raise StartError([f"{_SETTINGS[stream]}: {newer}: nothing removed; run migrate --remove of that version"])


def _remove_log_alone(settings: Settings) -> None:
    store_file = _store_file(settings)
    if settings.log.store != "sql" or (store_file is not None and not store_file.is_file()):
        return
    with transaction(settings.log.location(settings.database.url), settings.database) as store:
        alone(store)
        _require_removable(store, "log", settings.database)
        downgrade(store, "log", _names(store, settings.database))
        _drop_schema(store, _names(store, settings.database))
        emptied = store_file is not None and not sa.inspect(store).get_table_names()
    if store_file is not None and emptied:
        _unlink(store_file)


def _unlink(file: Path) -> None:
    """Remove an SQLite file with what SQLite and the lease have put beside it."""
    for ending in ("", "-wal", "-shm", ".airy-trio.lock"):
        file.with_name(file.name + ending).unlink(missing_ok=True)


def _grant(connection: sa.Connection, statements: Iterator[str]) -> None:
    for statement in statements:
        connection.execute(sa.text(statement.replace(":", "\\:")))


def _remove(settings: Settings) -> None:
    """The triggers first: who waits for one of our tables while it holds one of its own would wait for ever."""
    options = settings.database
    store_file, emptied = _store_file(settings), False
    with transaction(_address(settings), options) as connection:
        names = _names(connection, options)
        alone(connection)
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
    """Drop our schema unless somebody else has put something into it."""
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
    """A transaction where the ``sql`` store is, the same one if that is here. It ends before the one given does."""
    options = settings.database
    if settings.log.store != "sql":
        yield None
    elif log_is_here(settings):
        yield connection
    else:
        with transaction(settings.log.location(options.url), options, record=record) as store:
            alone(store)
            yield store


def _require_encoding(store: sa.Connection, settings: Settings) -> None:
    if faults := list(encoding_faults(store, settings)):
        raise StartError(faults)


def _store_file(settings: Settings) -> Path | None:
    """Return the file of an ``sql`` store that has one of its own."""
    if settings.log.store != "sql":
        return None
    location = settings.log.location(settings.database.url)
    is_file = sa.make_url(location).get_backend_name() == SQLITE
    return sqlite_path(location) if is_file and not log_is_here(settings) else None


def _address(settings: Settings) -> str:
    return settings.database.direct_url or settings.database.url


def _names(connection: sa.Connection, options: DatabaseOptions) -> Names:
    return Names(connection.dialect.name, options.schema)


def _without_driver(url: str) -> sa.URL:
    """A URL to compare: the driver may be left out."""
    return sa.make_url(url).set(drivername=sa.make_url(url).get_backend_name())
