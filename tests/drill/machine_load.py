"""Detect whether the machine was idle during a measurement: other programs make the figures meaningless."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define

from tests.drill.nodes import ROOT
from tests.processes import Program, running

LATE_MS_MAX, DISK_MS_MAX = 5, 20
"""If an idle process wakes up later, or waits longer for the disk, the machine is busy."""


@define
class Machine:
    """The measurements of ``idler``, complete once it has ended."""

    late_ms: float = 0
    disk_ms: float = 0

    def calm(self, times: float = 1) -> bool:
        """Return whether targets must be met. ``times``: a factor for the limits, if the targets are in seconds."""
        return self.late_ms <= LATE_MS_MAX * times and self.disk_ms <= DISK_MS_MAX * times

    def __str__(self) -> str:
        """Return a phrase for the report of a drill."""
        return f"an idle process woke up {self.late_ms} ms late, and waited {self.disk_ms} ms for the disk (p99)"


@asynccontextmanager
async def watched(folder: Path) -> AsyncGenerator[Machine]:
    """Measure during the block."""
    machine = Machine()
    async with running(
        Program, [sys.executable, "-m", "tests.drill.idler", str(folder / "idler")], folder=ROOT
    ) as idler:
        yield machine
        assert await idler.terminate() == 0, idler.err.all
    found = json.loads(idler.out.all[-1])
    machine.late_ms, machine.disk_ms = found["late_ms"], found["disk_ms"]
