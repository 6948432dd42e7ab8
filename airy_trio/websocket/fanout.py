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

    def serve(self, subscription: Subscription, now: float) -> Run | None:
        """Write one run to a live client; synchronous, so that nobody comes between the question and the cursor.

        Gives the run that was taken. ``now``: in Trio's time, at most one slice of the fan-out old. A client that is
        behind is woken. One whose position is of an ended epoch is dismissed. Raises what the outlet raises.
        """
        client = subscription.client
        state = client.state
        if (state is not LIVE and state is not BEHIND) or not subscription.started:
            return None
        if subscription.position.epoch != self._eventlog.epoch:
            client.dismiss(POSITION_EXPIRED)
            return None
        if not subscription.hungry:
            return None
        if state is BEHIND:
            client.wake()
            return None
        taken: Run | None = None
        if subscription.owed or subscription.position.offset >= subscription.view.evicted:
            run = self._runs.following(subscription)
            if client.wire.offer(run.data, now):
                self._runs.took(subscription, run, now)
                taken = run
        if client.wire.outlet.pending or subscription.hungry:
            self._senders.take(client)
        return taken

    def _repeat(self, subscription: Subscription, run: Run) -> bool:
        """Write what a neighbour has just taken; False, nothing having happened, where it does not fit.

        The way of nearly every delivery, so nothing is asked twice: a cursor that *is* the one that the run follows
        has its epoch and stands within the tail, and no view grows within a slice.
        """
        client = subscription.client
        if (
            subscription.position is not run.after
            or client.state is not LIVE
            or not subscription.started
            or subscription.prefix != run.prefix
            or subscription.window is not None
            or subscription.verdict
            or subscription.owed
        ):
            return False
        wire = client.wire
        if wire.offer(run.data, self._now):
            self._runs.repeated(subscription, run, self._now)
            if not wire.outlet.pending and run.to_the_end:
                return True
        self._senders.take(client)
        return True

    async def _serve_readers(self, view: View) -> None:
        run: Run | None = None
        for reader in tuple(view.readers):
            if self._served >= YIELD_EVERY:
                await trio.lowlevel.checkpoint()
                self._served, self._now = 0, trio.current_time()
                run = None  # what follows a cursor may be another run by now
            if reader not in view.readers or not isinstance(reader, Subscription):
                continue  # it was unsubscribed while others ran: nothing may follow the RECEIPT of that
            self._served += 1
            try:
                if run is None or not self._repeat(reader, run):
                    run = self.serve(reader, self._now) or run
            except Exception as fault:  # noqa: BLE001 - one client's trouble must not stop the fan-out
                reader.client.dismiss(farewell_after(fault, reader.client.session))
