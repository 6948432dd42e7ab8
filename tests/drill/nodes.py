"""Servers that are restarted whenever they end. The module tracks which of them listen and which one records."""

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import trio
from attrs import define, field

from tests.processes import AIRY_TRIO, Server, json_object, running

ROOT = Path(__file__).parents[2]
STARTS = {"recording", "recording again"}
STOPS = {
    "recording interrupted",
    "the lease was lost: another server may record",
    "lease offered to the recorder process",
}
EPOCHS = ("new epoch", "the event store has lost events")
"""The beginnings of log events about a new epoch."""

Name = int | str | None
"""A process of a server: None for the one that was started, otherwise the worker's name in the log."""


@define
class Node:
    """A server that is restarted. ``port``, ``recording`` and workers are of the current process.

    ``port`` is 0 until it listens. ``workers``: the process ids of workers that have started, if ``[listener] workers``
    exceeds 1. ``recorder``: the process that records or was the last to record.
    """

    name: str
    lives: int = 0
    port: int = 0
    recording: bool = False
    recorder: Name = None
    workers: dict[Name, int] = field(factory=dict)
    server: Server | None = None
    _starting: dict[Name, int] = field(factory=dict)

    def send(self, number: signal.Signals, worker: Name = None) -> None:
        """Send a signal to the server or to one of its workers. After SIGKILL it counts as dead immediately."""
        assert self.server is not None
        if worker is None:
            self.server.process.send_signal(number)
        else:
            with suppress(ProcessLookupError):  # the process has just ended; ``note`` judges this
                os.kill(self.workers[worker], number)
        if number is signal.SIGKILL:
            self.ended(worker)

    def freeze(self) -> None:
        """Stop the server, which must be running, and return once it has stopped.

        The threads of the server continue until the thread that receives the signal gets a processor.
        """
        assert self.server is not None
        self.send(signal.SIGSTOP)
        stopped = os.waitid(os.P_PID, self.server.process.pid, os.WSTOPPED)
        assert stopped is not None
        assert stopped.si_status == signal.SIGSTOP

    def victim(self, chance: Random) -> Name:
        """Return one of its processes: the recording one or, if there are workers, any of them."""
        if not self.workers:
            return None
        return chance.choice([self.recorder, chance.choice(sorted(self.workers, key=str))])

    def note(self, record: dict[str, Any]) -> bool:
        """Update the state from a line of its log; return whether that changed anything.

        Raises ``AssertionError`` if a worker ended by itself, unless it had not started completely.
        """
        event, worker = record.get("event"), record.get("worker")
        if event == "worker started":
            self._starting[worker] = record["pid"]
        elif event == "worker exited; restarting":
            failed = record["exit_code"] != -signal.SIGKILL
            assert not failed or (record["exit_code"] == 1 and worker not in self.workers), record
            self.ended(worker)
        elif event == "listening":
            self.port = record["port"]
            self._came_up(worker)
        elif event in STARTS:
            self.recording, self.recorder = True, worker
            self._came_up(worker)
        elif event in STOPS and worker == self.recorder:
            self.recording = False
        else:
            return False
        return True

    def ended(self, worker: Name = None) -> None:
        """Mark the server, or one of its workers, as dead. Idempotent."""
        if worker is None:
            self.port = 0
            self.workers.clear()
            self._starting.clear()
        else:
            self.workers.pop(worker, None)
            self._starting.pop(worker, None)
        if worker in (None, self.recorder):
            self.recording = False

    def _came_up(self, worker: Name) -> None:
        if worker in self._starting:  # if not, it logged this just before it was killed
            self.workers[worker] = self._starting[worker]


def pair() -> list[Node]:
    """Return two servers."""
    return [Node("one"), Node("two")]


@define
class Nodes:
    """Several nodes on one database, with the same settings.

    ``epochs``: the lines of their logs about new epochs. Their logs are written to files next to ``config``.
    """

    config: Path
    command: Sequence[str] = AIRY_TRIO
    all: list[Node] = field(factory=pair)
    epochs: list[dict[str, Any]] = field(factory=list)
    _changed: trio.Event = field(factory=trio.Event)

    async def live(self, node: Node) -> None:
        """Start a node again and again. Raises ``AssertionError`` if it ends by itself after it has listened."""
        while True:
            async with running(Server, [*self.command, "--config", str(self.config)], folder=ROOT) as server:
                node.server = server
                node.lives += 1
                try:
                    listened = await self._follow(node, server)
                    node.ended()
                    code = await server.wait()
                finally:
                    self._keep(node, server)
            if code != -signal.SIGKILL:
                assert code == 1, "\n".join(server.err.all[-50:])
                assert not listened, "\n".join(server.err.all[-50:])
            self._notify()

    async def wait(self, condition: Callable[[Node], object]) -> list[Node]:
        """Wait until a condition holds for any node, and return those for which it does."""
        while not (found := [node for node in self.all if condition(node)]):
            await self._changed.wait()
        return found

    async def wait_all(self, condition: Callable[[Node], object]) -> None:
        """Wait until a condition holds for all nodes."""
        while not all(map(condition, self.all)):
            await self._changed.wait()

    async def _follow(self, node: Node, server: Server) -> bool:
        """Read its log to the end; return whether it listened."""
        listened = False
        for number in itertools.count():
            line = await server.err.line(number)
            if line is None:
                break
            record = json_object(line)
            if str(record.get("event")).startswith(EPOCHS):
                self.epochs.append(record)
            listened |= record.get("event") == "listening"
            if node.note(record):
                self._notify()
        return listened

    def _keep(self, node: Node, server: Server) -> None:
        with self.config.with_name(f"{node.name}.log").open("a") as file:
            file.writelines(f"{line}\n" for line in server.err.all)

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def listens(node: Node) -> bool:
    """Return whether a node accepts connections."""
    return node.port != 0


def records(node: Node) -> bool:
    """Return whether a node has logged that it records."""
    return node.recording
