"""The common part of the end-to-end tests: a server and an application as processes, and received events."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Headers, StompClient, connect
from tests.application import Application
from tests.clients.client_processes import Received
from tests.processes import Lines, Server, json_object

WRITER = Path(__file__).with_name("writer.py")
HOST = "127.0.0.1"
END = "the end"


@define
class Writer:
    """An application as a process. Only one task may use it."""

    _stdin: trio.abc.SendStream
    _answers: Lines
    _requests: int = 0

    async def apply(self, *statements: str, session: str = "main") -> None:
        """Run the statements one after the other, and return when they are done."""
        line = json.dumps({"session": session, "statements": statements}) + "\n"
        number, self._requests = self._requests, self._requests + 1
        await self._stdin.send_all(line.encode())
        answer = await self._answers.line(number)
        assert answer == "done", answer

    async def end(self) -> None:
        """Write the row that ends the stream of events."""
        await self.apply(f"insert into tags (id, name, color) values ('{END}', 'end', 'red')")


@frozen
class Event:
    """One MESSAGE: its position and its exact body."""

    position: str
    body: str

    @property
    def offset(self) -> int:
        return int(self.position.rpartition("-")[2])

    @property
    def epoch(self) -> str:
        return self.position.rpartition("-")[0]

    @property
    def type(self) -> str:
        found: str = json.loads(self.body)["type"]
        return found

    @property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["payload"]
        return found

    @property
    def object(self) -> tuple[str, ...]:
        """The object that this event describes."""
        kind, payload = self.type.partition(".")[0], self.payload
        match kind:
            case "message":
                return kind, payload["message"]["id"]
            case "metadata":
                return kind, payload["subject"], payload["identifier"]
            case _:
                return kind, payload["id"]

    @property
    def is_end(self) -> bool:
        return self.object == ("tag", END)


@define
class Listening:
    """Our client, subscribed to ``/events``. ``receipt``: the answer to its SUBSCRIBE."""

    client: StompClient
    receipt: Frame
    events: list[Event] = field(factory=list)

    async def next(self) -> Event:
        """Return the next event. Raises ``AssertionError`` for any other frame."""
        frame = await self.client.receive()
        assert frame.command == "MESSAGE", frame
        self.events.append(event_of(frame))
        return self.events[-1]

    async def take(self, count: int) -> list[Event]:
        """Return the next ``count`` events."""
        return [await self.next() for _ in range(count)]

    async def upto(self, is_last: Callable[[Event], bool]) -> list[Event]:
        """Return the next events, up to and including the first for which ``is_last`` is true."""
        taken = [await self.next()]
        while not is_last(taken[-1]):
            taken.append(await self.next())
        return taken

    async def upto_end(self) -> list[Event]:
        """Return the next events up to that of the row that ``Writer.end`` writes, without it."""
        return (await self.upto(lambda event: event.is_end))[:-1]


@asynccontextmanager
async def writing(application: Application) -> AsyncIterator[Writer]:
    """Run the application's process during the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(WRITER), application.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = Lines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers.read, process.stdout)
        try:
            yield Writer(process.stdin, answers)
        finally:
            process.kill()
            with trio.move_on_after(5, shield=True):
                await process.wait()
                await process.stdin.aclose()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(server: Server, *, after: str = "", headers: Headers = ()) -> AsyncIterator[Listening]:
    """Connect and subscribe our client. ``after``: a position to resume from."""
    start = (("last-event-id", after), *headers) if after else tuple(headers)
    async with await connect(HOST, server.port) as client:
        receipt = await client.subscribe(headers=start)
        assert receipt.command == "RECEIPT", receipt
        yield Listening(client, receipt)


def configure(application: Application, folder: Path, more: str = "", *, port: int = 0, workers: int = 1) -> Path:
    """Write a settings file for a server on this database, and migrate the database with the default tables.

    ``port`` 0: any. The server logs JSON, which ``tests.processes`` reads.
    """
    application.migrate(more)
    config = folder / f"airy-trio-{port}.toml"
    listener = f'[listener]\nport = {port}\nworkers = {workers}\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
    config.write_text(f'[database]\nurl = "{application.url}"\n{more}{listener}')
    return config


def event_of(message: Frame) -> Event:
    position = message.get("message-id")
    assert position is not None
    return Event(position, message.body.decode())


def events_of(received: Iterable[Received]) -> list[Event]:
    """Return the events that another STOMP client has printed."""
    return [Event(one.headers["message-id"], one.body) for one in received]


def last_of_each(events: Iterable[Event]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the payload of the newest event of each object."""
    return {event.object: event.payload for event in events}


def assert_in_order(events: list[Event]) -> None:
    """Assert that there is one epoch, and each position occurs once, in order."""
    offsets = [event.offset for event in events]
    assert offsets == sorted(set(offsets))
    assert len({event.epoch for event in events}) <= 1


def assert_same_epoch(server: Server) -> None:
    """Assert that a server has logged neither a new epoch nor a traceback."""
    logged = [json_object(line).get("event", line) for line in server.err.all]
    assert not [line for line in logged if line.startswith(("new epoch", "Traceback"))]
