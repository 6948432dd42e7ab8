"""The fan-out: one task that writes to every live client whose views grew, from its cursor to the head, in one offer.

Neighbours with equal cursors get the same octets, made once. While a round runs new events pile up, and the next
write takes them all: batching costs no latency. Never waits for a client: one that does not take its run at once, or
lacks what the tail no longer holds, is handed to the send tasks (``sender``).
"""

from collections.abc import Sequence
from typing import Final, cast

import trio

from airy_trio.log.eventlog import EventLog
from airy_trio.log.position import Position
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

    async def _serve_readers(self, view: View) -> None:
        # Whoever attaches for longer than a moment is a subscription.
        readers = cast("list[Subscription]", list(view.readers))
        begun = 0
        while begun < len(readers):
            if self._served >= YIELD_EVERY:
                await trio.lowlevel.checkpoint()
                self._served, self._now = 0, trio.current_time()
            one_slice = readers[begun : begun + YIELD_EVERY - self._served]
            begun += len(one_slice)
            self._served += len(one_slice)
            self._serve_slice(one_slice, view)

    def _serve_slice(self, readers: Sequence[Subscription], view: View) -> None:
        """Serve some readers of a view, with nobody else at work meanwhile: no view grows, no cursor moves but here.

        Nearly every delivery is the repetition of what a neighbour has just taken. That is written out here, with no
        call but the outlet's, and nothing is asked twice: a cursor that *is* the one that the run follows has its
        epoch and stands within the tail.
        """
        now, runs, take = self._now, self._runs, self._senders.take
        run: Run | None = None
        data, prefix, to_the_end, repeats = b"", b"", False, 0
        after: Position | None = None  # what no cursor is, as long as there is no run that others may have
        reached: Position | None = None
        for reader in readers:
            client = reader.client
            try:
                if (
                    reader.position is after
                    and reader.repeats
                    and reader.prefix is prefix
                    and client.state is LIVE
                    and reached is not None
                ):
                    wire = client.wire
                    outlet = wire.outlet
                    if wire.closing or not outlet.offer(data):  # as Wire.offer
                        take(client)
                        continue
                    wire.written_at = now
                    reader.position = reached
                    repeats += 1
                    if outlet.pending or not to_the_end:
                        take(client)
                elif reader in view.readers:  # else unsubscribed while others ran: nothing may follow its RECEIPT
                    taken = self.serve(reader, now)
                    if taken is not None and taken is not run:
                        runs.repeated(run, repeats, now)
                        run, repeats = taken, 0
                        data, prefix, to_the_end = run.data, run.prefix, run.to_the_end
                        after, reached = run.after, run.position
            except Exception as fault:  # noqa: BLE001 - one client's trouble must not stop the fan-out
                client.dismiss(farewell_after(fault, client.session))
        runs.repeated(run, repeats, now)
