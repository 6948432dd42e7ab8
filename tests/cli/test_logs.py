"""The log of a command: several processes write to it, and a server also works if nothing reads it."""

import fcntl
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio

from airy_trio.cli.logs import LOG_LINES_MAX, LineQueue, configure_logging
from airy_trio.testing.client import StompClient, connect
from tests.application import Application
from tests.e2e.route import HOST, configure
from tests.processes import AIRY_TRIO, free_ports

TIMEOUT_S = 50.0
PIPE_BYTES = 4096
"""The smallest size of a pipe: it is full after some twenty lines."""
LOGGING = """
import sys, structlog
from airy_trio.cli.logs import configure_logging, queue_stderr
queue_stderr()
configure_logging("info", "json")
for number in range(int(sys.argv[1])):
    structlog.get_logger().info("line", number=number)
print("logged", flush=True)
sys.stdin.read()
raise LookupError("the last line")
"""


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that nothing reads."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    for end in (reading, writing):
        os.close(end)


def logged(count: int) -> tuple[int, list[str]]:
    """Run a program, and read its lines only after it has logged all; return its exit code and these lines."""
    command = [sys.executable, "-c", LOGGING, str(count)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        _, err = process.communicate()
        return process.returncode, err.decode().splitlines()


def test_queued_lines_are_written_after_the_queue_was_closed(unread: tuple[int, int]) -> None:
    reading, writing = unread
    queue = LineQueue(writing)
    for _ in range(4):
        queue.write(bytes(PIPE_BYTES))
    queue.close()
    received = 0
    while received < 4 * PIPE_BYTES and select.select([reading], [], [], 2)[0]:
        received += len(os.read(reading, PIPE_BYTES))
    assert received == 4 * PIPE_BYTES


@pytest.mark.slow
def test_lines_wait_for_a_late_reader() -> None:
    code, lines = logged(LOG_LINES_MAX)
    assert code == 1
    assert [json.loads(line)["number"] for line in lines[:LOG_LINES_MAX]] == [*range(LOG_LINES_MAX)]
    assert (lines[LOG_LINES_MAX], lines[-1]) == ("Traceback (most recent call last):", "LookupError: the last line")


@pytest.mark.slow
def test_dropped_lines_are_counted() -> None:
    count = 2 * LOG_LINES_MAX
    code, lines = logged(count)
    assert code == 1
    records = [json.loads(line) for line in lines if line.startswith("{")]
    numbers = [record["number"] for record in records if record["event"] == "line"]
    assert numbers == [*range(len(numbers))]
    assert len(numbers) >= LOG_LINES_MAX
    (note,) = [record for record in records if record["event"].startswith("log lines dropped")]
    assert note["level"] == "warning"
    assert note["count"] >= count - len(numbers), "the traceback may be among them"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_server_serves_and_stops_while_stderr_is_not_read(
    workers: int, sqlite_application: Application, tmp_path: Path, unread: tuple[int, int]
) -> None:
    port = free_ports(1)
    config = configure(sqlite_application, tmp_path, port=port, workers=workers)
    with trio.fail_after(TIMEOUT_S):
        process = await trio.lowlevel.open_process([*AIRY_TRIO, "--config", str(config)], stderr=unread[1])
        try:
            for number in range(100):  # each is two lines
                async with await connected(port) as client:
                    await client.subscribe(headers=[("replay", "none")])
                    sqlite_application.tag(f"t{number}")
                    assert (await client.receive()).command == "MESSAGE"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            process.kill()
            with trio.move_on_after(TIMEOUT_S, shield=True):
                await process.wait()


@pytest.mark.slow
async def test_failed_start_ends_while_stderr_is_not_read(
    sqlite_application: Application, tmp_path: Path, unread: tuple[int, int]
) -> None:
    os.write(unread[1], b"x" * PIPE_BYTES)
    with trio.fail_after(TIMEOUT_S), socket.create_server((HOST, 0)) as taken:
        config = configure(sqlite_application, tmp_path, port=taken.getsockname()[1])
        process = await trio.lowlevel.open_process([*AIRY_TRIO, "--config", str(config)], stderr=unread[1])
        try:
            assert await process.wait() == 1
        finally:
            process.kill()


async def connected(port: int) -> StompClient:
    """Connect to a server that may not listen yet."""
    while True:
        try:
            return await connect(HOST, port)
        except OSError:
            await trio.sleep(0.05)


class Pieces(io.StringIO):
    """A stream that keeps each write separate."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def write(self, text: str) -> int:
        self.all.append(text)
        return len(text)


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the lines of several workers would mix."""
    pieces = Pieces()
    monkeypatch.setattr(sys, "stderr", pieces)
    before = structlog.get_config()
    try:
        configure_logging("info", "json")
        structlog.get_logger().info("one")
        structlog.get_logger().info("two", text="a\nb")
    finally:
        structlog.configure(**before)
    assert [piece.count("\n") for piece in pieces.all] == [1, 1]
    assert all(piece.endswith("}\n") for piece in pieces.all)
