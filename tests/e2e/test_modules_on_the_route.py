"""The number of modules that a reader must open to follow a row to a socket, a SUBSCRIBE, or a server's start.

A module counts if one of its functions is called meanwhile, in one process. For SUBSCRIBE, modules that an idle server
enters are left out, because the server polls its database meanwhile. For a row, a module counts only if each of several
rows enters it, because a periodic task may run during one of them, in particular on a busy machine.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

import airy_trio
from airy_trio import app
from tests.application import Application
from tests.e2e.route import HOST, writing

PACKAGE = Path(airy_trio.__file__).parent
ROW_MAX = 24
SUBSCRIBE_MAX = 17
START_MAX = 44
TIMEOUT_S = 20.0
IDLE_S = 2.0
ROWS = 5


@contextmanager
def entered() -> Iterator[set[str]]:
    """Collect the modules of the package that are entered in the block."""
    files: set[str] = set()
    modules: set[str] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield modules
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        inside = (Path(file) for file in files if Path(file).is_relative_to(PACKAGE))
        modules.update(str(file.relative_to(PACKAGE)) for file in inside)


def check(title: str, modules: set[str], at_most: int) -> None:
    print(f"{title}: {len(modules)} modules: {' '.join(sorted(modules))}")  # noqa: T201 - the purpose of the test
    assert len(modules) <= at_most


async def send(client: WebSocketConnection, *lines: str) -> None:
    await client.send_message("\n".join((*lines, "", "\0")))


async def receive(client: WebSocketConnection, command: str) -> None:
    text = await client.get_message()
    assert str(text).startswith(command), text


async def test_few_modules_are_on_the_route(any_application: Application) -> None:
    settings = any_application.migrate("[listener]\nport = 0\n")
    with trio.fail_after(TIMEOUT_S):
        async with writing(any_application) as writer, trio.open_nursery() as nursery:
            with entered() as started:
                address = await nursery.start(app.serve, settings)
            async with open_websocket_url(f"ws://{HOST}:{address.port}/ws.communication") as client:
                await send(client, "CONNECT", "accept-version:1.2", "host:h")
                await receive(client, "CONNECTED")
                with entered() as idle:
                    await trio.sleep(IDLE_S)
                with entered() as subscribed:
                    await send(client, "SUBSCRIBE", "id:0", "destination:/events", "receipt:r", "replay:none")
                    await receive(client, "RECEIPT")
                await writer.apply("insert into tags (id, name, color) values ('t1', 'n', 'red')")
                await receive(client, "MESSAGE")
                rows: list[set[str]] = []
                for number in range(ROWS):
                    with entered() as row:
                        await writer.apply(f"insert into tags (id, name, color) values ('r{number}', 'n', 'red')")
                        await receive(client, "MESSAGE")
                    rows.append(row)
            nursery.cancel_scope.cancel()
    check("start", started, START_MAX)
    check("SUBSCRIBE", subscribed - idle, SUBSCRIBE_MAX)
    check("row", set.intersection(*rows), ROW_MAX)
