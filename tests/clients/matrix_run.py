"""Run all clients against one server: events, silence, a crash, the end. The result is the capabilities of each client.

One server and one run for all save time. A client that fails takes no further steps; the others continue.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from airy_trio.capture import mapping
from tests.application import MESSAGE, Application, application
from tests.clients.client_processes import Client, Received, client
from tests.clients.contents import BEFORE_THE_CRASH, STORED, meaning
from tests.clients.matrix import Capability, RealClient
from tests.processes import Server, json_object, server

HEARTBEAT_MS = 1000
BEATS = 4
"""Four beats span three intervals; a client that sends nothing is disconnected after 2.5 intervals."""
STEP_TIMEOUT_S = 20.0
TOKEN = "hunter2:\\n"
RESUMED_AFTER = 110
ENDED = "connection closed"
"""The event that the server logs at the end of a connection."""

Outcomes = dict[tuple[str, Capability], Exception | None]


@define
class Attempt:
    """One client. ``session``: the server's name for its current connection. ``seen``: messages by offset."""

    client: RealClient
    running: Client
    session: str = ""
    seen: dict[int, Received] = field(factory=dict)
    outcomes: dict[Capability, Exception | None] = field(factory=dict)

    @property
    def failed(self) -> bool:
        return any(self.outcomes.values())

    async def try_step(self, capability: Capability, step: Callable[["Attempt"], Awaitable[None]]) -> None:
        """Run a step, and record its outcome."""
        if self.failed:
            return
        self.outcomes[capability] = None
        try:
            with trio.fail_after(STEP_TIMEOUT_S):
                await step(self)
        except Exception as error:  # noqa: BLE001 - the test of this cell raises it
            error.add_note("\n".join(["the client said:", *self.running.err.all[-20:]]))
            self.outcomes[capability] = error


async def try_all(clients: Sequence[RealClient], folder: Path) -> Outcomes:
    """Run all steps with these clients. Return the exception of each cell, or None."""
    with application(f"sqlite:///{folder}/app.db", create=True) as made:
        made.migrate()
        config = folder / "airy-trio.toml"
        async with trio.open_nursery() as alive:  # the clients outlive a server
            async with serving(config, made, port=0) as doomed:
                url = doomed.url
                attempts = [await alive.start(keep_alive, each, url) for each in clients]
                await run_step(attempts, Capability.SUBSCRIBE, is_subscribed)
                write(made, range(1, BEFORE_THE_CRASH + 1))
                await run_step(attempts, Capability.EVENTS, understands_all)
                await wait_for_heart_beats(attempts, doomed)
                await doomed.kill()
            write(made, range(BEFORE_THE_CRASH + 1, len(STORED) + 1))
            async with serving(config, made, port=doomed.port) as restarted:
                await run_step(attempts, Capability.RECONNECT, lambda attempt: catches_up(attempt, restarted))
                await run_step(attempts, Capability.DISCONNECT, lambda attempt: disconnects(attempt, restarted))
                await run_step(attempts, Capability.RESUME, lambda attempt: resumes(attempt, restarted))
            alive.cancel_scope.cancel()
    return {(each.client.package, capability): how for each in attempts for capability, how in each.outcomes.items()}


@asynccontextmanager
async def serving(config: Path, made: Application, *, port: int) -> AsyncIterator[Server]:
    """Run a server that requires a token."""
    config.write_text(  # noqa: ASYNC240 - a few bytes
        f'[database]\nurl = "{made.url}"\n'
        f"[listener]\nport = {port}\nheartbeat_ms = {HEARTBEAT_MS}\n"
        f'[auth]\nmode = "tokens"\ntokens = {{ tests = "${{TESTS_TOKEN}}" }}\n'
        '[admin]\nport = 0\n[logging]\nformat = "json"\n'
    )
    async with server(config, environ={"TESTS_TOKEN": TOKEN}) as listening:
        yield listening


async def keep_alive(  # noqa: ASYNC114 - it is started directly in the nursery's block
    real: RealClient, url: str, *, task_status: trio.TaskStatus[Attempt]
) -> None:
    """Start a client, and kill it when this task is cancelled."""
    async with start(real, url) as running:
        task_status.started(Attempt(real, running))
        await trio.sleep_forever()


def start(
    real: RealClient, url: str, *, last_event_id: str = "", count: int = 0
) -> AbstractAsyncContextManager[Client]:
    """Start a client's program."""
    return client(real.program, url, last_event_id=last_event_id, count=count, token=TOKEN, heartbeat_ms=HEARTBEAT_MS)


async def run_step(
    attempts: Iterable[Attempt], capability: Capability, step: Callable[[Attempt], Awaitable[None]]
) -> None:
    """Run a step for all clients at the same time."""
    async with trio.open_nursery() as nursery:
        for attempt in attempts:
            nursery.start_soon(attempt.try_step, capability, step)


def write(made: Application, numbers: Iterable[int]) -> None:
    """Write messages, in one transaction."""
    rows = [{**MESSAGE, "id": f"m{number}", "content": STORED[number - 1]} for number in numbers]
    made.insert(mapping.MESSAGES, *rows)


async def is_subscribed(attempt: Attempt) -> None:
    [connected] = await attempt.running.until_reported("connected", 1)
    assert connected["headers"]["server"].startswith("airy-trio/")
    assert connected["headers"]["heart-beat"] == f"{HEARTBEAT_MS},{HEARTBEAT_MS}"
    attempt.session = connected["headers"]["session"]


async def understands_all(attempt: Attempt) -> None:
    received = await attempt.running.messages(BEFORE_THE_CRASH)
    assert_are(received, range(1, BEFORE_THE_CRASH + 1))
    assert len(attempt.running.out.all) == BEFORE_THE_CRASH


async def wait_for_heart_beats(attempts: Iterable[Attempt], listening: Server) -> None:
    """Wait for three heart-beat intervals without events, measured by the clients that receive heart-beats."""
    able, others = (
        [attempt for attempt in attempts if attempt.client.verdict(Capability.HEART_BEATS).works is works]
        for works in (True, False)
    )
    await run_step(able, Capability.HEART_BEATS, lambda attempt: receives_heart_beats(attempt, listening))
    await run_step(others, Capability.HEART_BEATS, lambda attempt: receives_no_heart_beats(attempt, listening))


async def receives_heart_beats(attempt: Attempt, listening: Server) -> None:
    before = len(attempt.running.reported("heart-beat"))
    await attempt.running.until_reported("heart-beat", before + BEATS)
    assert_stays(attempt, listening)


async def receives_no_heart_beats(attempt: Attempt, listening: Server) -> None:
    assert not attempt.running.reported("heart-beat")
    assert_stays(attempt, listening)
    await trio.lowlevel.checkpoint()


async def catches_up(attempt: Attempt, listening: Server) -> None:
    """Check that the client misses nothing and stays connected. It may receive the recent window again."""
    sessions = [report["headers"]["session"] for report in await attempt.running.until_reported("connected", 2)]
    assert sessions[0] == attempt.session
    attempt.session = sessions[-1]
    number = 0
    while len(attempt.seen) < len(STORED):
        [received] = await attempt.running.messages(1, after=number)
        attempt.seen.setdefault(received.offset, received)
        number += 1
    assert_are(list(attempt.seen.values()), range(1, len(STORED) + 1))
    if attempt.client.verdict(Capability.HEART_BEATS).works:
        await attempt.running.until_reported("heart-beat", len(attempt.running.reported("heart-beat")) + BEATS)
    assert_open(attempt, listening)


async def disconnects(attempt: Attempt, listening: Server) -> None:
    assert await attempt.running.terminate() == 0
    ended = await listening.record(ENDED, session=attempt.session)
    if attempt.client.verdict(Capability.DISCONNECT).works:
        assert len(attempt.running.reported("disconnected")) == 1
    assert ended["user"] == "tests"
    assert ended["disconnect"] == ("gone" if attempt.client.package == "webstompy" else "done")


async def resumes(attempt: Attempt, listening: Server) -> None:
    """Start the client once more with a position, and check that it continues after that position."""
    works = attempt.client.verdict(Capability.RESUME).works
    expected = range(RESUMED_AFTER + 1 if works else 1, len(STORED) + 1)
    position = attempt.seen[RESUMED_AFTER].headers["message-id"]
    async with start(attempt.client, listening.url, last_event_id=position, count=len(expected)) as again:
        received = await again.messages(len(expected))
        assert await again.wait() == 0
        assert len(again.out.all) == len(expected)
    assert_are(received, expected)
    assert received[0].headers.get("resume") == ("resumed" if works else None)


def assert_are(received: Sequence[Received], numbers: Iterable[int]) -> None:
    """Check that these are the messages with these numbers, in order, each with the content that was stored."""
    expected = list(numbers)
    assert [one.offset for one in received] == expected
    for number, one in zip(expected, received, strict=True):
        message = json.loads(one.body)["payload"]["message"]
        assert message["id"] == f"m{number}"
        assert message["content"] == meaning(STORED[number - 1]), number


def assert_stays(attempt: Attempt, listening: Server) -> None:
    """Check that neither side has ended the connection since the beginning."""
    assert not attempt.running.reported("closed")
    assert len(attempt.running.reported("connected")) == 1
    assert_open(attempt, listening)


def assert_open(attempt: Attempt, listening: Server) -> None:
    """Check that the server has not ended the current connection."""
    records = [json_object(line) for line in listening.err.all]
    assert attempt.session not in {record["session"] for record in records if record.get("event") == ENDED}
