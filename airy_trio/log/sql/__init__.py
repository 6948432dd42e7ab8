"""The event store in SQL: in the application's Postgres or another one, or in an SQLite file of its own."""

from airy_trio.database import SQLITE, Database, Names
from airy_trio.log.sql.postgres import PostgresStore
from airy_trio.log.sql.sqlite import SqliteStore


def sql_store(reading: Database, appending: Database, names: Names) -> PostgresStore | SqliteStore:
    """Make the store over two pools of one database, which it then owns.

    ``reading``: for reads on behalf of clients on Postgres, through a pooler if there is one. ``appending``: for
    everything that needs a session of its own.
    """
    if names.dialect == SQLITE:
        return SqliteStore(names, reading, appending)
    return PostgresStore(names, reading, appending)


__all__ = ["PostgresStore", "SqliteStore", "sql_store"]
