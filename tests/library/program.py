"""The program of another project: it serves in its own nursery, writes, and prints as JSON what a client receives.

    python program.py FILE

The type checker checks this program too, so the program also shows that the published names have types.
"""

import json
import sqlite3
import sys
from functools import partial

import structlog
import trio

import airy_trio
from airy_trio.errors import SettingsError
from airy_trio.migrate import migrate
from airy_trio.testing.client import Closed, StompClient, connect


async def write(path: str, subscribed: trio.Event) -> None:
    await subscribed.wait()
    with sqlite3.connect(path) as connection:
        connection.execute("insert into tags values ('t1', 'flag', 'red')")
    connection.close()


async def read(client: StompClient, subscribed: trio.Event, stopping: trio.Event) -> None:
    receipt = await client.subscribe("/events")
    subscribed.set()
    event = await client.receive()
    stopping.set()
    error = await client.receive()
    try:
        await client.receive()
    except Closed as closed:
        result = {
            "resume": receipt.get("resume"),
            "event": json.loads(event.body),
            "error": error.get("message"),
            "code": closed.code,
        }
        sys.stdout.write(json.dumps(result))


async def main(path: str) -> None:
    try:
        airy_trio.settings.parse("[database]\nurl = 7\n", {})
    except SettingsError as error:
        sys.stderr.write(error.faults[0])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    toml = f'[database]\nurl = "sqlite:///{path}"\n[listener]\nport = 0\n[admin]\nport = 0\n'
    settings = airy_trio.settings.parse(toml, {})
    migrate(settings, with_tables=True)
    stopping, subscribed = trio.Event(), trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, path, subscribed)
            address: airy_trio.Address = await nursery.start(partial(airy_trio.serve, settings, stopping=stopping))
            async with await connect(address.host, address.port, address.path) as client:
                await read(client, subscribed, stopping)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
