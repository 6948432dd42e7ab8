"""A real PgBouncer in front of the tests' Postgres; it may give each transaction another server connection."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.postgres import NOBODY, SUPERUSER, Postgres, as_nobody, free_port

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
SERVER_CONNECTIONS = 3
"""The maximum number of connections for a database and role. It is small, so that programs share connections."""


@contextmanager
def running_pgbouncer(program: str, postgres: Postgres) -> Iterator[int]:
    """Start a PgBouncer on loopback, in transaction mode, without passwords; yield its port."""
    folder, port = Path(tempfile.mkdtemp(prefix="airy-trio-pgbouncer-")), free_port()
    (folder / "users.txt").write_text(f'"{SUPERUSER}" ""\n')
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {folder / 'users.txt'}\n"
        f"pool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\n"
    )
    if os.geteuid() == 0:  # PgBouncer refuses to run as root
        os.chown(folder, NOBODY, NOBODY)
    try:
        process = subprocess.Popen([program, "--quiet", config], stderr=subprocess.DEVNULL, **as_nobody(folder))
        try:
            _wait_until_listening(process, port)
            yield port
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
    finally:
        shutil.rmtree(folder)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("pgbouncer does not listen")


@pytest.fixture
def pgbouncer(postgres: Postgres) -> Iterator[int]:
    """The port of a PgBouncer in front of the session's Postgres."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer: install it")
    with running_pgbouncer(program, postgres) as port:
        yield port


def through(url: str, port: int) -> str:
    """Return the URL of the same database through the pooler on this port."""
    return sa.make_url(url).set(port=port).render_as_string(hide_password=False)
