"""``airy-trio demo``: the whole route in one command, on a database that lives as long as the command.

A temporary SQLite file, an application in a process of its own that writes to it, the server, and a client over a real
WebSocket that prints a line for each event.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import trio

from airy_trio import app, migrate, settings
from airy_trio.demo.terminal import line
from airy_trio.testing.client import connect

APPLICATION_END_S = 5.0


def run(*, events_max: int | None = None) -> None:
    """Run the demo until Ctrl-C, or until ``events_max`` events were shown. Leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="airy-trio-demo-") as folder:
        database = Path(folder) / "inbox.db"
        url = json.dumps(f"sqlite:///{database}")
        toml = f"[database]\nurl = {url}\n[listener]\nport = 0\ndrain_s = 1\n[admin]\nport = 0\n"
        chosen = settings.parse(toml, {})
        migrate.migrate(chosen, with_tables=True)

        async def show(address: app.Address) -> None:
            await _show(address, database, events_max)

        trio.run(app.run, chosen, show)


async def _show(address: app.Address, database: Path, events_max: int | None) -> None:
    click.echo(f"database  {database}")
    click.echo(f"clients   {address.url}  (STOMP; subscribe to /events)")
    click.echo("Ctrl-C ends the demo\n")
    async with await connect(address.host, address.port, address.path) as client:
        await client.subscribe()
        application = await trio.lowlevel.open_process(
            [sys.executable, "-m", "airy_trio.demo.application", str(database)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the demo, which ends the application
        )
        try:
            shown = 0
            while events_max is None or shown < events_max:
                click.echo(line(await client.receive()))
                shown += 1
        finally:
            application.terminate()
            with trio.move_on_after(APPLICATION_END_S, shield=True):
                await application.wait()
