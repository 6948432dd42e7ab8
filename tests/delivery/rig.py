"""Clients without a WebSocket: conversation, stream, fan-out and send tasks over transports in memory."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from copy import copy
from random import Random

import trio
from attrs import define, field

from airy_trio.auth.authenticator import Authenticator
from airy_trio.auth.users import AuthOptions
from airy_trio.delivery.client import Client, ReplayOptions
from airy_trio.delivery.disconnects import DisconnectReason
from airy_trio.delivery.fanout import Batches, FanOut, Senders
from airy_trio.delivery.framing import StompFraming
from airy_trio.log.event_log import EventLog
from airy_trio.log.store import Bounds, NewEvent, Position, StateChange, StoredEvent, StoreUnavailable
from airy_trio.sessions.conversation import Conversation, Inbox, Services, SessionOptions
from airy_trio.stomp.codec import encode
from airy_trio.stomp.frames import Frame, Version
from airy_trio.websocket.admission import Admission, AdmissionOptions, ConnectionSlot
from airy_trio.websocket.fair_queue import FairQueue
from airy_trio.websocket.stream import FramedStream
from tests.delegating_store import Current, DelegatingStore, Read
from tests.delivery.messages import Reader, stomp
from tests.memory_transport import MemoryTransport

SEND_TIMEOUT_S = 10.0
STUCK_READS = 100


class CountingQueue(FairQueue):
    """A queue in which no task waits for another one."""

    turns = 0

    async def enter(self, address: str = "") -> None:  # noqa: ARG002 - that of FairQueue
        self.turns += 1
        await trio.lowlevel.checkpoint()


def slot(queue: FairQueue | None = None) -> ConnectionSlot:
    """Return the slot of a connection that no other connection can affect."""
    admission = Admission(AdmissionOptions())
    admission.fair_queue = queue or admission.fair_queue
    return admission.arrive("192.0.2.1", loopback=False)


class MoodyStore(DelegatingStore):
    """A store in memory with random delays and random outages."""

    def __init__(self, moods: Random, *, delay_s: float = 0.05, away_share: float = 0.2) -> None:
        super().__init__()
        self.moods = moods
        self.delay_s = delay_s
        self.away_share = away_share
        self.reads = 0

    async def _mood(self) -> None:
        await trio.sleep(self.moods.uniform(0, self.delay_s))
        if self.moods.random() < self.away_share:
            raise StoreUnavailable("away")

    async def on_read(self, call: Read) -> Sequence[StoredEvent]:
        if call.destination is not None:
            self.reads += 1
            await self._mood()
        found = await super().on_read(call)
        await trio.sleep(self.moods.uniform(0, self.delay_s))
        return found

    async def on_current(self, call: Current) -> Sequence[StoredEvent]:
        await self._mood()
        return await super().on_current(call)

    async def since(self, age_s: float) -> Position:
        await self._mood()
        return await super().since(age_s)

    async def bounds(self) -> Bounds:
        await trio.sleep(self.moods.uniform(0, self.delay_s))
        return await super().bounds()


class RecordingTransport(MemoryTransport):
    """A transport that records each object that it accepted for writing."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        super().__init__(capacity_bytes)
        self.writes: list[bytes] = []

    def offer(self, data: bytes) -> bool:
        taken = super().offer(data)
        if taken:
            self.writes.append(data)
        return taken

    def push(self, data: bytes) -> None:
        super().push(data)
        self.writes.append(data)


@define(eq=False)
class Rig:
    log: EventLog
    transport: MemoryTransport
    client: Client
    stream: FramedStream
    conversation: Conversation
    fanout: FanOut
    senders: Senders
    frames: list[Frame] = field(factory=list)
    heart_beats: int = 0
    queue: CountingQueue = field(factory=CountingQueue)
    version: Version = Version.V1_2
    reader: Reader = field(factory=Reader)

    async def request(self, command: str, *headers: tuple[str, str]) -> DisconnectReason | None:
        """Send a frame from the client and wait for its answer; return the disconnect reason, if any."""
        return await self.conversation.handle(encode(Frame(command, headers), self.version))

    def read(self, bytes_max: int | None = None) -> list[Frame]:
        """Take bytes at the client and return the frames that they complete. PINGs are answered."""
        new, pings = [], self.reader.pings
        for message in self.reader.feed(self.transport.take(bytes_max)):
            frame = stomp(message)
            if frame is None:
                self.heart_beats += 1
            else:
                new.append(frame)
        if self.reader.pings > pings:
            self.stream.read_at = trio.current_time()
        self.frames += new
        return new

    async def read_all(self) -> list[Frame]:
        """Take bytes until none arrive for a while. Fails if something stays pending."""
        new = more = self.read()
        quiet = stuck = 0
        while quiet < 3:
            # With the autojump clock every task that can run has run after a sleep. A full buffer is read more often
            # than timers run.
            await trio.sleep(0.1 if more or self.transport.pending else 1)
            more = self.read()
            stuck = 0 if more or not self.transport.pending else stuck + 1
            assert stuck < STUCK_READS, "bytes are pending, and no task drains the buffer"
            quiet = 0 if more or self.transport.pending else quiet + 1
            new += more
        return new

    async def append(self, events: Sequence[NewEvent], state: StateChange | None = None) -> None:
        await self.log.append(self.log.head, events, "point", state=state)


@define(eq=False)
class Delivery:
    """The parts that all clients of one log share, and the nursery of their tasks."""

    log: EventLog
    services: Services
    nursery: trio.Nursery
    rigs: list[Rig] = field(factory=list)

    @property
    def batches(self) -> Batches:
        return self.services.batches

    @property
    def senders(self) -> Senders:
        return self.services.senders

    @property
    def fanout(self) -> FanOut:
        return self.services.fanout

    async def connect(
        self,
        transport: MemoryTransport,
        *,
        heart_beat: str = "0,0",
        replay: ReplayOptions | None = None,
        version: Version = Version.V1_2,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> Rig:
        """Connect one more client."""
        stream = FramedStream(transport, send_timeout_s=send_timeout_s)
        queue = CountingQueue()
        client = Client(StompFraming(self.services.connections, "s1"), stream, slot(queue))
        services = copy(self.services)
        services.replay = replay or ReplayOptions()
        conversation = Conversation(client, services, Inbox(trio.sleep_forever, queue.enter, bytes_max=0))
        rig = Rig(
            self.log, transport, client, stream, conversation, self.fanout, self.senders, queue=queue, version=version
        )
        self.rigs.append(rig)
        await rig.request("CONNECT", ("accept-version", version.value), ("heart-beat", heart_beat))
        return rig


@asynccontextmanager
async def delivering(log: EventLog) -> AsyncGenerator[Delivery]:
    """Run fan-out, send tasks and timer wheel over a log until the block ends."""
    options = SessionOptions(heartbeat_ms=500)
    services = Services(log, options, ReplayOptions(), Authenticator(AuthOptions()), server="airy-trio/test")
    senders = services.senders
    async with trio.open_nursery() as nursery:
        nursery.start_soon(senders.run, nursery)
        for task in (services.fanout.run, senders.watch, services.wheel.run, services.durables.run):
            nursery.start_soon(task)
        delivery = Delivery(log, services, nursery)
        yield delivery
        for rig in delivery.rigs:
            rig.conversation.end()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def rigged(
    log: EventLog,
    transport: MemoryTransport,
    *,
    heart_beat: str = "0,0",
    replay: ReplayOptions | None = None,
    version: Version = Version.V1_2,
) -> AsyncGenerator[Rig]:
    """Run one connected client and its tasks until the block ends."""
    async with delivering(log) as delivery:
        yield await delivery.connect(transport, heart_beat=heart_beat, replay=replay, version=version)
