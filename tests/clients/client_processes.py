"""Starts the clients of others and reads what they print; knows nothing of what they are connected to."""

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
"""Of Node.js, OpenSSL and websocket-client."""


@frozen
class Received:
    """One MESSAGE as the client's own parser understood it."""

    body: str
    headers: dict[str, str]

    @property
    def offset(self) -> int:
        """Of its position."""
        return int(self.headers["message-id"].rpartition("-")[2])


@define
class Client(Program):
    """A running client. What happens to its connection is on ``err``, by the names that ``program.mjs`` lists."""

    async def messages(self, count: int, *, after: int = 0) -> list[Received]:
        """Give ``count`` messages, the first ``after`` of all passed over; waits until they are there.

        Raises ``AssertionError``, with what the client said, where it ends before.
        """
        with trio.fail_after(RECEIVE_TIMEOUT_S):
            await self.out.line(after + count - 1)
        return [self._message(number) for number in range(after, after + count)]

    def told(self, event: str) -> list[dict[str, Any]]:
        """All that the client has told of such events so far."""
        return [record for line in self.err.all if (record := json_object(line)).get("event") == event]

    async def until_told(self, event: str, count: int) -> list[dict[str, Any]]:
        """The same once there are ``count`` of them. Raises ``AssertionError`` where the client ends before."""
        number = 0
        while len(found := self.told(event)) < count:
            number = max(number, len(self.err.all))
            if await self.err.line(number) is None:
                message = f"ended after {len(found)} {event!r}:\n" + "\n".join(self.err.all)
                raise AssertionError(message)
        return found

    def _message(self, number: int) -> Received:
        if number >= len(self.out.all):
            message = f"the client ended after {number} messages:\n" + "\n".join(self.err.all)
            raise AssertionError(message)
        return Received(**json.loads(self.out.all[number]))


def missing(program: str) -> str | None:
    """What the machine lacks to run a client's program; None: nothing."""
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
    """Start a client; it ends by itself after ``count`` messages (0: never). ``heartbeat_ms`` None: as it is.

    ``replay``: the header of that name, if any. ``authority``: a certificate authority to trust, with or
    instead of those of the machine.
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
