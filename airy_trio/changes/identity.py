"""Which database a feed reads that must not write into it, and what time it is there."""

import time

import sqlalchemy as sa

from airy_trio.database.sqlite_version import Version

_CLUSTER = sa.text("select cast(system_identifier as text) from pg_control_system()")
_NOW = sa.text("select cast(extract(epoch from now()) * 1000000 as bigint)")


def identity_of(connection: sa.Connection, file: Version | None) -> str:
    """The cluster, or of a file its number: another one has another."""
    if file is not None:
        return str(file.file[1])
    found: str = connection.execute(_CLUSTER).scalar_one()
    return found


def clock_us(connection: sa.Connection, file: Version | None) -> int:
    """The database's clock, in microseconds since the epoch; of a file that of this machine."""
    if file is not None:
        return time.time_ns() // 1000
    found: int = connection.execute(_NOW).scalar_one()
    return found
