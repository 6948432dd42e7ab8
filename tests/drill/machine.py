"""Whether this machine is ours while something is measured: what else runs on it makes figures mean nothing."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define

from tests.drill.nodes import ROOT
from tests.processes import Program, running

LATE_MS_MAX, DISK_MS_MAX = 5, 20
"""Where a process that does nothing wakes up later, or waits longer for the disk, the machine is not ours."""


@define
class Machine:
    """What an idle process has found, once it has ended: ``late_ms`` and ``disk_ms``, see ``idler``."""

    late_ms: float = 0
    disk_ms: float = 0

    def calm(self, times: float = 1) -> bool:
        """Whether targets are to be met. ``times``: how much more is allowed, where seconds are the subject."""
        return self.late_ms <= LATE_MS_MAX * times and self.disk_ms <= DISK_MS_MAX * times

    def __str__(self) -> str:
        """For who reads what a drill has found."""
        return f"an idle process woke up {self.late_ms} ms late, and waited {self.disk_ms} ms for the disk (p99)"


@asynccontextmanager
async def watched(folder: Path) -> AsyncGenerator[Machine]:
    """An idle process beside the block, which ends with it."""
    machine = Machine()
    async with running(
        Program, [sys.executable, "-m", "tests.drill.idler", str(folder / "idler")], folder=ROOT
    ) as idler:
        yield machine
        assert await idler.terminate() == 0, idler.err.all
    found = json.loads(idler.out.all[-1])
    machine.late_ms, machine.disk_ms = found["late_ms"], found["disk_ms"]
