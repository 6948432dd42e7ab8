"""Parts of programs that log in: each one, completed to a program, receives the events of a server."""

import json
import shutil
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from airy_trio import client
from tests.application import Application
from tests.auth.signing import SECRET, issuer
from tests.clients.client_processes import FOLDER as CLIENTS
from tests.clients.client_processes import missing
from tests.docs.pages import parts
from tests.e2e.route import configure
from tests.processes import Program, Server, running, server

TIMEOUT_S = 40.0
AUTH = f'[auth]\nmode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = ["HS256"]\n'
PROGRAM = """
import WebSocket from 'ws';
import { Client } from '@stomp/stompjs';
globalThis.WebSocket ??= WebSocket;
const brokerURL = 'ws://chat.example.org/ws.communication', tokens = %s, token = tokens[0];
const newToken = async () => tokens.shift() ?? Promise.reject('no network'), store = console.log;
%s
client.reconnectDelay = 100;
client.onConnect = () => {
%s
};
process.on('SIGTERM', () => client.deactivate());
client.activate();
"""
HOST = "chat.example.org"


@asynccontextmanager
async def archiving(part: str, serving: Server, folder: Path, *tokens: str | None) -> AsyncIterator[Program]:
    """Run a program with this client, the durable subscription, and the end after it was taken over."""
    durable, taken = parts("how-to/durable.md", "js")
    text = PROGRAM % (json.dumps(tokens), part + taken, durable)
    (folder / "archive.mjs").write_text(
        text.replace(f"wss://{HOST}", f"ws://{HOST}").replace(HOST, f"127.0.0.1:{serving.port}")
    )
    async with running(Program, [shutil.which("node") or "", "archive.mjs"], folder=folder) as archive:
        yield archive


async def stored(archive: Program) -> str:
    """Return the id of the first message that a program stores."""
    line = await archive.out.line(0)
    assert line is not None, archive.err.all
    return str(json.loads(line)["payload"]["message"]["id"])


async def followed(serving: Server, *wanted: str) -> None:
    """Run the part in Python until it has printed the messages with these ids."""
    [part] = parts("how-to/python-client.md", "python")
    seen: list[str] = []

    async def new_token() -> str:
        await trio.lowlevel.checkpoint()
        return issuer("HS256").token()

    def printed(event: Any) -> None:  # noqa: ANN401 - as print
        seen.append(event.payload["message"]["id"])
        if len(seen) == len(wanted):
            scope.cancel()

    names: dict[str, Any] = {
        "client": client,
        "identity_provider": SimpleNamespace(new_token=new_token),
        "print": printed,
    }
    text = textwrap.indent(part.replace(f"wss://{HOST}", f"ws://127.0.0.1:{serving.port}"), "    ")
    exec(f"async def program() -> None:\n{text}", names)  # noqa: S102 - our page
    with trio.CancelScope() as scope:
        await names["program"]()
    assert seen == [*wanted]


@pytest.mark.slow
async def test_programs_log_in_and_store_each_message_once(sqlite_application: Application, tmp_path: Path) -> None:
    if reason := missing("archive.mjs"):
        pytest.skip(reason)
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    fixed, renewed = parts("how-to/tokens.md", "js")
    token, expired = issuer("HS256").token(), issuer("HS256").token(exp=int(time.time()) - 3600)
    with trio.fail_after(TIMEOUT_S):
        async with server(configure(sqlite_application, tmp_path, AUTH)) as serving:
            sqlite_application.message(id="m1")
            async with archiving(fixed, serving, tmp_path, token) as first:
                assert await stored(first) == "m1"
                async with archiving(renewed, serving, tmp_path, expired, None, token) as second:
                    assert await first.wait() == 0
                    sqlite_application.message(id="m2")
                    assert await stored(second) == "m2"
                    assert await second.terminate() == 0
                    assert (len(first.out.all), len(second.out.all)) == (1, 1)
            await followed(serving, "m1", "m2")
