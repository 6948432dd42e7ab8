"""The scratch place in a Postgres: a schema of a recognisable name, with a comment and a lock that say that it is ours.

It needs the right to make a schema. The lock belongs to a session, so it goes with a run that is killed.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Final

import sqlalchemy as sa
from attrs import evolve
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.changes.changelog import TABLE
from airy_trio.changes.doorbell import BELL_CLASS
from airy_trio.check.postgres import missing_identity, refusals
from airy_trio.database import (
    LOCK_CLASS,
    POSTGRES,
    Database,
    DatabaseError,
    Names,
    postgres_engine,
    quote_identifier,
    quote_text,
    shown,
    translated,
)
from airy_trio.errors import StartError
from airy_trio.settings import Settings
from airy_trio.verify.connections import PostgresConnection
from airy_trio.verify.scratch import HEX_DIGITS, Place, deaf, name, settings_on

PREFIX: Final = "airy_trio_verify_"
COMMENT: Final = "airy-trio verify: a scratch place, which may be dropped"
VERIFY_CLASS: Final = BELL_CLASS + 1
CLEARING_S: Final = 10
LONG_MAX_S: Final = 60.0

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


class PostgresScratch(Place):
    """See ``Scratch``."""

    long_max_s = LONG_MAX_S

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
            database.run_sync(_clear_stale)
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


def _clear_stale(connection: sa.Connection) -> None:
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
