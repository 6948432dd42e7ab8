"""Access to Postgres and SQLite: engines, connections, units of work, and errors without parameters.

A unit of work is a synchronous function that takes a connection inside a transaction and returns plain values. It runs
in a thread, one hop for each unit. On Postgres, statements on the route from a commit to the clients run in Trio's own
thread instead (``postgres.Pipeline``).

Errors::

    DatabaseError             an error of the database: class, SQLSTATE and primary message, never parameters
    ├── DatabaseUnavailable   away, busy or disconnected: trying again later may help
    └── DatabaseRefused       a missing table, a missing permission: trying again does not help
"""

from airy_trio.database.connections import (
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    DedicatedConnection,
    PipelinePool,
    is_refusal,
    translated,
)
from airy_trio.database.engines import (
    APPLICATION_NAME,
    FENCE_CLASS,
    FOLD_CLASS,
    LEASE_CLASS,
    LOG_CLASS,
    PLAIN_TEXT,
    POSTGRES,
    POSTGRES_DRIVERS,
    READER_BUSY_TIMEOUT_S,
    ROW_SECURITY_OFF,
    SQLITE,
    SQLITE_BUSY_TIMEOUT_S,
    SQLITE_DRIVERS,
    URL_WORDS,
    VERIFY_CLASS,
    WAKEUP_CLASS,
    DatabaseOptions,
    Names,
    canonical_url,
    close_all,
    create_private_file,
    dialect_of,
    discard,
    escape_colons,
    postgres_engine,
    quote_identifier,
    quote_text,
    shown,
    sqlite_engine,
    sqlite_path,
    sqlite_url,
    url_fault,
)
