"""A Redis for the tests: started on a free port, killed, restarted; never one that is running already."""

import gc
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

READY = "Ready to accept connections"
STOP_TIMEOUT_S = 10


class RedisServer:
    """A server with its data in a folder, with the minimum durability that the documentation recommends.

    ``fsync``: the value of ``appendfsync``.
    """

    def __init__(self, program: str, folder: Path, fsync: str = "everysec") -> None:
        self._program = program
        self._folder = folder
        self._fsync = fsync
        self._process: subprocess.Popen[str] | None = None
        self._drain: threading.Thread | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, or restart it after ``kill`` on the same port with the same data. Return when it answers."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        process = subprocess.Popen([self._program, *arguments], stdout=subprocess.PIPE, text=True)
        self._process = process
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if READY in line:
                break
        else:
            pytest.fail(f"redis-server did not start: {''.join(lines)}")
        self._drain = threading.Thread(target=process.stdout.read, daemon=True)  # keeps the pipe from filling up
        self._drain.start()

    def kill(self) -> None:
        """Kill it, as in a crash. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)
        if self._drain is not None:
            self._drain.join(STOP_TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()

    def copy(self, target: Path) -> None:
        """Copy the data written so far: a possible state of the disk after a power failure."""
        shutil.copytree(self._folder / "appendonlydir", target)

    def put_back(self, source: Path) -> None:
        """Replace its data by such a copy. It must not run."""
        self.forget()
        shutil.copytree(source, self._folder / "appendonlydir")

    def forget(self) -> None:
        """Delete its data, as a server without ``appendonly`` loses it. It must not run."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / "appendonlydir")


OUTAGES = [
    pytest.mark.slow,
    pytest.mark.usefixtures("collected"),
    # coredis leaves two channels to the garbage collector for each connection that could not be opened
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]
"""The marks of tests that stop their Redis."""


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect the garbage of a test at its end, so that warnings about it belong to this test."""
    yield
    gc.collect()


@contextmanager
def running_redis(fsync: str = "everysec") -> Iterator[RedisServer]:
    """Start a server; kill it and remove its folder at the end. Skips the test if Redis is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server: install the distribution's package redis-server")
    with tempfile.TemporaryDirectory(prefix="airy-trio-redis-") as folder:
        server = RedisServer(program, Path(folder), fsync)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's server. A test that kills it uses ``own_redis`` instead."""
    with running_redis() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server for one test, which may kill and restart it."""
    with running_redis() as server:
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
