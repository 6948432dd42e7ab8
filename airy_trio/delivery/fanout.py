"""Write events to the clients: the fan-out serves those that are live, send tasks serve those that are behind.

The fan-out is one task. When views have grown it writes to each of their subscriptions, from its cursor to the end of
the view in one piece, without waiting. Events that arrive during a round are written together in the next one, so
batching costs no latency.

That piece is a batch: complete events in the framing of a client, joined. ``Batches`` encodes it once for all
subscriptions that get the same bytes. It sends nothing: the task that writes calls ``commit`` if, and only if, the
transport has taken the batch.

A client that does not take a batch at once, or needs events that the tail no longer holds, is handed over to
``Senders``, which starts a send task for it. The task drains what is pending, sends each subscription in turn a batch
from the tail or a page from the store, and ends when the client is live again. Waiting for the socket is the
backpressure: no events are queued. Clients that are behind together share the pages and their encoded batches
(``log.reads``).

``delivery.client`` describes the states of a client and the invariants that this module depends on.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, cast

import trio
from attrs import define, field

from airy_trio.delivery.client import BEHIND, LIVE, Client, EncodedBatch, Subscription
from airy_trio.delivery.disconnects import POSITION_EXPIRED, reason_after
from airy_trio.log.event_log import EventLog
from airy_trio.log.reads import Page, Reads
from airy_trio.log.store import Position, PositionExpired, StoredEvent, StoreUnavailable
from airy_trio.log.tail import Latencies, View

BATCH_BYTES_MAX: Final = 64 * 1024
BATCH_EVENTS_MAX: Final = 1024
# Shared batches that are remembered. Without a limit, clients at different positions would hold 64 KiB each.
SHARED_BATCHES_MAX: Final = 64
# Of pages of the store there are fewer at a time; with 64 a single reader of a long log would hold 4 MiB.
SHARED_OF_PAGES_MAX: Final = 16
# Subscriptions served between two checkpoints of the fan-out.
YIELD_EVERY: Final = 256
# While a client is behind, the store's floor is read this often, to find positions that have expired.
WATCH_EVERY_S: Final = 1.0


class Batches:
    """Encodes batches, remembers the newest shared ones, and counts what was sent.

    Since the start: ``deliveries``, events times the subscriptions that they were sent to; the ``bytes`` of their
    messages; ``latencies``, from the change of a row to the socket, without replays of events before the subscription.
    """

    def __init__(self, eventlog: EventLog) -> None:
        self._eventlog = eventlog
        self._shared: dict[tuple[object, ...], EncodedBatch] = {}
        self._of_pages: dict[tuple[object, ...], EncodedBatch] = {}
        self.deliveries = 0
        self.bytes = 0
        self.latencies = Latencies()

    def commit(self, subscription: Subscription, batch: EncodedBatch, now: float) -> None:
        """Move the cursor over a batch that the transport has taken, and count it. ``now``: in Trio's time."""
        subscription.commit(batch)
        offsets = batch.offsets
        self.deliveries += len(offsets)
        self.bytes += len(batch.data)
        if offsets[0] > subscription.live_after:
            self.latencies.observe(now - batch.changed_at, len(offsets))

    def count_repeats(self, batch: EncodedBatch | None, times: int, now: float) -> None:
        """Count a batch that was taken ``times`` more, by subscriptions in step; their cursors have moved already."""
        if batch is not None and times:
            deliveries = len(batch.offsets) * times
            self.deliveries += deliveries
            self.bytes += len(batch.data) * times
            self.latencies.observe(now - batch.changed_at, deliveries)

    def next_batch(self, subscription: Subscription) -> EncodedBatch:
        """Encode, or take from the shared batches, the next batch of a subscription that has work.

        Raises ``LookupError`` if the view has evicted an event after its position.
        """
        if not subscription.shareable:
            return self._from_tail(subscription)
        position, view = subscription.position, subscription.view
        # The view is part of the key: two clients may name one destination and be granted different events of it.
        # The end of the view is part of it too, so an entry never has to be removed when the view grows.
        key = (view, subscription.prefix, position.epoch, position.offset, view.last)
        batch = self._shared.get(key)
        if batch is None:
            batch = self._from_tail(subscription, after=position, prefix=subscription.prefix)
            _remember(self._shared, key, batch, SHARED_BATCHES_MAX)
        return batch

    def of_page(self, subscription: Subscription, page: Page) -> EncodedBatch | None:
        """Encode, or take from the shared batches, the next batch of a page of the store; None after its end."""
        position = subscription.position
        key = (page, subscription.prefix, position.offset)
        batch = self._of_pages.get(key) if subscription.shareable else None
        if batch is None and (events := page.events_after(position.offset)):
            last = events[-1].offset
            data, offsets, changed_at = self._join(subscription, events, last if page.completes_state else None)
            # With the last event of the page the cursor moves to the end of the page: the events in between belong to
            # other destinations.
            batch = EncodedBatch(
                data, offsets, changed_at, position.at(page.upto if offsets[-1] == last else offsets[-1])
            )
            if subscription.shareable:
                _remember(self._of_pages, key, batch, SHARED_OF_PAGES_MAX)
        return batch

    def _from_tail(
        self, subscription: Subscription, after: Position | None = None, prefix: bytes = b""
    ) -> EncodedBatch:
        position, view = subscription.position, subscription.view
        events = self._eventlog.tail.after(
            view, position.offset, events_max=BATCH_EVENTS_MAX, bytes_max=BATCH_BYTES_MAX
        )
        data, offsets, changed_at = self._join(subscription, events)
        last = offsets[-1]
        return EncodedBatch(data, offsets, changed_at, position.at(last), after, prefix, last >= view.last)

    def _join(
        self, subscription: Subscription, events: Iterable[StoredEvent], completing: int | None = None
    ) -> tuple[bytes, tuple[int, ...], float]:
        """Encode the first events up to ``BATCH_BYTES_MAX`` and the room of the ack window, but at least one.

        ``completing``: the offset of the event that completes the current state, if it is among them.
        """
        room = BATCH_EVENTS_MAX if subscription.window is None else subscription.window.room
        messages: list[bytes] = []
        offsets: list[int] = []
        size = 0
        headers, completes_state = subscription.resume_header, subscription.completes_state
        changed_at = 0.0
        for event in events:
            if len(offsets) >= room:
                break
            message = _message(
                subscription, event, headers, completes_state=completes_state or event.offset == completing
            )
            size += len(message)
            if offsets and size > BATCH_BYTES_MAX:
                break
            if not offsets:
                changed_at = self._eventlog.changed_at(event)
            messages.append(message)
            offsets.append(event.offset)
            headers, completes_state = b"", False
        if not offsets:  # A bug in the log or here. Without the error the caller would loop without progress.
            fault = f"nothing to send after {subscription.position}, though the view goes to {subscription.view.last}"
            raise RuntimeError(fault)
        return b"".join(messages), tuple(offsets), changed_at


def _remember(
    shared: dict[tuple[object, ...], EncodedBatch], key: tuple[object, ...], batch: EncodedBatch, count_max: int
) -> None:
    """Add a shared batch; if there are too many, the oldest is forgotten."""
    if len(shared) >= count_max:
        del shared[next(iter(shared))]
    shared[key] = batch


def _message(subscription: Subscription, event: StoredEvent, headers: bytes, *, completes_state: bool) -> bytes:
    framing = subscription.client.framing
    message_id = f"{subscription.position.epoch}-{event.offset}"
    ack = b"" if subscription.window is None else framing.message_ack(subscription.number, message_id)
    return framing.message(subscription.prefix, message_id, event, ack + headers, completes_state=completes_state)


class FanOut:
    """Serves live clients. ``run`` is its task; the session calls ``serve`` as well, after SUBSCRIBE and ACK."""

    def __init__(self, eventlog: EventLog, batches: Batches, senders: "Senders") -> None:
        self._eventlog = eventlog
        self._batches = batches
        self._senders = senders
        self._served = 0  # since the last checkpoint
        self._now = 0.0

    async def run(self) -> None:
        """Serve the readers of views that grew or lost their past, until cancelled. The only consumer of growth."""
        while True:
            grown = await self._eventlog.wait_grown()
            # The wait always has a checkpoint, so a new slice begins here.
            self._served, self._now = 0, trio.current_time()
            for view in grown:
                await self._serve_readers(view)

    def serve(self, subscription: Subscription, now: float) -> EncodedBatch | None:
        """Write one batch to a live client; return the batch if the transport took it.

        Synchronous, so no other task runs between reading the cursor and moving it. Wakes the send task of a client
        that is behind, and disconnects a client whose position is of an epoch that has ended. ``now``: in Trio's time,
        at most one slice of the fan-out old. Raises what the transport raises.
        """
        client = subscription.client
        state = client.state
        if (state is not LIVE and state is not BEHIND) or not subscription.started:
            return None
        # Before the search for work: offsets of two epochs cannot be compared, and a client without new events must
        # reload too.
        if subscription.position.epoch != self._eventlog.epoch:
            client.disconnect(POSITION_EXPIRED)
            return None
        if not subscription.has_work:
            return None
        if state is BEHIND:
            client.wake()
            return None
        taken: EncodedBatch | None = None
        if subscription.in_tail:
            batch = self._batches.next_batch(subscription)
            if client.stream.offer(batch.data, now):
                self._batches.commit(subscription, batch, now)
                taken = batch
        # Work is left if the transport has rejected the batch, if the tail lacks an event, or if there is more than a
        # batch. Something is pending if the transport has taken the batch, but the socket only a part. A send task does
        # the rest.
        if client.stream.transport.pending or subscription.has_work:
            self._senders.hand_over(client)
        return taken

    async def _serve_readers(self, view: View) -> None:
        # A copy, because readers may attach and detach at each checkpoint. A new one is served by its session after
        # SUBSCRIBE. All that stay attached across a checkpoint are subscriptions.
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
        """Serve some readers of a view without a checkpoint, so no view grows and no cursor moves except here.

        Nearly every delivery repeats the batch that the previous reader has just taken. That case is written out in
        this loop, with no call except the transport's, and nothing is checked twice: if the position *is* the object
        that the batch follows, its epoch is current and the tail holds all after it. ``tests/delivery/mutants.py`` has
        a mutant for each condition.
        """
        now, batches, hand_over = self._now, self._batches, self._senders.hand_over
        batch: EncodedBatch | None = None
        data, prefix, reaches_end, repeats = b"", b"", False, 0
        after: Position | None = None  # no position is None: without a batch to share, the first condition is false
        reached: Position | None = None
        for reader in readers:
            client = reader.client
            try:
                # Comparing identities is the cheapest test, and one object has one epoch and one offset. An equal
                # position in another object only takes the regular path below. ``commit`` and this loop give all
                # readers the objects of one batch, so clients that keep up stay on the fast path. The last test is only
                # for the type checker.
                if (
                    reader.position is after
                    and reader.in_step
                    and reader.prefix is prefix
                    and client.state is LIVE
                    and reached is not None
                ):
                    stream = client.stream
                    transport = stream.transport
                    if stream.closing or not transport.offer(data):  # as FramedStream.offer, without the call
                        hand_over(client)
                        continue
                    stream.written_at = now
                    reader.position = reached
                    repeats += 1
                    if transport.pending or not reaches_end:
                        hand_over(client)
                elif reader in view.readers:  # else it unsubscribed at a checkpoint: nothing may follow its RECEIPT
                    taken = self.serve(reader, now)
                    if taken is not None and taken is not batch:
                        batches.count_repeats(batch, repeats, now)
                        batch, repeats = taken, 0
                        data, prefix, reaches_end = batch.data, batch.prefix, batch.reaches_end
                        after, reached = batch.after, batch.position
            except Exception as fault:  # noqa: BLE001 - one client's fault must not stop the fan-out
                client.disconnect(reason_after(fault, client.session))
        batches.count_repeats(batch, repeats, now)


@define(eq=False)
class _SendTask:
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)


class Senders:
    """The send tasks of clients that are behind. ``run`` starts them; each ends with its session at the latest.

    They share the nursery of the sessions: a nursery for each session would cost memory and make connecting slower. So
    a task that fails disconnects its client and raises nothing.

    ``hand_over`` only queues, because its caller is serving other clients and must not wait. ``watch`` finds clients
    whose position has expired: a send task cannot find that out while it waits for the socket.
    """

    def __init__(self, reads: Reads, batches: Batches) -> None:
        self._reads = reads
        self._eventlog = reads.log
        self._batches = batches
        self._waiting: deque[Client] = deque()
        self._handed_over = trio.Event()
        self._sending: dict[Client, _SendTask] = {}
        self._busy = trio.Event()

    @property
    def sending(self) -> int:
        """The number of clients with a send task."""
        return len(self._sending)

    async def stop(self, client: Client) -> None:
        """Cancel the send task of a client, if there is one, and wait until it has ended."""
        task = self._sending.get(client)
        if task is not None:
            task.scope.cancel()
            await task.ended.wait()

    def hand_over(self, client: Client) -> None:
        """Make a live client BEHIND and queue it for a send task. Does nothing in any other state. Never waits."""
        if client.fall_behind():
            self._waiting.append(client)
            self._handed_over.set()

    async def run(self, connections: trio.Nursery) -> None:
        """Start a send task in ``connections`` for each client that was handed over, until cancelled."""
        while True:
            self._handed_over = trio.Event()
            self._start_tasks(connections)
            await self._handed_over.wait()

    def _start_tasks(self, connections: trio.Nursery) -> None:
        # Not in `run`, which waits: its variables would keep the last client alive. For `_disconnect_expired` likewise.
        while self._waiting:
            client = self._waiting.popleft()
            if client.state is BEHIND:  # else it is being disconnected
                # Registered before its first step, so that ``stop`` finds it. A scope may be cancelled before it is
                # entered.
                task = self._sending[client] = _SendTask()
                connections.start_soon(self._send, client, task)
                self._busy.set()

    async def watch(self) -> None:
        """Disconnect clients that are behind and whose next event has been trimmed. Runs until cancelled."""
        while True:
            if not self._sending:
                self._busy = trio.Event()
                await self._busy.wait()
            await trio.sleep(WATCH_EVERY_S)
            try:
                floor = await self._reads.floor()
            except StoreUnavailable:
                continue  # the send tasks wait for the store as well, and the event log reports the outage
            self._disconnect_expired(floor)

    def _disconnect_expired(self, floor: Position) -> None:
        for client in self._sending:
            if any(_has_expired(subscription, floor) for subscription in client.subscriptions.values()):
                client.disconnect(POSITION_EXPIRED)

    async def _send(self, client: Client, task: _SendTask) -> None:
        try:
            with task.scope:
                await self._catch_up(client)
        except Exception as fault:  # noqa: BLE001 - it would end the nursery of all sessions
            client.disconnect(reason_after(fault, client.session))
        finally:
            del self._sending[client]
            task.ended.set()

    async def _catch_up(self, client: Client) -> None:
        """Send a client that is behind the events that it lacks; return when it is live, or closing.

        Raises what the stream raises, and ``PositionExpired`` if the client must reload.
        """
        stream = client.stream
        while client.state is BEHIND and not stream.closing:
            # Made before the search for work: events that arrive during it are either found or set the event.
            wake_up = client.expect_wake_up()
            served = False
            if stream.transport.pending:
                async with stream.lock:
                    await stream.drain()
            for subscription in tuple(client.subscriptions.values()):
                served |= await self._serve_subscription(subscription)
            if client.catch_up():
                return
            if not served:
                # Only the pause after a failed read ends by time. Growth, an ACK and a new subscription set the event.
                retry_at = min((one.retry_at for one in client.subscriptions.values() if one.backoff), default=math.inf)
                with trio.move_on_at(retry_at):
                    await wake_up.wait()

    async def _serve_subscription(self, subscription: Subscription) -> bool:
        """Send one batch, or one page of the store; False if there is nothing to do now."""
        if subscription.started and subscription.position.epoch != self._eventlog.epoch:
            raise PositionExpired(f"{subscription.position} is of an epoch that has ended")
        if not subscription.has_work:
            return False
        if not subscription.in_tail:
            return await self._serve_page(subscription)
        await self._send_one(subscription)
        return True

    async def _serve_page(self, subscription: Subscription) -> bool:
        """Send the next page of the store; False if the store is unavailable, and read again later.

        Only this call holds the page: for a client whose ack window is full, none stays in memory.
        """
        if trio.current_time() < subscription.retry_at:
            return False
        try:
            page = await self._reads.page(
                subscription.position,
                subscription.view.destination,
                subscription.replay,
                address=subscription.client.slot.key,
            )
        except StoreUnavailable:
            subscription.store_failed(trio.current_time())
            return False
        subscription.store_answered()
        while await self._send_one(subscription, page):
            pass
        return True

    async def _send_one(self, subscription: Subscription, page: Page | None = None) -> bool:
        """Send the next batch, of a page or from memory. Return False if there is none that may be sent now."""
        stream = subscription.client.stream
        async with stream.lock:  # for one batch, so that a RECEIPT or a PONG waits for one batch at most
            await stream.drain()
            if not self._may_send(subscription):
                return False
            if page is None:
                if subscription.position.offset < subscription.view.evicted:  # while this task waited for the lock
                    return False
                batch = self._batches.next_batch(subscription)
            elif (batch_of_page := self._batches.of_page(subscription, page)) is not None:
                batch = batch_of_page
            else:
                if subscription.replay is not None and page.completes_state:
                    # The object of the last event has changed or ended since the previous page was read.
                    subscription.completes_state = True
                subscription.skip_to(page.upto)
                return False
            # Committed first: `push` hands the whole batch to the transport before it waits, even if it is cancelled.
            self._batches.commit(subscription, batch, trio.current_time())
            await stream.push(batch.data)
            return True

    def _may_send(self, subscription: Subscription) -> bool:
        """Whether the subscription may still be served.

        For the holder of the lock, after every wait: the client may have unsubscribed, or an epoch may have begun.
        """
        client = subscription.client
        return (
            client.subscriptions.get(subscription.number) is subscription
            and not client.stream.closing
            and client.state is BEHIND
            and subscription.has_work
            and subscription.position.epoch == self._eventlog.epoch
        )


def _has_expired(subscription: Subscription, floor: Position) -> bool:
    """Whether the next event is not in memory, nor retained by the store, which has everything after ``floor``."""
    position, view = subscription.position, subscription.view
    # Up to ``since`` a replay has events of the current state only, and no trim deletes those.
    reached = position if subscription.replay is None else position.at(max(position.offset, subscription.replay.since))
    if reached.epoch != floor.epoch or reached.offset >= view.last:
        return False
    return reached < floor and reached.offset < view.evicted
