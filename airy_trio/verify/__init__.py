"""``airy-trio verify``: certify on the operator's own database that no change is lost.

Everything runs on scratch tables, next to any server that is running there: writers under adverse conditions, a
complete server in this process, and a client over a real WebSocket. Now and then the connection of a writer or of the
recorder is terminated. The ledger (``writers``) compares committed changes with received events; the rows in the
scratch table at the end decide.

On Postgres the scratch tables are in a schema of their own, which needs the right to create one. On SQLite they are in
a file of their own, in a folder next to the operator's file and therefore on the same file system. The change log and
the events of the verification are there too, so the tables of a running server are never touched.

A verification that is killed leaves its schema or folder behind, and the next one removes it. It recognises them by
their name (and the schema's comment), and sees by a lock whether they are in use: an advisory lock of a session, or a
lock on a file in the folder. Both are released when the process dies.
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
from typing import Any, Final

import sqlalchemy as sa
import trio
from attrs import evolve, frozen
from sqlalchemy.exc import SQLAlchemyError

from airy_trio import app, migrate
from airy_trio.admin.server import AdminOptions
from airy_trio.capture.change_log import TABLE
from airy_trio.capture.mapping import MessagesOptions, TableOptions, TablesOptions
from airy_trio.check.servers import file_refusals, missing_file_rights, missing_identity, pragma, refusals
from airy_trio.database import (
    LEASE_CLASS,
    POSTGRES,
    SQLITE,
    SQLITE_BUSY_TIMEOUT_S,
    VERIFY_CLASS,
    Database,
    DatabaseError,
    Names,
    dialect_of,
    postgres_engine,
    quote_identifier,
    quote_text,
    sqlite_path,
    sqlite_url,
    translated,
)
from airy_trio.errors import StartError
from airy_trio.events.translate import EventsOptions
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.settings import DatabaseSection, Settings
from airy_trio.testing.client import Closed, StompClient, connect
from airy_trio.verify.writers import ApplicationTable, Ledger, LossCertificate, Writer, change_of, transact_long

__all__ = ["LossCertificate", "verify"]

WRITERS: Final = 4
DELAY_MAX_S: Final = 0.01
REST_MAX_S: Final = 0.03
"""Writers rest, because the load must not overload a database that is in use."""
LONG_SHARE: Final = 1 / 3
"""The share of the time for which the long transaction stays open."""
TERMINATE_PERIOD_S: Final = 0.7
RECORDER_EACH: Final = 3
"""Every third terminated connection is the recorder's, the others are writers'."""
JOIN_S: Final = 10.0
"""How long writers have to end. A thread that a lock keeps for longer is abandoned."""
END_S: Final = 20.0
"""How long to wait for the last events after the load has ended."""
END: Final = "the end"
"""The object that is written last."""

HEX_DIGITS: Final = 8
"""Of the random end of a name."""
COLUMNS: Final = "(id text primary key, name text, color text)"

SCHEMA_PREFIX: Final = "airy_trio_verify_"
SCHEMA_COMMENT: Final = "airy-trio verify: a scratch place, which may be dropped"
DROP_LOCK_TIMEOUT_S: Final = 10
POSTGRES_LONG_MAX_S: Final = 60.0
"""The long transaction keeps VACUUM from removing rows in the whole database, so it is limited."""

FOLDER_INFIX: Final = ".airy-trio-verify-"
LOCK_FILE: Final = "lock"
"""A file, because some network file systems cannot lock a folder."""
FRESH_S: Final = 60.0
"""A folder without a lock file that is younger than this belongs to a verification that is just starting."""
SQLITE_LONG_MAX_S: Final = 1.0
"""The long transaction blocks all other writers, so it must stay below their busy time-out."""

_RIGHTS = sa.text("select current_user, current_database(), has_database_privilege(current_database(), 'CREATE')")
_STALE = sa.text(
    "select nspname, cast(oid as int) as oid from pg_namespace where nspname ~ :pattern "
    "and obj_description(oid, 'pg_namespace') = :comment and pg_has_role(nspowner, 'USAGE')"
)
_LOCK = sa.text("select pg_try_advisory_lock(:lock_class, cast(oid as int)) from pg_namespace where nspname = :name")
_TRY_LOCK = sa.text("select pg_try_advisory_lock(:lock_class, :oid)")
_UNLOCK = sa.text("select pg_advisory_unlock(:lock_class, :oid)")
_TERMINATE_WRITER = sa.text(
    "select pg_terminate_backend(pid) from "
    "(select pid from pg_stat_activity where application_name = :name order by random() limit 1) as writer"
)
_TERMINATE_RECORDER = sa.text(
    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted "
    "and classid = cast(:lock_class as int) and objid = cast(to_regclass(:change_log) as oid) "
    "and database = (select oid from pg_database where datname = current_database())"
)

Progress = Callable[[float], None]
"""Receives the seconds since the load began, with each event."""


def verify(settings: Settings, seconds: float, progress: Progress) -> LossCertificate | None:
    """Verify for about ``seconds`` and return the certificate, or None if a signal interrupted it.

    Removes everything that it created. Raises ``AiryTrioError`` if verification is not possible on this database.
    """
    if settings.changes.capture != "triggers":
        raise StartError(['changes.capture: verify supports only "triggers"'])
    make_scratch = sqlite_scratch if dialect_of(settings.database.url) == SQLITE else postgres_scratch
    with make_scratch(settings) as scratch:
        migrate.migrate(scratch.settings)
        run = _Run(scratch, seconds, progress)
        app.trio_run(partial(app.run, scratch.settings, run.run))
        return run.certificate() if run.finished else None


@frozen(kw_only=True)
class Scratch:
    """The scratch table and ``settings`` of a server on it.

    ``terminate_writer`` and ``terminate_recorder`` end a connection in the middle of its work, and return whether there
    was one; they are called in threads. ``long_max_s``: how long a transaction may stay open.
    """

    settings: Settings
    table: ApplicationTable
    terminate_writer: Callable[[], bool]
    terminate_recorder: Callable[[], bool]
    long_max_s: float


@contextlib.contextmanager
def postgres_scratch(settings: Settings) -> Iterator[Scratch]:
    """Create a scratch schema in the database of the settings, and drop it at the end. Drop stale ones first.

    Raises ``StartError`` if that is not allowed, or the database is not available.
    """
    options = settings.database
    url = options.session_url
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
        schema = SCHEMA_PREFIX + secrets.token_hex(HEX_DIGITS // 2)
        table = f"{quote_identifier(schema)}.tags"
        change_log = Names(POSTGRES, schema).quoted(TABLE)
        with contextlib.closing(engine.connect()) as owner:  # holds the lock
            scratch = Scratch(
                settings=_server_settings(options, url, schema, [schema, "tags"]),
                table=ApplicationTable(engine, table, application_name=schema),
                terminate_writer=partial(_terminate, engine, _TERMINATE_WRITER, name=schema),
                terminate_recorder=partial(
                    _terminate, engine, _TERMINATE_RECORDER, lock_class=LEASE_CLASS, change_log=change_log
                ),
                long_max_s=POSTGRES_LONG_MAX_S,
            )
            try:
                _create_schema(owner, schema, table)
                yield scratch
            finally:
                with _signals_ignored():
                    database.run_sync(partial(_drop_schema, schema=schema))
    finally:
        engine.dispose()


@contextlib.contextmanager
def sqlite_scratch(settings: Settings) -> Iterator[Scratch]:
    """Create a scratch folder next to the file of the settings, and remove it at the end. Remove stale ones first.

    The operator's file is only opened to read its journal mode, which the scratch file gets too. Raises ``StartError``.
    """
    path = sqlite_path(settings.database.url)
    migrate.require_file(path)
    if faults := [*file_refusals(), *(fault for fault in missing_file_rights(path) if str(path.parent) in fault)]:
        raise StartError(f"database.url: {fault}" for fault in faults)
    try:
        mode = "wal" if pragma(path, "journal_mode") == "wal" else "delete"
    except sqlite3.Error as error:
        raise StartError([f"database.url: the database cannot be used: {translated(error)}"]) from None
    _remove_stale_folders(path)
    folder = path.with_name(f"{path.name}{FOLDER_INFIX}{secrets.token_hex(HEX_DIGITS // 2)}")
    url = sqlite_url(folder / "app.db")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"timeout": 4 * SQLITE_BUSY_TIMEOUT_S})
    lock = None
    try:
        try:
            folder.mkdir(mode=0o700)
            lock = _lock(folder / LOCK_FILE)
        except OSError as error:
            raise StartError(
                [f"database.url: the folder {folder} cannot be created or locked: {error.strerror}"]
            ) from None
        table = ApplicationTable(engine)
        with table.session() as connection:
            connection.exec_driver_sql(f"pragma journal_mode = {mode}")
            connection.exec_driver_sql(f"create table tags {COLUMNS}")
        yield Scratch(
            settings=_server_settings(settings.database, url, "airy_trio", "tags"),
            table=table,
            terminate_writer=partial(_write_and_disconnect, table),
            terminate_recorder=lambda: False,  # the recorder is in this process
            long_max_s=SQLITE_LONG_MAX_S,
        )
    finally:
        with _signals_ignored():
            engine.dispose()
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _server_settings(database: DatabaseSection, url: str, schema: str, table: str | list[str]) -> Settings:
    """Return settings of a server that watches only the scratch table, on any free port."""
    tables = TablesOptions(
        messages=MessagesOptions(name=""),
        metadata=TableOptions(name=""),
        channels=TableOptions(name=""),
        tags=TableOptions(name=table),
    )
    return Settings(
        database=evolve(database, url=url, direct_url="", schema=schema, migrate=False, tables=tables),
        events=EventsOptions(deletes=True),
        listener=ListenerOptions(port=0, drain_s=0),
        admin=AdminOptions(port=0),
    )


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM, so that removal is not interrupted half-way; it takes a moment only."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_possible(connection: sa.Connection) -> None:
    faults = [*refusals(connection), *missing_identity(connection)]
    role, database, may_create = connection.execute(_RIGHTS).one()
    if not may_create:
        grant = f"GRANT CREATE ON DATABASE {quote_identifier(database)} TO {quote_identifier(role)}"
        faults.append(f'role "{role}" may not create the scratch schema of verify; as the owner: {grant}')
    if faults:
        raise StartError(f"database.url: {fault}" for fault in faults)


def _drop_stale_schemas(connection: sa.Connection) -> None:
    """Drop the schemas of dead verifications: those whose lock is free."""
    parameters = {"pattern": f"^{SCHEMA_PREFIX}[0-9a-f]{{{HEX_DIGITS}}}$", "comment": SCHEMA_COMMENT}
    for schema, oid in connection.execute(_STALE, parameters).all():
        lock = {"lock_class": VERIFY_CLASS, "oid": oid}
        if connection.execute(_TRY_LOCK, lock).scalar_one():
            connection.exec_driver_sql(f"drop schema {quote_identifier(schema)} cascade")
            connection.execute(_UNLOCK, lock)


def _create_schema(owner: sa.Connection, schema: str, table: str) -> None:
    """Create the schema and lock it in one transaction, so that no other verification sees it without its lock."""
    try:
        owner.exec_driver_sql("begin")
        owner.exec_driver_sql(f"create schema {quote_identifier(schema)}")
        owner.exec_driver_sql(f"comment on schema {quote_identifier(schema)} is {quote_text(SCHEMA_COMMENT)}")
        owner.execute(_LOCK, {"lock_class": VERIFY_CLASS, "name": schema})
        owner.exec_driver_sql(f"create table {table} {COLUMNS}")
        owner.exec_driver_sql("commit")
    except SQLAlchemyError as error:
        raise translated(error) from None


def _drop_schema(connection: sa.Connection, schema: str) -> None:
    """Raises ``DatabaseError`` if the schema cannot be dropped now; then the next verification drops it."""
    connection.exec_driver_sql(f"set lock_timeout = '{DROP_LOCK_TIMEOUT_S}s'")
    connection.exec_driver_sql(f"drop schema if exists {quote_identifier(schema)} cascade")


def _terminate(engine: sa.Engine, statement: sa.TextClause, **parameters: Any) -> bool:  # noqa: ANN401 - of SQL
    with engine.connect() as connection:
        return bool(connection.execute(statement, parameters).all())


def _write_and_disconnect(table: ApplicationTable) -> bool:
    """Do on SQLite what a writer does that dies in the middle of a transaction: no server can terminate it."""
    with table.session() as connection:
        table.begin(connection)
        table.change(connection, "cut off")
    return True


def _remove_stale_folders(path: Path) -> None:
    """Remove the folders of dead verifications: those whose lock is free."""
    form = re.compile(re.escape(path.name + FOLDER_INFIX) + f"[0-9a-f]{{{HEX_DIGITS}}}")
    for folder in path.parent.iterdir():
        if form.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink() and _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    try:
        if not (folder / LOCK_FILE).exists():
            return time.time() - folder.stat().st_mtime > FRESH_S
        os.close(_lock(folder / LOCK_FILE))
    except OSError:
        return False
    return True


def _lock(path: Path) -> int:
    """Open and lock a file, and return its descriptor. Raises ``OSError``, also if another process has locked it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


class _Run:
    """The writers and the client, which run next to the server."""

    def __init__(self, scratch: Scratch, seconds: float, progress: Progress) -> None:
        self._scratch = scratch
        self._ledger = Ledger()
        self._seconds = seconds
        self._progress = progress
        self._over = threading.Event()
        self.finished = False

    async def run(self, address: app.Address) -> None:
        """Write and receive until the last event has arrived, or until ``END_S`` after the end of the load."""
        async with await connect(address.host, address.port, address.path) as client:
            await client.subscribe()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                with trio.move_on_after(self._seconds + END_S):
                    await self._receive(client)
                self.finished = True
                nursery.cancel_scope.cancel()

    def certificate(self) -> LossCertificate:
        """Compare the events with the table. Raises ``StartError`` if the table cannot be read."""
        try:
            rows = self._scratch.table.versions()
        except SQLAlchemyError as error:
            raise StartError([f"database: the table cannot be read at the end: {type(error).__name__}"]) from None
        rows.pop(END, None)
        return self._ledger.certificate(rows)

    async def _receive(self, client: StompClient) -> None:
        begun_at = time.monotonic()
        while True:
            try:
                frame = await client.receive()
            except Closed as closed:
                raise StartError([f"the server has closed the connection: {closed}"]) from None
            if frame.command != "MESSAGE":
                raise StartError([f"the server has ended the connection: {frame.get('message')}"])
            now = time.monotonic()
            change = change_of(frame.body)
            if change[0] == END:
                return
            offset = int((frame.get("message-id") or "").rpartition("-")[2])
            self._ledger.received(offset, change, now)
            self._progress(now - begun_at)

    async def _write(self) -> None:
        """Run the threads for the time of the load, then write ``END``. If cancelled, wait for them up to JOIN_S."""
        joining = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_threads, joining)
            try:
                await trio.sleep(self._seconds)
            finally:
                self._over.set()
                joining.deadline = trio.current_time() + JOIN_S
        await trio.to_thread.run_sync(self._write_end)

    async def _run_threads(self, joining: trio.CancelScope) -> None:
        shared = (self._scratch.table, self._ledger, self._over, DELAY_MAX_S, REST_MAX_S)
        works = [Writer(number, *shared).run for number in range(WRITERS)]
        with joining:
            async with trio.open_nursery() as threads:
                for work in (*works, self._stay_open, self._terminate):
                    threads.start_soon(partial(trio.to_thread.run_sync, work, abandon_on_cancel=True))

    def _stay_open(self) -> None:
        seconds = min(self._seconds * LONG_SHARE, self._scratch.long_max_s)
        try:
            transact_long(self._scratch.table, self._ledger, self._over, seconds)
        except SQLAlchemyError:
            self._ledger.count("long failed")

    def _terminate(self) -> None:
        """Terminate a connection in the middle of its work now and then."""
        turn = 0
        while not self._over.wait(TERMINATE_PERIOD_S):
            turn += 1
            terminated, terminate = "writers", self._scratch.terminate_writer
            if turn % RECORDER_EACH == 0:
                terminated, terminate = "recorders", self._scratch.terminate_recorder
            try:
                if terminate():
                    self._ledger.count(f"{terminated} terminated")
            except SQLAlchemyError:
                self._ledger.count("terminations failed")

    def _write_end(self) -> None:
        try:
            with self._scratch.table.session(named=False) as connection:
                self._scratch.table.change(connection, END)
        except SQLAlchemyError as error:
            raise StartError([f"database: the last change could not be written: {type(error).__name__}"]) from None
