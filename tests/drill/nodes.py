"""Servers that are started again whenever they die, and which of them listens or records just now."""

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from attrs import define, field

from tests.processes import AIRY_TRIO, Server, json_object, running

ROOT = Path(__file__).parents[2]


@define
class Node:
    """One server's lives. ``port`` and ``recording`` are of this life; ``port`` is 0 while it does not listen."""

    name: str
    lives: int = 0
    failed_starts: int = 0
    port: int = 0
    recording: bool = False
    server: Server | None = None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal. What SIGKILL ends counts as dead at once."""
        assert self.server is not None
        self.server.process.send_signal(number)
        if number is signal.SIGKILL:
            self.port, self.recording = 0, False

    def freeze(self) -> None:
        """Stop it where it is, and return once it stands still: it must be running.

        Its threads stop only when the one that takes the signal is given a processor: until then they go on.
        """
        assert self.server is not None
        self.send(signal.SIGSTOP)
        stopped = os.waitid(os.P_PID, self.server.process.pid, os.WSTOPPED)
        assert stopped is not None
        assert stopped.si_status == signal.SIGSTOP


@define
class Nodes:
    """Some nodes on one database, alike in everything."""

    config: Path
    command: Sequence[str] = AIRY_TRIO
    all: list[Node] = field(factory=lambda: [Node("one"), Node("two")])
    _changed: trio.Event = field(factory=trio.Event)

    async def live(self, node: Node) -> None:
        """Start one, again and again. AssertionError where it ends by itself, unless it has not come to listen."""
        while True:
            async with running(Server, [*self.command, "--config", str(self.config)], folder=ROOT) as server:
                node.server = server
                node.lives += 1
                listened = await self._follow(node, server)
                node.port, node.recording = 0, False
                code = await server.wait()
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
        """Note what it says, to its end; whether it came to listen."""
        listened = False
        for number in itertools.count():
            line = await server.err.line(number)
            if line is None:
                break
            said = json_object(line)
            match said.get("event"):
                case "listening":
                    node.port, listened = said["port"], True
                case "recording" | "recording again":
                    node.recording = True
                case "recording interrupted" | "the lease was lost: another server may record":
                    node.recording = False
                case _:
                    continue
            self._tell()
        return listened

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def listens(node: Node) -> bool:
    """Whether it takes connections."""
    return node.port != 0


def records(node: Node) -> bool:
    """Whether it says that it records."""
    return node.recording
