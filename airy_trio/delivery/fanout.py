"""The fan-out: one task that writes to every live client whose views grew, from its cursor to the head, in one offer.

Neighbours with equal cursors get the same octets, made once. While a round runs new events pile up, and the next
write takes them all: batching costs no latency. Never waits for a client: one that does not take its run at once, or
lacks what the tail no longer holds, is handed to the send tasks (``sender``).

The send tasks, one for each client that is behind: drain what is pending, replay, catch up, and step back to live.

A client comes here when it did not take a run at once, or when its cursor stands before the tail. Its subscriptions
are served in turn, one run each. Waiting for the socket is the backpressure: nothing is queued, a slow client is a
cursor that stands still. A client that is live has no task here.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

import trio

from airy_trio.delivery.batches import Batches, EncodedBatch
from airy_trio.delivery.client import BEHIND, LIVE, Client, Subscription
from airy_trio.delivery.disconnects import POSITION_EXPIRED, reason_after
from airy_trio.delivery.start import backoff_s
from airy_trio.delivery.tasks import Tasks
from airy_trio.log.event_log import EventLog
from airy_trio.log.position import Position
from airy_trio.log.store import PositionExpired, StoreUnavailable, is_all
from airy_trio.log.tail import View

STORE_EVENTS_MAX: Final = 512
STORE_BYTES_MAX: Final = 128 * 1024
"""One page of a replay, in events and in bytes of bodies, held while it is sent: some two runs."""
WATCH_EVERY_S: Final = 1.0
"""How often the store is asked what it still keeps, while somebody is behind."""


class Senders:
    """Who is behind. ``run``, the dispatcher, starts their send tasks; each ends with its session at the latest.

    ``watch`` sends away who is too far behind, which a send task cannot know while it waits for the socket.

    ``take`` only queues: whoever meets a slow client is in the middle of serving others, and starts nothing.
    """

    def __init__(self, eventlog: EventLog, runs: Batches) -> None:
        self._eventlog = eventlog
        self._runs = runs
        self._tasks: dict[Client, Tasks] = {}
        self._waiting: deque[Client] = deque()
        self._called = trio.Event()
        self._sending: dict[Client, None] = {}
        self._busy = trio.Event()

    def statistics(self) -> dict[str, int]:
        """Clients now: ``known``; ``sending``, with a send task; ``waiting`` for the dispatcher to start one."""
        return {"known": len(self._tasks), "sending": len(self._sending), "waiting": len(self._waiting)}

    def register(self, client: Client, tasks: Tasks) -> None:
        """Let a client be taken. Its send tasks run among its session's, whose guard dismisses it if one fails."""
        self._tasks[client] = tasks

    def forget(self, client: Client) -> None:
        """Start nothing for a client any more. Idempotent."""
        self._tasks.pop(client, None)

    def take(self, client: Client) -> None:
        """A live client is behind from now on; never waits. In any other state there is nothing to do."""
        if client.state is LIVE:
            client.state = BEHIND
            self._waiting.append(client)
            self._called.set()

    async def run(self) -> None:
        """Start a send task for each client that is taken, for ever."""
        while True:
            self._called = trio.Event()
            while self._waiting:
                client = self._waiting.popleft()
                tasks = self._tasks.get(client)
                if tasks is not None:
                    tasks.start_soon(self._send, client)
            await self._called.wait()

    async def watch(self) -> None:
        """Send away whose next events are not kept any more, though it takes nothing just now; for ever."""
        while True:
            if not self._sending:
                self._busy = trio.Event()
                await self._busy.wait()
            await trio.sleep(WATCH_EVERY_S)
            try:
                floor = await self._eventlog.floor()
            except StoreUnavailable:
                continue  # which the send tasks wait for as well, and the log tells
            for client in self._sending:
                if any(_is_lost(subscription, floor) for subscription in client.subscriptions.values()):
                    client.dismiss(POSITION_EXPIRED)

    async def _send(self, client: Client) -> None:
        self._sending[client] = None
        self._busy.set()
        try:
            await catch_up(client, self._eventlog, self._runs)
        finally:
            del self._sending[client]


async def catch_up(client: Client, eventlog: EventLog, runs: Batches) -> None:
    """Send a client that is behind what it lacks; return when it is live, or closing.

    Raises what the stream raises, and ``PositionExpired`` where the client must reload.
    """
    stream = client.stream
    while client.state is BEHIND and not stream.closing:
        client.wakened = wakened = trio.Event()  # before looking: what grows meanwhile is seen or wakes
        served = False
        if stream.transport.pending:
            async with stream.lock:
                await stream.drain()
        for subscription in tuple(client.subscriptions.values()):
            served |= await _serve(subscription, eventlog, runs)
        if _caught_up(client):
            client.wakened = None
            client.state = LIVE  # no checkpoint since the question: the fan-out sees all that comes after it
            return
        if not served:
            with trio.move_on_at(_retry_at(client)):
                await wakened.wait()


def _is_lost(subscription: Subscription, floor: Position) -> bool:
    """Whether the next events of a subscription are neither in memory nor kept, as all after ``floor`` is."""
    position, view = subscription.position, subscription.view
    if position.epoch != floor.epoch or position.offset >= view.last:
        return False
    return position < floor and position.offset < view.evicted


def _caught_up(client: Client) -> bool:
    """Whether the fan-out may have the client back: it is not closing, nothing is pending, nobody is hungry."""
    if client.state is not BEHIND or client.stream.transport.pending:
        return False
    return not any(subscription.hungry for subscription in client.subscriptions.values())


def _retry_at(client: Client) -> float:
    """When the store is to be asked again, for whom it was away."""
    return min((one.retry_at for one in client.subscriptions.values() if one.retries), default=math.inf)


async def _serve(subscription: Subscription, eventlog: EventLog, runs: Batches) -> bool:
    """Send one run; False where there is nothing to send now."""
    if subscription.started and subscription.position.epoch != eventlog.epoch:
        message = f"{subscription.position} is of an epoch that has ended"
        raise PositionExpired(message)
    if not subscription.hungry:
        return False
    if not subscription.owed and subscription.position.offset < subscription.view.evicted:
        return await _fetch(subscription, eventlog)
    stream = subscription.client.stream
    async with stream.lock:  # one run per turn, so that RECEIPT and pong wait for one run at most
        await stream.drain()
        run = _next_run(subscription, eventlog, runs)
        if run is not None:
            runs.took(subscription, run, trio.current_time())  # the push takes it whole, before its first wait
            await stream.push(run.data)
    return True


def _next_run(subscription: Subscription, eventlog: EventLog, runs: Batches) -> EncodedBatch | None:
    """The next run, if it is still wanted; asked under the lock, after every wait, with none before the push."""
    client = subscription.client
    wanted = client.subscriptions.get(subscription.number) is subscription and not client.stream.closing
    if not wanted or client.state is not BEHIND or not subscription.hungry:
        return None
    if subscription.position.epoch != eventlog.epoch:
        return None
    if not subscription.owed and subscription.position.offset < subscription.view.evicted:
        return None
    return runs.following(subscription)


async def _fetch(subscription: Subscription, eventlog: EventLog) -> bool:
    """Read the next page from the store, and owe it; False where the store is away, which is tried again later."""
    if trio.current_time() < subscription.retry_at:
        return False
    head, after = eventlog.head, subscription.position
    try:
        destination = subscription.view.destination
        address = subscription.client.peer or ""
        events = await eventlog.read(after, STORE_EVENTS_MAX, destination, bytes_max=STORE_BYTES_MAX, address=address)
    except StoreUnavailable:
        subscription.retry_at = trio.current_time() + backoff_s(subscription.retries)
        subscription.retries += 1
        return False
    subscription.retries, subscription.retry_at = 0, 0.0
    subscription.owe(events)
    last = events[-1].offset if events else after.offset
    if is_all(events, STORE_EVENTS_MAX, STORE_BYTES_MAX) and head.epoch == after.epoch:
        last = max(last, head.offset)  # nothing else of this destination was there when the store was asked
    subscription.position = after.at(last)
    return True


YIELD_EVERY: Final = 256
"""Readers served between two checkpoints."""


class FanOut:
    """Serves live clients. ``run`` is its task; ``serve`` is also the session's, after SUBSCRIBE and ACK."""

    def __init__(self, eventlog: EventLog, runs: Batches, senders: Senders) -> None:
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

    def serve(self, subscription: Subscription, now: float) -> EncodedBatch | None:
        """Write one run to a live client; synchronous, so that nobody comes between the question and the cursor.

        Gives the run that was taken. ``now``: in Trio's time, at most one slice of the fan-out old. A client that is
        behind is woken. One whose position is of an ended epoch is dismissed. Raises what the transport raises.
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
        taken: EncodedBatch | None = None
        if subscription.owed or subscription.position.offset >= subscription.view.evicted:
            run = self._runs.following(subscription)
            if client.stream.offer(run.data, now):
                self._runs.took(subscription, run, now)
                taken = run
        if client.stream.transport.pending or subscription.hungry:
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
        call but the transport's, and nothing is asked twice: a cursor that *is* the one that the run follows has its
        epoch and stands within the tail.
        """
        now, runs, take = self._now, self._runs, self._senders.take
        run: EncodedBatch | None = None
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
                    stream = client.stream
                    transport = stream.transport
                    if stream.closing or not transport.offer(data):  # as FramedStream.offer
                        take(client)
                        continue
                    stream.written_at = now
                    reader.position = reached
                    repeats += 1
                    if transport.pending or not to_the_end:
                        take(client)
                elif reader in view.readers:  # else unsubscribed while others ran: nothing may follow its RECEIPT
                    taken = self.serve(reader, now)
                    if taken is not None and taken is not run:
                        runs.repeated(run, repeats, now)
                        run, repeats = taken, 0
                        data, prefix, to_the_end = run.data, run.prefix, run.to_the_end
                        after, reached = run.after, run.position
            except Exception as fault:  # noqa: BLE001 - one client's trouble must not stop the fan-out
                client.dismiss(reason_after(fault, client.session))
        runs.repeated(run, repeats, now)
