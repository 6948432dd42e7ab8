"""Whether anybody records: asked from outside, without taking the lease for longer than the question."""

import fcntl
import os
from pathlib import Path

import sqlalchemy as sa

from airy_trio.changes.changelog import TABLE
from airy_trio.database import LOCK_CLASS, POSTGRES, Names

_HELD = sa.text(
    "select exists (select from pg_locks where locktype = 'advisory' and granted "
    "and cast(classid as int8) = :lock_class and objid = cast(to_regclass(:name) as oid) "
    "and database = (select oid from pg_database where datname = current_database()))"
)


def is_held(connection: sa.Connection, names: Names) -> bool:
    """Whether some server holds the lease of this database."""
    if names.dialect == POSTGRES:
        arguments = {"lock_class": LOCK_CLASS, "name": names.quoted(TABLE)}
        return bool(connection.execute(_HELD, arguments).scalar_one())
    file = connection.exec_driver_sql("PRAGMA database_list").one()[2]
    path = Path(file).resolve()
    return _is_locked(path.with_name(f"{path.name}.airy-trio.lock"))


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no server has ever been here, or its lock is nobody else's to look at
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
