"""The capture drill: nothing is lost whatever dies, and the drill is able to see a loss."""

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import frozen
from psycopg import sql

from airy_trio.database import LOCK_CLASS
from tests.application import Application, application
from tests.drill.clients import Resuming
from tests.drill.findings import Findings, examine, has_long, log_of
from tests.drill.nodes import ROOT, Nodes, records
from tests.drill.progress import going_on
from tests.e2e.route import END, Event, configure
from tests.postgres import Postgres
from tests.processes import AIRY_TRIO, Program, json_object, running

LOAD_S = float(os.environ.get("DRILL_SECONDS", "20"))
WRONG_LOAD_S = 10.0
END_S = 60.0  # for starting, and for what comes after the load
SEED = 4
CALM_MAX_S = 0.8
FROZEN_S = 1.6
WHOLE, PAGES = 5000, 200  # rows in a batch: a backlog fits into it, or is read in pages
WRONG = (sys.executable, "-m", "tests.drill.wrong_server")

_TERMINATE = sql.SQL(
    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and classid = {} and granted"
).format(LOCK_CLASS)


@frozen
class Outcome:
    findings: Findings
    log: list[Event]
    received: list[Event]
    load: dict[str, int]
    torments: Counter[str]
    lives: int


async def torment(nodes: Nodes, postgres: Postgres, counts: Counter[str]) -> None:
    """Do something to whoever records, for ever."""
    chance = random.Random(SEED)
    while True:
        node = (await nodes.wait(records))[0]
        await trio.sleep(chance.uniform(0, CALM_MAX_S))
        what = chance.choices(["killed", "terminated", "frozen"], [5, 3, 1])[0]
        counts[what] += 1
        match what:
            case "killed":
                node.send(signal.SIGKILL)
            case "terminated":
                await trio.to_thread.run_sync(postgres.execute, _TERMINATE)
            case "frozen":
                node.freeze()
                try:
                    await trio.sleep(FROZEN_S)
                finally:
                    node.send(signal.SIGCONT)
            case _:
                raise AssertionError(what)


async def schedule(nodes: Nodes, postgres: Postgres, load_s: float) -> Counter[str]:
    """The load's length of torments, with one immediate stop of Postgres."""
    counts: Counter[str] = Counter()
    for share in (0.75, 0.25):
        with trio.move_on_after(load_s * share):
            await torment(nodes, postgres, counts)
        if share == 0.75:
            await trio.to_thread.run_sync(postgres.crash)
            await trio.to_thread.run_sync(postgres.start)
    return counts


async def follow(client: Resuming) -> None:
    while not client.ended:
        await client.receive()


async def drill(
    postgres: Postgres,
    writing: Application,
    *,
    folder: Path,
    load_s: float,
    batch: int = WHOLE,
    command: Sequence[str] = AIRY_TRIO,
) -> Outcome:
    more = f"connect_timeout_s = 20\n[changes]\nbatch_rows_max = {batch}\n[events]\ndeletes = true\n"
    nodes = Nodes(configure(writing, folder, more), command)
    client = Resuming(nodes, random.Random(SEED))
    load = [sys.executable, "-m", "tests.drill.load", writing.url, str(SEED), str(load_s / 4), "0.01"]
    with trio.fail_after(load_s + END_S):
        async with trio.open_nursery() as living:
            for node in nodes.all:
                living.start_soon(nodes.live, node)
            await nodes.wait(records)
            async with trio.open_nursery() as following:
                following.start_soon(follow, client)
                async with running(Program, load, folder=ROOT) as writers:
                    with going_on("killing", load_s):
                        counts = await schedule(nodes, postgres, load_s)
                    assert await writers.terminate() == 0, writers.err.all
                writing.engine.dispose()
                await trio.to_thread.run_sync(partial(writing.tag, END))
            living.cancel_scope.cancel()
    assert not writers.err.all
    return Outcome(
        findings=examine(writing),
        log=log_of(writing),
        received=client.events,
        load=json_object(writers.out.all[-1]),
        torments=counts,
        lives=sum(node.lives for node in nodes.all),
    )


@pytest.mark.slow
@pytest.mark.timeout(LOAD_S + 2 * END_S)
@pytest.mark.parametrize("batch", [WHOLE, PAGES])
async def test_nothing_is_lost_whatever_dies(own_postgres: Postgres, tmp_path: Path, batch: int) -> None:
    with application(own_postgres.url(own_postgres.create_database())) as writing:
        outcome = await drill(own_postgres, writing, folder=tmp_path, load_s=LOAD_S, batch=batch)
    findings = outcome.findings
    sys.stdout.write(
        f"{findings.events} events of {findings.objects} objects, {findings.repeated} repeated, "
        f"{len(outcome.received)} received; "
        f"{outcome.load}; {dict(outcome.torments)}, {outcome.lives} lives\n"
    )
    assert (findings.lost, findings.backwards, findings.holes) == ([], [], [])
    assert outcome.received == outcome.log[-len(outcome.received) :]
    if batch == WHOLE:  # pages are read one by one, rows as they are by then: what changes meanwhile comes again
        assert findings.repeated == 0
    assert outcome.load["long"] == 1
    assert outcome.load["committed"] > 10 * LOAD_S
    assert outcome.load["cut"] > 0, "Postgres did not crash"
    assert outcome.torments["killed"] >= LOAD_S / 10
    assert outcome.torments["terminated"] > 0


@pytest.mark.slow
@pytest.mark.timeout(WRONG_LOAD_S + 2 * END_S)
async def test_a_feed_that_goes_by_seq_is_found_out(own_postgres: Postgres, tmp_path: Path) -> None:
    with application(own_postgres.url(own_postgres.create_database())) as writing:
        outcome = await drill(own_postgres, writing, folder=tmp_path, load_s=WRONG_LOAD_S, command=WRONG)
    findings = outcome.findings
    sys.stdout.write(f"{len(findings.lost)} of {findings.objects} objects lost; {outcome.load}\n")
    assert not has_long(findings)
    assert len(findings.lost) > findings.objects / 100
    assert findings.holes == []
