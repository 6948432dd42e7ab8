"""Checks of a Postgres server, made as the server's role, and of an SQLite file.

Of Postgres: version, rights, durability, poolers, skipped triggers. They read catalogues and settings only. Most are
independent of the mapping. ``skipped_writes`` are writes to mapped tables for which our triggers do not fire: under
``session_replication_role = replica``, as in logical replication, only triggers that fire always do.

Of SQLite: the library, rights, durability. Nothing is written.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa

from airy_trio import migrate
from airy_trio.capture import triggers
from airy_trio.capture.mapping import Tables
from airy_trio.database import (
    APPLICATION_NAME,
    ROW_SECURITY_OFF,
    SQLITE,
    Database,
    DatabaseError,
    Names,
    dialect_of,
    postgres_engine,
    quote_identifier,
    sqlite_engine,
    sqlite_path,
)
from airy_trio.errors import StartError

Weight = Literal["problem", "warning", "note"]
"""With a problem the server would not start or not work."""
Finding = tuple[Weight, str]
"""A line for the operator, without secrets."""

VERSION_MIN: Final = 14
SQLITE_VERSION_MIN: Final = (3, 35)
SYNCHRONOUS_FULL: Final = 2
CHANGES: Final[Mapping[str, tuple[str, ...]]] = {
    "changes_version": ("SELECT",),
    "change_log": ("SELECT", "DELETE"),
    "change_state": ("SELECT", "UPDATE"),
}
"""The rights that a server needs on our tables in the application's database."""
LOG: Final[Mapping[str, tuple[str, ...]]] = {
    "log_version": ("SELECT",),
    "event_log": ("SELECT", "INSERT", "DELETE"),
    "log_state": ("SELECT", "UPDATE"),
    "log_current": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "log_ended": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "acknowledged": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
"""The rights that it needs on the tables of the ``sql`` event store."""
DURABLE: Final[Mapping[str, str]] = {
    "fsync": "a crash of the machine may destroy the whole database",
    "full_page_writes": "a crash of the machine may destroy pages of the database",
    "synchronous_commit": "a crash may undo commits of the application after clients have received their events",
}
"""Settings that durability depends on, and what happens if one is off."""
ADVICE: Final = "if clients are to receive them: airy-trio migrate --config FILE --triggers always"
"""The remedy if writes for which triggers do not fire are to be sent."""
_CATALOGUES: Final = ("pg_subscription_rel", "pg_db_role_setting")

_VERSION = sa.text(
    "select current_setting('server_version_num')::int / 10000, pg_is_in_recovery(), "
    "current_setting('default_transaction_read_only') = 'on', current_user"
)
_MISSING = sa.text(
    """
    select current_user as role, privilege from unnest(cast(:wanted as text[])) privilege
    where not has_table_privilege(
        (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = :schema and c.relname = :table), privilege)
    """
)
_SCHEMA = sa.text("select current_user, has_schema_privilege(oid, 'USAGE') from pg_namespace where nspname = :schema")
_FUNCTION = sa.text("select current_user, has_function_privilege('pg_control_system()', 'EXECUTE')")
_SETTINGS = sa.text("select name, setting from pg_settings where name = any(cast(:names as text[])) order by name")
_OTHERS = sa.text(
    """
    select current_user as role,
        array_agg(distinct coalesce(nullif(other.application_name, ''), 'without a name')) as programs
    from pg_stat_activity other join pg_stat_activity own on own.pid = pg_backend_pid()
    where other.usesysid = own.usesysid and other.datid = own.datid
        and other.client_addr is not distinct from own.client_addr and other.application_name <> :ours
    """
)
_UNREADABLE = sa.text(
    "select name from unnest(cast(:names as text[])) name where not has_table_privilege(name, 'SELECT') order by name"
)
# The target may be the table itself, one of its partitions, or the partitioned table that it belongs to.
_SUBSCRIPTIONS = sa.text(
    """
    select distinct s.subname from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
    where r.srrelid = to_regclass(:name)
    or r.srrelid in (select relid from pg_partition_tree(to_regclass(:name)))
    or r.srrelid in (select relid from pg_partition_ancestors(to_regclass(:name)))
    order by 1
    """
)
_FIRING = sa.text(
    """
    select case when r.rolname is not null then format('role "%s"', r.rolname)
                when s.setdatabase <> 0 then 'this database' else 'every role' end as place
    from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole
    where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
    and exists (select from unnest(s.setconfig) setting where lower(setting) = 'session_replication_role=replica')
    order by 1
    """
)
_SERVER = sa.text(
    "select source from pg_settings where name = 'session_replication_role' and reset_val = 'replica' "
    "and source not in ('database', 'user', 'database user')"
)


def refusals(connection: sa.Connection, *, reads_only: bool = False) -> Iterator[str]:
    """Yield a line if this server cannot be used at all: it is too old, or we write to it and it accepts no writes.

    ``reads_only``: we write nothing to it, so a standby is accepted.
    """
    version, standby, only_reads, role = connection.execute(_VERSION).one()
    if version < VERSION_MIN:
        yield f"this is PostgreSQL {version}; {VERSION_MIN} or newer is needed"
    if standby and not reads_only:
        yield "this is a standby, which accepts no writes; name its primary"
    if only_reads and not reads_only:
        yield f'role "{role}" only reads (default_transaction_read_only is on), but airy-trio must write'


@contextmanager
def opened(
    url: str, connect_timeout_s: float, *, setting: str = "database.url", read_only: bool = False, pooled: bool = True
) -> Iterator[Database]:
    """Open a database for a block, to examine it unchanged, even if it has text that is not UTF-8.

    ``read_only``: open an SQLite file read-only. ``pooled``: the URL may lead to a pooler. A ``DatabaseError`` in the
    block becomes a ``StartError`` that names the setting. If the application's SQLite file does not exist,
    ``StartError`` is raised at once.
    """
    if dialect_of(url) == SQLITE:
        if setting == "database.url":
            migrate.require_file(sqlite_path(url))
        engine = sqlite_engine(sqlite_path(url), mode="ro" if read_only else "rw", lenient=True)
    else:
        engine = postgres_engine(url, connect_timeout_s=connect_timeout_s, settings=ROW_SECURITY_OFF, pooled=pooled)
    try:
        yield Database(engine)
    except DatabaseError as error:
        raise StartError([f"{setting}: the database cannot be used: {error}"]) from None
    finally:
        engine.dispose()


def missing_rights(connection: sa.Connection, names: Names, wanted: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield a line for each of our existing tables on which our role lacks rights, with the GRANT that helps."""
    found = connection.execute(_SCHEMA, {"schema": names.schema}).one_or_none()
    if found is None:
        return
    role, may_use = found
    if not may_use:
        yield _right(role, f"USAGE ON SCHEMA {quote_identifier(names.schema)}")
    for table, privileges in wanted.items():
        arguments = {"schema": names.schema, "table": names.bare(table), "wanted": list(privileges)}
        lacking = [row.privilege for row in connection.execute(_MISSING, arguments)]
        if lacking:
            yield _right(role, f"{', '.join(lacking)} ON {names.quoted(table)}")


def missing_identity(connection: sa.Connection) -> Iterator[str]:
    """Yield a line if our role may not read the identity of the cluster, by which a restored copy is recognised."""
    role, may_ask = connection.execute(_FUNCTION).one()
    if not may_ask:
        yield _right(role, "EXECUTE ON FUNCTION pg_control_system()")


def durability(connection: sa.Connection, *, reads_only: bool = False) -> Iterator[str]:
    """Yield a line for each setting with which a crash may lose committed changes.

    ``synchronous_commit`` matters only if we write nothing here (``reads_only``): otherwise the recorder flushes the
    changes that it has read before a client receives their events.
    """
    for name, setting in connection.execute(_SETTINGS, {"names": list(DURABLE)}):
        if setting == "off" and (reads_only or name != "synchronous_commit"):
            yield f"{name} is off: {DURABLE[name]}"


def is_pooled(connection: sa.Connection) -> bool:
    """Return whether the connection goes through a pooler."""
    driver: Any = connection.connection.driver_connection
    return bool(driver.is_pooled())


def lacks_session(connection: sa.Connection) -> Iterator[str]:
    """Yield a line if the connection goes through a pooler, which may lend it another session each time."""
    if is_pooled(connection):
        finding = "this goes through a pooler or another proxy, but the lease needs a session"
        yield f"{finding}; set database.direct_url to an address that reaches PostgreSQL itself"


def shared_pool(connection: sa.Connection) -> Iterator[str]:
    """Yield a line if other programs use the pooler with our role, because then they share one pool with this server.

    Such programs have our role and our host in Postgres: all clients of a pooler have the pooler's host.
    """
    if is_pooled(connection):
        role, programs = connection.execute(_OTHERS, {"ours": APPLICATION_NAME}).one()
        if programs:
            finding = f'other programs use the pooler as the same role "{role}" ({", ".join(programs)})'
            yield f"{finding} and share its connections with this server; give this server its own role"


def skipped_writes(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> Iterator[Finding]:
    """Yield a line for writes for which our triggers do not fire, and for each catalogue that cannot be read."""
    always = triggers.firing_always(connection, tables, names, deletes=deletes)
    skipping: Tables = {kind: table for kind, table in tables.items() if kind not in always}
    if not skipping:
        return
    unreadable = connection.execute(_UNREADABLE, {"names": list(_CATALOGUES)}).scalars().all()
    for name in unreadable:
        yield "note", f"database: {name} cannot be read, so replica writes cannot be checked"
    if "pg_subscription_rel" not in unreadable:
        for kind, table in skipping.items():
            for name in connection.execute(_SUBSCRIPTIONS, {"name": table.quoted}).scalars():
                finding = f'the subscription "{name}" writes to "{table.name}", and our triggers do not fire for it'
                yield "warning", f"database.tables.{kind}: {finding}; {ADVICE}"
    places = [f"the server's {source}" for source in connection.execute(_SERVER).scalars()]
    places += connection.execute(_FIRING).scalars() if "pg_db_role_setting" not in unreadable else ()
    for place in places:
        kinds = ", ".join(skipping)
        finding = f"session_replication_role is replica for {place}, and our triggers on {kinds} do not fire for it"
        yield "warning", f"database: {finding}; {ADVICE}"


def file_refusals() -> Iterator[str]:
    """Yield a line if the SQLite library of this Python is too old."""
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        needed = ".".join(map(str, SQLITE_VERSION_MIN))
        yield f"this Python has SQLite {sqlite3.sqlite_version}, {needed} or newer is needed"


def missing_file_rights(path: Path) -> Iterator[str]:
    """Yield a line if the file cannot be written, or its folder, where SQLite and the lease create further files."""
    if path.exists() and not os.access(path, os.W_OK):
        yield f"the file {path} cannot be written by this user"
    if not path.parent.is_dir():
        yield f"the folder {path.parent} does not exist"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield f"this user cannot create files in {path.parent}"


def try_to_write(connection: sa.Connection) -> None:
    """Write something and roll it back. Raises the driver's error if that is not possible.

    The caller must have begun an ``immediate`` transaction. In any other, in WAL mode, the second statement fails if
    the application commits after the first one. Beginning the transaction is not enough as a test: on a read-only file
    that succeeds, with a transaction that only reads.
    """
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    connection.rollback()


def pragma(path: Path, name: str) -> Any:  # noqa: ANN401 - a text or a number
    """Return a PRAGMA of an SQLite file as a connection has it that sets nothing. The application's may be one."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as plain:
        return plain.execute(f"PRAGMA {name}").fetchone()[0]


def file_durability(synchronous: int) -> Iterator[str]:
    """Yield a line if, with this value of ``PRAGMA synchronous``, a commit does not wait for the disk."""
    if synchronous < SYNCHRONOUS_FULL:
        yield (
            f"this SQLite is built with synchronous = {synchronous}: unless the application sets FULL, a power failure "
            "may undo its commits after clients have received their events"
        )


def _right(role: str, right: str) -> str:
    return f'role "{role}" lacks a right; as the owner: GRANT {right} TO {quote_identifier(role)}'
