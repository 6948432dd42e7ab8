"""A server with a crowd of clients for a while: the writer, samples of the server, and the outcome."""

import os
import threading
from functools import partial
from pathlib import Path
from statistics import mean

import sqlalchemy as sa
import trio
from attrs import define, field, frozen

from tests.application import MESSAGE, Application
from tests.drill.crowd import CHANNEL, CONVERSATIONS, END_OF, Member, members
from tests.e2e.route import END, HOST, listening
from tests.processes import Server

SAMPLE_S = 0.5
WRITE_EVERY_S = 0.02
SEND_TIMEOUT_S = 3
SETTLE_S = 20.0
SETTINGS = f"""\
[log]
tail_events = 1000
[listener]
port = 0
send_timeout_s = {SEND_TIMEOUT_S}
connections_per_address_max = 1000
[admin]
port = {{admin_port}}
[logging]
format = "json"
"""
_INSERT = (
    "insert into messages (id, conversation_id, channel_id, content, delivery_state, from_contact, sent_at, source, "
    f"sender_id) values (:id, :conversation, '{CHANNEL}', :content, 'pending', true, '{MESSAGE['sent_at']}', "
    "'chat', 'x')"
)
_UPDATE = "update messages set delivery_state = 'delivered' where id = :id"
_TAG = "insert into tags (id, name, color) values (:id, 'flag', 'red')"


@frozen(kw_only=True)
class Roles:
    """The number of clients of each kind."""

    reading: int
    slow: int
    dead: int
    passing: int


@frozen(kw_only=True)
class Sample:
    """The server's process at one moment."""

    rss_bytes: int
    files: int


@define
class Outcome:
    """The result of a soak. ``before`` and ``after``: the metrics without any client."""

    crowd: list[Member]
    dead: list[Member]
    before: dict[str, float]
    after: dict[str, float]
    samples: list[Sample] = field(factory=list)

    @property
    def growth_bytes(self) -> float:
        """The growth of memory from the mean of the second quarter to that of the last."""
        quarter = max(1, len(self.samples) // 4)
        second, last = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return mean(one.rss_bytes for one in last) - mean(one.rss_bytes for one in second)


class Writing:
    """The application, in a thread: it commits single messages and tags at a steady pace."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._stop = threading.Event()
        self.transactions = 0

    async def run(self) -> None:
        """Write until ``stop``, then the last row of every conversation, and ``END``."""
        await trio.to_thread.run_sync(self._write, abandon_on_cancel=True)

    def stop(self) -> None:
        self._stop.set()

    def _write(self) -> None:
        while not self._stop.wait(WRITE_EVERY_S):
            self.transactions += 1
            number = self.transactions
            with self._application.engine.begin() as connection:
                message = {
                    "id": f"m{number}",
                    "conversation": f"c{number % CONVERSATIONS}",
                    "content": _content(number),
                }
                connection.execute(sa.text(_INSERT), message)
                if number > 1:
                    connection.execute(sa.text(_UPDATE), {"id": f"m{number - 1}"})
                if number % 5 == 0:
                    connection.execute(sa.text(_TAG), {"id": f"t{number}"})
        with self._application.engine.begin() as connection:
            for number in range(CONVERSATIONS):
                last = {"id": f"{END_OF}{number}", "conversation": f"c{number}", "content": _content(0)}
                connection.execute(sa.text(_INSERT), last)
            connection.execute(sa.text(_TAG), {"id": END})


def _content(number: int) -> str:
    return f'{{"text": "{"x" * (100 + number % 400)}"}}'


async def soak(server: Server, admin_port: int, application: Application, roles: Roles, seconds: float) -> Outcome:
    """Write for a while with the crowd connected, and wait until all clients have all events and are disconnected."""
    async with listening(server):
        pass  # allocations for the first client are not a leak
    before = await settled(admin_port)
    crowd = members(server.port, roles.reading + roles.slow + roles.passing, seed=7)
    dead = members(server.port, roles.dead, seed=8)
    outcome = Outcome(crowd, dead, before, before)
    writing, fast = Writing(application), trio.Event()
    async with trio.open_nursery() as watching:
        watching.start_soon(_sample, server.process.pid, outcome.samples)
        for member in dead:
            watching.start_soon(member.never_read)
        async with trio.open_nursery() as reading:
            for number, member in enumerate(crowd):
                if number < roles.reading:
                    reading.start_soon(member.stay)
                elif number < roles.reading + roles.slow:
                    reading.start_soon(partial(member.stay, slow=fast))
                else:
                    reading.start_soon(member.come_and_go)
            reading.start_soon(writing.run)
            await trio.sleep(seconds)
            writing.stop()
            fast.set()
        watching.cancel_scope.cancel()
    outcome.after = await settled(admin_port)
    return outcome


async def _sample(pid: int, samples: list[Sample]) -> None:
    while True:
        samples.append(_sample_of(pid))
        await trio.sleep(SAMPLE_S)


def _sample_of(pid: int) -> Sample:
    """Read a sample of the process from the kernel (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Sample(rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"), files=files)


async def settled(admin_port: int) -> dict[str, float]:
    """Return the metrics, once they show no connection."""
    with trio.fail_after(SETTLE_S):
        while (found := await scrape(admin_port))["airy_trio_connections"]:  # noqa: ASYNC110 - of another process
            await trio.sleep(SAMPLE_S)
    return found


async def scrape(admin_port: int) -> dict[str, float]:
    """Return the values of ``/metrics``, by name with labels."""
    async with await trio.open_tcp_stream(HOST, admin_port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join([data async for data in stream]).decode()
    lines = [line for line in answer.splitlines() if line.startswith(("airy_trio_", "process_"))]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
