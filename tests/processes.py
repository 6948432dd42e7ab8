"""``airy-trio`` as a process: start it, read its output line by line, terminate it, or kill it.

Nothing here sleeps: a task waits for a line or for the end of the process. These are real processes, so tests that use
them run on the real clock (not ``autojump_clock``), with ``trio.fail_after`` around each wait.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import define, field, frozen

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
LINE_BYTES_MAX = 1 << 20
AIRY_TRIO = (sys.executable, "-m", "airy_trio")


@define
class Lines:
    """The lines that a pipe has delivered so far. Any number of tasks may wait for the next one."""

    all: list[str] = field(factory=list)
    ended: bool = False
    _changed: trio.Event = field(factory=trio.Event)

    async def line(self, number: int) -> str | None:
        """Wait for line ``number``, counted from 0, and return it without its end; None if the pipe ends before it."""
        while number >= len(self.all):
            if self.ended:
                return None
            await self._changed.wait()
        return self.all[number]

    async def end(self) -> None:
        """Return once the pipe has ended."""
        while not self.ended:
            await self._changed.wait()

    async def read(self, pipe: trio.abc.ReceiveStream) -> None:
        """Read a pipe to its end. Exactly one task does this."""
        rest = b""
        async with pipe:
            async for data in pipe:
                *complete, rest = (rest + data).split(b"\n")
                assert len(rest) <= LINE_BYTES_MAX
                self.all += [line.decode(errors="replace") for line in complete]
                self._notify()
        if rest:
            self.all.append(rest.decode(errors="replace"))
        self.ended = True
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


@define
class Program:
    """A running process. ``out`` and ``err`` are read all the time, so that a full pipe never blocks it."""

    process: trio.Process
    out: Lines = field(factory=Lines)
    err: Lines = field(factory=Lines)

    async def record(self, event: str, **facts: object) -> dict[str, Any]:
        """Return the first JSON line on stderr with this ``event`` and these facts. Waits for it.

        Raises ``AssertionError`` with the complete output if the process ends before.
        """
        for number in itertools.count():
            line = await self.err.line(number)
            if line is None:
                break
            found = json_object(line)
            if found.get("event") == event and facts.items() <= found.items():
                return found
        raise AssertionError(f"ended without {event!r} {facts or ''}:\n" + "\n".join(self.err.all))

    async def terminate(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.terminate()
        return await self.wait()

    async def kill(self) -> None:
        """Send SIGKILL, as the out-of-memory killer does."""
        self.process.kill()
        await self.wait()

    async def wait(self) -> int:
        """Return the exit code (negative: the signal), once the process and its pipes have ended."""
        with trio.fail_after(STOP_TIMEOUT_S):
            code = await self.process.wait()
            await self.out.end()
            await self.err.end()
        return code


@define
class Server(Program):
    """``airy-trio --config``, listening. ``port`` is the actual port."""

    port: int = 0
    tls: bool = False

    @property
    def url(self) -> str:
        """The WebSocket URL with the default path."""
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/ws.communication"


AnyProgram = TypeVar("AnyProgram", bound=Program)


@frozen
class Finished:
    """The result of a command that ended by itself."""

    code: int
    out: str
    err: str


@asynccontextmanager
async def running(
    kind: type[AnyProgram],
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> AsyncIterator[AnyProgram]:
    """Start a process as a kind of program. If it still runs at the end, it is killed."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(environ),
        cwd=folder,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    program = kind(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program.out.read, process.stdout)
        nursery.start_soon(program.err.read, process.stderr)
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_TIMEOUT_S):
                    await process.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def server(
    config: Path,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    program: Sequence[str] = AIRY_TRIO,
) -> AsyncIterator[Server]:
    """Start ``airy-trio --config`` with JSON logs, and wait until it listens."""
    command = [*program, "--config", str(config)]
    async with running(Server, command, environ=environ, folder=folder) as listening:
        with trio.fail_after(START_TIMEOUT_S):
            record = await listening.record("listening")
            listening.port, listening.tls = record["port"], record["url"].startswith("wss:")
        yield listening


async def run(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    program: Sequence[str] = AIRY_TRIO,
) -> Finished:
    """Run ``airy-trio`` with arguments to its end."""
    with trio.fail_after(START_TIMEOUT_S):
        ended = await trio.run_process(
            [*program, *arguments],
            check=False,
            capture_stdout=True,
            capture_stderr=True,
            env=_environment(environ),
            cwd=folder,
        )
    return Finished(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    """Return our environment without the variables that libpq reads, and with those that the test adds."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | dict(added or {})


def json_object(line: str) -> dict[str, Any]:
    """Return the object in a line of JSON; an empty one if the line is something else."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive ports that no program uses now."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000, count):
        with ExitStack() as sockets:
            try:
                for number in range(count):
                    sockets.enter_context(socket.create_server(("127.0.0.1", port + number)))
            except OSError:
                continue
            return port
    raise AssertionError
