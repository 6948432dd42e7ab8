"""Several server processes on one port, from one command.

The parent process serves no clients and opens neither database nor store. It starts the workers, passes signals on and
restarts a worker that exits. Each worker is a whole server that listens on the same port (SO_REUSEPORT): Linux spreads
connections over the workers, macOS gives most of them to one. All share the event store. One more process, the
recorder, records and serves no clients, because recording would cost the clients of its interpreter most of their rate.
Its number follows those of the workers. While it does not record, a worker does (``log.recorder``, "Standby").

Parent and worker share a socket pair. The worker sends a byte when it listens. When the parent dies, however it does,
the worker reads the end of the stream and shuts down.

A worker that exits is started again, after a pause that doubles until it listens. A process that the system does not
start counts as one that exited. The command ends with a worker's exit code if the first start of
that worker fails. It ends with 1 if one has failed ``FAILURES_MAX`` times in a row while no other worker listens:
then no client is served, and the supervisor of the command must notice.
"""

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import evolve, frozen

from airy_trio.errors import StartError
from airy_trio.retry import Backoff
from airy_trio.sessions.listener import Address, ListenerOptions, open_listening_socket
from airy_trio.settings import Settings

logger = structlog.get_logger(__name__)

RECORDER: Final = "recorder"
"""The name of the recorder process in logs, in place of a worker's number."""
LISTENING: Final = b"."
"""From a worker: it listens. From the recorder process: it has started."""

PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 10.0
FAILURES_MAX: Final = 5
STOP_GRACE_S: Final = 15.0
"""Time beyond ``drain_s`` after which a worker that has not exited is killed."""


async def supervise(settings: Settings, config: Path) -> int:
    """Run the workers until SIGINT or SIGTERM; return the exit code.

    Raises ``StartError`` if the port is taken, or if the system does not start a process.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(*PASSED_ON))
        port = await _reserve_port(settings.listener, stack)
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
        self._reread: set[int] = set()  # workers that do not listen yet and get SIGHUP when they do
        self._first = trio.Event()  # the first process has started, or never will
        self._stopping = trio.Event()
        self._code = 0
        self._fault = ""

    async def run(self, signals: AsyncIterator[int]) -> int:
        """Start all, the recorder first and alone: it may create tables and files. Return when all have exited.

        Raises ``StartError`` if they exited because the system did not start a process.
        """
        async with trio.open_nursery() as signalled:
            signalled.start_soon(self._pass_on, signals)
            signalled.start_soon(self._kill_late_workers)
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
        backoff = Backoff(PAUSE_S, PAUSE_MAX_S)
        lives = failures = 0
        while not self._stopping.is_set():
            listened, code, refused = await self._run_once(number)
            if self._stopping.is_set():
                # A negative code means that a signal ended the process, as SIGTERM may.
                self._code = self._code or int(code > 0)
                break
            failures = 0 if listened else failures + 1
            # If the first start fails, the fault is usually in the settings, and another attempt would not help. A
            # later start may fail only for a while.
            if not listened and (not lives or (failures >= FAILURES_MAX and not self._listening - {self._recorder})):
                logger.error("worker cannot start; stopping", worker=self._name(number), exit_code=code)
                if refused:
                    self._fault = f"worker {self._name(number)}: cannot start the process: {refused}"
                self._code = code if code > 0 else 1
                self._stopping.set()
                self._send(signal.SIGTERM)
                break
            lives += 1
            if listened:
                backoff.reset()
            pause_s = backoff.next_s()
            logger.error("worker exited; restarting", worker=self._name(number), exit_code=code, pause_s=pause_s)
            with trio.move_on_after(pause_s):
                await self._stopping.wait()
        # Also if the recorder never listened: `run` waits for this before it starts the workers, which then end at
        # once.
        self._first.set()

    async def _run_once(self, number: int) -> tuple[bool, int, str]:
        """Run a worker until it exits; return whether it listened, its exit code (negative: the signal), and a reason.

        Only a process that the system does not start has a reason; it counts as one that exited at once. A lack of
        memory, processes or descriptors, and a program file that is being replaced, are temporary, and the other
        workers serve meanwhile.
        """
        try:
            ours, process = await self._start(number)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("worker process could not be started", worker=self._name(number), reason=reason)
            return False, 1, reason
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            self._processes[number] = process
            try:
                logger.info("worker started", worker=self._name(number), pid=process.pid)
                if self._stopping.is_set():
                    process.send_signal(signal.SIGTERM)  # it was sent to the others while this one started
                listened = await _received(stream)
                if listened:
                    self._on_listening(number)
                    # A worker closes its end when it begins to shut down: from then on it does not count as listening.
                    await _received(stream)
                    self._on_exit(number)
                return listened, await process.wait(), ""
            finally:
                self._on_exit(number)
                del self._processes[number]
                if process.returncode is None:
                    process.kill()

    def _on_listening(self, number: int) -> None:
        """Note that a worker listens, or that the recorder process has started."""
        self._listening.add(number)
        self._first.set()
        if number in self._reread:
            self._processes[number].send_signal(signal.SIGHUP)
        if len(self._listening) == self._listener.processes:
            logger.info("all workers listen", workers=self._listener.workers, port=self._port)

    def _on_exit(self, number: int) -> None:
        """Note that a process is exiting or has exited. Idempotent."""
        self._reread.discard(number)
        self._listening.discard(number)

    def _name(self, number: int) -> int | str:
        return RECORDER if number == self._recorder else number

    async def _start(self, number: int) -> tuple[socket.socket, trio.Process]:
        """Start our own command line; return our end of the socket pair, which the caller owns, and the process.

        The process has a group of its own, so that Ctrl-C reaches it once, from the parent. Raises ``OSError``.
        """
        # `theirs` is closed here once the process has inherited it: otherwise `ours` would never read the end of the
        # stream.
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as on_error:
            on_error.enter_context(ours)
            # With -m alone, a module in the current folder could take the place of an installed one.
            command = [sys.executable, "-P", "-m", "airy_trio", "--config", str(self._config), "--worker"]
            command += map(str, (number, self._recorder, self._port, theirs.fileno()))
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0
            )
            on_error.pop_all()
        return ours, process

    async def _pass_on(self, signals: AsyncIterator[int]) -> None:
        """Pass signals on. A worker that does not listen yet gets SIGHUP later, because it would end it now.

        SIGINT becomes SIGTERM: Python prints a traceback if SIGINT arrives before the program handles it.
        """
        async for number in signals:
            logger.info("signal passed on", signal=signal.Signals(number).name)
            if number == signal.SIGHUP:
                self._reread |= self._processes.keys() - self._listening
                for listening in self._listening:
                    self._processes[listening].send_signal(number)
            else:
                self._stopping.set()
                self._send(signal.SIGTERM)

    async def _kill_late_workers(self) -> None:
        await self._stopping.wait()
        await trio.sleep(self._listener.drain_s + STOP_GRACE_S)
        logger.error("workers killed; they did not stop in time", workers=[*map(self._name, sorted(self._processes))])
        self._code = 1
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)


async def _received(stream: trio.SocketStream) -> bool:
    """Wait for the next byte of a worker; False: it has exited."""
    try:
        return bool(await stream.receive_some(len(LISTENING)))
    except trio.BrokenResourceError:
        return False


async def _reserve_port(options: ListenerOptions, stack: ExitStack) -> int:
    """Check that the port is free; choose one if it is 0. Raises ``StartError``.

    On Linux a socket that does not listen reserves it. Elsewhere such a socket would receive connections.
    """
    # Without SO_REUSEPORT, which would let this command share the port of another one that runs already.
    with await open_listening_socket(evolve(options, workers=1)) as alone:
        family, address = alone.family, alone.getsockname()
    if sys.platform == "linux":
        reserved = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    port: int = address[1]
    return port


@frozen
class Worker:
    """The values of ``--worker``, which the parent passes to a worker.

    ``number``: from 0. ``workers``: how many there are; the recorder has the next number. ``port``: the shared port.
    ``descriptor``: the worker's end of the socket pair.
    """

    number: int
    workers: int
    port: int
    descriptor: int

    @property
    def records(self) -> bool:
        """Whether this is the recorder process."""
        return self.number == self.workers

    def settings(self, settings: Settings) -> Settings:
        """Return the settings with which this worker starts. Only the recorder migrates; it needs no tail for clients.

        The file may have changed since the parent started, but all workers of a command share port and recorder.
        """
        return self._with(settings, port=self.port, workers=self.workers)

    def reread(self, settings: Settings) -> Settings:
        """Return the same for settings that were read again, so that only what has changed in the file differs."""
        return self._with(settings, port=settings.listener.port or self.port, workers=settings.listener.workers)

    def _with(self, settings: Settings, *, port: int, workers: int) -> Settings:
        return evolve(
            settings,
            listener=evolve(settings.listener, port=port, workers=workers),
            database=evolve(settings.database, migrate=settings.database.migrate and self.records),
            log=evolve(settings.log, tail_events=1) if self.records else settings.log,
        )

    async def stay_with_parent(self, _address: Address) -> None:
        """Notify the parent that this server listens; return when the parent has died."""
        ours = trio.socket.from_stdlib_socket(socket.socket(fileno=self.descriptor))
        async with trio.SocketStream(ours) as stream:
            with suppress(trio.BrokenResourceError):  # the parent died while this server started
                await stream.send_all(LISTENING)
                await stream.receive_some(1)
        logger.warning("parent process gone; stopping")
