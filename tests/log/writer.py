"""A process that appends batches to the store at a URL until killed, and prints each accepted offset."""

import sys
from contextlib import aclosing

import trio

from airy_trio.database import DatabaseOptions
from airy_trio.testing.event_store import write_batches
from tests.log.places import open_sql

BATCH_SIZE = 7


async def write(url: str) -> None:
    async with open_sql(DatabaseOptions(url=url)) as store, aclosing(write_batches(store, BATCH_SIZE)) as writing:
        async for offset in writing:
            sys.stdout.write(f"{offset}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    trio.run(write, sys.argv[1])
