"""The resume drill: clients that disconnect all the time, on two nodes that are killed in turn, miss nothing."""

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from airy_trio import client as library
from tests.application import Application
from tests.drill.clients import RETRY_S, LibraryResuming, Resuming, StreamResuming
from tests.drill.log_check import examine, sql_log
from tests.drill.nodes import ROOT, Nodes, listens, records
from tests.e2e.route import END, configure
from tests.processes import Program, running

RESUMES = int(os.environ.get("DRILL_RESUMES", "2000"))
RESUMES_PER_S_MIN = 15
END_S = 60.0
CLIENTS = 8
CALM_S = 1.0  # between two kills
SEED = 5
MORE = "connect_timeout_s = 20\n[events]\ndeletes = true\n"


async def kill_in_turn(nodes: Nodes) -> None:
    """Kill one node after the other, each time once all nodes listen again."""
    while True:
        for node in nodes.all:
            await nodes.wait_all(listens)
            await trio.sleep(CALM_S)
            node.send(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(RESUMES / RESUMES_PER_S_MIN + 2 * END_S)
@pytest.mark.parametrize("kind", [Resuming, StreamResuming, LibraryResuming])
async def test_resuming_clients_receive_everything_once(
    kind: type[Resuming], postgres_application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client is made for programs that run for days. With its default pause between two connections, this drill
    # would mostly wait.
    monkeypatch.setattr(library, "RETRY_FIRST_S", RETRY_S)
    monkeypatch.setattr(library, "RETRY_MAX_S", 2 * RETRY_S)
    nodes = Nodes(configure(postgres_application, tmp_path, MORE))
    clients = [kind(nodes, random.Random(SEED + number)) for number in range(CLIENTS)]
    load = [sys.executable, "-m", "tests.drill.load", postgres_application.url, str(SEED), "1", "0.05"]

    def enough() -> bool:
        return sum(client.resumes for client in clients) >= RESUMES and all(node.lives > 1 for node in nodes.all)

    begun_at = trio.current_time()
    with trio.fail_after(RESUMES / RESUMES_PER_S_MIN + END_S):
        async with trio.open_nursery() as living:
            for node in nodes.all:
                living.start_soon(nodes.live, node)
            await nodes.wait(records)
            async with running(Program, load, folder=ROOT) as writers:
                async with trio.open_nursery() as killing:
                    killing.start_soon(kill_in_turn, nodes)
                    async with trio.open_nursery() as resuming:
                        for client in clients:
                            resuming.start_soon(client.resume_until, enough)
                    killing.cancel_scope.cancel()
                assert await writers.terminate() == 0, writers.err.all
            await trio.to_thread.run_sync(partial(postgres_application.tag, END))
            async with trio.open_nursery() as ending:
                for client in clients:
                    ending.start_soon(client.follow)
            living.cancel_scope.cancel()
    log = sql_log(postgres_application.url)
    findings = examine(postgres_application, log)
    resumes = sum(client.resumes for client in clients)
    sys.stdout.write(
        f"{resumes} resumes, {sum(c.refused for c in clients)} connections lost or refused, "
        f"{sum(node.lives for node in nodes.all)} starts of nodes, {len(log.events)} events, "
        f"{sum(len(c.events) for c in clients)} received in {trio.current_time() - begun_at:.0f} s\n"
    )
    assert enough()
    assert (findings.lost, findings.reordered, findings.holes) == ([], [], [])
    for client in clients:
        assert len(client.events) > CLIENTS
        assert client.events == log.events[-len(client.events) :]
