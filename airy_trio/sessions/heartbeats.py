"""Heart-beats and timeouts of all clients, in one task: a timer wheel.

A client is filed in the slot of time in which its first timer may expire. When the slot is due the timers are computed
again, because reads and writes since then have only moved them later; the client is then served, or filed again.

The wheel only offers a heart-beat to the transport. If the transport refuses, bytes are under way, and any byte counts
as a heart-beat; a send task writes the rest.

A client that did not promise heart-beats may vanish without a sign and keep its place among the connections of its
address. So it gets an empty PING every ``PING_EVERY_S``, which every WebSocket library answers, and it is disconnected
if nothing at all arrives for ``UNANSWERED_MAX_S``. A slow client that keeps taking bytes is not disconnected. A client
of an event stream can answer nothing, so only the operating system notices that it has vanished.

``stomp.frames.negotiate`` determines the intervals.
"""

import math
from typing import Final

import trio
from attrs import define

from airy_trio.delivery.client import Client, ClientState
from airy_trio.delivery.disconnects import SILENT, TOKEN_EXPIRED, UNANSWERED, reason_after
from airy_trio.delivery.fanout import Senders
from airy_trio.stomp.frames import HeartBeat
from airy_trio.websocket.frames import EMPTY_PING

# The resolution: a heart-beat is written up to this much early, a silent client is disconnected this much late.
SLOT_S: Final = 0.1
# No client is filed further ahead than this, so there are few slots however late credentials expire.
HORIZON_S: Final = 60.0
# Between two PINGs to a client that did not promise heart-beats and sends nothing else.
PING_EVERY_S: Final = 60.0
# How long such a client may send nothing and take nothing of what is pending. A PING is queued behind everything that
# the systems of both sides buffer, which is some MiB: a slow program takes minutes to reach it.
UNANSWERED_MAX_S: Final = 900.0


@define(eq=False)
class ClientTimers:
    """When something has to be done for one client. All times are Trio's.

    ``expires_at``: the credentials are valid until then. ``pinged_at``: the last PING was written then.
    """

    client: Client
    heartbeat: HeartBeat
    expires_at: float = math.inf
    pinged_at: float = -math.inf

    @property
    def write_at(self) -> float:
        """From then on a heart-beat, a PING or both have to be written."""
        outgoing_s = self.heartbeat.outgoing_s
        if outgoing_s is None:
            return self.ping_at
        beat_at = self.client.stream.written_at + outgoing_s - SLOT_S
        # A PING waits for the next heart-beat, to be written together with it (see `serve`), but for one interval only:
        # each event that is written delays the heart-beat.
        patience_s = outgoing_s if outgoing_s <= PING_EVERY_S else 0.0
        return min(beat_at, self.ping_at + patience_s)

    @property
    def silent_at(self) -> float:
        """From then on the client has been silent for too long."""
        stream, silent_after_s = self.client.stream, self.heartbeat.silent_after_s
        if silent_after_s is None:
            return max(stream.read_at, stream.drained_at) + UNANSWERED_MAX_S
        return stream.read_at + silent_after_s

    @property
    def ping_at(self) -> float:
        """From then on a PING has to be written."""
        if self.heartbeat.incoming_s is not None:
            return math.inf
        return max(self.client.stream.read_at, self.pinged_at) + PING_EVERY_S

    def serve(self, now: float) -> bool:
        """Do what is due: disconnect the client, or write to it.

        False if the transport refused, or took only a part: a send task has to write the rest.
        """
        client, stream = self.client, self.client.stream
        if now >= self.expires_at:
            client.disconnect(TOKEN_EXPIRED)
            return True
        if now >= self.silent_at:
            if stream.reading:
                client.disconnect(UNANSWERED if self.heartbeat.incoming_s is None else SILENT)
                return True
            stream.read_at = now  # the server is not reading, so the client does not count as silent
        if now < self.write_at:
            return True
        # Programs do not see a PING, so a client that expects heart-beats gets one together with it.
        data = b"" if self.heartbeat.outgoing_s is None else client.framing.heart_beat()
        if now >= self.ping_at:
            # Also if the transport refuses the PING: then the client has bytes to take, and to take them shows as well
            # as a PONG that it is alive.
            self.pinged_at = now
            data += EMPTY_PING
        if not stream.offer(data, now):
            stream.written_at = now  # bytes are under way: check again after an interval
            return False
        return not stream.transport.pending


class TimerWheel:
    """Slots of time with the clients to check in each; ``run`` is its task."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders
        self._slots: dict[int, dict[Client, ClientTimers]] = {}
        self._slot_of: dict[Client, int] = {}
        self._next: float = math.inf
        self._past = -1  # the newest slot that was checked
        self._sooner = trio.Event()

    @property
    def clients(self) -> int:
        """The number of clients with timers."""
        return len(self._slot_of)

    def watch(self, timers: ClientTimers) -> None:
        """Serve the timers of a client until ``forget``."""
        # Rounded up, so that what the client is filed for is due when the slot is checked.
        due_at = min(timers.write_at, timers.silent_at, timers.expires_at, trio.current_time() + HORIZON_S)
        slot = max(math.ceil(due_at / SLOT_S), self._past + 1)  # a slot that was checked already would spin
        self._slots.setdefault(slot, {})[timers.client] = timers
        self._slot_of[timers.client] = slot
        if slot < self._next:
            self._sooner.set()

    def forget(self, client: Client) -> None:
        """Serve the timers of a client no longer. Idempotent."""
        slot = self._slot_of.pop(client, None)
        if slot is None:
            return
        clients = self._slots[slot]
        del clients[client]
        if not clients:
            del self._slots[slot]

    async def run(self) -> None:
        """Serve the timers of all clients until cancelled."""
        while True:
            # No checkpoint from here to the wait: each slot is either counted in `_next`, or `watch` sets this event.
            # There are at most about `HORIZON_S / SLOT_S` slots, so their minimum costs little.
            self._sooner = trio.Event()
            self._next = min(self._slots, default=math.inf)
            with trio.move_on_at(self._next * SLOT_S) as sleep:
                await self._sooner.wait()
            # The slot may be gone, because `forget` has emptied it. Then nothing is checked.
            if sleep.cancelled_caught:
                self._check_slot(int(self._next))

    def _check_slot(self, slot: int) -> None:
        now = trio.current_time()
        self._past = slot
        for client, timers in list(self._slots.get(slot, {}).items()):
            self.forget(client)
            if client.state is ClientState.CLOSING:
                continue
            try:
                if not timers.serve(now):
                    self._senders.hand_over(client)
            except Exception as fault:  # noqa: BLE001 - one client's fault must not stop the wheel
                client.disconnect(reason_after(fault, client.session))
            else:
                self.watch(timers)
