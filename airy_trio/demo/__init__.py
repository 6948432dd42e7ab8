"""``airy-trio demo``: everything from the application to a client, in one command, on a temporary SQLite file.

The inbox already has channels and tags, like the database of a real application; a backfill sends them. Then an
application in a process of its own writes to the file. The server runs in this process, with its console, and a client
over a real WebSocket prints the current state and then a line for each event.
"""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import webbrowser
from functools import partial
from pathlib import Path
from typing import Final

import trio

from airy_trio import app, migrate, settings, tail
from airy_trio.backfill import BackfillOptions, backfill
from airy_trio.database import sqlite_url
from airy_trio.errors import StartError
from airy_trio.events.models import STATE_TYPES
from airy_trio.terminal import ProgressReport, Stdout

HOST: Final = "127.0.0.1"
CONSOLE_PORT: Final = 8081
"""The default of ``[admin] port``; if it is in use, the demo takes any free port."""


def run(*, events_max: int | None = None, browse: bool = False) -> None:
    """Run the demo until Ctrl-C, or until it has printed ``events_max`` events, and remove all its files.

    ``browse``: open the console in a browser.
    """
    from airy_trio.demo.application import InboxApplication  # noqa: PLC0415 - it is also run as a program, and must not be imported before

    folder = Path(tempfile.gettempdir()) / f"airy-trio-demo-{secrets.token_hex(4)}"
    try:  # begins before the folder is made, so that it is removed whenever a signal arrives
        folder.mkdir(mode=0o700)
        database = folder / "inbox.db"
        url = json.dumps(sqlite_url(database))
        listener = "[listener]\nport = 0\ndrain_s = 1\nconnections_max = 100\n"
        kept = f"[log]\nkeep_current = {json.dumps(sorted(STATE_TYPES))}\n"
        toml = f"[database]\nurl = {url}\n{kept}{listener}"
        prepared = settings.parse(toml, {})
        migrate.migrate(prepared, with_tables=True)
        InboxApplication(str(database)).open()
        trio.run(backfill, prepared, BackfillOptions(), ProgressReport())
        console_port = _free_port(CONSOLE_PORT)
        parsed = settings.parse(f"{toml}[admin]\nport = {console_port}\n", {})

        async def show(address: app.Address) -> None:
            output, console = Stdout(), f"http://{HOST}:{console_port}/"
            output.write(f"console   {console}")
            if browse and not await trio.to_thread.run_sync(webbrowser.open, console):
                output.note("no browser found; open the console by hand")
            await _show(address, database, events_max, output)

        app.trio_run(partial(app.run, parsed, show))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _show(address: app.Address, database: Path, events_max: int | None, output: Stdout) -> None:
    output.write(f"database  {database}")
    output.write(f"clients   {address.url}  (STOMP; subscribe to /events)")
    output.write("Ctrl-C ends the demo\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_application, database)
        await tail.follow(address.url, None, tail.TailOptions(current=True, events_max=events_max), output)
        nursery.cancel_scope.cancel()


async def _run_application(database: Path) -> None:
    """Run the application until cancelled, which terminates it. Raises ``StartError`` if it ends by itself."""
    ended = await trio.run_process(
        [sys.executable, "-m", "airy_trio.demo.application", str(database)],
        stdin=subprocess.DEVNULL,
        check=False,
        start_new_session=True,  # Ctrl-C must not reach it: the demo terminates it
    )
    raise StartError([f"the demo's application has ended with {ended.returncode}"])


def _free_port(wanted: int) -> int:
    """Return the wanted port if it is free, else any free port."""
    try:
        probe = socket.create_server((HOST, wanted))
    except OSError:
        probe = socket.create_server((HOST, 0))
    with probe:
        free: int = probe.getsockname()[1]
    return free
