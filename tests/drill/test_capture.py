"""The capture drill: nothing is lost when processes die, and the drill can detect a loss."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import frozen

from tests.application import Application
from tests.drill.arrangements import ARRANGEMENTS, Arrangement, in_the_same_postgres
from tests.drill.clients import CREDENTIALS, Building, Durable, Resuming
from tests.drill.load import BEGUN
from tests.drill.log_check import Findings, Log, examine, has_long
from tests.drill.nodes import ROOT, Node, Nodes, listens, pair, records
from tests.drill.progress import progress_bar
from tests.e2e.route import END, configure
from tests.processes import AIRY_TRIO, Program, json_object, running

LOAD_S = float(os.environ.get("DRILL_SECONDS", "20"))
SEED = int(os.environ.get("DRILL_SEED", "4"))
SEEDS = range(SEED, SEED + int(os.environ.get("DRILL_SEEDS", "1")))
LONG_FORM_S = 20.0
"""With a load of this length each arrangement gets the complete load."""
SHORT_SHARE = 1 / 3
"""The share of a shorter load for all arrangements but the first two."""
ONLY_LONG = {"in Redis, everysec"}
"""Arrangements for the long form only: this one is killed carefully, so it differs little from the previous one."""
WRONG_LOAD_S = 10.0
KILLED_EVERY_S = 15.0
"""At least one kill in this time; a busy machine needs longer for each."""
END_S = 90.0  # for the start, and after the load
CALM_MAX_S = 0.8
FOLLOWERS = 2
WRONG = (sys.executable, "-m", "tests.drill.wrong_server")


@frozen(kw_only=True)
class Outcome:
    findings: Findings
    log: Log
    followers: list[Resuming]
    durable: Durable
    building: Building
    load: dict[str, int]
    disturbances: Counter[str]
    nodes: Nodes

    def __str__(self) -> str:
        """Return the figures in one line."""
        found = self.findings
        return (
            f"{found.events} events of {found.objects} objects, {len(found.lost)} lost, {found.repeated} repeated, "
            f"{len(found.reordered)} out of order, {len(found.holes)} holes, {len(self.nodes.epochs)} epochs begun; "
            f"clients: {'; '.join(f'{len(one.events)} received, {one.resumes} resumes' for one in self.followers)}; "
            f"durable: {len(self.durable.events)} received, {self.durable.again} again, {self.durable.deaths} deaths; "
            f"table: {len(self.building.table)} rows, {self.building.states} states, "
            f"{self.building.completed} complete, {self.building.resumes} resumes; "
            f"{self.load}; {dict(self.disturbances)}, {sum(node.lives for node in self.nodes.all)} lives"
        )


async def disturb(nodes: Nodes, arrangement: Arrangement, seed: int, load_s: float) -> Counter[str]:
    """Disturb the recording node, or a process that it needs, repeatedly for the length of the load.

    At first each disturbance happens once. On a busy machine this alone takes longer than the load.
    """
    chance, counts = Random(seed), Counter[str]()
    names = [*arrangement.disturbances]
    weights = [weight for weight, _ in arrangement.disturbances.values()]

    async def one(name: str) -> None:
        await nodes.wait(records)
        await trio.sleep(chance.uniform(0, CALM_MAX_S))
        node = (await nodes.wait(records))[0]
        counts[name] += 1
        await arrangement.disturbances[name][1](node, chance)

    until = trio.current_time() + load_s
    for name in chance.sample(names, len(names)):
        await one(name)
    with trio.move_on_at(until):
        while True:
            await one(chance.choices(names, weights)[0])
    return counts


async def drill(
    arrangement: Arrangement, *, folder: Path, seed: int, load_s: float, command: Sequence[str] = AIRY_TRIO
) -> Outcome:
    writing = arrangement.application
    config = configure(writing, folder, arrangement.more, workers=arrangement.workers)
    nodes = Nodes(config, command, pair() if arrangement.nodes > 1 else [Node("one")])
    followers = [Resuming(nodes, Random(seed + number), CREDENTIALS) for number in range(FOLLOWERS)]
    durable = Durable(nodes, Random(seed))
    building = Building(nodes, Random(seed + FOLLOWERS))
    clients: list[Resuming | Durable | Building] = [*followers, durable, building]
    long_s = min(arrangement.long_max_s, load_s / 5)
    rhythm = [load_s / 4, arrangement.delay_max_s, long_s, arrangement.rest_max_s]
    load = [sys.executable, "-m", "tests.drill.load", writing.url, str(seed), *map(str, rhythm)]
    with trio.fail_after(load_s + END_S):
        async with trio.open_nursery() as living:
            for node in nodes.all:
                living.start_soon(nodes.live, node)
            await nodes.wait(records)
            await nodes.wait_all(listens)
            async with trio.open_nursery() as following:
                for client in clients:
                    following.start_soon(client.follow)
                async with running(Program, load, folder=ROOT) as writers:
                    assert await writers.out.line(0) == BEGUN, writers.err.all
                    with progress_bar("killing", load_s):
                        counts = await disturb(nodes, arrangement, seed, load_s)
                    assert await writers.terminate() == 0, writers.err.all
                writing.engine.dispose()
                await trio.to_thread.run_sync(partial(writing.tag, END))
            living.cancel_scope.cancel()
    assert not writers.err.all
    log = await arrangement.recorded()
    return Outcome(
        findings=examine(writing, log),
        log=log,
        followers=followers,
        durable=durable,
        building=building,
        load=json_object(writers.out.all[-1]),
        disturbances=counts,
        nodes=nodes,
    )


@contextmanager
def repeatable(seed: int, folder: Path) -> Iterator[None]:
    """Add the seed and the folder of the servers' logs to a failure."""
    try:
        yield
    except Exception as failure:
        failure.add_note(
            f"to repeat: make drill DRILL_SEED={seed} DRILL_SECONDS={LOAD_S:g}; the servers' logs: {folder}"
        )
        raise


def assert_clients_received_the_log(outcome: Outcome, writing: Application) -> None:
    """Assert that each follower, and the durable client, has received the log from its start, in order and once.

    The table that a client has built from the current state and later events must be that of the application.
    """
    events = outcome.log.events
    for client in outcome.followers:
        assert client.events
        assert client.events == events[-len(client.events) :]
    with writing.engine.begin() as connection:
        rows = {row.id: row.name for row in connection.exec_driver_sql("select id, name from tags")}
    assert outcome.building.table == rows
    assert outcome.building.states
    assert outcome.building.completed <= outcome.building.states
    durable = outcome.durable
    assert [durable.events[offset] for offset in sorted(durable.events)] == events[durable.first - events[0].offset :]


@pytest.mark.slow
@pytest.mark.timeout(LOAD_S + 2 * END_S)
@pytest.mark.parametrize("seed", SEEDS, ids="DRILL_SEED={}".format)
@pytest.mark.parametrize("name", [name for name in ARRANGEMENTS if LOAD_S >= LONG_FORM_S or name not in ONLY_LONG])
async def test_nothing_is_lost_whatever_dies(name: str, seed: int, tmp_path: Path) -> None:
    shortened = LOAD_S < LONG_FORM_S and not name.startswith("in the same Postgres")
    load_s = LOAD_S * SHORT_SHARE if shortened else LOAD_S
    with ExitStack() as stack, repeatable(seed, tmp_path):
        arrangement = ARRANGEMENTS[name](stack, tmp_path)
        outcome = await drill(arrangement, folder=tmp_path, seed=seed, load_s=load_s)
        sys.stdout.write(f"{name}, seed {seed}, {load_s:g} s: {outcome}\n")
        findings = outcome.findings
        assert outcome.nodes.epochs == []
        assert (findings.lost, findings.reordered, findings.holes) == ([], [], [])
        assert_clients_received_the_log(outcome, arrangement.application)
        assert findings.repeated == 0 or arrangement.repeats
        assert outcome.load["long"] == 1
        assert outcome.load["transactions"] > arrangement.committed_per_s_min * load_s
        # On SQLite a connection is lost only if it has waited too long for a lock.
        assert (outcome.load["connections lost"] > 0) == arrangement.loses_connections
        assert outcome.disturbances["killed"] >= load_s / KILLED_EVERY_S


@pytest.mark.slow
@pytest.mark.timeout(WRONG_LOAD_S + 2 * END_S)
async def test_loss_by_a_feed_ordered_by_time_is_detected(tmp_path: Path) -> None:
    with ExitStack() as stack:
        arrangement = in_the_same_postgres(stack, tmp_path)
        outcome = await drill(arrangement, folder=tmp_path, seed=SEED, load_s=WRONG_LOAD_S, command=WRONG)
    findings = outcome.findings
    sys.stdout.write(f"{len(findings.lost)} of {findings.objects} objects lost; {outcome.load}\n")
    assert not has_long(findings)
    assert len(findings.lost) > findings.objects / 100
    assert findings.holes == []
