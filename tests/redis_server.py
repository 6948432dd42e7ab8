"""A Redis of our own for the tests: started on a free port, killed, started again; never one that happens to run."""

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
    """One server with its data in a folder, durable as the documentation recommends at least.

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
        """Start it, also after ``kill``, on the same port with the same data; return when it answers."""
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
        said = []
        for line in process.stdout:
            said.append(line)
            if READY in line:
                break
        else:
            pytest.fail(f"redis-server did not start: {''.join(said)}")
        self._drain = threading.Thread(target=process.stdout.read, daemon=True)  # keeps its pipe from filling up
        self._drain.start()

    def kill(self) -> None:
        """End it as a crash does. Idempotent."""
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
        """Copy what it has written so far: what the disk may have after a loss of power."""
        shutil.copytree(self._folder / "appendonlydir", target)

    def put_back(self, source: Path) -> None:
        """Replace what it has written by such a copy. It must not run."""
        self.forget()
        shutil.copytree(source, self._folder / "appendonlydir")

    def forget(self) -> None:
        """Lose everything, as a server without ``appendonly`` does. It must not run."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / "appendonlydir")


OUTAGES = [
    pytest.mark.slow,
    pytest.mark.usefixtures("collected"),
    # coredis leaves two channels of each connection that could not be made to the garbage collector
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]
"""The marks of tests whose Redis goes away."""


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves behind is collected in it, not in another one that knows nothing of it."""
    yield
    gc.collect()


@contextmanager
def running_redis(fsync: str = "everysec") -> Iterator[RedisServer]:
    """Start a server; kill it and remove its folder at the end. Skips the test where there is none to start."""
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
    """The session's server. Who kills it takes ``own_redis`` instead."""
    with running_redis() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server for one test, which may kill and start it again."""
    with running_redis() as server:
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
