"""Accepted events survive the death of a writer, or of the database, at any moment."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest
import trio

from airy_trio.database import DatabaseOptions
from airy_trio.log.store import EventStore, StoreUnavailable
from airy_trio.migrate import migrate_log
from airy_trio.testing.event_store import check_whole_batches, write_batches
from tests.log.places import open_sql
from tests.log.writer import BATCH_SIZE
from tests.postgres import Postgres

pytestmark = pytest.mark.slow

KILLS = 3


def kill_a_writer(url: str, moments: Random) -> int:
    """Let a process write, kill it at a random moment, and return the last offset that it reported as accepted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.log.writer", url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(moments.randint(1, 60))]
        time.sleep(moments.uniform(0, 0.003))  # during an append
        process.kill()
        printed += process.stdout.readlines()
    return int(printed[-1])


async def survives_killed_writers(url: str) -> None:
    options = DatabaseOptions(url=url)
    await trio.to_thread.run_sync(migrate_log, url, options)
    moments = Random(7)
    reached = 0
    for _ in range(KILLS):
        accepted = await trio.to_thread.run_sync(kill_a_writer, url, moments)
        async with open_sql(options) as store:
            found = await check_whole_batches(store, BATCH_SIZE, accepted)
        assert found > reached
        reached = found


async def test_sqlite_file_survives_killed_writers(tmp_path: Path) -> None:
    with trio.fail_after(50):
        await survives_killed_writers(f"sqlite:///{tmp_path}/events.db")


async def test_postgres_survives_killed_writers(postgres_database: str) -> None:
    with trio.fail_after(50):
        await survives_killed_writers(postgres_database)


async def write_until_away(store: EventStore, end: Callable[[], None]) -> int:
    accepted = 0
    try:
        async with aclosing(write_batches(store, BATCH_SIZE)) as writing:
            async for accepted in writing:
                if accepted == 20 * BATCH_SIZE:
                    await trio.to_thread.run_sync(end)
    except StoreUnavailable:
        return accepted
    pytest.fail("the end of the database was not noticed")


@pytest.mark.parametrize("end", [Postgres.crash, Postgres.stop], ids=["crash", "stop"])
async def test_postgres_loses_nothing_when_it_restarts(own_postgres: Postgres, end: Callable[[Postgres], None]) -> None:
    url = own_postgres.url(own_postgres.create_database())
    options = DatabaseOptions(url=url)
    await trio.to_thread.run_sync(migrate_log, url, options)
    with trio.fail_after(50):
        async with open_sql(options) as store, open_sql(options) as reader:
            accepted = await write_until_away(store, lambda: end(own_postgres))
            with pytest.raises(StoreUnavailable):
                await reader.bounds()
            await trio.to_thread.run_sync(own_postgres.start)
            assert await check_whole_batches(reader, BATCH_SIZE, accepted) == accepted
            head = (await reader.bounds()).head
            assert len(await store.append(head, [], "continue")) == 0
