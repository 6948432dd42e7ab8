"""Starts the clients of others and reads what they print; knows nothing of what they are connected to."""

import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, frozen

from tests.processes import Program, running

FOLDER = Path(__file__).parent
RECEIVE_TIMEOUT_S = 30.0


@frozen
class Received:
    """One MESSAGE as the client's own parser understood it."""

    body: str
    headers: dict[str, str]


@define
class Client(Program):
    """A running client. What happens to its connection is on ``err``: ``record("connected")``, ``record("error")``."""

    async def messages(self, count: int, *, after: int = 0) -> list[Received]:
        """Give ``count`` messages, the first ``after`` of all passed over; waits until they are there.

        Raises ``AssertionError``, with what the client said, where it ends before.
        """
        with trio.fail_after(RECEIVE_TIMEOUT_S):
            await self.out.line(after + count - 1)
        return [self._message(number) for number in range(after, after + count)]

    def _message(self, number: int) -> Received:
        if number >= len(self.out.all):
            message = f"the client ended after {number} messages:\n" + "\n".join(self.err.all)
            raise AssertionError(message)
        return Received(**json.loads(self.out.all[number]))


@asynccontextmanager
async def stompjs(url: str, *, last_event_id: str = "", count: int = 0) -> AsyncIterator[Client]:
    """``@stomp/stompjs`` under Node.js; it ends by itself after ``count`` messages (0: never)."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js: @stomp/stompjs cannot run")
    if not (FOLDER / "node_modules").is_dir():
        pytest.skip("@stomp/stompjs is not installed: run `npm ci` in tests/clients")
    async with running(Client, [node, str(FOLDER / "stompjs.mjs"), url, last_event_id, str(count)]) as client:
        yield client


@asynccontextmanager
async def stompman(url: str, *, last_event_id: str = "", count: int = 0) -> AsyncIterator[Client]:
    """``stompman`` (asyncio); it ends by itself after ``count`` messages (0: never)."""
    program = str(FOLDER / "stompman_client.py")
    async with running(Client, [sys.executable, program, url, last_event_id, str(count)]) as client:
        yield client
