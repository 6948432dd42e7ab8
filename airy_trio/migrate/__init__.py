"""``airy-trio migrate``: install our tables and triggers, and on request the default tables, completely or not at all.

There is one transaction for each database, also on SQLite, so a failed migration leaves nothing behind. The tables are
defined in ``migrations/``, the triggers in ``capture/``. This module decides the order. Installing the triggers comes
last, because the application's writers wait for it; removing them comes first, because a transaction of the application
that has fired one holds locks on our tables, and waiting for those while we hold a lock on one of its tables would be a
deadlock.

Alembic runs the two streams of migrations, ``changes`` and ``log``, on a connection of ours. Each stream has a version
table next to its tables. The revision of a database is read without Alembic, because importing Alembic takes a tenth of
a server's start.

A schema may be ahead of the program: during a rolling upgrade, if a server of the previous version restarts, and after
a rollback. The schema itself says which programs work with it: the column ``compatible_from`` in the state table of a
stream (``change_state``, ``log_state``) has the oldest revision whose programs work with the current schema, with its
triggers and with their own. A migration that only adds something (expands) does not change the value. A migration that
removes something that older programs need (contracts) raises it, in the row and in the column's default.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import sqlalchemy as sa
from attrs import frozen

from airy_trio.capture import mapping, postgres_triggers, triggers
from airy_trio.capture.change_log import STATE, TABLE, ChangeLog, first_point
from airy_trio.capture.inspection import inspect, missing_default_tables
from airy_trio.capture.lease import lock_file
from airy_trio.capture.mapping import Tables
from airy_trio.capture.triggers import Firing
from airy_trio.database import (
    POSTGRES,
    SQLITE,
    DatabaseOptions,
    Names,
    dialect_of,
    quote_identifier,
    sqlite_path,
)
from airy_trio.errors import StartError
from airy_trio.log.sql import tables as log_tables
from airy_trio.migrate.transactions import Waiting, errors_of, retry_while_locked, transaction
from airy_trio.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

Stream = Literal["changes", "log"]
_STATES: Final[Mapping[Stream, str]] = {"changes": STATE, "log": log_tables.STATE}
_TABLES: Final[Mapping[Stream, tuple[str, ...]]] = {
    "changes": (STATE, TABLE),
    "log": (log_tables.STATE, log_tables.EVENTS, log_tables.CURRENT, log_tables.ENDED, log_tables.ACKNOWLEDGED),
}
"""The tables of the newest revision, which include those of the older ones. The state is first, as in an append: a
removal that locked them in another order would wait for the recorder, and the recorder for it."""
_SETTINGS: Final[Mapping[Stream, str]] = {"changes": "database", "log": "log"}
"""The table of the settings with which a line about a stream begins, as in ``check``."""
_BY_UPDATED_AT: Final = 'changes.capture is "updated_at", which'
_IS_USED: Final = sa.text(
    "select exists (select from pg_class where relnamespace = to_regnamespace(:schema)) "
    "or exists (select from pg_proc where pronamespace = to_regnamespace(:schema))"
)
_HAS_ROLE: Final = sa.text("select exists (select from pg_roles where rolname = :role)")
MOUNTS: Final = Path("/proc/self/mountinfo")
"""The mount points that this process sees, one in each line (proc(5)); on Linux only."""
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
    return _migrated(settings, _Options(with_tables, grant, firing), waiting)


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
    done = _migrated(settings, _Options(with_tables, grant, firing), waiting, record)
    return [*record, *(f"-- {line}" for line in done.left)]


@frozen
class _Options:
    with_tables: bool
    grant: str | None
    firing: Firing | None


def _migrated(
    settings: Settings, options: _Options, waiting: Waiting | None, record: list[str] | None = None
) -> Migrated:
    """Migrate. With ``record`` it is a preview: the record gets the statements."""
    path, reads_only = _file_of(settings.database.session_url), settings.changes.reads_only
    for option, is_given, on_sqlite, if_reads_only in (
        ("--with-tables", options.with_tables, None, "writes nothing into the database"),
        (f"--grant {options.grant}", options.grant, "SQLite has no roles; the permissions of the file decide",
         "needs only SELECT on the mapped tables"),
        (f"--triggers {options.firing}", options.firing, "SQLite has no replica roles; its triggers always fire",
         "needs no triggers"),
    ):  # fmt: skip
        if is_given and path is not None and on_sqlite is not None:
            raise StartError([f"{option}: {on_sqlite}"])
        if is_given and reads_only:
            raise StartError([f"{option}: {_BY_UPDATED_AT} {if_reads_only}"])
    if path is not None and (path.exists() or not options.with_tables):
        require_file(path)

    def attempt() -> Migrated:
        if record is not None:
            record.clear()  # discard the statements of an attempt that found a table locked
        return _migrate_log_only(settings, record) if reads_only else _migrate_all(settings, options, record)

    return retry_while_locked(attempt, waiting)


def migrate_to(
    settings: Settings, revision: str, *, preview: bool = False, waiting: Waiting | None = None
) -> list[str]:
    """Bring only the tables of one stream up to a revision: no triggers, no rights, not the other stream.

    For an upgrade in steps, and to prepare a schema for programs of an earlier version. Return a line about the outcome
    or, with ``preview``, the SQL statements, which are run and rolled back. Raises ``StartError``, also if the schema
    is newer than the revision. Then nothing was changed.
    """
    record: list[str] | None = [] if preview else None
    line = retry_while_locked(lambda: _migrate_to(settings, revision, record), waiting)
    return [line] if record is None else record


def stream_of(revision: str) -> Stream:
    """Return the stream that a revision belongs to. Raises ``ValueError``, which names all revisions, if none does."""
    for stream in _SETTINGS:
        if revision in revisions(stream):
            return stream
    known = ", ".join(each for stream in _SETTINGS for each in revisions(stream))
    raise ValueError(f"{revision!r} is not a revision of this version; known are {known}")


def remove(settings: Settings, *, waiting: Waiting | None = None) -> None:
    """Remove everything of ours: triggers, tables, schema, files. The default tables are the application's and stay.

    Raises ``StartError``; then nothing was changed.
    """
    path = _file_of(settings.database.session_url)
    if path is not None:
        require_file(path)
    retry_while_locked(lambda: _remove(settings), waiting)
    if path is not None and not settings.changes.reads_only:
        lock_file(path, settings.database.schema).unlink(missing_ok=True)


def migrate_log(url: str, options: DatabaseOptions) -> None:
    """Bring only the database of an ``sql`` store up to date. Raises ``StartError``."""
    with transaction(url, options) as connection:
        upgrade(connection, "log", _names(connection, options))


def require_file(path: Path) -> None:
    """Raise ``StartError`` if an SQLite file does not exist: only ``migrate --with-tables`` creates one.

    Raise it also if the file is mounted without its folder, as by ``docker run -v ./app.db:/data/app.db``. Then the
    application and this process would each have a WAL or a journal of their own: no change would arrive, and the file
    might be corrupted.
    """
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise StartError([f"database.url: the SQLite file {path} {fault} (and is not created)"])
    if _is_mount_point(path.resolve()):
        fault = (
            "is mounted without its folder, so the application and the server would not share the files that SQLite "
            "keeps next to it; mount the folder instead"
        )
        raise StartError([f"database.url: the SQLite file {path} {fault}"])


def _is_mount_point(path: Path) -> bool:
    """Return whether the file itself is a mount point; False if the system does not report that."""
    escaped = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(path))
    try:
        with MOUNTS.open("rb") as mounts:
            return any(mount.split(b" ", 5)[4] == escaped for mount in mounts)
    except OSError:
        return False


def encoding_faults(connection: sa.Connection, settings: Settings) -> Iterator[str]:
    """Yield a line if the Postgres database of the event log cannot store every id of the application's database."""
    if connection.dialect.name == POSTGRES and not settings.log_is_here:
        encoding = connection.exec_driver_sql("show server_encoding").scalar_one()
        if encoding not in ANY_TEXT:
            yield (
                f"log.url: the encoding of this database is {encoding}, which cannot store every id; "
                "name a database that was created with ENCODING 'UTF8'"
            )


def _migrate_all(settings: Settings, options: _Options, record: list[str] | None) -> Migrated:
    """Make one attempt: slow steps first, what the application's writers wait for last."""
    grant = options.grant
    with transaction(settings.database.session_url, settings.database, record=record) as connection:
        names = _names(connection, settings.database)
        newer = _newer(connection, "changes", settings.database)
        made: Sequence[str] = ()
        if options.with_tables and newer is None:  # else the tables would have no triggers
            made = mapping.create_default_tables(connection, missing_default_tables(connection, settings.tables))
        tables = inspect(connection, settings.tables, holds_log=settings.log_is_here)
        # If the event log is in another database, its transaction is committed before the one here. If the latter then
        # fails, the event log has its tables already, which does not disturb the next attempt.
        with _store(connection, settings, record) as store:
            left = (newer, None if store is None else _upgrade_log(store, settings))
            if grant is not None and store not in (None, connection) and store.dialect.name == POSTGRES:
                _grant(store, grant, {}, names, "log.url")
            # Otherwise the store's transaction, which encloses this, would report errors of this database as its own.
            with errors_of(settings.database.session_url, settings.database):
                # After the event log, which may be far away or need time: this may lock the application's tables.
                if newer is None:
                    upgrade(connection, "changes", names)
                if grant is not None:
                    _grant(connection, grant, tables, names, "database.url")
                if newer is None:
                    triggers.install(connection, tables, names, deletes=settings.logs_deletes, firing=options.firing)
                    log = ChangeLog(names)
                    # A repeated migration must not move the origin: an empty event log would start later and miss
                    # changes.
                    if log.origin(connection) is None:
                        log.set_origin(connection, first_point(connection, names.quoted(TABLE)))
    return Migrated(made=tuple(made), watched=tuple(tables), left=tuple(filter(None, left)))


def _grant(connection: sa.Connection, role: str, tables: Tables, names: Names, setting: str) -> None:
    """Grant a server's role its rights in the database of a setting. Raises ``StartError`` if there is no such role."""
    if not connection.execute(_HAS_ROLE, {"role": role}).scalar_one():
        raise StartError([f'--grant {role}: the Postgres at {setting} has no role "{role}"'])
    triggers.execute(connection, postgres_triggers.grant_statements(role, tables, names))


def _migrate_log_only(settings: Settings, record: list[str] | None) -> Migrated:
    """Make one attempt for ``updated_at`` capture."""
    with transaction(settings.database.session_url, settings.database, read_only=True) as connection:
        tables = inspect(connection, settings.tables, watermarks=True, holds_log=settings.log_is_here)
    with _store(None, settings, record) as store:
        newer = None if store is None else _upgrade_log(store, settings)
    return Migrated(made=(), watched=tuple(tables), left=() if newer is None else (newer,))


def _upgrade_log(store: sa.Connection, settings: Settings) -> str | None:
    """Bring the ``log`` stream up to date, or return the line that explains why not. Raises ``StartError``."""
    if faults := list(encoding_faults(store, settings)):
        raise StartError(faults)
    newer = _newer(store, "log", settings.database)
    if newer is None:
        upgrade(store, "log", _names(store, settings.database))
    return newer


def _migrate_to(settings: Settings, revision: str, record: list[str] | None) -> str:
    """Make one attempt. With ``record`` it is a preview."""
    stream, options = stream_of(revision), settings.database
    if stream == "log" and settings.log.store != "sql":
        raise StartError([f'--to {revision}: log.store is "{settings.log.store}", which has no such tables'])
    if stream == "changes" and settings.changes.reads_only:
        raise StartError([f"--to {revision}: {_BY_UPDATED_AT} writes nothing into the database"])
    if path := _file_of(options.session_url):
        require_file(path)
    if record is not None:
        record.clear()
    url = settings.log_url if stream == "log" and not settings.log_is_here else options.session_url
    with transaction(url, options, record=record) as connection:
        if stream == "log" and (faults := list(encoding_faults(connection, settings))):
            raise StartError(faults)
        names = _names(connection, options)
        before, begin = revision_of(connection, stream, names), f"{_SETTINGS[stream]}: {names.schema} is at"
        if before is not None and before > revision:  # as texts: each ends in four digits
            raise StartError([f"{begin} {before}, newer than {revision}; nothing changed: there is no downgrade"])
        upgrade(connection, stream, names, revision)
    return f"{begin} {revision}{' already' if before == revision else ''}"


def _newer(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> str | None:
    """Return a line if the schema is of a newer version, or raise ``StartError`` if we do not work with it."""
    schema = schema_of(connection, stream, options)
    if schema.newer is None:
        return None
    if schema.faults:
        raise StartError(f"{_SETTINGS[stream]}: {fault}" for fault in schema.faults)
    return (
        f"{_SETTINGS[stream]}: {schema.newer}, with which this version works: nothing done to its tables and triggers"
    )


def _remove_stream(connection: sa.Connection, stream: Stream, settings: Settings) -> None:
    """Remove a stream, and our schema unless it has tables or functions of others.

    Raises ``StartError`` if the stream is of a newer version, because it may have more than we would remove.
    """
    names = _names(connection, settings.database)
    newer = schema_of(connection, stream, settings.database).newer
    if newer is not None:
        raise StartError([f"{_SETTINGS[stream]}: {newer}: nothing removed; run migrate --remove of that version"])
    if stream == "changes":
        triggers.remove(connection, names)
    if revision_of(connection, stream, names) is not None or _has_our_state(connection, stream, names):
        # Without the migrations: their downgrades fail if a table was dropped by hand, and this command is the remedy.
        for table in (*_TABLES[stream], _version_table(stream)):
            connection.exec_driver_sql(f"drop table if exists {names.quoted(table)}")
    if names.dialect == POSTGRES:
        schema = quote_identifier(names.schema)
        if not connection.execute(_IS_USED, {"schema": schema}).scalar_one():
            connection.exec_driver_sql(f"drop schema if exists {schema}")


def _remove(settings: Settings) -> None:
    """Make one attempt, with the triggers first (see above)."""
    reads_only = settings.changes.reads_only
    with nullcontext() if reads_only else transaction(settings.database.session_url, settings.database) as connection:
        if connection is not None:
            _remove_stream(connection, "changes", settings)
        emptied = _remove_log(connection, settings)
    # Only after both transactions are committed.
    if emptied is not None:
        lock_file(emptied, settings.database.schema).unlink(missing_ok=True)
        for ending in ("", "-wal", "-shm"):
            emptied.with_name(emptied.name + ending).unlink(missing_ok=True)


def _remove_log(connection: sa.Connection | None, settings: Settings) -> Path | None:
    """Remove the tables of an ``sql`` store. Return its own SQLite file if nothing is left in it."""
    file = None
    if settings.log.store == "sql" and not settings.log_is_here:
        file = _file_of(settings.log_url)
        if file is not None and not file.is_file():
            return None
    with _store(connection, settings) as store:
        if store is None:
            return None
        _remove_stream(store, "log", settings)
        emptied = file is not None and not sa.inspect(store).get_table_names()
    return file if emptied else None


def _store(
    connection: sa.Connection | None, settings: Settings, record: list[str] | None = None
) -> AbstractContextManager[sa.Connection | None]:
    """Begin a transaction on the database of an ``sql`` store, or use the given connection to the same one."""
    if settings.log.store != "sql":
        return nullcontext()
    if settings.log_is_here:
        return nullcontext(connection)
    return transaction(settings.log_url, settings.database, record=record)


def _file_of(url: str) -> Path | None:
    """Return the file of an SQLite URL, or None for another database."""
    return sqlite_path(url) if dialect_of(url) == SQLITE else None


def _names(connection: sa.Connection, options: DatabaseOptions) -> Names:
    return Names(connection.dialect.name, options.schema)


def upgrade(connection: sa.Connection, stream: Stream, names: Names, to: str = "head") -> None:
    """Bring a stream up to a revision, in the connection's transaction; by default up to date.

    The schema must not be newer than that. Raises ``StartError`` if this version does not know the revision of the
    schema, or if a table was dropped by hand: the migrations would not create it again.
    """
    if fault := _incomplete(connection, stream, names, revision_of(connection, stream, names)):
        raise StartError([f"{_SETTINGS[stream]}: {fault}"])
    # Not by ``if not exists``, for which Postgres requires the right to create schemas even if this one exists.
    if names.dialect == POSTGRES and names.schema not in sa.inspect(connection).get_schema_names():
        connection.exec_driver_sql(f"create schema {quote_identifier(names.schema)}")
    from alembic import command, util  # noqa: PLC0415 - slow to import, see above

    try:
        command.upgrade(_config(connection, stream, names), to)
    except util.CommandError as error:
        raise StartError([f"{names.schema} cannot be migrated: {error}"]) from None


@frozen
class Schema:
    """The schema of a stream in one database.

    ``faults``: a line if this version cannot work with it: it is missing, incomplete, older, or too new. ``newer``: the
    beginning of a line if it is of a newer version, whether we work with it or not. ``incomplete``: a table was dropped
    by hand, and ``migrate`` does not create it again.
    """

    faults: tuple[str, ...] = ()
    newer: str | None = None
    incomplete: bool = False


def schema_of(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> Schema:
    """Compare the revision of a database with the newest one that this version knows."""
    names = _names(connection, options)
    current, newest = revision_of(connection, stream, names), head(stream)
    if fault := _incomplete(connection, stream, names, current):
        return Schema((fault,), incomplete=True)
    if current is None:
        return Schema((f"{names.schema} has not been installed here; run: airy-trio migrate --config FILE",))
    begin = f"{names.schema} is at {current}"
    if current <= newest:  # revisions end in a number of four digits
        remedy = f"this version needs {newest}; run: airy-trio migrate --config FILE"
        return Schema((f"{begin}, {remedy}",) if current < newest else ())
    newer = f"{begin}, of a newer version of airy-trio"
    # Every schema newer than this version has this column.
    state = sa.table(names.bare(_STATES[stream]), sa.column("compatible_from", sa.Text), schema=names.table_schema)
    compatible_from: str | None = connection.execute(sa.select(state.c.compatible_from)).scalar_one_or_none()
    if compatible_from is None or compatible_from > newest:
        return Schema((f"{newer}, with which this version does not work; install the newer version",), newer)
    return Schema(newer=newer)


def _incomplete(connection: sa.Connection, stream: Stream, names: Names, revision: str | None) -> str | None:
    """Return a fault if some of a stream's tables exist and others are missing; None for an older or newer schema."""
    present = sa.inspect(connection).get_table_names(schema=names.table_schema)
    version = names.bare(_version_table(stream))
    missing = {names.bare(table) for table in _TABLES[stream]}.difference(present)
    if revision is None:
        if not _has_our_state(connection, stream, names):
            return None
        # If the table is there, a dump is being restored, or the table was emptied.
        fault = f"{version} has no row" if version in present else f"missing tables: {version}"
    elif revision == head(stream) and missing:
        fault = f"missing tables: {', '.join(sorted(missing))}"
    else:
        return None
    remedy = "airy-trio migrate --remove --config FILE, which deletes the events, and then the same without --remove"
    return f"{names.schema} is incomplete; {fault}; run: {remedy}"


def _has_our_state(connection: sa.Connection, stream: Stream, names: Names) -> bool:
    """Return whether the state table of a stream is there and ours.

    Without a revision its name does not show that: the schema may be the application's, for example ``public``.
    """
    inspector, state, schema = sa.inspect(connection), names.bare(_STATES[stream]), names.table_schema
    if not inspector.has_table(state, schema=schema):
        return False
    return any(column["name"] == "compatible_from" for column in inspector.get_columns(state, schema=schema))


def head(stream: Stream) -> str:
    """Return the newest revision of a stream."""
    return revisions(stream)[-1]


@cache
def revisions(stream: Stream) -> tuple[str, ...]:
    """Return the revisions of a stream, the oldest first: each ends in the number of its file.

    The files are read once: a running server keeps its version while another one is being installed.
    """
    files = (migrations_folder() / stream).glob("[0-9][0-9][0-9][0-9]_*.py")
    return tuple(sorted(f"{stream}_{file.name[:4]}" for file in files))


def revision_of(connection: sa.Connection, stream: Stream, names: Names) -> str | None:
    """Return the revision of a database, or None if the stream is not installed there."""
    table = _version_table(stream)
    if not sa.inspect(connection).has_table(names.bare(table), schema=names.table_schema):
        return None
    statement = f"select version_num from {names.quoted(table)}"  # noqa: S608 - a name of ours, quoted
    found = connection.exec_driver_sql(statement).scalar_one_or_none()
    return None if found is None else str(found)


def migrations_folder() -> Path:
    """Return the folder of the migrations."""
    return installed("migrations")


def installed(folder: str) -> Path:
    """Return a folder that is inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.with_name(folder)


def _version_table(stream: Stream) -> str:
    return f"{stream}_version"


def _config(connection: sa.Connection, stream: Stream, names: Names) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - slow to import, see above

    folder = migrations_folder()
    config = Config()
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / stream).replace("%", "%%"))
    config.attributes.update(connection=connection, names=names, stream=stream)
    return config
