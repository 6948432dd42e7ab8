"""Encoded batches: complete events in the framing of a client, joined into one piece to write.

A batch holds the events after a position, and all subscriptions that would get the same bytes share it. ``Batches``
sends nothing: the task that writes calls ``commit`` if, and only if, the transport has taken the batch.
"""

from collections.abc import Iterable
from typing import Final

from airy_trio.delivery.client import EncodedBatch, Subscription
from airy_trio.delivery.framing import STATE_COMPLETE
from airy_trio.log.event_log import EventLog
from airy_trio.log.reads import Page
from airy_trio.log.store import Position, StoredEvent
from airy_trio.log.tail import Latencies

BATCH_BYTES_MAX: Final = 64 * 1024
BATCH_EVENTS_MAX: Final = 1024
# Shared batches that are remembered. Without a limit, clients at different positions would hold 64 KiB each.
SHARED_BATCHES_MAX: Final = 64
# Of pages of the store there are fewer at a time; with 64 a single reader of a long log would hold 4 MiB.
SHARED_OF_PAGES_MAX: Final = 16


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
            if position.offset < view.evicted:
                message = f"{position} is before the tail"
                raise LookupError(message)
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
        events = self._eventlog.after(view, position.offset, events_max=BATCH_EVENTS_MAX, bytes_max=BATCH_BYTES_MAX)
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
        resume_header = subscription.resume_header
        changed_at = 0.0
        for event in events:
            if len(offsets) >= room:
                break
            if event.offset == completing:
                resume_header += STATE_COMPLETE
            message = _message(subscription, event, resume_header)
            size += len(message)
            if offsets and size > BATCH_BYTES_MAX:
                break
            if not offsets:
                changed_at = self._eventlog.changed_at(event)
            messages.append(message)
            offsets.append(event.offset)
            resume_header = b""
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


def _message(subscription: Subscription, event: StoredEvent, resume_header: bytes) -> bytes:
    connection = subscription.client.connection
    message_id = f"{subscription.position.epoch}-{event.offset}"
    ack = b"" if subscription.window is None else connection.message_ack(subscription.number, message_id)
    return connection.message(subscription.prefix, message_id, event, ack + resume_header)
