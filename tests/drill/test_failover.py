"""The recorder dies or freezes: another node takes over soon, and a node that resumes does not write."""

import signal
import statistics
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from attrs import define

from airy_trio.testing.client import StompClient, connect
from tests.application import Application
from tests.drill.log_check import log_of
from tests.drill.machine_load import Machine, watched
from tests.drill.nodes import Node, Nodes, listens, records
from tests.e2e.route import HOST, configure, event_of

TIMEOUT_S = 50.0
ROUNDS = 3
DEAD_TARGET_S, DEAD_MAX_S = 0.2, 2.0
FROZEN_TARGET_S, FROZEN_MAX_S = 1.5, 5.0

CALM_TIMES = 2
"""Restarted nodes keep the machine busy, so the limit for other load is multiplied by this factor."""

pytestmark = pytest.mark.slow

LOCKS = {
    "before the comparison": "select 1 from airy_trio.log_state for update",
    "among the events": "lock table airy_trio.event_log in share mode",
}
"""Locks that block an append: on the row that it compares, and on the table into which it inserts."""

_WAITING = "select count(*) from pg_stat_activity where application_name = 'airy-trio' and wait_event_type = 'Lock'"


@define
class Pair:
    """Two nodes: the one that records, and a client of the other. ``written``: the number of tags so far."""

    nodes: Nodes
    application: Application
    leader: Node
    client: StompClient
    written: int = 0

    async def write(self, count: int = 1) -> None:
        """Insert ``count`` tags in one transaction."""
        numbers = range(self.written + 1, self.written + count + 1)
        self.written += count
        values = ", ".join(f"('{number}', 'flag', 'tag-red')" for number in numbers)
        await trio.to_thread.run_sync(self.application.execute, f"insert into tags values {values}")

    async def until_received(self, since: float) -> float:
        """Wait until the client has received the newest tag; return the seconds since ``since``."""
        while event_of(await self.client.receive()).object[-1] != str(self.written):
            pass
        return trio.current_time() - since


@asynccontextmanager
async def pair(application: Application, nodes: Nodes) -> AsyncIterator[Pair]:
    await nodes.wait_all(listens)
    leader = (await nodes.wait(records))[0]
    [other] = [node for node in nodes.all if node is not leader]
    written = len(log_of(application))
    async with await connect(HOST, other.port) as client:
        await client.subscribe(headers=[("replay", "none")])
        made = Pair(nodes, application, leader, client, written)
        await made.write()
        await made.until_received(trio.current_time())
        yield made


def stopped(node: Node) -> Callable[[Node], bool]:
    return lambda other: other is node and not other.recording


def living(application: Application, folder: Path, nursery: trio.Nursery) -> Nodes:
    nodes = Nodes(configure(application, folder))
    for node in nodes.all:
        nursery.start_soon(nodes.live, node)
    return nodes


def assert_each_is_recorded_once(application: Application, written: int) -> None:
    events = log_of(application)
    assert [event.object[-1] for event in events] == [str(number) for number in range(1, written + 1)]
    assert [event.offset for event in events] == list(range(1, written + 1))


def check_times(label: str, seconds: list[float], machine: Machine, *, target_s: float, max_s: float) -> None:
    """Print the times. None may exceed ``max_s``; if the machine was idle, the median must meet the target."""
    sys.stdout.write(
        f"{label}: the other node took over after {', '.join(f'{s:.3f}' for s in sorted(seconds))} s "
        f"(median {statistics.median(seconds):.3f}, target {target_s}); {machine}\n"
    )
    assert max(seconds) < max_s
    if machine.calm(CALM_TIMES):
        assert statistics.median(seconds) <= target_s


async def test_another_node_takes_over_from_a_killed_one(any_application: Application, tmp_path: Path) -> None:
    seconds = []
    with trio.fail_after(TIMEOUT_S):
        async with watched(tmp_path) as machine, trio.open_nursery() as nursery:
            nodes = living(any_application, tmp_path, nursery)
            for _ in range(ROUNDS):
                async with pair(any_application, nodes) as two:
                    killed_at = trio.current_time()
                    two.leader.send(signal.SIGKILL)
                    await two.write()
                    seconds.append(await two.until_received(killed_at))
            nursery.cancel_scope.cancel()
    assert_each_is_recorded_once(any_application, 2 * ROUNDS)
    check_times(f"killed ({any_application.dialect})", seconds, machine, target_s=DEAD_TARGET_S, max_s=DEAD_MAX_S)


async def test_another_node_takes_over_from_a_frozen_one(postgres_application: Application, tmp_path: Path) -> None:
    seconds = []
    with trio.fail_after(TIMEOUT_S):
        async with watched(tmp_path) as machine, trio.open_nursery() as nursery:
            nodes = living(postgres_application, tmp_path, nursery)
            for _ in range(ROUNDS):
                async with pair(postgres_application, nodes) as two:
                    frozen_at = trio.current_time()
                    two.leader.freeze()
                    await two.write()
                    seconds.append(await two.until_received(frozen_at))
                    two.leader.send(signal.SIGCONT)
                    await nodes.wait(stopped(two.leader))
                    await two.write()
                    await two.until_received(frozen_at)
            nursery.cancel_scope.cancel()
    assert_each_is_recorded_once(postgres_application, 3 * ROUNDS)
    check_times("frozen", seconds, machine, target_s=FROZEN_TARGET_S, max_s=FROZEN_MAX_S)


@pytest.mark.parametrize("count", [1, 1000], ids=["of one event", "of many"])
@pytest.mark.parametrize("where", LOCKS)
async def test_another_node_takes_over_from_one_frozen_in_an_append(
    postgres_application: Application, tmp_path: Path, where: str, count: int
) -> None:
    seconds = []
    with trio.fail_after(TIMEOUT_S):
        async with watched(tmp_path) as machine, trio.open_nursery() as nursery:
            nodes = living(postgres_application, tmp_path, nursery)
            for _ in range(ROUNDS):
                async with pair(postgres_application, nodes) as two:
                    with postgres_application.engine.begin() as blocking:
                        blocking.execute(sa.text(LOCKS[where]))
                        await two.write(count)
                        while not await trio.to_thread.run_sync(postgres_application.scalar, _WAITING):
                            pass
                        two.leader.freeze()
                        frozen_at = trio.current_time()
                    await two.write()  # the database may still have done the append
                    with trio.fail_after(FROZEN_MAX_S):
                        seconds.append(await two.until_received(frozen_at))
                    recorded = log_of(postgres_application)
                    two.leader.send(signal.SIGCONT)
                    await nodes.wait(stopped(two.leader))
                    assert log_of(postgres_application) == recorded
                    await two.write()
                    await two.until_received(frozen_at)
            nursery.cancel_scope.cancel()
    assert_each_is_recorded_once(postgres_application, (3 + count) * ROUNDS)
    check_times(f"frozen {where}, {count} events", seconds, machine, target_s=FROZEN_TARGET_S, max_s=FROZEN_MAX_S)
