"""The event store in SQL: in the application's Postgres or another one, or in an SQLite file of its own."""

from airy_trio.database import Database, Names
from airy_trio.log.sql.postgres import PostgresStore
from airy_trio.log.sql.sqlite import SqliteStore
from airy_trio.log.sql.store import SqlStore
from airy_trio.log.sql.tables import PostgresTables, log_tables


def sql_store(reading: Database, appending: Database, names: Names) -> PostgresStore | SqliteStore:
    """Make the store over two pools of one database, which it then owns; see ``SqlStore``."""
    tables = log_tables(names)
    if isinstance(tables, PostgresTables):
        return PostgresStore(tables, reading.engine, appending, names)
    return SqliteStore(tables, reading.engine, appending)


__all__ = ["PostgresStore", "SqlStore", "SqliteStore", "sql_store"]
