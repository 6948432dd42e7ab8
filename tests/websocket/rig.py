"""One client without a WebSocket: the conversation, wire, send task and fan-out over an outlet in memory."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from random import Random

import trio
from attrs import define, field

from airy_trio.events.destinations import Destination
from airy_trio.log.eventlog import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.position import Position
from airy_trio.log.store import Bounds, NewEvent, StoredEvent, StoreUnavailable
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.stomp.encoder import encode
from airy_trio.stomp.frames import Frame, Version
from airy_trio.testing.outlet import MemoryOutlet
from airy_trio.websocket.auth import Authenticator, AuthOptions
from airy_trio.websocket.conversation import Conversation
from airy_trio.websocket.fanout import fan_out
from airy_trio.websocket.farewells import Farewell
from airy_trio.websocket.heartbeats import Wheel
from airy_trio.websocket.runs import Runs
from airy_trio.websocket.sender import send_for_ever
from airy_trio.websocket.subscriptions import Client, ReplayOptions
from airy_trio.websocket.tasks import Tasks
from airy_trio.websocket.wire import Wire
from tests.websocket.messages import Reader, stomp

SEND_TIMEOUT_S = 10.0


class MoodyStore(MemoryStore):
    """A store in memory that takes its time, and is away now and then."""

    def __init__(self, moods: Random, *, delay_s: float = 0.05, away_share: float = 0.2) -> None:
        super().__init__()
        self.moods = moods
        self.delay_s = delay_s
        self.away_share = away_share
        self.reads = 0

    async def _mood(self) -> None:
        await trio.sleep(self.moods.uniform(0, self.delay_s))
        if self.moods.random() < self.away_share:
            message = "away"
            raise StoreUnavailable(message)

    async def read(self, after: Position, limit: int, destination: Destination | None = None) -> Sequence[StoredEvent]:
        if destination is not None:
            self.reads += 1
            await self._mood()
        found = await super().read(after, limit, destination)
        await trio.sleep(self.moods.uniform(0, self.delay_s))
        return found

    async def recent(
        self, until: Position, age_s: float, limit: int, destination: Destination | None = None
    ) -> Sequence[StoredEvent]:
        await self._mood()
        return await super().recent(until, age_s, limit, destination)

    async def bounds(self) -> Bounds:
        await trio.sleep(self.moods.uniform(0, self.delay_s))
        return await super().bounds()


@define(eq=False)
class Rig:
    log: EventLog
    outlet: MemoryOutlet
    client: Client
    wire: Wire
    conversation: Conversation
    wheel: Wheel
    frames: list[Frame] = field(factory=list)
    heart_beats: int = 0
    reader: Reader = field(factory=Reader)

    async def say(self, command: str, *headers: tuple[str, str]) -> Farewell | None:
        """Let the client send a frame, and wait until it was answered."""
        return await self.conversation.hear(encode(Frame(command, headers), self.client.connection.version))

    def read(self, bytes_max: int | None = None) -> list[Frame]:
        """Let the client take bytes, and give the frames that they complete."""
        new = []
        for message in self.reader.feed(self.outlet.take(bytes_max)):
            frame = stomp(message)
            if frame is None:
                self.heart_beats += 1
            else:
                new.append(frame)
        self.frames += new
        return new

    async def read_all(self) -> list[Frame]:
        """Take bytes until none come for a while."""
        new = self.read()
        quiet = 0
        while quiet < 3:
            await trio.sleep(1)  # of the autojump clock: whoever can run has run
            more = self.read()
            quiet = 0 if more or self.outlet.pending else quiet + 1
            new += more
        return new

    async def append(self, events: Sequence[NewEvent]) -> None:
        await self.log.append(self.log.head, events, "point")


@asynccontextmanager
async def rigged(
    log: EventLog,
    outlet: MemoryOutlet,
    *,
    heart_beat: str = "0,0",
    replay: ReplayOptions | None = None,
    version: Version = Version.V1_2,
) -> AsyncGenerator[Rig]:
    """A client that is connected, with its tasks, until the block ends."""
    client = Client(Connection(ConnectionOptions(session="s1", server="airy-trio/test", heartbeat_ms=500)))
    wire = Wire(outlet, send_timeout_s=SEND_TIMEOUT_S)
    wheel = Wheel()
    conversation = Conversation(
        client, wire, log, wheel, replay or ReplayOptions(), authenticator=Authenticator(AuthOptions())
    )
    rig = Rig(log, outlet, client, wire, conversation, wheel)
    async with trio.open_nursery() as nursery:
        tasks = Tasks(nursery, client)
        nursery.start_soon(fan_out, log)
        nursery.start_soon(wheel.turn)
        tasks.start_soon(send_for_ever, client, wire, log, Runs(log))
        await rig.say("CONNECT", ("accept-version", version.value), ("heart-beat", heart_beat))
        yield rig
        conversation.end()
        nursery.cancel_scope.cancel()
