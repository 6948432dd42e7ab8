"""Clients build the whole table from the current state, while an application writes to it."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import SQLITE
from airy_trio.testing.client import connect
from tests.application import Application
from tests.clients.client_processes import Client, client
from tests.drill.clients import AUTH, CREDENTIALS, Building
from tests.drill.load import BEGUN
from tests.drill.nodes import ROOT, Node, Nodes, listens, records
from tests.e2e.route import END, HOST, configure
from tests.processes import Program, run, running, server

LOAD_S = float(os.environ.get("DRILL_SECONDS", "20"))
SEED = int(os.environ.get("DRILL_SEED", "4"))
ROWS = 50_000 if LOAD_S >= 20 else 5000
TIMEOUT_S = LOAD_S + 120.0
SETTINGS = "[events]\ndeletes = true\n"
IN_MEMORY = f'{SETTINGS}{AUTH}[log]\nstore = "memory"\n'
TAG = "tag.updated"
KILLS_MIN = 2
KILLED_AFTER_S = 0.4, 1.6
"""After the start of the command: before its first page, between two pages, or while the last one is recorded."""
_INSERT = """
with recursive numbers (number) as (select 1 union all select number + 1 from numbers where number < :rows)
insert into tags (id, name, color) select 'row ' || number, '1', 'red' from numbers
"""


def table_of(built: Client) -> dict[str, str]:
    """Return the names by id that result from the messages of a client."""
    table: dict[str, str] = {}
    for line in built.out.all:
        event = json.loads(json.loads(line)["body"])
        if event["type"] == "tag.deleted":
            table.pop(event["payload"]["id"], None)
        else:
            table[event["payload"]["id"]] = event["payload"]["name"]
    return table


async def until_end(built: Client) -> None:
    """Wait for the message of the row that is written last."""
    number = 0
    while (line := await built.out.line(number)) is not None:
        if json.loads(json.loads(line)["body"])["payload"]["id"] == END:
            return
        number += 1
    raise AssertionError(built.err.all)


def insert_before_triggers(application: Application) -> None:
    """Insert the rows as if they were older than the triggers."""
    application.execute(_INSERT, rows=ROWS)
    application.execute(f"delete from {application.log_table('change_log')}")


def load_on(application: Application) -> list[str]:
    """Return the command of the application under load."""
    # SQLite has one write lock: without pauses these writers would keep other processes from writing.
    times = ["1", "0.01", "1", "0.2" if application.dialect == SQLITE else "0"]
    return [sys.executable, "-m", "tests.drill.load", application.url, str(SEED), *times]


def rows_of(application: Application) -> dict[str, str]:
    """Return the names by id that the table has."""
    with application.engine.connect() as connection:
        return {row.id: row.name for row in connection.execute(sa.text("select id, name from tags"))}


async def backfill(config: Path) -> None:
    """Run the command to its end."""
    ended = await run("backfill", "--config", str(config))
    assert ended.code == 0, ended.err


async def until_trimmed(application: Application) -> None:
    """Wait until the end of the last backfill has been recorded and is no longer in the change log."""
    marks = f"select count(*) from {application.log_table('change_log')} where key_1 like 'backfill-%'"
    while await trio.to_thread.run_sync(application.scalar, marks):  # noqa: ASYNC110 - another process trims
        await trio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
async def test_clients_build_the_whole_table_while_an_application_writes(
    any_application: Application, tmp_path: Path
) -> None:
    config = configure(any_application, tmp_path, SETTINGS)
    await trio.to_thread.run_sync(insert_before_triggers, any_application)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as listening, running(Program, load_on(any_application), folder=ROOT) as writers:
            assert await writers.out.line(0) == BEGUN, writers.err.all
            await backfill(config)
            url = f"ws://127.0.0.1:{listening.port}/ws.communication"
            begin = partial(client, url=url, replay="current")
            async with begin("stompjs.mjs") as one, begin("stomp_py_client.py") as two:
                await trio.sleep(LOAD_S / 4)
                assert await writers.terminate() == 0, writers.err.all
                await trio.to_thread.run_sync(partial(any_application.tag, END))
                for built in (one, two):
                    await until_end(built)
                tables = [table_of(one), table_of(two)]
    rows = rows_of(any_application)
    assert len(rows) > ROWS
    assert tables[0] == rows
    assert tables[1] == rows


async def whole_table(nodes: Nodes) -> dict[str, str]:
    """Return the table of a client that begins once the current state has all tags."""
    [node] = await nodes.wait(listens)
    missing = TAG
    while TAG in missing:
        async with await connect(HOST, node.port, headers=CREDENTIALS) as client:
            receipt = await client.subscribe(headers=[("replay", "current")])
            missing = receipt.get("state-missing") or ""
    building = Building(nodes, Random(SEED))
    await building.follow()
    return building.table


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
async def test_state_in_memory_is_whole_after_a_kill_and_a_backfill(
    any_application: Application, tmp_path: Path
) -> None:
    """The log ends with its process. Two clients reconnect again and again; one of them never forgets its table."""
    config = configure(any_application, tmp_path, IN_MEMORY)
    await trio.to_thread.run_sync(insert_before_triggers, any_application)
    nodes = Nodes(config, all=[Node("one")])
    [node] = nodes.all
    chance, kills = Random(SEED), 0
    forgetting, continuing = Building(nodes, Random(SEED)), Building(nodes, Random(SEED + 1), forgets=0)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as living:
            living.start_soon(nodes.live, node)
            async with trio.open_nursery() as following:
                following.start_soon(forgetting.follow)
                following.start_soon(continuing.follow)
                async with running(Program, load_on(any_application), folder=ROOT) as writers:
                    assert await writers.out.line(0) == BEGUN, writers.err.all
                    end_at = trio.current_time() + LOAD_S / 4
                    while kills < KILLS_MIN or trio.current_time() < end_at:
                        await nodes.wait(records)
                        async with trio.open_nursery() as filling:
                            filling.start_soon(backfill, config)
                            if kills % 2 == 0:
                                await trio.sleep(chance.uniform(*KILLED_AFTER_S))
                                node.send(signal.SIGKILL)
                        if kills % 2 == 1:
                            await until_trimmed(any_application)
                            node.send(signal.SIGKILL)
                        kills += 1
                    await nodes.wait(records)
                    await backfill(config)
                    assert await writers.terminate() == 0, writers.err.all
                await trio.to_thread.run_sync(partial(any_application.tag, END))
            whole = await whole_table(nodes)
            living.cancel_scope.cancel()
    sys.stdout.write(f"{kills} kills; {forgetting.states} states, {continuing.resets} resets\n")
    rows = rows_of(any_application)
    assert len(rows) > ROWS
    assert whole == rows
    assert forgetting.table == rows
    assert continuing.table == rows
    assert continuing.resets >= 1
