"""The latency of commits at a steady rate, and the cost of an idle server.

The writer is a separate process, because in the client's interpreter it would delay the client. It writes the time of
the insert into each row and commits on a schedule; a commit that takes longer delays the next ones.
"""

import gc
import os
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import trio

from airy_trio.database import POSTGRES
from airy_trio.testing.client import StompClient, connect
from bench.application import Database
from bench.deployed import Measured, Sizes
from bench.processes import ROOT
from bench.targets import Row
from tests.e2e.route import event_of
from tests.processes import Server

HOST: Final = "127.0.0.1"
RATES: Final = (10, 100, 1000)
FRAMES_S: Final = 30.0
"""How long the client waits for the last frame."""
BOUNDS: Final = {POSTGRES: (3.5, 8), "sqlite": (2.5, 8)}
"""The maximum latency in milliseconds at p50 and p99, at any rate."""


async def measure(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    """Commit at each rate, and then nothing for a while."""
    gc.freeze()  # a collection of all that is imported takes 100 ms, which would count as latency
    for rate in RATES:
        before = _cpu_s(listening.process.pid)
        begun_at = time.monotonic()
        taken = await _commits(database, listening, rate, sizes.rate_s)
        share = (_cpu_s(listening.process.pid) - before) / (time.monotonic() - begun_at)
        _add(database, rate, taken, share, measured)
    before, wake_ups = _cpu_s(listening.process.pid), _wake_ups(listening.process.pid)
    await trio.sleep(sizes.idle_s)
    share = (_cpu_s(listening.process.pid) - before) / sizes.idle_s
    per_s = (_wake_ups(listening.process.pid) - wake_ups) / sizes.idle_s
    title = f"{database.name}: an idle server, of a core"
    note = f"{per_s:.0f} wake-ups/s"
    measured.add(Row(title=title, bound=1, value=100 * share, unit=" %", more_is_worse=True, note=note))


async def _commits(database: Database, listening: Server, rate: int, seconds: float) -> list[float]:
    """Return the milliseconds of each commit."""
    count = int(rate * seconds)
    async with await connect(HOST, listening.port) as client:
        await client.subscribe("/events/tag.updated", headers=[("replay", "none")])
        command = [sys.executable, "-m", "bench.rates", database.url, str(rate), str(count)]
        taken: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.run_process, command, cwd=ROOT))
            with trio.fail_after(seconds + FRAMES_S):
                while len(taken) < count:
                    taken.append(await _taken(client))
        return taken


async def _taken(client: StompClient) -> float:
    frame = await client.receive()
    arrived_at = time.monotonic()
    return (arrived_at - float(event_of(frame).payload["name"])) * 1000


def _add(database: Database, rate: int, taken: list[float], share: float, measured: Measured) -> None:
    p50, p99 = median(taken), quantiles(taken, n=100)[98]
    title = f"{database.name}: commit to client at {rate} commits/s"
    p50_max, p99_max = BOUNDS[database.dialect]
    note = f"{100 * share:.0f} % of a core"
    measured.add(Row(title=f"{title}, p50", bound=p50_max, value=p50, unit=" ms", more_is_worse=True, note=note))
    measured.add(Row(title=f"{title}, p99", bound=p99_max, value=p99, unit=" ms", more_is_worse=True))


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process and all its threads."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wake_ups(pid: int) -> int:
    """Return how often the main thread of a process has waited since its start."""
    status = _read(Path(f"/proc/{pid}/status"))
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii")


def write(url: str, rate: int, count: int) -> None:
    """Insert ``count`` tags, ``rate`` a second; the name of each is the time of its insert."""
    with Database("", url).tagging() as tagging:
        tagging.wait_for_no_disk()
        gc.freeze()
        begun_at = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begun_at + number / rate - time.monotonic()))
            tagging.write_timed(f"{rate}-{number}")


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
