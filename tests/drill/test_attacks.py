"""What one hostile client may cost the others: each costly attack by itself, against a fresh server, after some calm.

`make attacks` runs all of them and writes ``bench/ATTACKS.md``; `make attacks ATTACKS=C2,C8` runs some and prints the
table. Without ``ATTACKS`` only a few cheap ones run. Whether honest clients receive everything is always asserted; how
soon, only if nothing else takes much of this machine meanwhile.
"""

import os
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
from attrs import define, field, frozen

from airy_trio.testing.client import Closed, Rejected, StompClient, connect
from bench import report
from tests.application import Application
from tests.certificates import issue, trusting
from tests.drill.attackers import HOST
from tests.drill.attacks import JWT_SECRET, USER
from tests.drill.machine import Machine, watched
from tests.drill.nodes import ROOT
from tests.e2e.route import configure, event_of
from tests.processes import AIRY_TRIO, Lines, Program, Server, free_ports, running

CHOSEN: Final = os.environ.get("ATTACKS", "")
CHEAP: Final = ("C2", "C6", "C8")
HONEST: Final = 20
PAUSE_S: Final = 0.04
"""Between two events."""
CALM_S: Final = 1.5
ATTACKED_S: Final = 4.0
SEEN_EVERY_S: Final = 0.25
PROBE_TIMEOUT_S: Final = 1.0
END_S: Final = 8.0
START_S: Final = 20.0
SLOW_MS_MAX, SLOW_TIMES_MAX = 100, 5
HOSTILE_KIB_MAX: Final = 256
SLACK_KIB: Final = 8 * 1024
"""For the allocator, and what the server keeps for all connections together."""
TOKENS: Final = f'[auth]\nmode = "tokens"\ntokens = {{ user = "{USER}" }}\n'
JWT: Final = f'[auth]\nmode = "jwt"\njwt_key = "{JWT_SECRET}"\njwt_algorithms = ["HS256"]\njwt_require_exp = false\n'
SMALL_TAIL: Final = "[log]\ntail_events = 1000\n"
FILL: Final = """
    with recursive n(i) as (select 1 union all select i + 1 from n where i < :count)
    insert into messages (id, conversation_id, channel_id, content, delivery_state, from_contact, sent_at, source)
    select 'old-' || i, 'c' || (i % 50), 'busy', 'text', 'pending', true, '2020-10-25T21:24:54.560Z', 'facebook' from n
"""
FILES_MAX: Final = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")
BUSY: Final = "times not judged: the machine was busy"
RESULTS: Final = ROOT / "bench" / "ATTACKS.md"
TITLES: Final = (
    "attack",
    "calm, p50 / p99 ms",
    "attacked, p50 / p99 ms",
    "clients that received everything",
    "KiB a hostile connection",
    "`/livez` answers",
    "also",
    "",
)


@frozen
class Case:
    """One attack, named in ``tests.drill.attacks.COSTLY``, and the server that it needs."""

    id: str
    attack: str
    what: str
    connections: int
    listener: str = ""
    more: str = ""
    auth: str = TOKENS
    workers: int = 1
    old_events: int = 0
    per_address: int = 50
    pause_s: float = PAUSE_S
    tls: bool = False
    admin: bool = False
    command: Sequence[str] = AIRY_TRIO
    reads_stderr: bool = True

    def __str__(self) -> str:
        return f"{self.id} {self.what}"


CASES: Final = (
    Case("C1", "replays_of_a_quiet_channel", "8 replays of a quiet channel each, `workers = 2`", 100, workers=2,
         old_events=20_000, more=SMALL_TAIL),
    Case("C2", "acknowledgements_with_long_ids", "400 ACKs in a transaction, each with an id of 8,000 octets", 20),
    Case("C3", "comes_and_goes", "clients that come and go, and nobody reads stderr", 50, reads_stderr=False),
    Case("C4", "key_updates", "TLS: KeyUpdates without content", 4, tls=True),
    Case("C4", "replayed_hellos", "TLS: one ClientHello replayed", 20, tls=True),
    Case("C5", "holds_a_place", "more connections than file descriptors (128)", 300,
         command=(*FILES_MAX, *AIRY_TRIO)),
    Case("C6", "small_control_frames", "759 KiB of small PINGs or PONGs", 4),
    Case("C7", "subscribes_over_a_hot_tail", "SUBSCRIBE over a tail of 20,000 events", 20, old_events=20_000),
    Case("C8", "long_names", "16 ids and destinations of 8,000 octets each", 100),
    Case("C9", "vanishes", "clients of one address that vanish, in all its places", 50,
         listener="connections_per_address_max = 50\nheartbeat_ms = 500\n"),
    Case("C10", "subscribes_many_times", "16 subscriptions each, of one address", 190, per_address=200, pause_s=0.1),
    Case("C11", "costly_pages", "the admin port: slow requests, HTTP/2, the largest page", 60, admin=True),
    Case("C12", "one_octet_and_reset", "connect, one octet, reset", 50),
    Case("C13", "resumes_from_old_positions", "each resumes from an old position of its own", 300, old_events=20_000,
         more=SMALL_TAIL),
    Case("C13", "takes_and_leaves_durables", "durable subscriptions taken and left", 20),
    Case("C14", "wide_windows", "15 × `prefetch-count:10000`, never acknowledged", 6, old_events=10_000),
    Case("C15", "sends_after_the_end", "100,000 frames after the end of the session", 10),
    Case("C15", "head_octet_by_octet", "the head of the request octet by octet", 20),
    Case("C15", "channel_that_is_no_text", "a token with a channel that is a lone surrogate", 5, auth=JWT),
)  # fmt: skip


def chosen() -> list[Case]:
    ids = CHOSEN.split(",") if CHOSEN else CHEAP
    return [case for case in CASES if case.id in ids or ids == ["all"]]


class Unread(Lines):
    """A pipe that is open and never read."""

    async def read(self, pipe: trio.abc.ReceiveStream) -> None:
        async with pipe:
            await trio.sleep_forever()


@define
class SilentServer(Server):
    """A server whose stderr is not read."""

    err: Lines = field(factory=Unread)


@define
class Honest:
    """A client that reads the tags that come. ``faults``: why it stopped before the last."""

    client: StompClient
    came_at: dict[int, float] = field(factory=dict)
    order: list[int] = field(factory=list)
    fault: str = ""
    stopped: trio.Event = field(factory=trio.Event)

    async def read(self, last: list[int]) -> None:
        """Read until the last tag, whose number is known only at the end."""
        try:
            while not last or not self.order or self.order[-1] < last[0]:
                event = event_of(await self.client.receive())
                if event.type == "tag.updated":
                    number = int(event.payload["id"])
                    self.order.append(number)
                    self.came_at[number] = time.monotonic()
        except (OSError, Closed, trio.BrokenResourceError) as exception:
            self.fault = repr(exception)
        finally:
            self.stopped.set()


@define
class Seen:
    """What is seen of one case, calm and attacked."""

    written: int = 0
    committed_at: dict[int, float] = field(factory=dict)
    last: list[int] = field(factory=list)
    calm_until: int = 0
    kib: list[int] = field(factory=list)
    calm_kib: int = 0
    probes: int = 0
    answers: int = 0
    page: str = ""
    newcomer: str = ""
    log_lines: int = 0
    ended: str = ""

    async def write(self, application: Application, pause_s: float) -> None:
        """Change a tag now and then, until cancelled. A commit that has begun is finished."""
        while True:
            await trio.to_thread.run_sync(self.commit, application)
            await trio.sleep(pause_s)

    def commit(self, application: Application) -> None:
        number = self.written + 1
        self.committed_at[number] = time.monotonic()
        application.tag(str(number), "flag")
        self.committed_at[number] = time.monotonic()
        self.written = number

    async def probe(self, serving: Server, admin_port: int) -> None:
        """Ask for `/livez` and the server's memory again and again, until cancelled."""
        while True:
            self.kib.append(await resident_kib(serving))
            self.probes += 1
            self.answers += (await page(admin_port, "/livez"))[0] == 200
            await trio.sleep(SEEN_EVERY_S)


@frozen
class Row:
    """One line of the table."""

    case: Case
    calm_ms: tuple[float, float]
    attacked_ms: tuple[float, float]
    received: int
    hostile_kib: float
    seen: Seen
    machine: Machine

    def failures(self) -> list[str]:
        """What does not hold; what depends on speed only on a calm machine."""
        p99_max = max(SLOW_MS_MAX, SLOW_TIMES_MAX * self.calm_ms[1])
        late = self.attacked_ms[1] > p99_max and self.machine.calm()
        large = self.hostile_kib > HOSTILE_KIB_MAX
        return [
            *([f"{HONEST - self.received} of {HONEST} honest clients missed events"] if self.received < HONEST else []),
            *([f"p99 {self.attacked_ms[1]:.0f} ms, more than {p99_max:.0f} ms"] if late else []),
            *([f"{self.hostile_kib:.0f} KiB a hostile connection"] if large else []),
            *([self.seen.ended] if not self.seen.ended.startswith("ended with 0 ") else []),
        ]

    def cells(self) -> tuple[str, ...]:
        also = (self.seen.page, f"newcomer: {self.seen.newcomer}", f"{self.seen.log_lines} log lines", self.seen.ended)
        verdict = "; ".join(self.failures()) or ("met" if self.machine.calm() else BUSY)
        return (
            str(self.case),
            " / ".join(f"{figure:.1f}" for figure in self.calm_ms),
            " / ".join(f"{figure:.1f}" for figure in self.attacked_ms),
            f"{self.received} of {HONEST}",
            f"{self.hostile_kib:.0f}",
            f"{self.seen.answers} of {self.seen.probes}",
            "; ".join(filter(None, also)),
            verdict,
        )


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """The lines of the table, which is printed at the end, and written if it is complete."""
    loads = [os.getloadavg()[0]]
    found: list[Row] = []
    yield found
    loads.append(os.getloadavg()[0])
    lines = report.table(TITLES, [row.cells() for row in found])
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    if CHOSEN == "all":
        RESULTS.write_text(ABOUT + "\n".join([*report.machine(loads), "", *lines, ""]), encoding="utf-8")


ABOUT: Final = f"""\
# What one hostile client may cost the others

`make attacks`. Each attack runs for {ATTACKED_S:g} s against a fresh server on SQLite, after {CALM_S:g} s of calm.

- {HONEST} honest clients receive some {1 / PAUSE_S:.0f} events a second. Times are from the commit to the client.
  An event that never came counts until the end.
- Memory is the most that the server grew under attack beyond {SLACK_KIB // 1024} MiB for all, divided by the number
  of hostile connections.
- A newcomer comes from the attackers' address.
- Targets: p99 under attack at most {SLOW_MS_MAX} ms, or {SLOW_TIMES_MAX} times that of calm;
  at most {HOSTILE_KIB_MAX} KiB a hostile connection; honest clients receive everything; SIGTERM ends the server.

"""


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(), ids=lambda case: f"{case.id}-{case.attack}")
async def test_honest_clients_are_served_under_a_costly_attack(
    case: Case, rows: list[Row], sqlite_application: Application, tmp_path: Path
) -> None:
    port = free_ports(5)
    config, tls = prepare(case, sqlite_application, tmp_path, port)
    seen, honest = Seen(), list[Honest]()
    with trio.fail_after(START_S + CALM_S + ATTACKED_S + 3 * END_S):
        async with started(case, config, port) as serving, AsyncExitStack() as stack, trio.open_nursery() as nursery:
            await caught_up(sqlite_application, port, tls)
            for _ in range(HONEST):
                client = await connect(HOST, port, headers=(("passcode", USER),), tls=tls)
                honest.append(Honest(await stack.enter_async_context(client)))
                await client.subscribe(headers=[("replay", "none")])
                nursery.start_soon(honest[-1].read, seen.last)
            async with watched(tmp_path) as machine, trio.open_nursery() as measuring:
                measuring.start_soon(seen.write, sqlite_application, case.pause_s)
                await trio.sleep(CALM_S)
                seen.calm_until, seen.calm_kib = seen.written, await resident_kib(serving)
                await attack(case, seen, serving, port, tls)
                measuring.cancel_scope.cancel()
            await end(seen, honest, sqlite_application)
            seen.log_lines = len(serving.err.all)
            seen.ended = await ended(serving)
            nursery.cancel_scope.cancel()
    rows.append(row_of(case, seen, honest, machine))
    assert rows[-1].failures() == []


def prepare(case: Case, application: Application, folder: Path, port: int) -> tuple[Path, ssl.SSLContext | None]:
    """Write the settings, and the old events. With TLS: what clients need."""
    config = configure(application, folder, port=port, workers=case.workers)
    listener = (issue(folder).listener if case.tls else "") + case.listener
    text = config.read_text().replace("[admin]\nport = 0\n", f"{listener}[admin]\nport = {port + 1}\n")
    config.write_text(f"{text}{case.more}{case.auth}")
    if case.old_events:
        application.execute(FILL, count=case.old_events)
    return config, trusting() if case.tls else None


@asynccontextmanager
async def started(case: Case, config: Path, port: int) -> AsyncGenerator[Server]:
    """Start the server and return once it is ready."""
    kind = Server if case.reads_stderr else SilentServer
    async with running(kind, [*case.command, "--config", str(config)], folder=ROOT) as serving:
        with trio.fail_after(START_S):
            while (await page(port + 1, "/readyz"))[0] != 200:
                assert serving.process.poll() is None, serving.err.all
                await trio.sleep(0.05)
        yield serving


async def caught_up(application: Application, port: int, tls: ssl.SSLContext | None) -> None:
    """Return once the server has sent an event that was written after all others."""
    with trio.fail_after(START_S):
        async with await connect(HOST, port, headers=(("passcode", USER),), tls=tls) as client:
            await client.subscribe(headers=[("replay", "none")])
            application.tag("marker", "flag")
            while event_of(await client.receive()).payload.get("id") != "marker":
                pass


async def attack(case: Case, seen: Seen, serving: Server, port: int, tls: ssl.SSLContext | None) -> None:
    """Attack for a while, and look at the admin port meanwhile; near the end a newcomer tries to come in."""
    target = port + 1 if case.admin else port
    arguments = (str(target), "1", str(case.connections), str(case.per_address), case.attack)
    command = [sys.executable, "-m", "tests.drill.attackers", *arguments]
    async with running(Program, command, folder=ROOT) as attackers, trio.open_nursery() as nursery:
        assert await attackers.out.line(0) == "begun"
        nursery.start_soon(seen.probe, serving, port + 1)
        await trio.sleep(ATTACKED_S - 2 * PROBE_TIMEOUT_S)
        async with trio.open_nursery() as at_the_end:
            at_the_end.start_soon(trio.sleep, 2 * PROBE_TIMEOUT_S)
            status, size = await page(port + 1, "/api/connections")
            seen.page = f"`/api/connections` {status or 'silent'}, {size / 1024:.0f} KiB"
            seen.newcomer = await newcomer(port, tls)
        nursery.cancel_scope.cancel()
        attackers.process.kill()


async def newcomer(port: int, tls: ssl.SSLContext | None) -> str:
    """How a client of the attackers' address comes in."""
    begun_at = trio.current_time()
    with trio.move_on_after(PROBE_TIMEOUT_S):
        try:
            stream: trio.abc.Stream = await trio.open_tcp_stream(HOST, port, local_address="127.0.1.1")
            if tls is not None:
                stream = trio.SSLStream(stream, tls, server_hostname=HOST)
            async with StompClient(stream) as client:
                await client.upgrade()
                await client.connect(headers=(("passcode", USER),))
        except (OSError, Closed, Rejected, trio.BrokenResourceError) as exception:
            return f"refused ({type(exception).__name__})"
        return f"in after {(trio.current_time() - begun_at) * 1000:.0f} ms"
    return f"not in after {PROBE_TIMEOUT_S:g} s"


async def page(port: int, path: str) -> tuple[int, int]:
    """The status and the size of a page of the admin port; zeros without an answer in time."""
    data = b""
    with trio.move_on_after(PROBE_TIMEOUT_S) as timeout:
        try:
            async with await trio.open_tcp_stream(HOST, port) as stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                async for more in stream:
                    data += more
        except (OSError, trio.BrokenResourceError):
            return 0, 0
    return (0, 0) if timeout.cancelled_caught or not data else (int(data[9:12]), len(data))


async def resident_kib(serving: Server) -> int:
    """The resident memory of the server and its workers."""
    pid = str(serving.process.pid)
    found = await trio.run_process(["ps", "-o", "rss=", "-p", pid, "--ppid", pid], capture_stdout=True, check=False)
    return sum(map(int, found.stdout.split()))


async def end(seen: Seen, honest: Sequence[Honest], application: Application) -> None:
    """Write the last event, and wait until honest clients have it, or for some seconds."""
    seen.last.append(seen.written + 1)
    await trio.to_thread.run_sync(seen.commit, application)
    with trio.move_on_after(END_S):
        for one in honest:
            await one.stopped.wait()


async def ended(serving: Server) -> str:
    """How the server ends on SIGTERM."""
    begun_at = trio.current_time()
    serving.process.terminate()
    with trio.move_on_after(END_S):
        code = await serving.process.wait()
        return f"ended with {code} in {trio.current_time() - begun_at:.1f} s"
    return f"did not end in {END_S:g} s"


def row_of(case: Case, seen: Seen, honest: Sequence[Honest], machine: Machine) -> Row:
    now = time.monotonic()

    def latencies(numbers: range) -> tuple[float, float]:
        late = sorted(
            max(0.0, one.came_at.get(number, now) - seen.committed_at[number]) for one in honest for number in numbers
        )
        return late[len(late) // 2] * 1000, late[int(len(late) * 0.99)] * 1000

    grown_kib = max([*seen.kib, seen.calm_kib]) - seen.calm_kib
    return Row(
        case,
        latencies(range(1, seen.calm_until + 1)),
        latencies(range(seen.calm_until + 1, seen.written + 1)),
        sum(one.order == list(range(1, seen.written + 1)) for one in honest),
        max(0, grown_kib - SLACK_KIB) / case.connections,
        seen,
        machine,
    )
