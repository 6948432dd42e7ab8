"""Heart-beats of all clients by one task: who has to be written to, who is silent for too long, whose time is over.

A client that did not promise heart-beats may vanish without a sign and keep its place, one of those that its address
has. So it gets an empty PING now and then, which every WebSocket library answers, and counts as gone if nothing at all
comes from it for several of them. One that is slow and takes what waits for it, bit by bit, is not gone.

The wheel only ever offers a heart-beat: where the transport refuses, bytes are under way, and any byte counts; a send
task sees them off. Clients are filed by the slot of time in which they are due at the earliest, and looked at again
then: what was read and written meanwhile has only moved them on. Intervals are agreed by ``stomp.heartbeats``.
"""

import math
from typing import Final

import trio
from attrs import define

from airy_trio.delivery.client import Client, ClientState
from airy_trio.delivery.disconnects import SILENT, TOKEN_EXPIRED, UNANSWERED, reason_after
from airy_trio.delivery.fanout import Senders
from airy_trio.stomp.requests import HeartBeat
from airy_trio.websocket.stream import HEART_BEAT, PING, FramedStream

SLOT_S: Final = 0.1
"""How exact the wheel is. A heart-beat goes out up to this much early, a silent client is found this much late."""

HORIZON_S: Final = 60.0
"""Nobody is filed later than this from now, so that there are few slots however far apart credentials expire."""

PING_EVERY_S: Final = 60.0
"""Between two PINGs to a client that did not promise heart-beats and sends nothing else."""

UNANSWERED_MAX_S: Final = 900.0
"""How long such a client may send nothing and take nothing of what waits for it.

A PING lies behind all that the systems of both sides hold, some MiB: a slow program takes minutes to come to it.
"""


@define(eq=False)
class Pulse:
    """What the wheel needs of one client. ``expires_at``: when its credentials stop to count, in Trio's time.

    ``pinged_at``: when it was sent a PING last, in Trio's time.
    """

    client: Client
    stream: FramedStream
    heartbeat: HeartBeat
    expires_at: float = math.inf
    pinged_at: float = -math.inf

    @property
    def write_at(self) -> float:
        """From when on a heart-beat, a PING or both are to be written, in Trio's time."""
        outgoing_s = self.heartbeat.outgoing_s
        if outgoing_s is None:
            return self.ping_at
        beat_at = self.stream.written_at + outgoing_s - SLOT_S
        return beat_at if outgoing_s <= PING_EVERY_S else min(beat_at, self.ping_at)

    @property
    def silent_at(self) -> float:
        """From when on the client counts as gone, in Trio's time."""
        silent_after_s = self.heartbeat.silent_after_s
        if silent_after_s is None:
            return max(self.stream.read_at, self.stream.drained_at) + UNANSWERED_MAX_S
        return self.stream.read_at + silent_after_s

    @property
    def ping_at(self) -> float:
        """From when on a PING is to be written, in Trio's time."""
        if self.heartbeat.incoming_s is not None:
            return math.inf
        return max(self.stream.read_at, self.pinged_at) + PING_EVERY_S

    def beat(self, now: float) -> bool:
        """Do what is due: dismiss the client if it is silent or its time is over, write to it if nothing was written.

        False where the transport refused, or took only a part: somebody must see off what is under way.
        """
        if now >= self.expires_at:
            self.client.dismiss(TOKEN_EXPIRED)
            return True
        if now >= self.silent_at:
            if not (self.client.occupied or self.stream.input_queued):
                self.client.dismiss(UNANSWERED if self.heartbeat.incoming_s is None else SILENT)
                return True
            self.stream.read_at = now  # it is we who do not listen
        if now < self.write_at:
            return True
        # A program sees no PING, so one that expects heart-beats gets it together with one.
        data = b"" if self.heartbeat.outgoing_s is None else HEART_BEAT
        if now >= self.ping_at:
            self.pinged_at = now
            data += PING
        if not self.stream.offer(data, now):
            self.stream.written_at = now  # bytes are under way: look again an interval later
            return False
        return not self.stream.transport.pending


class Wheel:
    """Slots of time with the clients that are due in each. ``turn`` runs as a task."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders
        self._slots: dict[int, dict[Client, Pulse]] = {}
        self._slot_of: dict[Client, int] = {}
        self._next: float = math.inf
        self._past = -1  # the slot that was looked at last
        self._sooner = trio.Event()

    def statistics(self) -> dict[str, int]:
        """How many ``clients`` are watched, in how many ``slots``."""
        return {"clients": len(self._slot_of), "slots": len(self._slots)}

    def watch(self, pulse: Pulse) -> None:
        """Keep up the heart-beats of a client until ``forget``."""
        due_at = min(pulse.write_at, pulse.silent_at, pulse.expires_at)
        due_at = min(due_at, trio.current_time() + HORIZON_S)
        slot = max(math.ceil(due_at / SLOT_S), self._past + 1)  # never one that has been looked at: that would spin
        self._slots.setdefault(slot, {})[pulse.client] = pulse
        self._slot_of[pulse.client] = slot
        if slot < self._next:
            self._sooner.set()

    def forget(self, client: Client) -> None:
        """Watch a client no longer. Idempotent."""
        slot = self._slot_of.pop(client, None)
        if slot is None:
            return
        pulses = self._slots[slot]
        del pulses[client]
        if not pulses:
            del self._slots[slot]

    async def turn(self) -> None:
        """Keep up the heart-beats of all, for ever."""
        while True:
            self._sooner = trio.Event()
            self._next = min(self._slots, default=math.inf)
            with trio.move_on_at(self._next * SLOT_S) as sleep:
                await self._sooner.wait()
            if sleep.cancelled_caught:
                self._look_at_slot(int(self._next))

    def _look_at_slot(self, slot: int) -> None:
        now = trio.current_time()
        self._past = slot
        for client, pulse in list(self._slots.get(slot, {}).items()):
            self.forget(client)
            if client.state is ClientState.CLOSING:
                continue
            try:
                if not pulse.beat(now):
                    self._senders.take(client)
            except Exception as fault:  # noqa: BLE001 - one client's trouble must not stop the wheel
                client.dismiss(reason_after(fault, client.session))
            else:
                self.watch(pulse)
