"""Where a database is, engines for Postgres and SQLite, and the closing of connections outside their pools.

An engine opens every connection in the same way: with the settings that make values read alike on any server, or with
the durability that the rest of the package relies on.

Closing must not hang. A unit of work may be waiting for a lock, or for a server that does not answer, and would keep
its thread. So everything that is closed has a budget: units of work that are running get ``GRACE_S`` to end. After that
their connections are interrupted from outside; the threads then get an error and close the connections themselves.
All of this works in a cancelled scope.
"""

import logging
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import quote
from weakref import WeakSet

import psycopg
import sqlalchemy as sa
import trio
from attrs import Attribute, field, frozen
from psycopg.abc import Buffer
from psycopg.types.string import TextLoader
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError

from airy_trio.database.postgres import ANSWER_TIMEOUT_POOLED_S, MonitoredConnection
from airy_trio.options import PORT_MAX, NotAllowedError, matching, more_than

APPLICATION_NAME: Final = "airy-trio"
THREADS_MAX: Final = 8
"""Units of work of one pool that run at once, each with a connection of its own."""
SQLITE_BUSY_TIMEOUT_S: Final = 5.0
READER_BUSY_TIMEOUT_S: Final = 1.0
"""How long the connection that reads changes waits for a writer on SQLite; a longer lock interrupts recording."""
ROW_SECURITY_OFF: Final = {"row_security": "off"}
"""Makes Postgres reject a query from which a policy would hide rows: a hidden row would count as deleted."""
READ_COMMITTED: Final = {"default_transaction_isolation": "read committed"}
"""For all transactions without a level of their own, whatever the default of the role or the database is. An append, a
trim and a backfill may change the same row; at a higher level one of them would fail instead of waiting."""
PLAIN_TEXT: Final = {
    "timezone": "UTC", "datestyle": "ISO, MDY", "intervalstyle": "iso_8601", "bytea_output": "hex",
    "extra_float_digits": "1",
}  # fmt: skip
"""Makes each session convert a value to the same text."""
GRACE_S: Final = 1.0
"""How long closing waits for running units of work. After that they are interrupted, and it waits as long again."""

# The pool raises its errors, and also logs them with a traceback. Without a handler, Python would print the log on
# stderr, for example when a signal ends a command while a connection is returned to the pool.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())


def postgres_engine(
    url: str, *, connect_timeout_s: float, settings: dict[str, str] | None = None, pooled: bool = False
) -> sa.Engine:
    """Make an engine for Postgres.

    ``settings`` apply to each connection, in addition to those that make values read alike on any server. Text is UTF-8
    whatever encoding the database has. In a database without encoding (``SQL_ASCII``) text that is not UTF-8 is
    returned as bytes.

    ``pooled``: a pooler may lend the server's session to other programs between our transactions. So nothing is set or
    prepared for the session: only ``settings`` are set, locally in each transaction.
    """
    arguments: dict[str, object] = {
        "connect_timeout": max(2, round(connect_timeout_s)),  # libpq takes whole seconds, from 2
        "application_name": APPLICATION_NAME,
        "client_encoding": "utf8",
        # A connection that only listens sends nothing, so the system has to detect that the server is gone. It does so
        # within half a minute. Values are in seconds, the last one in milliseconds.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    if pooled:
        arguments["prepare_threshold"] = None
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        connect_args=arguments,
        hide_parameters=True,
        pool_size=THREADS_MAX,
        # Costs each unit of a ``Database`` a round trip. The connections on the route of an event do without it,
        # because they are not returned to the pool between two units (``DedicatedConnection``).
        pool_pre_ping=True,
        execution_options={"open_connections": (opened := OpenConnections())},
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, given: list[Any], options: dict[str, Any]) -> MonitoredConnection:
        made = MonitoredConnection.opened(*given, **options)
        opened.add(made)  # before the first statement, so that it can be interrupted
        if pooled:
            made.answer_timeout_s = ANSWER_TIMEOUT_POOLED_S
        return made

    if pooled:

        @event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            driver: Any = connection.connection.driver_connection
            _configure(driver, settings or {}, local=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: MonitoredConnection, _record: object) -> None:
        if _has_no_encoding(connection):
            for name in ("text", "varchar", "bpchar", "name", '"char"'):
                connection.adapters.register_loader(name, _TextOrBytesLoader)
        if not pooled:
            _configure(connection, PLAIN_TEXT | ROW_SECURITY_OFF | READ_COMMITTED | (settings or {}), local=False)
            connection.allow_for_pooler()  # one in session mode, which needs no direct_url
            connection.commit()  # otherwise the first rollback would undo the settings

    return engine


def _configure(connection: psycopg.Connection, settings: dict[str, str], *, local: bool) -> None:
    """Apply settings to the session, or only to the transaction that has begun (``local``)."""
    if _has_no_encoding(connection):
        settings = settings | {"client_encoding": "sql_ascii"}  # otherwise the server rejects text that is not UTF-8
    if settings:
        calls = ", ".join("set_config(%s, %s, %s)" for _ in settings)
        connection.execute(f"select {calls}", [argument for item in settings.items() for argument in (*item, local)])


def _has_no_encoding(connection: psycopg.Connection) -> bool:
    return connection.info.parameter_status("server_encoding") == "SQL_ASCII"


def sqlite_engine(
    path: Path,
    *,
    mode: Literal["ro", "rw", "rwc"] = "rw",
    busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S,
    lenient: bool = False,
) -> sa.Engine:
    """Make an engine for an SQLite file. ``mode``: SQLite's; only ``rwc`` creates the file, ``ro`` writes nothing.

    The engine begins transactions itself (``BEGIN``, or ``BEGIN IMMEDIATE`` with the execution option ``immediate``),
    so that they include DDL. In the driver's own mode a migration that fails would remain half done.
    ``lenient``: text that is not UTF-8 is returned as bytes instead of failing the whole result.
    """
    uri = f"file:{quote(str(path))}?mode={mode}"
    opened = OpenConnections()

    def connect() -> sqlite3.Connection:
        # Units of work use a connection one after the other, but in different threads.
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        opened.add(connection)
        try:
            connection.execute("PRAGMA synchronous = FULL")  # the default of most builds; durability depends on it
        except sqlite3.Error:  # the file is locked, or is not a database
            connection.close()
            raise
        if lenient:
            connection.text_factory = _text_or_bytes
        return connection

    engine = sa.create_engine(
        sa.URL.create(SQLITE, database=str(path)),
        creator=connect,
        hide_parameters=True,
        poolclass=sa.pool.QueuePool,
        pool_size=THREADS_MAX,
        execution_options={"open_connections": opened},
    )

    # In WAL mode a transaction that has read cannot write after another connection has committed: SQLite rejects the
    # write at once, without waiting for the busy time-out. Hence ``immediate`` for every unit that writes.
    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def create_private_file(path: Path, database: Path) -> int:
    """Create a file that only its owner may read, and return its descriptor. Raises ``OSError``.

    If root creates the file, it belongs to the owner of the database, or of its folder if the database is not in this
    folder. Otherwise a server that runs as this owner could not open a file that an administrator's ``migrate`` has
    created. SQLite likewise gives a WAL to the owner of its database.
    """
    # The folder of a database may belong to root, and be writable for a group.
    model = database if database.parent == path.parent and database.is_file() else path.parent
    # O_EXCL follows no symbolic link, so the owner of the folder cannot make root give away another file.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if os.geteuid() == 0:
        with suppress(OSError):  # in some containers root lacks this right
            owner = model.stat()
            os.fchown(file, owner.st_uid, owner.st_gid)
    return file


class _Connection(sqlite3.Connection):
    """A connection to which ``OpenConnections`` can have a weak reference."""


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class _TextOrBytesLoader(TextLoader):
    def load(self, data: Buffer) -> str | bytes:
        return _text_or_bytes(bytes(data))


Driver = psycopg.Connection[object] | sqlite3.Connection


class OpenConnections:
    """The driver's connections of one engine, so that a thread that waits in one can be freed."""

    def __init__(self) -> None:
        self._drivers: WeakSet[Driver] = WeakSet()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, engine: sa.Engine) -> "OpenConnections":
        """Return the connections of an engine that ``postgres_engine`` or ``sqlite_engine`` made."""
        found: OpenConnections = engine.get_execution_options()["open_connections"]
        return found

    def add(self, driver: Driver) -> None:
        """Add a connection that was just opened."""
        with self._lock:
            self._drivers.add(driver)

    def interrupt(self) -> None:
        """Make the running statement of each fail. A connection to Postgres is then lost.

        A wait for a lock of SQLite cannot be interrupted; it ends by its own time-out.
        """
        with self._lock:
            drivers = list(self._drivers)
        for driver in drivers:
            with suppress(sqlite3.ProgrammingError, psycopg.Error, OSError):  # it was closed meanwhile
                if isinstance(driver, sqlite3.Connection):
                    driver.interrupt()
                else:
                    # ``shutdown`` ends the wait of the thread that uses the socket; closing the descriptor would not.
                    # The number of a closed descriptor could also be given to another file while the thread still uses
                    # it. Here only the duplicate is closed.
                    with socket.socket(fileno=os.dup(driver.fileno())) as same:
                        same.shutdown(socket.SHUT_RDWR)


async def close_in_time(close: Callable[[], Awaitable[object]], open_connections: OpenConnections) -> None:
    """Close, also in a cancelled scope, and interrupt the connections if that takes longer than ``GRACE_S``.

    ``close`` must be cancellable and may be called twice. Returns within twice ``GRACE_S``, closed or not.
    """
    with trio.CancelScope(shield=True):
        with trio.move_on_after(GRACE_S) as patience:
            await close()
        if patience.cancelled_caught:
            # Now the threads fail that the first attempt has waited for, except those that wait for a lock of SQLite.
            open_connections.interrupt()
            with trio.move_on_after(GRACE_S):
                await close()


async def close_all(*closings: Callable[[], Awaitable[object]]) -> None:
    """Close several things concurrently. Each has its own budget and works in a cancelled scope."""
    async with trio.open_nursery() as nursery:
        for close in closings:
            nursery.start_soon(close)


def discard(connection: sa.Connection) -> None:
    """Close a connection instead of returning it to its pool: it may have locks or an unfinished transaction."""
    # A pool would only roll it back, which does not release the advisory locks of its session.
    connection.invalidate()
    connection.close()


def canonical_url(url: str) -> str:
    """Replace ``postgres://``, which hosting providers use, by ``postgresql://``, which SQLAlchemy requires."""
    return url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url


def url_fault(text: str, drivers: Collection[str]) -> str | None:
    """Return the fault of a URL that must have one of these drivers; None if there is none.

    At most a known scheme is shown.
    """
    scheme, separator, _ = text.partition("://")
    if not separator:
        return "a string that is not a URL" if text else "an empty string"
    if scheme not in drivers:
        is_known = scheme in _FOREIGN or scheme in POSTGRES_DRIVERS or scheme in SQLITE_DRIVERS
        return f"a {scheme}:// URL" if is_known else "a URL of another kind"
    try:
        url = None if re.search(r"[\x00-\x1f\x7f]", text) else sa.make_url(text)
    except (ArgumentError, ValueError):  # their messages show the URL
        url = None
    if url is None:
        return "a URL that cannot be read"
    on_sqlite = scheme in SQLITE_DRIVERS
    faults = (
        (on_sqlite and "?" in text, 'an SQLite URL with "?" (it takes no options)'),
        (on_sqlite and (url.host is not None or url.username is not None or url.port is not None),
         "an SQLite URL with a host (a relative path follows three slashes, an absolute one four)"),
        (on_sqlite and url.database in (None, "", ":memory:"),
         "an SQLite URL without a file (a database in memory belongs to one process)"),
        (on_sqlite and str(url.database).startswith("file:"), "an SQLite URL with file: (write the path alone)"),
        # Otherwise a later error would show a part of the password as the host.
        (not on_sqlite and "@" in (url.host or ""), "a URL with two @ (in a password write %40)"),
        (not on_sqlite and url.port is not None and not 0 < url.port <= PORT_MAX, f"a port outside 1 to {PORT_MAX}"),
    )  # fmt: skip
    return next((words for applies, words in faults if applies), None)


def _check_url(_instance: object, option: "Attribute[Any]", url: str) -> None:
    if fault := url_fault(url, (*SQLITE_DRIVERS, *POSTGRES_DRIVERS)):
        raise NotAllowedError(option.name, URL_WORDS, fault)


def _check_direct_url(_instance: object, option: "Attribute[Any]", url: str) -> None:
    if url and (fault := url_fault(url, POSTGRES_DRIVERS)):
        raise NotAllowedError(option.name, 'postgresql://USER@HOST/DATABASE, or ""', fault)


@frozen(kw_only=True)
class DatabaseOptions:
    """The application's database (settings, ``[database]`` without its tables)."""

    url: str = field(converter=canonical_url, repr=False, validator=_check_url)
    direct_url: str = field(default="", converter=canonical_url, repr=False, validator=_check_direct_url)
    schema: str = field(
        default="airy_trio",
        validator=matching(r"[a-z_][a-z0-9_]{0,40}", "a plain name: a-z, 0-9 and _, at most 41 characters"),
    )
    migrate: bool = False
    connect_timeout_s: float = field(default=5, validator=more_than(0))

    def contradictions(self) -> Iterator[str]:
        """Yield a line for options that contradict each other."""
        if self.direct_url and self.url.startswith(SQLITE):
            yield "direct_url is for PostgreSQL behind a pooler, but url is an SQLite URL"

    @property
    def session_url(self) -> str:
        """The address at which sessions work: locks, notifications and run-time parameters."""
        return self.direct_url or self.url


def dialect_of(url: str) -> str:
    """Return the name of the dialect of a URL: ``POSTGRES`` or ``SQLITE``."""
    return sa.make_url(url).get_backend_name()


def shown(url: str) -> str:
    """Return a URL for people: without its password, and without options, in which libpq accepts a password too."""
    return sa.make_url(url).set(query={}).render_as_string(hide_password=True)


def sqlite_path(url: str) -> Path:
    """Return the file of an SQLite URL; a relative path is relative to the working directory."""
    return Path(sa.make_url(url).database or "").absolute()


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file. Characters that have a meaning in a URL are escaped."""
    return sa.URL.create(SQLITE, database=str(path)).render_as_string()


POSTGRES: Final = "postgresql"
SQLITE: Final = "sqlite"
POSTGRES_DRIVERS: Final = ("postgresql", "postgresql+psycopg", "postgres")
SQLITE_DRIVERS: Final = ("sqlite", "sqlite+pysqlite")
"""The schemes of the URLs that the settings accept."""
URL_WORDS: Final = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_FOREIGN: Final = frozenset({
    "postgresql+asyncpg", "postgresql+psycopg2", "postgresql+pg8000", "sqlite+aiosqlite",
    "sqlite+pysqlcipher", "sqlite3", "file", "mysql", "mysql+pymysql", "mysql+mysqldb", "mariadb", "oracle",
    "mssql", "mssql+pyodbc", "cockroachdb", "redis", "rediss", "mongodb", "jdbc", "http", "https",
})  # fmt: skip
"""Schemes that a message may show. Other text before ``://`` may be a password that was put there by mistake."""

LEASE_CLASS: Final = 0x41697279  # "Airy" in ASCII; a migration's lock has this class and the number 0
WAKEUP_CLASS: Final = LEASE_CLASS + 1
FENCE_CLASS: Final = LEASE_CLASS + 2
LOG_CLASS: Final = LEASE_CLASS + 3
FOLD_CLASS: Final = LEASE_CLASS + 4
VERIFY_CLASS: Final = LEASE_CLASS + 5
"""The first halves of the keys of all our advisory locks. The second half is an oid, or a number from an epoch."""


@frozen
class Names:
    """Names of our own tables and triggers: in a schema of ours on Postgres, with a prefix on SQLite."""

    dialect: str
    schema: str

    @classmethod
    def of(cls, url: str, schema: str) -> Self:
        """Return the names in the database at a URL."""
        return cls(dialect_of(url), schema)

    @property
    def table_schema(self) -> str | None:
        """The schema for SQLAlchemy's ``Table``: None on SQLite."""
        return self.schema if self.dialect == POSTGRES else None

    def bare(self, name: str) -> str:
        """Return a table's name without its schema."""
        return name if self.dialect == POSTGRES else f"{self.schema}_{name}"

    def trigger(self, kind: str, event: str) -> str:
        """Return the name of one of our triggers on a table of the application."""
        return f"{self.schema}_{kind}_{event}"

    def quoted(self, name: str) -> str:
        """Return a table's name for SQL text."""
        if self.dialect == POSTGRES:
            return f"{quote_identifier(self.schema)}.{quote_identifier(name)}"
        return quote_identifier(self.bare(name))


def quote_identifier(name: str) -> str:
    """Quote a name for SQL text; both dialects double the quote."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Quote a text constant for SQL text, as both dialects read it."""
    return "'" + text.replace("'", "''") + "'"


def escape_colons(sql: str) -> str:
    """Return SQL in which ``sa.text`` finds no parameters."""
    return sql.replace(":", "\\:")
