"""The processes of one measurement: a server, and the load client, which reports its progress to the producer.

Both end by themselves: the load client after its time, the server when the pipe is closed. If not, they are killed.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import define, frozen

from bench.pace import Pace

BUILT: Final = Path(__file__).with_name("build")
ROOT: Final = Path(__file__).parent.parent
START_TIMEOUT_S: Final = 20.0
CONNECT_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 15.0
LOAD_TIMEOUT_S: Final = 120.0
FAULTS: Final = ("gaps", "duplicates", "malformed", "foreign_epochs", "errors", "lost")

Figures = Mapping[str, float]
"""The figures that the load client prints (``load.c``), and ``faults``: the sum of all faults."""


@frozen
class Contender:
    """A server to be measured, and how it is started."""

    name: str
    command: tuple[str, ...]
    python: bool = True

    def arguments(self, pace: Pace, more: Sequence[str] = ()) -> list[str]:
        """Return the complete command line."""
        alone = ["--alone"] if self.python and pace.alone else []
        return [*self.command, *pace.arguments(), *alone, *more]


LIMIT: Final = Contender("C limit", (str(BUILT / "limit"),), python=False)
AIRY: Final = Contender("airy-trio", (sys.executable, "-m", "bench.server"))
STREAMS: Final = Contender("airy-trio, SSE", AIRY.command)
PEER: Final = Contender("websockets", (sys.executable, "-m", "bench.peer_websockets"))


class MeasuringFailedError(Exception):
    """A program of the benchmark has failed."""


def measure(
    contender: Contender, pace: Pace, load: Mapping[str, int | str], *, server: Sequence[str] = (), bystanders: int = 0
) -> Figures:
    """Start a server, load it, and return the figures.

    ``bystanders``: how many further clients there are, each on a destination where nothing happens. Raises
    ``MeasuringFailedError``.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as progress, _server(contender.arguments(pace, server), reading) as (port, pid):
        address = {"port": port, "server-pid": pid}
        every = max(1, pace.window // 4)
        options = {**address, "progress-fd": writing, "progress-every": every, **load}
        with _bystanders(address, bystanders), loading(options, (writing,)) as client:
            progress.close()  # now only the client has it open, so the server ends with the client
            return client.figures()


@define
class Load:
    """A load client that has connected all its clients."""

    _process: "subprocess.Popen[str]"

    def figures(self) -> Figures:
        """Wait for its end and return its figures. Raises ``MeasuringFailedError``."""
        try:
            printed, _ = self._process.communicate(timeout=LOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise MeasuringFailedError("the load client did not end") from None
        if self._process.returncode:
            raise MeasuringFailedError(f"the load client failed ({self._process.returncode})")
        figures: dict[str, float] = json.loads(printed)
        return {**figures, "faults": sum(figures[name] for name in FAULTS)}


@contextmanager
def loading(options: Mapping[str, int | str], pass_fds: Sequence[int] = (), *, quiet: bool = False) -> Iterator[Load]:
    """Start the load client (options of ``load.c``) and wait until it has connected; end it with the block.

    ``quiet``: the first faults are only counted, not also shown on stderr. Raises ``MeasuringFailedError``.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [str(BUILT / "load"), "--announce", "1", *words]
    process = subprocess.Popen(
        command, pass_fds=pass_fds, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if quiet else None, text=True
    )
    try:
        if _first_line(process, CONNECT_TIMEOUT_S) != "connected":
            raise MeasuringFailedError("the load client could not connect")
        yield Load(process)
    finally:
        process.kill()
        _close(process)


@contextmanager
def _server(command: Sequence[str], stdin: int) -> Iterator[tuple[int, int]]:
    """Start a server with this standard input, which is closed here; yield its port and process id."""
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(stdin)
    try:
        line = _first_line(process, START_TIMEOUT_S)
        if not line.isdigit():
            raise MeasuringFailedError(f"the server did not start: {' '.join(command)}")
        yield int(line), process.pid
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print(f"killed: {' '.join(command)}", file=sys.stderr)
    finally:
        process.kill()
        _close(process)


@contextmanager
def _bystanders(address: Mapping[str, int], count: int) -> Iterator[None]:
    """Hold further connections, each on its own conversation, until the end of the block."""
    if not count:
        yield
        return
    options: dict[str, int | str] = {
        **address,
        "clients": count,
        "destination": "/events/conversation/bystander-%d",
        "own-destinations": 1,
        "settle-ms": 0,
        "warm-up-ms": 0,
        "measure-ms": int(LOAD_TIMEOUT_S * 1000),
    }
    with loading(options):
        yield


def _first_line(process: "subprocess.Popen[str]", timeout_s: float) -> str:
    """Return the first line that a process prints, without its end; empty if there is none in time."""
    assert process.stdout is not None
    line = b""
    while select.select([process.stdout], [], [], timeout_s)[0]:
        octet = os.read(process.stdout.fileno(), 1)  # one at a time, because ``communicate`` must get the rest
        if octet in (b"\n", b""):
            break
        line += octet
    return line.decode()


def _close(process: "subprocess.Popen[str]") -> None:
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
