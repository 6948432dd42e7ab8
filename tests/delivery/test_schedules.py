"""Random schedules of a few clients from the log to the transport: no gap, no duplicate, nothing after its end."""

from collections.abc import Sequence
from random import Random

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.auth.users import ALL, Grant, User
from airy_trio.delivery import fanout
from airy_trio.delivery.client import ClientState, ReplayOptions
from airy_trio.events.destinations import OfConversation, covers, parse
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.current import Marks
from airy_trio.log.options import LogOptions
from airy_trio.log.store import NewEvent, Position, StateChange, StoredEvent
from airy_trio.sessions.heartbeats import PING_EVERY_S
from airy_trio.stomp.frames import Frame
from tests.delivery.rig import MoodyStore, Rig, delivering
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import event, open_log

DESTINATIONS = (
    "/events",
    "/events/message.updated",
    "/events/conversation/c1",
    "/events/conversation/c2",
    "/events/channel/ch2",
    "/events/tag.updated",
)
OBJECTS = 40
STEPS = 60
REST_SHARE = 0.3
ENDED_SHARE = 0.05
PATIENCE_S = 1e6
"""Long enough for a client that begins to read only when the client with the slowest socket has finished."""


@define
class Expected:
    """The RECEIPT of a subscription, and the events that it received."""

    id: str
    destination: str
    ack: str
    prefetch: int
    resume_from: str | None
    replay: str | None
    position: Position | None = None
    verdict: str = ""
    until: Position | None = None
    head: int = 0
    complete: int = 0
    got: list[int] = field(factory=list)
    bodies: list[bytes] = field(factory=list)
    in_flight: list[Frame] = field(factory=list)
    ended: bool = False


@define(eq=False)
class Schedule:
    """A client with random actions that checks each frame when it arrives."""

    rig: Rig
    chance: Random
    everything: list[StoredEvent]
    habits: dict[int, tuple[str, str]]
    """Destination and ack mode of every client's n-th subscription: equal ones share batches."""
    alike: bool = False
    """Subscribe to everything, from now on, without acks, so that nearly every batch is shared."""
    by_id: dict[str, Expected] = field(factory=dict)
    waiting: dict[str, Expected] = field(factory=dict)
    ending: dict[str, Expected] = field(factory=dict)
    seen: list[str] = field(factory=list)
    numbers: int = 0
    over: set[str] = field(factory=set)
    """Objects that have ended."""

    @property
    def grant(self) -> Grant:
        return self.rig.client.user.grant

    def may_read(self, event: StoredEvent) -> bool:
        channels = self.grant.channels
        return channels is None or event.channel_id in channels

    async def step(self) -> None:
        actions = (self.append, self.append, self.take, self.take, self.take, self.acknowledge, self.acknowledge)
        rare = (self.subscribe, self.unsubscribe, self.pause)
        await self.chance.choice(actions if self.chance.random() < 0.8 else rare)()

    async def rest(self) -> None:
        """Run all tasks that can run. Then no live client may lack an event (invariant 4)."""
        await wait_all_tasks_blocked()
        client = self.rig.client
        if client.state is ClientState.LIVE:
            assert not self.rig.transport.pending
            assert not any(subscription.has_work for subscription in client.subscriptions.values())

    async def append(self) -> None:
        new = [
            event(
                len(self.everything) + number,
                conversation=f"c{self.chance.randint(1, 3)}",
                channel=self.chance.choice(("ch1", "ch2", "ch3", None)),
                obj=f"message:{self.chance.randrange(OBJECTS)}",
                size=self.chance.choice((0, 10, 300, 5000)),
            )
            for number in range(1, 1 + self.chance.choice((1, 2, 3, 4, 19)))
        ]
        at_once = self.chance.choice((1, 1, len(new)))
        for start in range(0, len(new), at_once):
            await self.append_kept(new[start : start + at_once])
            for _ in range(self.chance.randrange(5)):
                await trio.lowlevel.checkpoint()
        at = Position(self.rig.log.epoch, len(self.everything))
        self.everything += await self.rig.log.store.read(at, len(new))

    async def append_kept(self, new: Sequence[NewEvent]) -> None:
        """Append; sometimes an object ends, and sometimes events are added to the current state."""
        if self.chance.random() < ENDED_SHARE:
            self.over.add(f"message:{self.chance.randrange(OBJECTS)}")
        change = StateChange(generation="first0", marks=str(Marks(kept=STATE_TYPES)), ended=tuple(self.over))
        await self.rig.append(new, change)
        for _ in range(self.chance.randrange(3)):
            await self.rig.log.store.fold("first0", STATE_TYPES, self.chance.choice((1, 3, 50)))

    async def take(self) -> None:
        self.check_frames(self.rig.read(self.chance.choice((1, 50, 500, 5000, None))))
        if self.chance.random() < 0.5:
            await trio.sleep(self.chance.uniform(0, 0.03))

    async def pause(self) -> None:
        await trio.sleep(self.chance.uniform(0, 0.3))

    async def subscribe(self) -> None:
        if len(self.by_id) - sum(one.ended for one in self.by_id.values()) >= 5:
            return
        self.numbers += 1
        new = self.chance.choice(DESTINATIONS), self.chance.choice(("auto", "auto", "client", "client-individual"))
        if self.alike:
            new = "/events", "auto"
        destination, ack = self.habits.setdefault(self.numbers, new)
        if self.grant.of(parse(destination)) is None:
            destination = "/events"
        resumed_share = 0 if self.alike else 0.6
        one = Expected(
            id=f"sub{self.numbers}",
            destination=destination,
            ack=ack,
            prefetch=self.chance.choice((1, 2, 30)),
            resume_from=self.chance.choice((None, *self.seen[-50:])) if self.chance.random() < resumed_share else None,
            replay="none" if self.alike else self.chance.choice((None, "none", "all", "current", "current")),
        )
        headers = [("id", one.id), ("destination", one.destination), ("receipt", f"start {one.id}"), ("ack", one.ack)]
        headers.append(("prefetch-count", str(one.prefetch)))
        if one.resume_from is not None:
            headers.append(("last-event-id", one.resume_from))
        if one.replay is not None:
            headers.append(("replay", one.replay))
        self.by_id[one.id] = self.waiting[f"start {one.id}"] = one
        before = len(self.everything)
        refused = await self.request("SUBSCRIBE", *headers)
        if isinstance(parse(destination), OfConversation) and self.grant.channels is not None:
            heads = [self.everything[:head] for head in range(before, len(self.everything) + 1)]
            assert refused in {self.is_elsewhere(destination, head) for head in heads}
        else:
            assert not refused
        if refused:
            del self.by_id[one.id], self.waiting[f"start {one.id}"]
            await self.request("UNSUBSCRIBE", ("id", one.id))

    def is_elsewhere(self, destination: str, events: Sequence[StoredEvent]) -> bool:
        """Return whether the newest event of a conversation belongs to a channel that is not granted."""
        newest = next((event for event in reversed(events) if covers(parse(destination), event)), None)
        return newest is not None and newest.channel_id is not None and not self.may_read(newest)

    async def unsubscribe(self) -> None:
        alive = [one for one in self.by_id.values() if not one.ended and one not in self.ending.values()]
        if alive:
            one = self.chance.choice(alive)
            self.ending[f"end {one.id}"] = one
            await self.request("UNSUBSCRIBE", ("id", one.id), ("receipt", f"end {one.id}"))

    async def acknowledge(self) -> None:
        busy = [one for one in self.by_id.values() if one.in_flight]
        if busy:
            one = self.chance.choice(busy)
            chosen = self.chance.choice(one.in_flight)
            await self.request(self.chance.choice(("ACK", "ACK", "NACK")), ("id", _ack(chosen)))
            one.in_flight = (
                one.in_flight[one.in_flight.index(chosen) + 1 :]
                if one.ack == "client"
                else [frame for frame in one.in_flight if frame is not chosen]
            )

    async def request(self, command: str, *headers: tuple[str, str]) -> bool:
        """Send a frame while the client reads, so that the server can answer, and while the log grows.

        Return whether the frame was refused because the client's grant does not cover it.
        """
        async with trio.open_nursery() as meanwhile:
            if self.chance.random() < 0.5:
                meanwhile.start_soon(self.append)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keep_reading)
                reason = await self.rig.request(command, *headers)
                nursery.cancel_scope.cancel()
        assert reason is None or (reason.token, command) == ("403-destination", "SUBSCRIBE")
        return reason is not None

    async def keep_reading(self) -> None:
        while True:
            await trio.sleep(self.chance.uniform(0, 0.1))
            self.check_frames(self.rig.read(self.chance.choice((1, 50, 500, 5000))))

    def check_frames(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            match frame.command:
                case "RECEIPT" if frame.get("receipt-id") in self.waiting:
                    one = self.waiting.pop(frame.get("receipt-id") or "")
                    one.position, one.verdict = Position.parse(frame.get("position") or ""), frame.get("resume") or ""
                    one.until = Position.parse(frame.get("until") or "")
                    one.head = self.rig.log.head.offset
                case "RECEIPT":
                    self.ending.pop(frame.get("receipt-id") or "").ended = True
                case "MESSAGE":
                    self.check_message(frame)
                case _:
                    assert frame.command == "CONNECTED"

    def check_message(self, frame: Frame) -> None:
        one = self.by_id[frame.get("subscription") or ""]
        assert one.position is not None, "a MESSAGE before the RECEIPT of its SUBSCRIBE"
        assert not one.ended, "a MESSAGE after the RECEIPT of its UNSUBSCRIBE"
        assert frame.get("resume") == (one.verdict if one.resume_from and not one.got else None)
        position = Position.parse(frame.get("message-id") or "")
        assert position is not None
        one.complete += frame.get("state") == "complete"
        one.got.append(position.offset)
        one.bodies.append(frame.body)
        self.seen.append(str(position))
        if one.ack == "auto":
            assert frame.get("ack") is None
        else:
            one.in_flight.append(frame)
            assert len(one.in_flight) <= one.prefetch

    async def finish(self) -> None:
        """Finish everything that is open."""
        while True:
            self.check_frames(await self.rig.read_all())
            client = self.rig.client
            assert client.reason is None
            if any(one.backoff and one.has_work for one in client.subscriptions.values()):
                continue  # the store was away so often in a row that nothing arrived before it is read again
            busy = [one for one in self.by_id.values() if one.in_flight and not one.ended]
            if not busy:
                break
            for one in busy:
                for frame in one.in_flight:
                    await self.rig.request(self.chance.choice(("ACK", "NACK")), ("id", _ack(frame)))
                one.in_flight.clear()
        assert not self.waiting
        assert not self.ending

    def check(self) -> None:
        for one in self.by_id.values():
            assert one.position is not None
            resume_from = Position.parse(one.resume_from) if one.resume_from else None
            if resume_from is not None:
                assert (one.verdict, one.position) == ("resumed", resume_from)
            else:
                assert one.verdict == "live"
            wanted = [e for e in self.everything if covers(parse(one.destination), e) and self.may_read(e)]
            after = [e.offset for e in wanted if e.offset > one.position.offset]
            assert one.bodies == [self.everything[offset - 1].body for offset in one.got]
            if one.until is None and resume_from is None and one.replay is None:
                self.check_recent(one, after)
            elif one.until is None:
                assert one.got == (after[: len(one.got)] if one.ended else after), one
            else:
                self.check_state(one, one.until.offset, wanted)

    def check_recent(self, one: Expected, after: list[int]) -> None:
        """Check a subscription that began with the recent window: an event may be missing if a newer one followed."""
        last = {event.object: event.offset for event in self.everything}
        reached = one.got[-1] if one.got else 0
        expected = [at for at in after if at <= reached] if one.ended else after
        assert one.got == [at for at in expected if at in set(one.got)]
        missing = [self.everything[at - 1] for at in expected if at not in one.got]
        assert all(event.offset <= one.head and event.offset < last[event.object] for event in missing), one

    def check_state(self, one: Expected, until: int, wanted: Sequence[StoredEvent]) -> None:
        """Check a subscription that began with the current state: the newest of each object, then everything."""
        state, live = [[at for at in one.got if part(at)] for part in (until.__ge__, until.__lt__)]
        last = {event.object: event for event in self.everything if event.offset <= until}
        newest = {object_: event.offset for object_, event in last.items() if event in wanted}
        assert state == sorted(state)
        assert set(state) <= set(newest.values()), "an event that was superseded, or twice"
        following = [event.offset for event in wanted if event.offset > until]
        if one.ended:
            assert live == following[: len(live)]
            return
        assert live == following
        changed = {event.object for event in self.everything[until:]}
        missing = {object_ for object_, offset in newest.items() if offset not in state}
        assert missing <= changed | self.over, "an object without an event"
        expected = 0 if one.position == one.until or not one.got else 1
        # The last event may have left the state, for another destination too, and then nothing may follow (line 21).
        is_open = not live and bool(newest) and max(newest.values()) not in state
        assert one.complete == expected or (one.complete == 0 and is_open), one


WINDOW = ReplayOptions(window_s=3600, events_max=25)


def _ack(frame: Frame) -> str:
    return frame.get("ack") or ""


async def run_schedule(seed: int, clients: int = 2, grants: Sequence[Grant] = (), *, alike: bool = False) -> None:
    """Run several clients of one log, one step after another, then check each of them.

    ``grants``: one for each client. ``alike``: all of them have the same subscription, and their sockets are never full
    for long.
    """
    chance = Random(seed)
    store = MoodyStore(chance, away_share=chance.choice((0, 0.3)))
    log = await open_log(store, LogOptions(store="memory", tail_events=chance.choice((20, 100, 400))))
    everything: list[StoredEvent] = []
    heart_beat = chance.choice(("0,0", "0,500"))
    habits: dict[int, tuple[str, str]] = {}
    over: set[str] = set()
    async with delivering(log) as delivery:
        schedules: list[Schedule] = []
        for _ in range(clients):
            transport = MemoryTransport(None if alike else chance.choice((300, 5000, 100_000, None)), moods=chance)
            rig = await delivery.connect(transport, replay=WINDOW, heart_beat=heart_beat, send_timeout_s=PATIENCE_S)
            if grants:
                rig.client.user = User("user", grant=grants[len(schedules)])
            schedules.append(Schedule(rig, chance, everything, habits, alike, over=over))
        for _ in range(STEPS * clients):
            await chance.choice(schedules).step()
            if chance.random() < REST_SHARE:
                for schedule in schedules:
                    await schedule.rest()
        async with trio.open_nursery() as staying:
            async with trio.open_nursery() as nursery:
                for schedule in schedules:
                    nursery.start_soon(finish_and_stay, schedule, staying)
            staying.cancel_scope.cancel()
        for schedule in schedules:
            schedule.check_frames(schedule.rig.read())  # heart-beats, while other clients were not finished
        await wait_all_tasks_blocked()
        for schedule in schedules:
            schedule.check_frames(schedule.rig.read())
            schedule.check()
            assert schedule.rig.client.state is ClientState.LIVE, schedule.rig.client.reason
            assert not schedule.rig.reader.incomplete
        assert not delivery.senders.sending


async def finish_and_stay(schedule: Schedule, staying: trio.Nursery) -> None:
    """Finish, then read in a task of ``staying``, so that PINGs are answered until the other clients have finished."""

    async def read_on() -> None:
        while True:
            await trio.sleep(PING_EVERY_S)
            schedule.check_frames(schedule.rig.read())

    await schedule.finish()
    staying.start_soon(read_on)


@pytest.mark.parametrize("seed", range(24))
async def test_every_subscription_gets_exactly_what_follows_its_position(
    seed: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "YIELD_EVERY", (1, 256)[seed % 2])
    await run_schedule(seed)


@pytest.mark.parametrize("seed", range(12))
async def test_neighbours_get_exactly_what_follows_their_positions(
    seed: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "YIELD_EVERY", (1, 256)[seed % 2])
    await run_schedule(seed, 4, alike=True)


@pytest.mark.parametrize("seed", range(24))
async def test_each_subscription_gets_exactly_what_it_is_granted(
    seed: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live, replayed, resumed, from the tail and from the store, together with other destinations and ids."""
    monkeypatch.setattr(fanout, "YIELD_EVERY", (1, 256)[seed % 2])
    chance = Random(seed)
    channels = [frozenset(chance.sample(("ch1", "ch2", "ch3", "ch9"), chance.randint(1, 3))) for _ in range(2)]
    await run_schedule(seed, 4, [ALL, *(Grant(channels=one) for one in (channels[0], channels[0], channels[1]))])
