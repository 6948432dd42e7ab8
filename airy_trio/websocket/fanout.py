"""The fan-out: one task that writes to every live client whose views grew, from its cursor to the head, in one offer.

Neighbours with equal cursors get the same octets, made once. While a round runs new events pile up, and the next
write takes them all: batching costs no latency. Never waits for a client: one that does not take its run at once, or
lacks what the tail no longer holds, is handed to the send tasks (``sender``).
"""

from typing import Final

import trio

from airy_trio.log.eventlog import EventLog
from airy_trio.log.tail import View
from airy_trio.websocket.farewells import POSITION_EXPIRED
from airy_trio.websocket.faults import farewell_after
from airy_trio.websocket.runs import Run, Runs
from airy_trio.websocket.sender import Senders
from airy_trio.websocket.subscriptions import BEHIND, LIVE, Subscription

YIELD_EVERY: Final = 256
"""Readers served between two checkpoints."""


class FanOut:
    """Serves live clients. ``run`` is its task; ``serve`` is also the session's, after SUBSCRIBE and ACK."""

    def __init__(self, eventlog: EventLog, runs: Runs, senders: Senders) -> None:
        self._eventlog = eventlog
        self._runs = runs
        self._senders = senders
        self._served = 0  # since the last checkpoint
        self._now = 0.0

    async def run(self) -> None:
        """Serve whoever reads a view that grew or lost its past, for ever. The log's one consumer of growth."""
        while True:
            grown = await self._eventlog.wait_grown()
            self._served, self._now = 0, trio.current_time()
            for view in grown:
                await self._serve_readers(view)

    def serve(self, subscription: Subscription, now: float, neighbour: Run | None = None) -> Run | None:
        """Write one run to a live client; synchronous, so that nobody comes between the question and the cursor.

        ``neighbour``: the run that was served before, which is given again where it fits; what is returned is for
        the next. ``now``: in Trio's time, at most one slice of the fan-out old. A client that is behind is woken. One
        whose position is of an ended epoch is dismissed. Raises what the outlet raises.
        """
        client = subscription.client
        state = client.state
        if (state is not LIVE and state is not BEHIND) or not subscription.started:
            return neighbour
        if subscription.position.epoch != self._eventlog.epoch:
            client.dismiss(POSITION_EXPIRED)
            return neighbour
        if not subscription.hungry:
            return neighbour
        if state is BEHIND:
            client.wake()
            return neighbour
        if subscription.owed or subscription.position.offset >= subscription.view.evicted:
            neighbour = self._runs.following(subscription, neighbour)
            if client.wire.offer(neighbour.data, now):
                self._runs.took(subscription, neighbour, now)
        if client.wire.outlet.pending or subscription.hungry:
            self._senders.take(client)
        return neighbour

    async def _serve_readers(self, view: View) -> None:
        run: Run | None = None
        for reader in tuple(view.readers):
            if self._served >= YIELD_EVERY:
                await trio.lowlevel.checkpoint()
                self._served, self._now = 0, trio.current_time()
            if reader not in view.readers or not isinstance(reader, Subscription):
                continue  # it was unsubscribed while others ran: nothing may follow the RECEIPT of that
            self._served += 1
            try:
                run = self.serve(reader, self._now, run)
            except Exception as fault:  # noqa: BLE001 - one client's trouble must not stop the fan-out
                reader.client.dismiss(farewell_after(fault, reader.client.session))
