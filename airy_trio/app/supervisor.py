"""Several server processes on one port, from one command: the parent starts them, passes signals on, ends with them.

The parent serves nobody and opens neither database nor store. Each worker is a whole server that listens on the same
port (SO_REUSEPORT); Linux spreads connections over them, macOS gives most of them to one. They share the event store.
One process more records and serves nobody, since recording would cost the clients of its interpreter most of their
rate; it has the number after the workers'. While it does not record a worker does (``log.recorder``: standby).

Between parent and worker is a socket pair: the worker reports on it that it listens, and sees in it that the parent is
gone, however that ended; then it ends too.

A worker that ends is started again, after a pause that doubles while it does not come to listen; a process that the
system refuses to start counts as such a worker. The command ends with a worker's exit code if its first start fails,
and with 1 if one has failed ``FAILURES_MAX`` times in a row while no other listens: then no client is served, and the
supervisor of the command must know.

One of the server processes of a command: what its parent tells it, on its command line and on a socket pair.

Refuses to know how the processes are started and started again.
"""

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import evolve, frozen

from airy_trio.app.server import Address
from airy_trio.errors import SettingsError, StartError
from airy_trio.sessions.listener import ListenerOptions, open_listening_socket
from airy_trio.settings import Settings

logger = structlog.get_logger(__name__)

RECORDER: Final = "recorder"
"""What logs call the process that records, where they have the number of a worker."""
LISTENING: Final = b"."
"""The worker's word: it listens; of the process that records, that it has started."""


@frozen(kw_only=True)
class Worker:
    """What one worker is told on its command line, as ``NUMBER:PORT:DESCRIPTOR``.

    ``number``: from 0. ``port``: the shared one. ``descriptor``: of its end of the socket pair.
    """

    number: int
    port: int
    descriptor: int

    def __str__(self) -> str:
        return f"{self.number}:{self.port}:{self.descriptor}"

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """The same, read. Raises ``ValueError``."""
        number, port, descriptor = map(int, text.split(":"))
        return cls(number=number, port=port, descriptor=descriptor)

    def settings(self, settings: Settings) -> Settings:
        """The settings of this worker: the shared port; only who records migrates, and needs no tail for anybody."""
        records = self.number == settings.listener.recorder
        return evolve(
            settings,
            listener=evolve(settings.listener, port=self.port),
            database=evolve(settings.database, migrate=settings.database.migrate and records),
            log=evolve(settings.log, tail_events=1) if records else settings.log,
        )

    async def stay_with_parent(self, _address: Address) -> None:
        """Report to the parent that this server listens; return when the parent is gone."""
        ours = trio.socket.from_stdlib_socket(socket.socket(fileno=self.descriptor))
        async with trio.SocketStream(ours) as stream:
            with suppress(trio.BrokenResourceError):  # the parent ended while this server started
                await stream.send_all(LISTENING)
                await stream.receive_some(1)
        logger.warning("the parent process is gone: stopping")


def worker_of(text: str) -> Worker:
    """The worker that a command line tells of. Raises ``SettingsError``: nobody but the parent writes that option."""
    try:
        return Worker.parse(text)
    except ValueError:
        raise SettingsError(["--worker is for the processes that the server starts by itself"]) from None


PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 10.0
DOUBLINGS_MAX: Final = 10  # it may fail for days, while others serve
FAILURES_MAX: Final = 5
STOP_GRACE_S: Final = 15.0
"""Beyond ``drain_s``: a worker that has not ended by then is killed."""


async def supervise(settings: Settings, config: Path) -> int:
    """Run the workers until SIGINT or SIGTERM; return the exit code.

    Raises ``StartError`` if the port is taken, or if the system does not start a process.
    """
    async with AsyncExitStack() as stack:
        port = await _reserve_port(settings.listener, stack)
        signals = stack.enter_context(trio.open_signal_receiver(*PASSED_ON))
        return await Workers(settings, config, port).run(signals)


class Workers:
    """The worker processes of one command."""

    def __init__(self, settings: Settings, config: Path, port: int) -> None:
        self._listener = settings.listener
        self._config = config
        self._port = port
        self._recorder = settings.listener.workers
        self._processes: dict[int, trio.Process] = {}
        self._listening: set[int] = set()
        self._reread: set[int] = set()  # of those that do not listen yet: to be told SIGHUP when they do
        self._first = trio.Event()  # the first process has started, or never will
        self._stopping = trio.Event()
        self._code = 0
        self._refused: dict[int, str] = {}  # why the system has just refused to start a process
        self._fault = ""

    async def run(self, signals: AsyncIterator[int]) -> int:
        """Start all, the first one alone: it may have tables and files to make. Return when all have ended.

        Raises ``StartError`` if that is because the system does not start a process.
        """
        async with trio.open_nursery() as signalled:
            signalled.start_soon(self._pass_on, signals)
            signalled.start_soon(self._kill_who_does_not_end)
            async with trio.open_nursery() as living:
                living.start_soon(self._live, self._recorder)
                await self._first.wait()
                for number in range(self._listener.workers):
                    living.start_soon(self._live, number)
            signalled.cancel_scope.cancel()
        logger.info("stopped", exit_code=self._code)
        if self._fault:
            raise StartError([self._fault])
        return self._code

    async def _live(self, number: int) -> None:
        """Start one worker again and again."""
        lives = failures = 0
        while not self._stopping.is_set():
            listened, code = await self._run_once(number)
            if self._stopping.is_set():
                self._code = self._code or int(code > 0)
                break
            failures = 0 if listened else failures + 1
            if not listened and (not lives or (failures >= FAILURES_MAX and not self._listening - {self._recorder})):
                logger.error("a worker cannot start: stopping", worker=self._name(number), exit_code=code)
                if number in self._refused:
                    self._fault = f"worker {self._name(number)}: cannot start the process: {self._refused[number]}"
                self._stop(code if code > 0 else 1)
                break
            lives += 1
            pause_s = min(PAUSE_S * 2 ** min(failures, DOUBLINGS_MAX), PAUSE_MAX_S)
            logger.error(
                "a worker has ended: it is started again", worker=self._name(number), exit_code=code, pause_s=pause_s
            )
            with trio.move_on_after(pause_s):
                await self._stopping.wait()
        self._first.set()

    async def _run_once(self, number: int) -> tuple[bool, int]:
        """Run a worker to its end; return whether it came to listen, and its exit code (negative: the signal).

        A process that the system refuses to start counts as one that ended at once: memory, processes, descriptors
        and a program file that is being replaced come back, and the other workers serve meanwhile.
        """
        try:
            ours, process = await self._start(number)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("worker process could not be started", worker=self._name(number), reason=reason)
            self._refused[number] = reason
            return False, 1
        self._refused.pop(number, None)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            self._processes[number] = process
            try:
                logger.info("worker started", worker=self._name(number), pid=process.pid)
                if self._stopping.is_set():
                    process.send_signal(signal.SIGTERM)  # it was told to the others while this one was being started
                listened = await _heard(stream)
                if listened:
                    self._came(number)
                    await _heard(stream)
                    self._went(number)
                return listened, await process.wait()
            finally:
                self._went(number)
                del self._processes[number]
                if process.returncode is None:
                    process.kill()

    def _came(self, number: int) -> None:
        """Take note that a worker listens, or that the process that records has started."""
        self._listening.add(number)
        self._first.set()
        if number in self._reread:
            self._processes[number].send_signal(signal.SIGHUP)
        if len(self._listening) == self._listener.processes:
            logger.info("all workers listen", workers=self._listener.workers, port=self._port)

    def _went(self, number: int) -> None:
        """Take note that one is ending, or has ended. Idempotent."""
        self._reread.discard(number)
        self._listening.discard(number)

    def _name(self, number: int) -> int | str:
        """How logs call it."""
        return RECORDER if number == self._recorder else number

    async def _start(self, number: int) -> tuple[socket.socket, trio.Process]:
        """Start our own command line; return our end of the socket pair, which the caller owns, and the process.

        The process has a group of its own, so that Ctrl-C reaches it once, from the parent. Raises ``OSError``.
        """
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as on_error:
            on_error.enter_context(ours)
            worker = Worker(number=number, port=self._port, descriptor=theirs.fileno())
            command = [sys.executable, "-P", "-m", "airy_trio", "--config", str(self._config), "--worker", str(worker)]
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, pass_fds=[worker.descriptor], process_group=0
            )
            on_error.pop_all()
        return ours, process

    async def _pass_on(self, signals: AsyncIterator[int]) -> None:
        """Tell every worker what we are told; who has only been started would be ended by SIGHUP, and is told later."""
        async for number in signals:
            logger.info("signal passed on", signal=signal.Signals(number).name)
            if number == signal.SIGHUP:
                self._reread |= self._processes.keys() - self._listening
                for listening in self._listening:
                    self._processes[listening].send_signal(number)
            else:
                self._stopping.set()
                self._send(number)

    async def _kill_who_does_not_end(self) -> None:
        await self._stopping.wait()
        await trio.sleep(self._listener.drain_s + STOP_GRACE_S)
        logger.error("killed, having not ended in time", workers=[*map(self._name, sorted(self._processes))])
        self._code = 1
        self._send(signal.SIGKILL)

    def _stop(self, code: int) -> None:
        self._code = code
        self._stopping.set()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)


async def _heard(stream: trio.SocketStream) -> bool:
    """Wait for the next word of a worker; False: it has ended."""
    try:
        return bool(await stream.receive_some(len(LISTENING)))
    except trio.BrokenResourceError:
        return False


async def _reserve_port(options: ListenerOptions, stack: AsyncExitStack) -> int:
    """Find out whether the port is free, and which one it is where any will do. Raises ``StartError``.

    On Linux it is kept with a socket that does not listen; elsewhere such a socket would be given connections.
    """
    with await open_listening_socket(evolve(options, workers=1)) as alone:
        family, address = alone.family, alone.getsockname()
    if sys.platform == "linux":
        kept = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    port: int = address[1]
    return port
