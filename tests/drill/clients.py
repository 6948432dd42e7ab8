"""Clients that lose their connection again and again, and resume on any node that listens."""

import random
from collections.abc import Callable

import h11
import trio
from attrs import define, field

from airy_trio import client as library
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, Headers, Rejected, StompClient, connect
from tests.clients.page import Network, network
from tests.drill.nodes import Nodes, listens
from tests.e2e.route import HOST, Event, event_of
from tests.event_stream import requesting

RETRY_S = 0.01
STAY_MAX_S = 2.0
FORGETS = 0.5
"""How often a client that builds a table starts again instead of continuing."""
STAY_SHORT_MAX_S = 0.15
STAY_OF_LIBRARY_MAX_S = 1.0  # because it pauses before it connects
CUT_AFTER_ONE_EVENT_IN = 5
EVENTS_MAX = 20  # a client reads this many events before it disconnects
ACKNOWLEDGED_ONCE_IN = 10
CONFIRMED_SHARE = 0.3
TOKEN = "s3cret"
CREDENTIALS = (("passcode", TOKEN),)
AUTH = f'[auth]\nmode = "tokens"\ntokens = {{ ann = "{TOKEN}" }}\n'
"""Settings of servers with users, because durable subscriptions belong to a user."""

_DISCONNECTED = (OSError, Closed, Rejected, trio.BrokenResourceError)


@define
class Resuming:
    """A client and its received events, in order. ``position``: that of the last event, or of the start."""

    nodes: Nodes
    random: random.Random
    headers: Headers = ()
    position: str = ""
    events: list[Event] = field(factory=list)
    resumes: int = 0
    refused: int = 0
    ended: bool = False

    async def receive(self, at_most: int | None = None) -> None:
        """Connect, resume, and read ``at_most`` events, or until the drill ends or the server disconnects.

        Raises ``AssertionError`` if the server does not resume exactly after the last event.
        """
        node = self.random.choice(await self.nodes.wait(listens))
        try:
            async with await connect(HOST, node.port, headers=self.headers) as client:
                # At first it receives only new events.
                start = ("last-event-id", self.position) if self.position else ("replay", "none")
                receipt = await client.subscribe(headers=[start])
                assert receipt.command == "RECEIPT", receipt
                position = receipt.get("position")
                if self.position:
                    assert (receipt.get("resume"), position) == ("resumed", self.position), receipt
                    self.resumes += 1
                assert position is not None
                self.position = position
                while not self.ended and (at_most is None or at_most > 0):
                    self._take(event_of(await client.receive()))
                    at_most = None if at_most is None else at_most - 1
        except _DISCONNECTED:
            self.refused += 1
            await trio.sleep(RETRY_S)

    async def resume_until(self, enough: Callable[[], bool]) -> None:
        """Connect and read a little, again and again."""
        while not enough():
            with trio.move_on_after(self.random.uniform(0, STAY_SHORT_MAX_S)):  # at any moment
                await self.receive(self.random.randrange(EVENTS_MAX))

    async def follow(self) -> None:
        """Receive until the end of the drill."""
        while not self.ended:
            await self.receive()

    def _take(self, event: Event) -> None:
        assert_next(event, self.position)
        self.position = event.position
        self.events.append(event)
        self.ended = event.is_end


@define
class Building:
    """A client that builds a table of the tags from the current state and what follows, over short connections.

    With the probability ``forgets`` it forgets the table and starts again. Otherwise it continues after its last event,
    if the server allows it. ``table``: names by id. ``states``: current states received; ``resets``: those of them that
    a new epoch caused. ``position``: see ``Resuming``.
    """

    nodes: Nodes
    random: random.Random
    forgets: float = FORGETS
    table: dict[str, str] = field(factory=dict)
    position: str = ""
    states: int = 0
    resets: int = 0
    resumes: int = 0
    completed: int = 0
    refused: int = 0
    ended: bool = False

    async def follow(self) -> None:
        """Receive until the end of the drill."""
        while not self.ended:
            if self.random.random() < self.forgets:
                self.position = ""
            with trio.move_on_after(self.random.uniform(0, STAY_MAX_S)):
                await self._receive()

    async def _receive(self) -> None:
        node = self.random.choice(await self.nodes.wait(listens))
        try:
            async with await connect(HOST, node.port, headers=CREDENTIALS) as client:
                headers = [("replay", "current"), *([("last-event-id", self.position)] if self.position else [])]
                receipt = await client.subscribe(headers=headers)
                assert receipt.command == "RECEIPT", receipt
                if receipt.get("resume") == "resumed":
                    self.resumes += 1
                else:
                    self.states += 1
                    self.resets += receipt.get("resume") == "reset-epoch"
                    self.table.clear()
                self.position = receipt.get("position") or ""
                while not self.ended:
                    self._take(await client.receive())
        except _DISCONNECTED:
            self.refused += 1
            await trio.sleep(RETRY_S)

    def _take(self, message: Frame) -> None:
        event = event_of(message)
        assert event.offset > int(self.position.rpartition("-")[2]), f"{event} after {self.position}"
        self.position = event.position
        self.completed += message.get("state") == "complete"
        if event.type == "tag.deleted":
            self.table.pop(event.payload["id"], None)
        else:
            self.table[event.payload["id"]] = event.payload["name"]
        self.ended = event.is_end


class StreamResuming(Resuming):
    """A reader of event streams."""

    async def receive(self, at_most: int | None = None) -> None:
        """See ``Resuming.receive``."""
        node = self.random.choice(await self.nodes.wait(listens))
        headers = [("Last-Event-ID", self.position)] if self.position else []
        try:
            async with requesting(node.port, "/events?replay=none", headers=headers) as stream:
                subscribed = await stream.subscribed()
                if self.position:
                    assert subscribed == {"resume": "resumed", "position": self.position}
                    self.resumes += 1
                self.position = subscribed["position"]
                while not self.ended and (at_most is None or at_most > 0):
                    event = await stream.receive()
                    assert event.type == "message", event
                    self._take(Event(event.id, event.data))
                    at_most = None if at_most is None else at_most - 1
        except (OSError, EOFError, h11.RemoteProtocolError, trio.BrokenResourceError):
            self.refused += 1
            await trio.sleep(RETRY_S)


@define
class LibraryResuming(Resuming):
    """``airy_trio.client`` over connections that are cut again and again: it reconnects and resumes by itself.

    Is also the store of its position. ``resumes``: how often an event came over another connection than the one before.
    """

    async def resume_until(self, enough: Callable[[], bool]) -> None:
        """Receive over connections of random length."""
        async with network() as link, trio.open_nursery() as nursery:
            await self._cut(link)
            nursery.start_soon(self._cut_repeatedly, link)
            await self._follow(link, enough, cuts=True)
            nursery.cancel_scope.cancel()

    async def follow(self) -> None:
        """See ``Resuming.follow``."""
        async with network() as link:
            link.target = self.random.choice(await self.nodes.wait(listens)).port
            await self._follow(link, lambda: self.ended, cuts=False)

    async def load(self) -> str | None:
        """See ``PositionStore.load``."""
        await trio.lowlevel.checkpoint()
        return self.position or None

    async def save(self, position: str) -> None:
        """Store only the first position; the position of each event is stored when it is received."""
        await trio.lowlevel.checkpoint()
        self.position = self.position or position

    async def _cut(self, link: Network) -> None:
        await link.cut()
        link.target = self.random.choice(await self.nodes.wait(listens)).port
        link.mend()
        self.refused += 1

    async def _cut_repeatedly(self, link: Network) -> None:
        while True:
            await trio.sleep(self.random.uniform(0, STAY_OF_LIBRARY_MAX_S))  # at any moment
            await self._cut(link)

    async def _follow(self, link: Network, enough: Callable[[], bool], *, cuts: bool) -> None:
        before = 0
        async with library.open(f"ws://{HOST}:{link.port}") as inbox:
            async for event in inbox.events("/events", position=self):
                assert isinstance(event, library.Event), event
                self.resumes += link.connections > before > 0
                before = link.connections
                self._take(Event(event.position, event.body.decode()))
                if enough():
                    return
                if cuts and self.random.randrange(CUT_AFTER_ONE_EVENT_IN) == 0:
                    await self._cut(link)


@define
class Durable:
    """A client that stores no position. It sometimes acknowledges, drops its connection, and returns.

    ``events``: the received events by offset. ``acknowledged``: the offset up to which it has acknowledged, or that of
    its start. ``confirmed``: the offset up to which the server has confirmed that the acknowledgement is stored. The
    server may resume anywhere between the two.
    """

    nodes: Nodes
    random: random.Random
    events: dict[int, Event] = field(factory=dict)
    acknowledged: int = 0
    confirmed: int = 0
    first: int = 0
    again: int = 0
    deaths: int = 0
    refused: int = 0
    ended: bool = False

    async def follow(self) -> None:
        """Receive until the end of the drill, over connections of random length."""
        while not self.ended:
            with trio.move_on_after(self.random.uniform(0, STAY_MAX_S)) as life:
                await self._receive()
            self.deaths += life.cancelled_caught

    async def _receive(self) -> None:
        """Receive over one connection.

        Raises ``AssertionError`` if the server skips an event, or resumes before a confirmed acknowledgement.
        """
        node = self.random.choice(await self.nodes.wait(listens))
        try:
            async with await connect(HOST, node.port, headers=CREDENTIALS) as client:
                headers = [("durable", "drill"), ("ack", "client"), ("replay", "none")]
                receipt = await client.subscribe(headers=headers)
                assert receipt.command == "RECEIPT", receipt
                position = receipt.get("position")
                assert position is not None
                self._start(int(position.rpartition("-")[2]), receipt)
                while not self.ended:
                    position = await self._take(client, await client.receive(), position)
        except _DISCONNECTED:
            self.refused += 1
            await trio.sleep(RETRY_S)

    def _start(self, offset: int, receipt: Frame) -> None:
        """Check the offset at which the server resumes against the acknowledged ones."""
        if not self.events:
            self.first, self.acknowledged = offset + 1, offset
        else:
            assert receipt.get("resume") == "resumed", receipt
            acknowledged = f"{self.confirmed} confirmed, {self.acknowledged} acknowledged"
            assert self.confirmed <= offset <= self.acknowledged, f"{receipt}, {acknowledged}"

    async def _take(self, client: StompClient, frame: Frame, position: str) -> str:
        """Check a frame, acknowledge it now and then, and return the position after it."""
        if frame.command == "RECEIPT":
            self.confirmed = max(self.confirmed, int(frame.get("receipt-id") or ""))
            return position
        event = event_of(frame)
        assert_next(event, position)
        self.again += event.offset in self.events
        assert self.events.setdefault(event.offset, event) == event
        self.ended = event.is_end
        if self.random.randrange(ACKNOWLEDGED_ONCE_IN) == 0:
            self.acknowledged = max(self.acknowledged, event.offset)
            confirmed = self.random.random() < CONFIRMED_SHARE
            await client.acknowledge(frame, headers=[("receipt", str(event.offset))] if confirmed else ())
        return event.position


def assert_next(event: Event, position: str) -> None:
    """Assert that an event is the next one after a position."""
    epoch, _, offset = position.rpartition("-")
    assert (event.epoch, event.offset) == (epoch, int(offset) + 1), f"{event} after {position}"
