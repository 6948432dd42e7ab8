"""Servers that are started again after each death, and which of them listens or records at the moment."""

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
"""What begins the event of a log line that says that positions are given up."""

Name = int | str | None
"""Of a process of a server: None for the one that was started, else what logs call a worker."""


@define
class Node:
    """One server's lives. ``port``, ``recording`` and the workers are of this life; ``port`` is 0 until it listens.

    ``workers``: the process ids of those that have come up, where ``[listener] workers`` exceeds 1. ``recorder``: the
    process that records, or did last.
    """

    name: str
    lives: int = 0
    failed_starts: int = 0
    port: int = 0
    recording: bool = False
    recorder: Name = None
    workers: dict[Name, int] = field(factory=dict)
    server: Server | None = None
    _starting: dict[Name, int] = field(factory=dict)

    def send(self, number: signal.Signals, worker: Name = None) -> None:
        """Send a signal to the server, or to one of its workers. What SIGKILL ends counts as dead at once."""
        assert self.server is not None
        if worker is None:
            self.server.process.send_signal(number)
        else:
            with suppress(ProcessLookupError):  # it died by itself just now, which ``note`` judges
                os.kill(self.workers[worker], number)
        if number is signal.SIGKILL:
            self.ended(worker)

    def freeze(self) -> None:
        """Stop it where it is, and return once it stands still: it must be running.

        Its threads stop only when the one that takes the signal is given a processor: until then they go on.
        """
        assert self.server is not None
        self.send(signal.SIGSTOP)
        stopped = os.waitid(os.P_PID, self.server.process.pid, os.WSTOPPED)
        assert stopped is not None
        assert stopped.si_status == signal.SIGSTOP

    def victim(self, chance: Random) -> Name:
        """One of its processes: the recording one, or, in a server of several, any of those that have come up."""
        if not self.workers:
            return None
        return chance.choice([self.recorder, chance.choice(sorted(self.workers, key=str))])

    def note(self, said: dict[str, Any]) -> bool:
        """Take in a line of its log; whether that changed anything.

        AssertionError for a worker that ended by itself, unless it had not come up.
        """
        event, worker = said.get("event"), said.get("worker")
        if event == "worker started":
            self._starting[worker] = said["pid"]
        elif event == "worker exited; restarting":
            failed = said["exit_code"] != -signal.SIGKILL
            assert not failed or (said["exit_code"] == 1 and worker not in self.workers), said
            self.failed_starts += failed
            self.ended(worker)
        elif event == "listening":
            self.port = said["port"]
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
        """Take note that the server, or one of its workers, is dead. Idempotent."""
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
        if worker in self._starting:  # else a line that it logged just before it was killed
            self.workers[worker] = self._starting[worker]


def pair() -> list[Node]:
    """Two servers."""
    return [Node("one"), Node("two")]


@define
class Nodes:
    """Some nodes on one database, with the same settings.

    ``epochs``: the lines of their logs that say that an epoch began. What they log goes into files next to ``config``.
    """

    config: Path
    command: Sequence[str] = AIRY_TRIO
    all: list[Node] = field(factory=pair)
    epochs: list[dict[str, Any]] = field(factory=list)
    _changed: trio.Event = field(factory=trio.Event)

    async def live(self, node: Node) -> None:
        """Start one, again and again. AssertionError if it ends by itself, unless it has not come to listen."""
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
                node.failed_starts += 1
            self._tell()

    async def wait(self, is_so: Callable[[Node], object]) -> list[Node]:
        """The nodes of which something is true, once there are any."""
        while not (found := [node for node in self.all if is_so(node)]):
            await self._changed.wait()
        return found

    async def wait_all(self, is_so: Callable[[Node], object]) -> None:
        """Return once something is true of all."""
        while not all(map(is_so, self.all)):
            await self._changed.wait()

    async def _follow(self, node: Node, server: Server) -> bool:
        """Note what it logs, to its end; whether it came to listen."""
        listened = False
        for number in itertools.count():
            line = await server.err.line(number)
            if line is None:
                break
            said = json_object(line)
            if str(said.get("event")).startswith(EPOCHS):
                self.epochs.append(said)
            listened |= said.get("event") == "listening"
            if node.note(said):
                self._tell()
        return listened

    def _keep(self, node: Node, server: Server) -> None:
        with self.config.with_name(f"{node.name}.log").open("a") as file:
            file.writelines(f"{line}\n" for line in server.err.all)

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def listens(node: Node) -> bool:
    """Whether it takes connections."""
    return node.port != 0


def records(node: Node) -> bool:
    """Whether it says that it records."""
    return node.recording
