"""Many clients on one server: most read, some read slowly, some never read, and some reconnect all the time.

Every subscription records the offsets that it receives. At the end ``wrong_deliveries`` compares them with the log: the
subscription must have received every event of its destination after its start, once, in order.
"""

import json
import random
import socket
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import trio
from attrs import define, field

from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, Rejected, StompClient
from tests.e2e.route import END, HOST, Event

CONVERSATIONS = 6
CHANNEL = "ch1"
END_OF = "the end of c"
SLOW_READ_S = 0.03
SMALL_BUFFER_BYTES = 4096
STAY_MAX_S = 0.6
DEAD_STAY_S = 6.0
PING_EVERY = 50
CONVERSATION, CHANNELS = "/events/conversation/", "/events/channel/"
DESTINATIONS = (
    "/events",
    "/events/message.updated",
    "/events/tag.updated",
    f"{CHANNELS}{CHANNEL}",
    *(f"{CONVERSATION}c{number}" for number in range(CONVERSATIONS)),
)


@define
class Deliveries:
    """The events of one subscription. ``start``: the position before the first; empty until its first RECEIPT."""

    destination: str
    start: str = ""
    offsets: "array[int]" = field(factory=lambda: array("q"))
    ended: bool = False

    @property
    def position(self) -> str:
        """The position after which it resumes."""
        epoch, _, _ = self.start.rpartition("-")
        return f"{epoch}-{self.offsets[-1]}" if self.offsets else self.start

    def take(self, message: Frame) -> None:
        epoch, _, offset = str(message.get("message-id")).rpartition("-")
        assert epoch == self.start.rpartition("-")[0], message
        self.offsets.append(int(offset))
        self.ended = self.ended or is_last(self.destination, json.loads(message.body))


@define
class Member:
    """One client with several subscriptions, whose ids other clients may use too."""

    port: int
    chance: random.Random
    subscriptions: Mapping[str, Deliveries]
    connections: int = 0
    disconnected: int = 0

    @property
    def ended(self) -> bool:
        """Whether each subscription has received its last event."""
        return all(deliveries.ended for deliveries in self.subscriptions.values())

    async def stay(self, *, slow: trio.Event | None = None) -> None:
        """Read over one connection to the end; slowly until ``slow`` is set. Raises if the server disconnects it."""
        async with await self._connect(small=slow is not None) as client:
            frames = 0
            while not self.ended:
                await self._read(client)
                frames += 1
                if frames % PING_EVERY == 0:
                    await client.ping()
                if slow is not None and not slow.is_set():
                    await trio.sleep(SLOW_READ_S)
            await client.disconnect()

    async def come_and_go(self) -> None:
        """Read for a while, disconnect in one of several ways, and resume, until the end."""
        while not self.ended:
            try:
                async with await self._connect() as client:
                    with trio.move_on_after(self.chance.uniform(0, STAY_MAX_S)):
                        while not self.ended:
                            await self._read(client)
                    await self._leave(client)
            except (OSError, Closed, Rejected, trio.BrokenResourceError):
                self.disconnected += 1

    async def never_read(self) -> None:
        """Subscribe, then read nothing; repeat this until cancelled."""
        while True:
            try:
                async with await self._connect(small=True):
                    await trio.sleep(DEAD_STAY_S)
            except (OSError, Closed, Rejected, trio.BrokenResourceError):
                self.disconnected += 1

    async def _connect(self, *, small: bool = False) -> StompClient:
        self.connections += 1
        sock = trio.socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        try:
            await sock.connect((HOST, self.port))
            client = StompClient(trio.SocketStream(sock))
            await client.upgrade()
            await client.connect()
            for id_, deliveries in self.subscriptions.items():
                start = ("last-event-id", deliveries.position) if deliveries.start else ("replay", "none")
                headers = (("id", id_), ("destination", deliveries.destination), ("receipt", id_), start)
                await client.send(Frame("SUBSCRIBE", headers))
        except BaseException:
            sock.close()
            raise
        return client

    async def _read(self, client: StompClient) -> None:
        frame = await client.receive()
        if frame.command == "MESSAGE":
            self.subscriptions[str(frame.get("subscription"))].take(frame)
            return
        assert frame.command == "RECEIPT", frame
        deliveries, position = self.subscriptions[str(frame.get("receipt-id"))], str(frame.get("position"))
        if deliveries.start:
            assert (frame.get("resume"), position) == ("resumed", deliveries.position), frame
        deliveries.start = deliveries.start or position

    async def _leave(self, client: StompClient) -> None:
        match self.chance.randrange(3):
            case 0:
                await client.send(Frame("DISCONNECT", (("receipt", "bye"),)))  # without waiting for the answer
            case 1:
                await client.close()
            case _:
                linger = (1).to_bytes(4, "little") + bytes(4)
                assert isinstance(client.stream, trio.SocketStream)
                client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def members(port: int, count: int, seed: int) -> list[Member]:
    """Return clients with one to three subscriptions each; half of them use ids that no other client uses."""
    made = []
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        wanted = ["/events", *chance.sample(DESTINATIONS[1:], chance.randrange(3))]
        ids = [f"{index}" if number % 2 else f"own-{number}-{index}" for index in range(len(wanted))]
        made.append(Member(port, chance, {id_: Deliveries(at) for id_, at in zip(ids, wanted, strict=True)}))
    return made


def is_last(destination: str, event: Mapping[str, Any]) -> bool:
    """Return whether an event is the last of a destination: the writer ends every conversation, then writes ``END``."""
    if event["type"] == "tag.updated":
        return bool(event["payload"]["id"] == END)
    id_ = event["payload"]["message"]["id"] if event["type"] == "message.updated" else ""
    if destination.startswith(CONVERSATION):
        return bool(id_.startswith(END_OF))
    return destination not in ("/events", DESTINATIONS[2]) and bool(id_ == f"{END_OF}{CONVERSATIONS - 1}")


def belongs(destination: str, event: Event) -> bool:
    """Return whether an event belongs to a destination."""
    if destination == "/events":
        return True
    if destination.startswith(CONVERSATION):
        return bool(event.payload.get("conversation_id") == destination.removeprefix(CONVERSATION))
    if destination.startswith(CHANNELS):
        return bool(event.payload.get("channel_id") == destination.removeprefix(CHANNELS))
    return destination == f"/events/{event.type}"


def wrong_deliveries(log: Sequence[Event], crowd: Iterable[Member]) -> list[str]:
    """Return a line for each subscription with lost, repeated or reordered events."""
    offsets = {at: [event.offset for event in log if belongs(at, event)] for at in DESTINATIONS}
    found = []
    for number, member in enumerate(crowd):
        for id_, deliveries in member.subscriptions.items():
            start = int(deliveries.start.rpartition("-")[2])
            wanted = [offset for offset in offsets[deliveries.destination] if offset > start]
            if wanted != list(deliveries.offsets):
                lost = set(wanted) - set(deliveries.offsets)
                more = len(deliveries.offsets) - len(set(deliveries.offsets))
                found.append(
                    f"{number} {id_} {deliveries.destination}: {len(lost)} lost, {more} twice, or out of order"
                )
    return found
