"""Start clients of other projects, and read what they print. Independent of the server."""

import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, frozen

from tests.processes import Program, json_object, running

FOLDER = Path(__file__).parent
RECEIVE_TIMEOUT_S = 30.0
CERTIFICATE_VARIABLES = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "WEBSOCKET_CLIENT_CA_BUNDLE")
"""The variables of Node.js, OpenSSL and websocket-client."""
SMALL_WEBSOCKET = """
globalThis.WebSocket = class {
  readyState = 1;
  close() {}
  receive(data) { setTimeout(() => this.onmessage({ data })); }
  send(frame) {
    if (frame.startsWith('CONNECT')) this.receive('CONNECTED\\nversion:1.2\\n\\n\\0');
    if (frame.startsWith('SUBSCRIBE')) this.onsubscribe(frame);
  }
};
"""
"""A WebSocket of a few lines for Node.js. A program that uses it sets ``onsubscribe`` of its prototype."""


@frozen
class Received:
    """One MESSAGE, as parsed by the client."""

    body: str
    headers: dict[str, str]

    @property
    def offset(self) -> int:
        """The offset in its position."""
        return int(self.headers["message-id"].rpartition("-")[2])


@define
class Client(Program):
    """A running client. It reports on ``err`` what happens to its connection, by the event names in ``program.mjs``."""

    async def messages(self, count: int, *, after: int = 0) -> list[Received]:
        """Wait for ``count`` messages after the first ``after``, and return them.

        Raises ``AssertionError`` with the client's output if the client ends too early.
        """
        with trio.fail_after(RECEIVE_TIMEOUT_S):
            await self.out.line(after + count - 1)
        return [self._message(number) for number in range(after, after + count)]

    def reported(self, event: str) -> list[dict[str, Any]]:
        """Return the reports of this event so far."""
        return [record for line in self.err.all if (record := json_object(line)).get("event") == event]

    async def until_reported(self, event: str, count: int) -> list[dict[str, Any]]:
        """Wait for ``count`` reports of this event. Raises ``AssertionError`` if the client ends before."""
        number = 0
        while len(found := self.reported(event)) < count:
            number = max(number, len(self.err.all))
            if await self.err.line(number) is None:
                raise AssertionError(f"ended after {len(found)} {event!r}:\n" + "\n".join(self.err.all))
        return found

    def _message(self, number: int) -> Received:
        if number >= len(self.out.all):
            raise AssertionError(f"the client ended after {number} messages:\n" + "\n".join(self.err.all))
        return Received(**json.loads(self.out.all[number]))


def missing(program: str) -> str | None:
    """Return what this machine lacks to run a client's program; None if it lacks nothing."""
    if not program.endswith(".mjs"):
        return None
    if shutil.which("node") is None:
        return f"no Node.js: {program} cannot run"
    if not (FOLDER / "node_modules").is_dir():
        return f"what {program} needs is not installed: run `npm ci` in tests/clients"
    return None


@asynccontextmanager
async def client(
    program: str,
    url: str,
    *,
    last_event_id: str = "",
    count: int = 0,
    token: str = "",
    heartbeat_ms: int | None = None,
    replay: str = "",
    authority: Path | None = None,
) -> AsyncIterator[Client]:
    """Start a client. It ends by itself after ``count`` messages (0: never).

    ``heartbeat_ms`` None: the client's default. ``replay``: the header of that name, if any. ``authority``: a
    certificate authority to trust; whether the authorities of the machine are trusted too depends on the client.
    """
    if reason := missing(program):
        pytest.skip(reason)
    if program.endswith(".mjs"):
        command = [shutil.which("node") or "", str(FOLDER / program)]
    else:
        command = [sys.executable, "-m", f"{__package__}.{program.removesuffix('.py')}"]
    environ = {"TOKEN": token, "HEARTBEAT_MS": "" if heartbeat_ms is None else str(heartbeat_ms), "REPLAY": replay}
    if authority is not None:
        environ |= dict.fromkeys(CERTIFICATE_VARIABLES, str(authority))
    arguments = [url, last_event_id, str(count)]
    async with running(Client, [*command, *arguments], environ=environ, folder=FOLDER.parents[1]) as started:
        yield started


stompjs = partial(client, "stompjs.mjs")
stompman = partial(client, "stompman_client.py")
