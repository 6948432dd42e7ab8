"""The application of the benchmark: its databases and the measured writes. Independent of the server."""

import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa
from attrs import define
from psycopg import sql

from airy_trio.capture import mapping
from airy_trio.database import POSTGRES, sqlite_path
from airy_trio.migrate import migrate
from airy_trio.settings import parse
from tests.postgres import running_postgres

WRITERS: Final = 8
KNOWN_ROWS: Final = 10_000
_INSERT_MANY: Final = {
    "postgresql": "insert into messages select 'm' || n, 'c' || n % 1000, 'ch1', '{{\"text\":\"hello\"}}', 'pending', "
    "true, now(), 'facebook', 'github:12345' from generate_series(1, {rows}) n",
    "sqlite": "insert into messages with recursive s(n) as (select 1 union all select n + 1 from s where n < {rows}) "
    "select 'm' || n, 'c' || n % 1000, 'ch1', '{{\"text\":\"hello\"}}', 'pending', true, '2020-10-25T21:24:54.560Z', "
    "'facebook', 'github:12345' from s",
}
_UPDATE_MANY: Final = "update messages set delivery_state = 'delivered'"
_INSERT_ONE: Final = "insert into tags (id, name, color) values ('{id}', '{name}', 'red')"
_SCRIPT_INSERT: Final = """\
insert into messages values (gen_random_uuid()::text, 'c1', 'ch1', '{"text":"hello"}', 'pending', true, now(),
  'facebook', 'github:12345');
"""
_SCRIPT_UPDATE: Final = """\
\\set n random(1, {rows})
update messages set delivery_state = 'delivered' where id = 'm' || :n;
"""
_TPS: Final = re.compile(r"tps = ([0-9.]+)")


@define
class Database:
    """One database of the application, with the default tables."""

    name: str
    url: str

    @property
    def dialect(self) -> str:
        """``postgresql`` or ``sqlite``."""
        return sa.make_url(self.url).get_backend_name()

    def watch(self, more: str = "") -> None:
        """Create the tables, with our change log and triggers. ``more`` is appended to the settings."""
        migrate(parse(f'[database]\nurl = "{self.url}"\n{more}', {}), with_tables=True)

    def create_tables_only(self) -> None:
        """Create only the tables of the application."""
        engine = sa.create_engine(self.url)
        with engine.begin() as connection:
            mapping.create_default_tables(connection, mapping.KINDS)
        engine.dispose()

    def insert_messages(self, rows: int) -> float:
        """Insert messages in one transaction; return the time of its commit (``time.monotonic``)."""
        return self._commit(_INSERT_MANY[self.dialect].format(rows=rows))

    def update_messages(self) -> float:
        """Update all messages in one transaction; return the time of its commit."""
        return self._commit(_UPDATE_MANY)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Update all messages once a second, until the end of the block."""
        stopping = threading.Event()

        def change() -> None:
            due = time.monotonic()
            while not stopping.wait(max(0.0, due - time.monotonic())):
                self.update_messages()
                due += 1

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    @contextmanager
    def tagging(self) -> Iterator["Tagging"]:
        """Open a connection for single writes."""
        with closing(self._connect()) as connection:
            yield Tagging(connection, self.dialect)

    def writes_per_s(self, seconds: int) -> float:
        """Return single-row transactions per second of ``WRITERS`` pgbench clients. Raises ``FileNotFoundError``."""
        with tempfile.TemporaryDirectory(prefix="airy-trio-bench-") as folder:
            scripts = []
            for name, text in (("insert", _SCRIPT_INSERT), ("update", _SCRIPT_UPDATE.format(rows=KNOWN_ROWS))):
                path = Path(folder) / f"{name}.sql"
                path.write_text(text, encoding="utf-8")
                scripts += ["-f", str(path)]
            finished = subprocess.run(
                [_pgbench(), "-n", "-c", str(WRITERS), "-j", "1", "-T", str(seconds), *scripts, _conninfo(self.url)],
                check=True,
                capture_output=True,
                text=True,
                timeout=seconds + 30,
            )
        found = _TPS.search(finished.stdout)
        assert found is not None, finished.stdout
        return float(found[1])

    def _commit(self, statement: str) -> float:
        with closing(self._connect()) as connection:
            connection.execute("begin")
            connection.execute(statement)
            connection.execute("commit")
            return time.monotonic()

    def _connect(self) -> "sqlite3.Connection | _Postgres":
        if self.dialect == POSTGRES:
            return _Postgres(psycopg.connect(_conninfo(self.url), autocommit=True))
        return sqlite3.connect(sqlite_path(self.url), isolation_level=None, timeout=10, check_same_thread=False)


class _Postgres:
    """The methods that the connections of both drivers have."""

    def __init__(self, connection: "psycopg.Connection[tuple[object, ...]]") -> None:
        self._connection = connection

    def execute(self, statement: str) -> object:
        return self._connection.execute(sql.SQL(statement))

    def close(self) -> None:
        self._connection.close()


class Tagging:
    """Single writes over one connection, each a transaction."""

    def __init__(self, connection: "sqlite3.Connection | _Postgres", dialect: str) -> None:
        self._connection = connection
        self.dialect = dialect

    def write(self, tag: str) -> tuple[float, float]:
        """Insert a tag; return when COMMIT was sent and when it was done (``time.monotonic``)."""
        self._connection.execute("begin")
        self._connection.execute(_INSERT_ONE.format(id=tag, name="flag"))
        committing_at = time.monotonic()
        self._connection.execute("commit")
        return committing_at, time.monotonic()

    def write_timed(self, tag: str) -> None:
        """Insert a tag whose name is the current time (``time.monotonic``)."""
        self._connection.execute("begin")
        self._connection.execute(_INSERT_ONE.format(id=tag, name=time.monotonic()))
        self._connection.execute("commit")

    def wait_for_no_disk(self) -> None:
        """Let commits return before they are on disk, which otherwise limits their rate."""
        statement = "set synchronous_commit = off" if self.dialect == POSTGRES else "pragma synchronous = off"
        self._connection.execute(statement)


@contextmanager
def postgres_databases(url: str) -> Iterator[Callable[[str], Database]]:
    """Create Postgres databases by name: on the server of a URL, or on a new one if the URL is empty.

    They are dropped at the end. Raises ``NoPostgresError`` if there is no Postgres to start.
    """
    with ExitStack() as stack:
        if not url:
            own = stack.enter_context(running_postgres(durable=True))
            url = own.url("postgres")
        server = stack.enter_context(closing(psycopg.connect(_conninfo(url), autocommit=True)))

        def make(name: str) -> Database:
            database = f"airy_trio_bench_{os.getpid()}_{name.lower()}"
            server.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
            drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(database))
            stack.callback(server.execute, drop)
            return Database(name, sa.make_url(url).set(database=database).render_as_string(hide_password=False))

        yield make


def _conninfo(url: str) -> str:
    """Return the URL in the form of libpq."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def has_pgbench() -> bool:
    """Return whether pgbench is installed."""
    return bool(shutil.which("pgbench") or _installed())


def _pgbench() -> str:
    found = shutil.which("pgbench") or next(iter(_installed()), None)
    if found is None:
        program = "pgbench"
        raise FileNotFoundError(program)
    return found


def _installed() -> list[str]:
    return sorted(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
