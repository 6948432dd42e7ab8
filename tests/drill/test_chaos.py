"""The chaos drill: despite hundreds of hostile connections, a hundred honest clients receive everything soon.

Three servers are attacked, one after another: a single one, one with workers, one with TLS. If other programs use much
of this machine or its disk meanwhile, latency is printed and not judged.
"""

import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
import trio
from attrs import define, field, frozen

from airy_trio.testing.client import StompClient, connect
from tests.application import Application
from tests.drill.attacked_server import CREDENTIALS, SMALL_TAIL, Arrangement, caught_up, resident_kib
from tests.drill.attackers import CRUDE, PER_ADDRESS
from tests.drill.machine_load import Machine, watched
from tests.drill.nodes import ROOT
from tests.drill.progress import progress_bar
from tests.e2e.route import HOST, event_of
from tests.processes import Program, Server, free_ports, json_object, running

SECONDS = float(os.environ.get("CHAOS_SECONDS", "12"))
HONEST = 100
PAUSE_S = 0.1
"""The pause between two events."""
CALM_S = 3.0
"""The time before the first attack."""
WARM_S = 3.0
CONNECT_S = 10.0
END_S = 60.0
GROWTH_BYTES_MAX = 96 * 1024 * 1024
"""The limit for all hostile connections together, with the data that each may send before it is closed."""
HOSTILE_BYTES_MAX, SLACK_BYTES = 256 * 1024, 16 * 1024 * 1024
"""The limits for each connection, and for the allocators of up to three processes."""
SEED = 7
TARGET_MS, TARGET_FROM_S = 100, 60
"""The target applies to long attacks, as in ``make chaos``. In a short one the attackers connect most of the time."""
SHORT_MS_MAX = 1000
LISTENER = "send_timeout_s = 2\nconnect_timeout_s = 5\n"


@frozen
class Chosen:
    """A server, the number of connections that attack it, and the attacks: names for ``tests.drill.attackers``."""

    arranged: Arrangement
    connections: int
    attacks: Sequence[str]


CHOSEN = {
    "alone": Chosen(Arrangement(LISTENER), 500, [*CRUDE, "small_control_frames", "long_names", "vanishes"]),
    "workers": Chosen(
        Arrangement(LISTENER, SMALL_TAIL, workers=2, old_events=20_000, reads_stderr=False),
        200,
        [*CRUDE, "vanishes", "comes_and_goes", *["replays_of_a_quiet_channel"] * len(CRUDE)],
    ),
    "tls": Chosen(
        Arrangement(LISTENER, tls=True),
        100,
        ["key_updates", "replayed_hellos", "silence", "request_without_end", "garbage_for_a_request"],
    ),
}
"""Hostile clients of every kind. With workers, half of the attacks are replays and stderr is not read. Also on TLS."""


@define
class Honest:
    """One honest client. ``received_at``: the time of each event."""

    client: StompClient
    numbers: list[int] = field(factory=list)
    received_at: list[float] = field(factory=list)

    def latencies_s(self, committed_at: Mapping[int, float], numbers: range) -> list[float]:
        """Return the latencies of some events, from their commits to the client."""
        received = zip(self.numbers, self.received_at, strict=True)
        return [max(0.0, at - committed_at[number]) for number, at in received if number in numbers]

    async def read(self, last: list[int]) -> None:
        """Read until the last event, which is known only at the end."""
        while not last or not self.numbers or self.numbers[-1] < last[0]:
            payload = event_of(await self.client.receive()).payload
            self.numbers.append(int(payload["id"]))
            self.received_at.append(time.monotonic())


@define
class Chaos:
    """The state of the drill. ``connecting_s``: how long new clients took to connect."""

    application: Application
    port: int
    tls: ssl.SSLContext | None = None
    written: int = 0
    committed_at: dict[int, float] = field(factory=dict)
    last: list[int] = field(factory=list)
    connecting_s: list[float] = field(factory=list)

    async def write(self, until: float) -> None:
        """Change a tag again and again."""
        while trio.current_time() < until:
            await self.write_one()
            await trio.sleep(PAUSE_S)
        self.last.append(self.written + 1)
        await self.write_one()

    async def write_one(self) -> None:
        self.written += 1
        await trio.to_thread.run_sync(self.commit, self.written)

    def commit(self, number: int) -> None:
        """Change a tag, and record the time afterwards: an event may arrive before its commit has returned."""
        self.application.tag(str(number), "flag")
        self.committed_at[number] = time.monotonic()

    async def connect_new_clients(self, until: float) -> None:
        """Connect another honest client every second."""
        while trio.current_time() < until:
            begun_at = trio.current_time()
            with trio.fail_after(CONNECT_S):
                async with await connect(HOST, self.port, headers=CREDENTIALS, tls=self.tls) as client:
                    await client.subscribe()
                    self.connecting_s.append(trio.current_time() - begun_at)
                    await client.disconnect()
            await trio.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(CALM_S + SECONDS + 3 * END_S)
@pytest.mark.parametrize("name", CHOSEN)
async def test_honest_clients_receive_everything_during_attacks(
    name: str, sqlite_application: Application, tmp_path: Path
) -> None:
    chosen, port = CHOSEN[name], free_ports(5)
    config, tls = chosen.arranged.prepare(sqlite_application, tmp_path, port)
    with trio.fail_after(CALM_S + SECONDS + 2 * END_S):
        async with chosen.arranged.started(config, port) as serving, AsyncExitStack() as stack:
            await caught_up(sqlite_application, port, tls)
            chaos = Chaos(sqlite_application, port, tls)
            clients = [await connect(HOST, port, headers=CREDENTIALS, tls=tls) for _ in range(HONEST)]
            honest = [Honest(await stack.enter_async_context(client)) for client in clients]
            for one in honest:
                await one.client.subscribe(headers=[("replay", "none")])
            async with trio.open_nursery() as nursery:
                for one in honest:
                    nursery.start_soon(one.read, chaos.last)
                until = trio.current_time() + CALM_S + SECONDS
                nursery.start_soon(chaos.write, until)
                await trio.sleep(CALM_S)
                calm = chaos.written
                nursery.start_soon(chaos.connect_new_clients, until)
                with progress_bar("chaos", SECONDS):
                    found = await attack(chosen, serving, port, until, tmp_path)
            for one in honest:
                assert one.numbers == list(range(1, chaos.written + 1))
            assert serving.process.poll() is None
            serving.process.terminate()
            assert await serving.process.wait() == 0
            if chosen.arranged.reads_stderr:
                await serving.err.end()
    assert [line for line in serving.err.all if json_object(line).get("level") == "error"] == []
    assert [line for line in serving.err.all if not json_object(line)] == []
    before, meanwhile = (
        [latency for one in honest for latency in one.latencies_s(chaos.committed_at, numbers)]
        for numbers in (range(1, calm), range(calm, chaos.written + 1))
    )
    print_counts(name, chosen, chaos, found)
    sys.stdout.write(
        f"chaos, {name}: commit to client {shown(before)} before, {shown(meanwhile)} under attack "
        f"(p99 target {TARGET_MS}); {found.machine}\n"
    )
    assert found.grown_bytes < min(GROWTH_BYTES_MAX, SLACK_BYTES + chosen.connections * HOSTILE_BYTES_MAX)
    if found.machine.calm():
        assert percentile(meanwhile, 0.99) < (TARGET_MS if SECONDS >= TARGET_FROM_S else SHORT_MS_MAX) / 1000


@frozen
class Found:
    """The result of an attack, and how busy the machine was."""

    tally: Mapping[str, int]
    grown_bytes: int
    machine: Machine


async def attack(chosen: Chosen, serving: Server, port: int, until: float, folder: Path) -> Found:
    """Attack until ``until``. Halfway all attackers freeze, as if their machine had no power, and others connect."""

    def attackers(seed: int) -> AbstractAsyncContextManager[Program]:
        arguments = map(str, (port, seed, chosen.connections, PER_ADDRESS, *chosen.attacks))
        return running(Program, [sys.executable, "-m", "tests.drill.attackers", *arguments], folder=ROOT)

    async with watched(folder) as machine, attackers(SEED) as first:
        assert await first.out.line(0) == "begun"
        await trio.sleep(WARM_S)
        warm_kib = await resident_kib(serving)
        await trio.sleep((until - trio.current_time()) / 2)
        first.process.send_signal(signal.SIGSTOP)
        async with attackers(SEED + 1) as second:
            assert await second.out.line(0) == "begun"
            await trio.sleep_until(until)
            grown_kib = await resident_kib(serving) - warm_kib
            assert await second.terminate() == 0, second.err.all
    return Found(json.loads(second.out.all[-1]), grown_kib * 1024, machine)


def percentile(latencies_s: Sequence[float], share: float) -> float:
    return sorted(latencies_s)[int(len(latencies_s) * share)]


def shown(latencies_s: Sequence[float]) -> str:
    p50, p99 = (percentile(latencies_s, share) * 1000 for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def print_counts(name: str, chosen: Chosen, chaos: Chaos, found: Found) -> None:
    attacks = sum(found.tally.values()) - found.tally.get("cut", 0) - found.tally.get("no connection", 0)
    sys.stdout.write(
        f"chaos, {name}: {chosen.connections} connections attacked for {SECONDS:.0f} s, {attacks} times in the second "
        f"half; {HONEST} honest clients received {chaos.written} events each; new clients connected within "
        f"{max(chaos.connecting_s) * 1000:.0f} ms; the server's memory grew by "
        f"{found.grown_bytes / 1024 / 1024:.1f} MiB\n"
    )
