"""Clients reconnect while events are appended and trimmed: they receive everything, or an explicit expiry.

These are complete sessions. Their transports refuse data, accept a part, and are read slowly. The store is sometimes
unavailable.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock
from wsproto.utilities import LocalProtocolError

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import ReplayOptions
from airy_trio.events.destinations import covers, parse
from airy_trio.log.options import LogOptions
from airy_trio.log.store import NewEvent, Position, StoredEvent, stored_after
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient
from tests.delivery.peer import PeerStream
from tests.delivery.rig import MoodyStore
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import Server, event, open_log, serving

SEEDS = 8
SEEDS_MAX = 40
"""The order of tasks is random too, so more schedules are run if a branch was taken too seldom."""
BATCHES = 100
OBJECTS = 40
TRIM_SHARE = 0.15
HASTY_SHARE = 0.5
ACKS_SHARE = 0.4
ALL_SHARE = 0.5
LEAST = 5
"""Each branch must be taken at least this often for the schedules to mean anything."""
OPTIONS = ListenerOptions(port=0, heartbeat_ms=0, connect_timeout_s=3600, send_timeout_s=3600)
WINDOW = ReplayOptions(window_s=3600, events_max=25)
DESTINATIONS = ("/events", "/events/conversation/c1", "/events/channel/ch2", "/events/message.updated")
BRANCHES = ("live", "resumed", "reset-expired", "410-position-expired", "cut at 410")


@define(eq=False)
class World:
    """Every event that was appended, and the position up to which they were trimmed."""

    server: Server
    store: MoodyStore
    chance: Random
    branches: Counter[str]
    everything: list[StoredEvent] = field(factory=list)
    trimmed: int = 0
    ended: bool = False

    def has_grown(self, count: int) -> list[NewEvent]:
        """Make the next events, and record them as the store will return them."""
        chance, first = self.chance, len(self.everything) + 1
        new = [
            event(
                number,
                conversation=f"c{chance.randint(1, 3)}",
                channel=f"ch{chance.randint(1, 3)}",
                obj=f"message:{chance.randrange(OBJECTS)}",
                size=chance.choice((0, 100, 1000)),
            )
            for number in range(first, first + count)
        ]
        self.everything += stored_after(self.server.log.head, new, 0)
        return new

    async def grow(self) -> None:
        """Append, trim and pause at random; the last event is for all clients."""
        chance, log = self.chance, self.server.log
        for _ in range(BATCHES):
            await log.append(log.head, self.has_grown(chance.choice((1, 2, 20))), "point")
            if chance.random() < TRIM_SHARE:
                keep = chance.choice((5, 40, 200, 1000))
                self.trimmed += await self.store.trim(age_s=3600, keep=keep, limit=10_000, unused_s=10**6)
            await trio.sleep(chance.uniform(0, 2))
        self.ended = True
        last = [event(len(self.everything) + 1, conversation="c1", channel="ch2", obj="message:last")]
        self.everything += stored_after(log.head, last, 0)
        await log.append(log.head, last, "point")


@define(eq=False)
class ReturningClient:
    """A client that stores ``position``: the last offset that it received, or the one at which it started.

    ``recent_upto``: the end of the recent window; up to there an event may be left out if a newer one follows.
    """

    world: World
    destination: str
    position: int | None = None
    recent_upto: int = 0

    async def live(self) -> None:
        """Connect, stay a while, disconnect, and reconnect, until it has everything."""
        while not self._has_all():
            await self._visit()

    def _has_all(self) -> bool:
        return self.world.ended and self.position == len(self.world.everything)

    async def _visit(self) -> None:
        world, chance = self.world, self.world.chance
        transport = MemoryTransport(chance.choice((300, 3000, 20_000)), moods=chance)
        hasty = world.ended or chance.random() < HASTY_SHARE
        stream = PeerStream(transport, chance, bytes_max=4000 if hasty else 60, pause_s=0.01 if hasty else 2)
        ending = world.server.start(transport)
        count = len(world.everything) + 1 if world.ended else chance.choice((0, 1, 10, 100))
        async with StompClient(stream) as client:
            try:
                await client.upgrade()
                await client.connect()
                start = await self._subscribe(client)
                for _ in range(count):
                    if self._has_all() or not await self._read(client, start):
                        break
            except Closed:  # the transport was too full for the ERROR
                assert await ending.wait() is disconnects.POSITION_EXPIRED
                self._expired("cut at 410")
        assert await ending.wait() in {disconnects.GONE, disconnects.POSITION_EXPIRED}

    async def _subscribe(self, client: StompClient) -> int:
        resume_from, world = self.position, self.world
        whole = world.chance.random() < ALL_SHARE or resume_from is None
        headers = [("replay", "all")] if whole else []
        if world.chance.random() < ACKS_SHARE:
            headers += [("ack", "client-individual"), ("prefetch-count", "2")]
        if resume_from is not None:
            headers.append(("last-event-id", str(world.server.log.head.at(resume_from))))
        receipt = await client.subscribe(self.destination, headers=headers)
        verdict, received = receipt.get("resume") or "", Position.parse(receipt.get("position") or "")
        assert received is not None, receipt
        world.branches[verdict] += 1
        match verdict:
            case "resumed":
                assert received.offset == resume_from
            case "reset-expired":
                assert resume_from is not None
                assert resume_from < world.trimmed, "nothing after its position was trimmed"
                latest = world.trimmed if whole else len(world.everything)
                assert received.offset <= latest
            case _:
                assert (verdict, resume_from) == ("live", None)
        self.position = received.offset
        self.recent_upto = len(world.everything) if verdict == "reset-expired" and not whole else 0
        return received.offset

    async def _read(self, client: StompClient, start: int) -> bool:
        """Read and acknowledge one frame; return False if it was an ERROR."""
        frame = await client.receive()
        continues = self._check(frame, start)
        if frame.get("ack") is not None:
            await trio.sleep(0 if self.world.ended else self.world.chance.uniform(0, 10))
            with suppress(LocalProtocolError, trio.BrokenResourceError):  # an ERROR is on its way; it is read next
                await client.acknowledge(frame)
        return continues

    def _check(self, frame: Frame, start: int) -> bool:
        """Check the next frame; return False if it is an ERROR."""
        if frame.command == "ERROR":
            assert frame.get("message") == "410-position-expired"
            self._expired("410-position-expired")
            return False
        received = Position.parse(frame.get("message-id") or "")
        assert received is not None
        assert self.position is not None
        expected = self._next(max(start, self.position))
        while expected < received.offset:
            assert expected <= self.recent_upto
            left_out = self.world.everything[expected - 1].object
            assert left_out in {one.object for one in self.world.everything[expected:]}
            expected = self._next(expected)
        assert (received.offset, frame.body) == (expected, self.world.everything[expected - 1].body)
        self.position = received.offset
        return True

    def _expired(self, how: str) -> None:
        assert self.position is not None
        assert self.position < self.world.trimmed, "nothing that it lacks was trimmed"
        self.world.branches[how] += 1

    def _next(self, after: int) -> int:
        return next(one.offset for one in self._wanted(after) if one.offset > after)

    def _wanted(self, after: int = 0) -> Iterator[StoredEvent]:
        destination = parse(self.destination)
        return (one for one in self.world.everything[after:] if covers(destination, one))


async def run(seed: int, branches: Counter[str]) -> None:
    """Run one schedule: every client receives everything, or an expiry."""
    chance = Random(seed)
    store = MoodyStore(chance, away_share=chance.choice((0, 0.3)))
    log = await open_log(store, LogOptions(store="memory", tail_events=chance.choice((20, 100))))
    async with serving(log, OPTIONS, WINDOW, listen=False) as server:
        world = World(server, store, chance, branches)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.grow)
            for destination in DESTINATIONS:
                nursery.start_soon(ReturningClient(world, destination).live)
        await server.ended()


@pytest.mark.slow
async def test_returning_clients_get_everything_or_an_explicit_expiry(autojump_clock: MockClock) -> None:
    branches: Counter[str] = Counter()
    for seed in range(SEEDS_MAX):
        await run(seed, branches)
        if seed + 1 >= SEEDS and all(branches[branch] >= LEAST for branch in BRANCHES):
            break
    assert {branch: branches[branch] >= LEAST for branch in BRANCHES} == dict.fromkeys(BRANCHES, True), branches
