"""Ctrl-C ends a program with a client as usual, whatever the client does at that moment."""

import sys
from pathlib import Path

import pytest

from tests.application import Application
from tests.e2e.route import HOST, configure
from tests.processes import Program, free_ports, running, server

PROGRAM = """
import signal, sys
import trio
from airy_trio import client

owner, name = {owner}, {name!r}
original = getattr(owner, name)

def interrupted(*arguments, **options):
    if received:
        signal.raise_signal(signal.SIGINT)  # as if Ctrl-C came just now
    return original(*arguments, **options)

received = []
setattr(owner, name, interrupted)

async def main():
    async with client.open(sys.argv[1]) as inbox:
        async for event in inbox.events(begin="oldest"):
            received.append(event)
            print(event.type, flush=True)

try:
    trio.run(main)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    "owner, name",
    [
        ("client.connection.Decoder", "feed"),
        ("client.connection.WebSocketConnection", "get_message"),
        ("trio.SocketStream", "receive_some"),
        ("client._Loop", "deliver"),
    ],
)
async def test_ctrl_c_in_a_client_task_ends_the_program(
    sqlite_application: Application, tmp_path: Path, owner: str, name: str
) -> None:
    port = free_ports(1)
    async with server(configure(sqlite_application, tmp_path, port=port)):
        program = PROGRAM.format(owner=owner, name=name)
        async with running(Program, [sys.executable, "-c", program, f"ws://{HOST}:{port}"]) as listening:
            sqlite_application.tag("t1")
            assert await listening.out.line(0) == "tag.updated"
            sqlite_application.tag("t2")
            assert await listening.wait() == 0, listening.err.all
    assert listening.out.all[-1] == "interrupted"
    assert listening.err.all == []
