"""Which database a read-only feed reads, and what time it is there."""

import time
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from attrs import frozen

from airy_trio.database import POSTGRES
from airy_trio.database.sqlite_version import Version

_DATABASE = sa.text(
    "select cast(system_identifier as text), cast(pg_database.oid as text) "
    "from pg_control_system(), pg_database where datname = current_database()"
)
_NOW = sa.text("select cast(extract(epoch from now()) * 1000000 as bigint)")


@frozen
class Identity:
    """Which database this is; nothing may be written into it, so what is there anyway must do.

    ``source`` names the database to which an event log belongs: the cluster and the number of the database in it, which
    a standby shares, or the resolved path of a file. ``history`` is the cluster, or the inode of the file: another file
    at the same path is another history of the same source.
    """

    history: str
    source: str

    @classmethod
    def of(cls, connection: sa.Connection, file: Version | None = None) -> Self:
        """Ask for it. ``file``: the version of an SQLite file; without it the history is not known, but the source."""
        if connection.dialect.name == POSTGRES:
            cluster, number = connection.execute(_DATABASE).one()
            return cls(cluster, f"{cluster}.{number}")
        path = Path(connection.exec_driver_sql("PRAGMA database_list").one()[2])
        return cls("" if file is None else str(file.file[1]), str(path.resolve()))


def clock_us(connection: sa.Connection, file: Version | None) -> int:
    """The database's clock, in microseconds since the epoch; of a file that of this machine."""
    if file is not None:
        return time.time_ns() // 1000
    found: int = connection.execute(_NOW).scalar_one()
    return found
