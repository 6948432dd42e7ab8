"""Third-party clients build the whole table from the current state, while an application writes to it."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import SQLITE
from tests.application import Application
from tests.clients.client_processes import Client, client
from tests.drill.load import BEGUN
from tests.drill.nodes import ROOT
from tests.e2e.route import END, configure
from tests.processes import Program, run, running, server

LOAD_S = float(os.environ.get("DRILL_SECONDS", "20"))
ROWS = 50_000 if LOAD_S >= 20 else 5000
TIMEOUT_S = LOAD_S + 120.0
SETTINGS = "[events]\ndeletes = true\n"
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


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
async def test_clients_build_the_whole_table_while_an_application_writes(
    any_application: Application, tmp_path: Path
) -> None:
    config = configure(any_application, tmp_path, SETTINGS)
    # As if the rows were older than the triggers.
    await trio.to_thread.run_sync(partial(any_application.execute, _INSERT, rows=ROWS))
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    # SQLite has one write lock: without pauses these writers would keep other processes from writing.
    times = ["1", "0.01", "1", "0.2" if any_application.dialect == SQLITE else "0"]
    load = [sys.executable, "-m", "tests.drill.load", any_application.url, "7", *times]
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as listening, running(Program, load, folder=ROOT) as writers:
            assert await writers.out.line(0) == BEGUN, writers.err.all
            backfill = await run("backfill", "--config", str(config))
            assert backfill.code == 0, backfill.err
            url = f"ws://127.0.0.1:{listening.port}/ws.communication"
            begin = partial(client, url=url, replay="current")
            async with begin("stompjs.mjs") as one, begin("stomp_py_client.py") as two:
                await trio.sleep(LOAD_S / 2)
                assert await writers.terminate() == 0, writers.err.all
                await trio.to_thread.run_sync(partial(any_application.tag, END))
                for built in (one, two):
                    await until_end(built)
                tables = [table_of(one), table_of(two)]
    with any_application.engine.connect() as connection:
        rows = {row.id: row.name for row in connection.execute(sa.text("select id, name from tags"))}
    assert len(rows) > ROWS
    assert tables[0] == rows
    assert tables[1] == rows
