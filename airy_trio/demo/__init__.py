"""``airy-trio demo``: the whole route in one command, on a database that lives as long as the command.

A temporary SQLite file, an application in a process of its own that writes to it, the server with its console, and a
client over a real WebSocket that prints a line for each event.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import trio

from airy_trio import app, migrate, settings
from airy_trio.errors import StartError
from airy_trio.terminal import coloured, line
from airy_trio.testing.client import Closed, StompClient, connect

APPLICATION_END_S = 5.0
SILENCE_MAX_S = 15.0  # the application writes every second or so


HOST = "127.0.0.1"
CONSOLE_PORT = 8081  # where it is without a demo, too


def run(*, events_max: int | None = None, browse: bool = False) -> None:
    """Run the demo until Ctrl-C, or until ``events_max`` events were shown. Leaves nothing behind.

    ``browse``: open the console in a browser.
    """
    console_port = _free_port(CONSOLE_PORT)
    with _folder() as folder:
        database = Path(folder) / "inbox.db"
        url = json.dumps(f"sqlite:///{database}")
        listener = "[listener]\nport = 0\ndrain_s = 1\nconnections_max = 100\n"
        toml = f"[database]\nurl = {url}\n{listener}[admin]\nport = {console_port}\n"
        chosen = settings.parse(toml, {})
        migrate.migrate(chosen, with_tables=True)

        async def show(address: app.Address) -> None:
            console = f"http://{HOST}:{console_port}/"
            click.echo(f"console   {console}")
            if browse and not await trio.to_thread.run_sync(webbrowser.open, console):
                click.echo("airy-trio: there is no browser to open the console with", err=True)
            await _show(address, database, events_max)

        trio.run(app.run, chosen, show)


@contextmanager
def _folder() -> Iterator[str]:
    """A folder for the length of a block. A signal waits until whoever made it also knows of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        folder = tempfile.TemporaryDirectory(prefix="airy-trio-demo-")
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    with folder as name:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield name


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
            await _print(client, events_max)
        except BrokenPipeError:  # whoever read the lines has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, ASYNC230 - for what Python flushes at its end
        finally:
            application.terminate()
            with trio.move_on_after(APPLICATION_END_S, shield=True):
                await application.wait()


def _free_port(wanted: int) -> int:
    """The wanted port, or any other where somebody has that."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            free: int = probe.getsockname()[1]
            return free
    raise StartError([f"the demo's console finds no free port on {HOST}"])


async def _print(client: StompClient, events_max: int | None) -> None:
    """Print a line for each event. Raises ``StartError`` where nothing more will come."""
    shown = 0
    while events_max is None or shown < events_max:
        try:
            with trio.fail_after(SILENCE_MAX_S):
                frame = await client.receive()
        except trio.TooSlowError:
            raise StartError(["the demo's application has stopped writing"]) from None
        except Closed as closed:
            raise StartError([f"the demo's server has closed the connection: {closed}"]) from None
        if frame.command != "MESSAGE":
            raise StartError([f"the demo's server has ended: {frame.get('message')}"])
        shown_line = line(frame.get("message-id") or "", frame.body, datetime.now(UTC))
        click.echo(shown_line, color=coloured(sys.stdout))
        shown += 1
