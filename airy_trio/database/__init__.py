"""Databases as the layers above use them: one thread hop per unit of SQL work, and errors told in plain words.

A unit of work is a plain synchronous function that takes a connection inside a transaction and returns plain values.
This package knows the two dialects, and refuses to know which tables there are.

Errors::

    DatabaseError             what the database answered: class, SQLSTATE and primary message, never parameters
    ├── DatabaseUnavailable   away, busy or cut off: waiting heals it
    └── DatabaseRefused       a missing table, a missing right: waiting does not heal it
"""

from airy_trio.database.connections import Database, DedicatedConnection
from airy_trio.database.engines import (
    APPLICATION_NAME,
    READER_BUSY_TIMEOUT_S,
    ROW_SECURITY_OFF,
    SQLITE_BUSY_TIMEOUT_S,
    close_all,
    connected,
    cut,
    postgres_engine,
    sqlite_engine,
)
from airy_trio.database.errors import DatabaseError, DatabaseRefused, DatabaseUnavailable, is_refusal, translated
from airy_trio.database.names import (
    LOCK_CLASS,
    POSTGRES,
    SQLITE,
    DatabaseOptions,
    Names,
    canonical_url,
    quote_identifier,
    quote_text,
    shown,
    sqlite_path,
)

__all__ = [
    "APPLICATION_NAME",
    "LOCK_CLASS",
    "POSTGRES",
    "READER_BUSY_TIMEOUT_S",
    "ROW_SECURITY_OFF",
    "SQLITE",
    "SQLITE_BUSY_TIMEOUT_S",
    "Database",
    "DatabaseError",
    "DatabaseOptions",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "DedicatedConnection",
    "Names",
    "canonical_url",
    "close_all",
    "connected",
    "cut",
    "is_refusal",
    "postgres_engine",
    "quote_identifier",
    "quote_text",
    "shown",
    "sqlite_engine",
    "sqlite_path",
    "translated",
]
