"""The latency of single commits on an idle server: from the sending of COMMIT to the frame at a client.

A frame has arrived when the client has read its octets. The time for decoding it is reported separately, because this
client is written in Python and is slow after a pause, like all code that seldom runs.
"""

import itertools
import time
from statistics import median, quantiles
from typing import Final

import trio

from airy_trio.database import POSTGRES
from airy_trio.testing.client import StompClient, connect
from bench.application import Database, Tagging
from bench.deployed import Measured, Sizes
from bench.targets import Row
from tests.processes import Server

HOST: Final = "127.0.0.1"
IDLE_PAUSE_S: Final = 0.02
SETTLED_PAUSE_S: Final = 1.0
FRAME_TIMEOUT_S: Final = 10.0


class _TimedStream(trio.abc.Stream):
    """A stream that records when it was last read (``time.monotonic``)."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.read_at = 0.0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        received = await self._stream.receive_some(max_bytes)
        self.read_at = time.monotonic()
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def measure(database: Database, listening: Server, sizes: Sizes, measured: Measured) -> None:
    """Commit after short pauses, and after some long ones, in which a polling server would have slowed down.

    A disk has slow phases of seconds, so the figures are medians of several rounds.
    """
    rounds, slow = [], []
    async with await connect(HOST, listening.port) as client:
        client.stream = stream = _TimedStream(client.stream)
        await client.subscribe("/events/tag.updated", headers=[("replay", "none")])
        with database.tagging() as tagging:
            for number in range(sizes.commit_rounds):
                first = number * sizes.commits
                every = range(first, first + sizes.commits)
                rounds.append([await _commit(client, stream, tagging, n, IDLE_PAUSE_S) for n in every])
                first = -1 - number * sizes.settled
                every = range(first, first - sizes.settled, -1)
                slow += [await _commit(client, stream, tagging, n, SETTLED_PAUSE_S) for n in every]
    arrived = [[arrived_ms for _, arrived_ms, _ in taken] for taken in rounds]
    committed, _, decoded = (median(values) for values in zip(*itertools.chain(*rounds), strict=True))
    bounds = (3, 10) if database.dialect == POSTGRES else (2.5, 8)
    shares = {"p50": [median(taken) for taken in arrived], "p99": [quantiles(taken, n=100)[98] for taken in arrived]}
    notes = f"; of these the COMMIT {committed:.2f} ms; {decoded:.2f} ms more until our client has read it", ""
    for (share, values), bound, note in zip(shares.items(), bounds, notes, strict=True):
        title = f"{database.name}: commit to frame at a client, idle, {share}"
        note_of_all = f"{min(values):.2f} to {max(values):.2f}{note}"
        measured.add(
            Row(title=title, bound=bound, value=median(values), unit=" ms", more_is_worse=True, note=note_of_all)
        )
    after = median(arrived_ms for _, arrived_ms, _ in slow)
    measured.note(
        f"{database.name}: after {SETTLED_PAUSE_S:.0f} s without a commit {after:.2f} ms, median of {len(slow)}"
    )


async def _commit(
    client: StompClient, stream: _TimedStream, tagging: Tagging, number: int, pause_s: float
) -> tuple[float, float, float]:
    """Pause and commit; return three times in milliseconds.

    They are: of the COMMIT, from its begin until the frame arrived, and from then until the frame was decoded.
    """
    await trio.sleep(pause_s)
    committing_at, committed_at = tagging.write(f"t{number}")
    with trio.fail_after(FRAME_TIMEOUT_S):
        await client.receive()
    decoded_at = time.monotonic()
    parts = committed_at - committing_at, stream.read_at - committing_at, decoded_at - stream.read_at
    committed_ms, arrived_ms, decoded_ms = (part * 1000 for part in parts)
    return committed_ms, arrived_ms, decoded_ms
