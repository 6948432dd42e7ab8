"""Where a verification happens: tables, change log and event log of its own, which go when it ends.

A run that was killed leaves its place behind; the next one finds it by its name, sees by a lock that nobody is in it,
and clears it away. A running server's tables and change log are never touched.

A connection of the scratch application, which knows nothing of us, to either database: plain SQL, no transaction.

Errors are the drivers' own: ``DRIVER_ERRORS``.

The scratch place in a Postgres: a schema of a recognisable name, with a comment and a lock that say that it is ours.

It needs the right to make a schema. The lock belongs to a session, so it goes with a run that is killed.

The scratch place beside an SQLite file: a folder of a recognisable name on the same file system, with a lock in it.

The file of the application is not opened for more than the question which journal it keeps.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
import sqlalchemy as sa
from attrs import evolve
from sqlalchemy.exc import SQLAlchemyError

from airy_trio import migrate
from airy_trio.admin.server import AdminOptions
from airy_trio.capture.change_log import TABLE
from airy_trio.capture.feed import ChangesOptions
from airy_trio.capture.mapping import MessagesOptions, TableOptions, TablesOptions
from airy_trio.capture.wakeup import WAKEUP_CLASS
from airy_trio.check.postgres import missing_identity, refusals
from airy_trio.check.sqlite import file_refusals, missing_file_rights
from airy_trio.database import (
    LOCK_CLASS,
    POSTGRES,
    SQLITE,
    SQLITE_BUSY_TIMEOUT_S,
    Database,
    DatabaseError,
    DatabaseOptions,
    Names,
    postgres_engine,
    quote_identifier,
    quote_text,
    shown,
    sqlite_path,
    translated,
)
from airy_trio.errors import StartError
from airy_trio.events.translate import EventsOptions
from airy_trio.log.options import LogOptions
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.settings import Settings

DRIVER_ERRORS: Final = (psycopg.Error, sqlite3.Error, sa.exc.SQLAlchemyError)


class ScratchConnection(Protocol):
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
        """See ``ScratchConnection``."""
        cursor = self._driver.execute(statement.replace("?", "%s").encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """See ``ScratchConnection``."""
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
        """See ``ScratchConnection``."""
        return self._connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """See ``ScratchConnection``."""
        self._connection.close()


HEX_DIGITS: Final = 8
EVENTS: Final = EventsOptions(deletes=True)


class Scratch(Protocol):
    """One place, once it is made. ``connect`` and ``cut`` are called from several threads."""

    settings: Settings
    """Of a server on it."""
    words: str
    """Where it is, for a person."""
    change: str
    """The statement that makes an object, or its version one greater, and gives the version."""
    delete: str
    """The statement that deletes an object."""
    everything: str
    """The statement that gives every object with its version."""
    long_max_s: float
    """How long a transaction may stay open without holding up all others."""

    def connect(self, *, spared: bool = False) -> ScratchConnection:
        """Open a connection of the application. ``spared``: one that ``cut`` leaves alone."""
        ...

    def forget(self, connection: ScratchConnection) -> None:
        """Close it."""
        ...

    def cut(self, *, recorder: bool) -> Iterator[str]:
        """Cut a connection: of whoever records, or of a writer. Tells what was cut."""
        ...


class Writers:
    """The connections that may be cut."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[ScratchConnection] = []

    def add(self, connection: ScratchConnection) -> None:
        """Take one in."""
        with self._lock:
            self._open.append(connection)

    def remove(self, connection: ScratchConnection) -> None:
        """Let one go. Idempotent."""
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(connection)

    def pick(self) -> ScratchConnection | None:
        """One of them at random; None where there is none."""
        with self._lock:
            return secrets.choice(self._open) if self._open else None


class ScratchPlace:
    """The statements for a table, and the connections of the application. What is left of ``Scratch`` is to cut them.

    ``opened`` opens a connection.
    """

    def __init__(self, settings: Settings, table: str, words: str, opened: Callable[[], ScratchConnection]) -> None:
        self._opened = opened
        self._writers = Writers()
        self.settings = settings
        self.words = words
        self.change = (
            f"insert into {table} (id, name, color) values (?, '1', 'red') "  # noqa: S608 - a name of ours
            "on conflict (id) do update set name = cast(cast(tags.name as integer) + 1 as text) returning name"
        )
        self.delete = f"delete from {table} where id = ?"  # noqa: S608 - names quoted
        self.everything = f"select id, name from {table}"  # noqa: S608 - names quoted

    def connect(self, *, spared: bool = False) -> ScratchConnection:
        """See ``Scratch.connect``."""
        connection = self._opened()
        if not spared:
            self._writers.add(connection)
        return connection

    def forget(self, connection: ScratchConnection) -> None:
        """See ``Scratch.forget``."""
        self._writers.remove(connection)
        connection.close()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Hear no Ctrl-C for as long as it takes to clear away, which is not long: half of it would stay."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name() -> str:
    """The part of a place's name that tells it from others."""
    return secrets.token_hex(HEX_DIGITS // 2)


def settings_on(database: DatabaseOptions, table: str | list[str]) -> Settings:
    """Settings of a server on a place: everything of its own, on a port of its own, with our defaults."""
    unmapped = TableOptions(name="")
    return Settings(
        database=database,
        tables=TablesOptions(
            messages=MessagesOptions(name=""), metadata=unmapped, channels=unmapped, tags=TableOptions(name=table)
        ),
        changes=ChangesOptions(),
        events=EVENTS,
        log=LogOptions(),
        listener=ListenerOptions(port=0, drain_s=0),
        admin=AdminOptions(port=0),
    )


PREFIX: Final = "airy_trio_verify_"
COMMENT: Final = "airy-trio verify: a scratch place, which may be dropped"
VERIFY_CLASS: Final = WAKEUP_CLASS + 1
CLEARING_S: Final = 10
POSTGRES_LONG_MAX_S: Final = 60.0

_RIGHT = sa.text(
    "select current_user, current_database(), has_database_privilege(current_database(), 'CREATE'), "
    "current_setting('default_transaction_read_only') = 'on'"
)
_STALE = sa.text(
    "select nspname, cast(oid as int) as oid from pg_namespace where nspname ~ :pattern "
    "and obj_description(oid, 'pg_namespace') = :comment and pg_has_role(nspowner, 'USAGE')"
)
_LOCK = sa.text("select pg_try_advisory_lock(:lock_class, cast(oid as int)) from pg_namespace where nspname = :name")
_TRY = sa.text("select pg_try_advisory_lock(:lock_class, :oid)")
_UNLOCK = sa.text("select pg_advisory_unlock(:lock_class, :oid)")
_CUT_RECORDER = (
    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted "
    "and classid = ?::int and objid = to_regclass(?)::oid "
    "and database = (select oid from pg_database where datname = current_database())"
)


class PostgresScratch(ScratchPlace):
    """See ``Scratch``."""

    long_max_s = POSTGRES_LONG_MAX_S

    def __init__(self, settings: Settings, schema: str, engine: sa.Engine) -> None:
        self.table = f"{quote_identifier(schema)}.tags"
        self._own = partial(PostgresConnection, engine)
        self._log = Names(POSTGRES, schema).quoted(TABLE)
        words = f"the schema {schema} in {shown(settings.database.url)}"
        super().__init__(settings, self.table, words, self._own)

    def cut(self, *, recorder: bool) -> Iterator[str]:
        """See ``Scratch.cut``."""
        with contextlib.closing(self._own()) as own:
            if recorder:
                yield from ("recorders cut" for _ in own.execute(_CUT_RECORDER, str(LOCK_CLASS), self._log))
            elif isinstance(victim := self._writers.pick(), PostgresConnection):
                own.execute("select pg_terminate_backend(?::int)", str(victim.backend))
                yield "writers cut"


@contextlib.contextmanager
def postgres_scratch(settings: Settings) -> Iterator[PostgresScratch]:
    """Make a place in the database of the settings, having cleared away what killed runs left; clear it at the end.

    Raises ``StartError`` where that is not allowed, or the database does not answer.
    """
    options = settings.database
    url = options.direct_url or options.url
    engine = postgres_engine(
        url, connect_timeout_s=options.connect_timeout_s, settings={"idle_session_timeout": "0"}
    ).execution_options(isolation_level="AUTOCOMMIT")
    database = Database(engine)
    try:
        try:
            database.run_sync(_require_possible)
            database.run_sync(_drop_stale_schemas)
        except DatabaseError as error:
            raise StartError([f"database.url: the database cannot be used: {error}"]) from None
        schema = PREFIX + name()
        with contextlib.closing(engine.connect()) as holder:  # of the lock
            database_options = evolve(options, url=url, direct_url="", schema=schema, migrate=False)
            scratch = PostgresScratch(settings_on(database_options, [schema, "tags"]), schema, engine)
            try:
                _make(holder, schema, scratch.table)
                yield scratch
            finally:
                with deaf():
                    _drop(database, schema)
    finally:
        engine.dispose()


def _require_possible(connection: sa.Connection) -> None:
    faults = [*refusals(connection), *missing_identity(connection)]
    role, database, may_create, read_only = connection.execute(_RIGHT).one()
    if not may_create:
        grant = f"GRANT CREATE ON DATABASE {quote_identifier(database)} TO {quote_identifier(role)}"
        faults.append(f'role "{role}" may not make the scratch schema that verify works in; as the owner: {grant}')
    elif read_only:
        faults.append(f'role "{role}" only reads (default_transaction_read_only), and verify must write')
    if faults:
        raise StartError(f"database.url: {fault}" for fault in faults)


def _drop_stale_schemas(connection: sa.Connection) -> None:
    """Drop the places of runs that are dead: nobody holds their lock."""
    asked = {"pattern": f"^{PREFIX}[0-9a-f]{{{HEX_DIGITS}}}$", "comment": COMMENT}
    for schema, oid in connection.execute(_STALE, asked).all():
        lock = {"lock_class": VERIFY_CLASS, "oid": oid}
        if connection.execute(_TRY, lock).scalar_one():
            connection.exec_driver_sql(f"drop schema {quote_identifier(schema)} cascade")
            connection.execute(_UNLOCK, lock)


def _make(holder: sa.Connection, schema: str, table: str) -> None:
    """Nobody sees the schema before its lock is taken."""
    try:
        holder.exec_driver_sql("begin")
        holder.exec_driver_sql(f"create schema {quote_identifier(schema)}")
        holder.exec_driver_sql(f"comment on schema {quote_identifier(schema)} is {quote_text(COMMENT)}")
        holder.execute(_LOCK, {"lock_class": VERIFY_CLASS, "name": schema})
        holder.exec_driver_sql(f"create table {table} (id text primary key, name text, color text)")
        holder.exec_driver_sql("commit")
    except SQLAlchemyError as error:
        raise translated(error) from None


def _drop(database: Database, schema: str) -> None:
    """Raises ``DatabaseError`` where it cannot be dropped now: the next run does it then."""

    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"set lock_timeout = '{CLEARING_S}s'")
        connection.exec_driver_sql(f"drop schema if exists {quote_identifier(schema)} cascade")

    database.run_sync(work)


INFIX: Final = ".airy-trio-verify-"
LOCK: Final = "lock"
FRESH_S: Final = 60.0
"""A folder without a lock is one that is being made, if it is no older than this."""
SQLITE_LONG_MAX_S: Final = 1.0


class SqliteScratch(ScratchPlace):
    """See ``Scratch``."""

    long_max_s = SQLITE_LONG_MAX_S

    def __init__(self, settings: Settings, path: Path) -> None:
        self._path = path
        super().__init__(settings, "tags", f"the folder {path.parent}", partial(SqliteConnection, path))

    def cut(self, *, recorder: bool) -> Iterator[str]:
        """See ``Scratch.cut``: a connection that dies in the middle of a transaction; no server to cut one."""
        if recorder:
            return
        connection = SqliteConnection(self._path)
        try:
            connection.execute(connection.begin)
            connection.execute(self.change, "cut off")
        finally:
            connection.close()
        yield "writers cut"


@contextlib.contextmanager
def sqlite_scratch(settings: Settings) -> Iterator[SqliteScratch]:
    """Make a place beside the file of the settings, having cleared away what killed runs left; clear it at the end.

    Raises ``StartError``.
    """
    path = sqlite_path(settings.database.url)
    migrate.require_file(path)
    if faults := [*file_refusals(), *(fault for fault in missing_file_rights(path) if str(path.parent) in fault)]:
        raise StartError(f"database.url: {fault}" for fault in faults)
    journal = _journal_of(path)
    _remove_stale_folders(path)
    folder, lock = path.with_name(f"{path.name}{INFIX}{name()}"), None
    try:
        lock = _made(folder)
        made = folder / "app.db"
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as connection:
            connection.execute(f"pragma journal_mode = {journal}")
            connection.execute("create table tags (id text primary key, name text, color text)")
        options = evolve(settings.database, url=f"{SQLITE}:///{made}", direct_url="", schema="airy_trio", migrate=False)
        yield SqliteScratch(settings_on(options, "tags"), made)
    finally:
        with deaf():
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _made(folder: Path) -> int | None:
    """Make the folder and lock it. Raises ``StartError``."""
    try:
        folder.mkdir(mode=0o700)
        return _locked(folder / LOCK)
    except OSError as error:
        raise StartError([f"database.url: the folder {folder} cannot be made: {error.strerror}"]) from None


def _journal_of(path: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (mode,) = connection.execute("pragma journal_mode").fetchone()
    except sqlite3.Error as error:
        raise StartError([f"database.url: the database cannot be used: {translated(error)}"]) from None
    return "wal" if mode == "wal" else "delete"


def _remove_stale_folders(path: Path) -> None:
    """Remove the places of runs that are dead: nobody holds their lock."""
    form = re.compile(re.escape(path.name + INFIX) + f"[0-9a-f]{{{HEX_DIGITS}}}")
    for folder in path.parent.iterdir():
        if form.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink() and _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    try:
        if not (folder / LOCK).exists():
            return time.time() - folder.stat().st_mtime > FRESH_S
        lock = _locked(folder / LOCK)
    except OSError:
        return False
    if lock is None:
        return False
    os.close(lock)
    return True


def _locked(path: Path) -> int | None:
    """The open file, locked; None where somebody else has locked it. The system unlocks it when the process dies."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
