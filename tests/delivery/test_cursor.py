"""A cursor in two phases against a list: the table that a client builds, whatever happens between two pages."""

from collections.abc import Sequence
from typing import cast

import pytest
import trio
from attrs import define, field
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from airy_trio.delivery.client import Client, ClientState, ReplayOptions, Subscription, Window
from airy_trio.delivery.fanout import Batches, Senders
from airy_trio.delivery.framing import StompFraming
from airy_trio.delivery.start import Start, StartRequest, start
from airy_trio.events.destinations import EVERYTHING
from airy_trio.events.models import STATE_TYPES
from airy_trio.log import reads
from airy_trio.log.current import Marks
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.reads import STATE_AGE_S, Reads
from airy_trio.log.store import NewEvent, Position, PositionExpired, StateChange
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.frames import AckMode, Frame, Subscribe
from airy_trio.websocket.stream import FramedStream
from tests.delivery.messages import Reader, stomp
from tests.delivery.rig import slot
from tests.memory_transport import MemoryTransport

OBJECTS = 6
UPDATED, DELETED = "message.updated", "message.deleted"


@define(eq=False)
class World:
    """The log, and the table that it describes: the newest body of each object that exists."""

    reads: Reads
    table: dict[str, bytes] = field(factory=dict)
    generation: int = 0
    count: int = 0

    @property
    def log(self) -> EventLog:
        return self.reads.log

    def update(self, name: str) -> NewEvent:
        self.count += 1
        body = b"%s %d" % (name.encode(), self.count)
        self.table[name] = body
        return NewEvent(UPDATED, name, None, None, body)

    def delete(self, name: str) -> NewEvent:
        self.table.pop(name, None)
        return NewEvent(DELETED, name, None, None, name.encode() + b" deleted")

    async def append(self, new: Sequence[NewEvent], *, swept: bool = False) -> None:
        newest = {event.object: event.type for event in new}
        ended = [name for name, type_ in newest.items() if type_ == DELETED]
        change = StateChange(
            generation=str(self.generation),
            marks=str(Marks(kept=STATE_TYPES)),
            ended=[] if swept else ended,
            swept={UPDATED: self.log.head.offset} if swept else {},
        )
        await self.log.append(self.log.head, new, "point", state=change)

    async def fold(self, limit: int) -> None:
        """Add some events to the current state."""
        await self.log.store.fold(str(self.generation), STATE_TYPES, limit)

    async def send_all_again(self) -> list[NewEvent]:
        return [self.update(name) for name in tuple(self.table)]


@define(eq=False)
class Viewer:
    """A client that builds the table from what it receives, and subscribes again whenever its position expires."""

    world: World
    ack: AckMode
    table: dict[str, bytes] = field(factory=dict)
    position: Position | None = None
    subscription: Subscription | None = None
    reader: Reader = field(factory=Reader)
    received: list[Position] = field(factory=list)
    start: Start | None = None
    complete: int = 0

    async def subscribe(self) -> None:
        log = self.world.log
        if self.subscription is not None:
            log.tail.detach(self.subscription.view, self.subscription)
        connection = StompFraming(ConnectionOptions(server="airy-trio/test"), "s1")
        connection.receive(b"CONNECT\naccept-version:1.2\n\n\0")
        connection.connected()
        [request] = connection.receive(f"SUBSCRIBE\nid:0\ndestination:/events\nack:{self.ack.value}\n\n\0".encode())
        assert isinstance(request, Subscribe)
        client = Client(connection, FramedStream(MemoryTransport(), send_timeout_s=1), slot())
        window = None if self.ack is AckMode.AUTO else Window(self.ack, 1)
        new = self.subscription = Subscription(
            client, request.number, connection.message_prefix(request), log.head, window=window
        )
        new.view = log.tail.attach(EVERYTHING, new)
        client.subscriptions[new.number] = new
        client.state = ClientState.BEHIND
        position = None if self.position is None else str(self.position)
        begin = self.start = await start(self.world.reads, new.view, StartRequest(position, "current"), ReplayOptions())
        if begin.resume != "resumed":
            self.table.clear()
        self.position = begin.position
        self.reader, self.received, self.complete = Reader(), [], 0
        new.begin_after(begin.position, begin.replay)
        new.start()

    async def read_page(self, batches: Batches) -> bool:
        """Receive the next page, or subscribe again. Return False if there is nothing to receive."""
        subscription = self.subscription
        assert subscription is not None
        try:
            senders = Senders(self.world.reads, batches)
            served = await senders._serve_subscription(subscription)  # noqa: SLF001 - without its loop
        except PositionExpired:
            await self.subscribe()
            return True
        transport = cast("MemoryTransport", subscription.client.stream.transport)
        frames = [frame for message in self.reader.feed(transport.take()) if (frame := stomp(message)) is not None]
        for frame in frames:
            self.receive(frame)
        return served

    def receive(self, frame: Frame) -> None:
        position = Position.parse(frame.get("message-id") or "")
        assert position is not None
        assert not self.received or self.received[-1] < position, "out of order, or twice"
        self.received.append(position)
        self.position = position
        self.complete += frame.get("state") == "complete"
        assert self.complete <= 1
        name, _, rest = frame.body.decode().partition(" ")
        if rest == "deleted":
            self.table.pop(name, None)
        else:
            self.table[name] = frame.body
        if self.subscription is not None and self.subscription.window is not None:
            self.subscription.window.acknowledge(position.offset)

    def check(self) -> None:
        """Check the table after everything was received."""
        assert self.table == self.world.table
        assert self.start is not None
        begun = self.start.replay is not None and bool(self.received)
        assert self.complete == begun


@define(eq=False)
class Steps:
    """The actions that may happen between two pages."""

    world: World
    viewer: Viewer
    batches: Batches

    async def run(self, step: tuple[str, list[int]]) -> None:
        what, numbers = step
        names = [f"o{number % OBJECTS}" for number in numbers]
        await getattr(self, what)(names, numbers)

    async def update(self, names: list[str], _numbers: list[int]) -> None:
        await self.world.append([self.world.update(name) for name in names])

    async def delete(self, names: list[str], _numbers: list[int]) -> None:
        await self.world.append([self.world.delete(name) for name in dict.fromkeys(names)])

    async def sweep(self, names: list[str], _numbers: list[int]) -> None:
        """Write a backfill that has found that some objects no longer exist."""
        gone = [self.world.delete(name) for name in dict.fromkeys(names)]
        await self.world.append([*gone, *await self.world.send_all_again()], swept=True)

    async def generation(self, _names: list[str], _numbers: list[int]) -> None:
        self.world.generation += 1
        await self.world.append(await self.world.send_all_again())

    async def forget(self, names: list[str], _numbers: list[int]) -> None:
        """Append by a writer without support for the state, and begin a new state."""
        log = self.world.log
        await log.append(log.head, [self.world.update(name) for name in names], "point")
        await self.generation([], [])

    async def epoch(self, _names: list[str], _numbers: list[int]) -> None:
        await self.world.log.begin_epoch(self.world.log.head, "point")
        await self.generation([], [])

    async def trim(self, _names: list[str], numbers: list[int]) -> None:
        await self.world.log.store.trim(age_s=10**6, keep=len(numbers), limit=10**6, unused_s=10**6)

    async def fold(self, _names: list[str], numbers: list[int]) -> None:
        await self.world.fold(len(numbers))

    async def read(self, _names: list[str], numbers: list[int]) -> None:
        for _ in numbers:
            await self.viewer.read_page(self.batches)

    async def reconnect(self, _names: list[str], _numbers: list[int]) -> None:
        await self.viewer.subscribe()

    async def wait(self, _names: list[str], _numbers: list[int]) -> None:
        await trio.sleep(STATE_AGE_S)


KINDS = ("update", "update", "delete", "fold", "fold", "read", "read", "read", "trim", "reconnect", "wait", "sweep",
         "generation", "forget", "epoch")  # fmt: skip
steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, OBJECTS - 1), min_size=1, max_size=8)), max_size=25
)


async def schedule(ack: AckMode, first: int, schedule: Sequence[tuple[str, list[int]]]) -> None:
    log = EventLog(MemoryStore(trio.current_time), LogOptions(store="memory", tail_events=4))
    await log.open()
    world = World(Reads(log))
    await world.append([world.update(f"o{number % OBJECTS}") for number in range(first)])
    viewer, batches = Viewer(world, ack), Batches(log)
    await viewer.subscribe()
    taken = Steps(world, viewer, batches)
    for step in schedule:
        await taken.run(step)
    while await viewer.read_page(batches):
        pass
    viewer.check()


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from((AckMode.AUTO, AckMode.CLIENT)), st.integers(0, 12), steps)
@example(AckMode.AUTO, 11, [("generation", [0]), ("trim", [0] * 5)])  # the ended state is requested again
@example(AckMode.CLIENT, 5, [("read", [0]), ("update", [4]), ("read", [0] * 8)])
def test_table_of_a_client_is_that_of_a_list(ack: AckMode, first: int, steps: list[tuple[str, list[int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reads.Reads.__init__, "__defaults__", (2, 1000))
        patch.setattr(reads, "PAGES_MAX", 2)
        trio.run(schedule, ack, first, steps, clock=MockClock(autojump_threshold=0))
