"""Runs: complete WebSocket messages, each one MESSAGE frame, joined into one piece to write.

A run is made from events after a position, and shared by all subscriptions that would get the same octets. Nothing
is sent here; a cursor moves in ``took``, which whoever writes calls when, and only when, the transport has the run.
"""

from collections.abc import Iterable
from typing import Final

from attrs import frozen

from airy_trio.delivery.client import Subscription
from airy_trio.log.event_log import EventLog
from airy_trio.log.latency import Latencies
from airy_trio.log.position import Position
from airy_trio.log.store import StoredEvent
from airy_trio.log.tail import View
from airy_trio.stomp.encoder import EOL, NUL, message_head
from airy_trio.websocket.stream import text_message

RUN_BYTES_MAX: Final = 64 * 1024
RUN_EVENTS_MAX: Final = 1024
SHARED_RUNS_MAX: Final = 64
"""Batches of distinct subscriptions would otherwise hold 64 KiB for each client."""


@frozen
class EncodedBatch:
    """Octets to write, and the offsets of the events in them, at least one, in order.

    ``changed_at``: when what the first of them tells was changed, in Trio's time. ``position``: where the cursor of
    whoever gets it stands then. ``after``, ``prefix``: whose it is, as long as the view has not grown; ``after`` is
    None where it is nobody else's. ``to_the_end``: it reached the end of the view.
    """

    data: bytes
    offsets: tuple[int, ...]
    changed_at: float
    position: Position
    after: Position | None = None
    prefix: bytes = b""
    to_the_end: bool = False


class Batches:
    """Makes runs, remembers the newest few, and counts what was sent."""

    def __init__(self, eventlog: EventLog) -> None:
        self._eventlog = eventlog
        self._shared: dict[tuple[View, bytes, str, int, int], EncodedBatch] = {}
        self._counts = {"deliveries": 0, "bytes": 0}
        self._latencies = Latencies()

    def statistics(self) -> dict[str, int]:
        """Since the start: ``deliveries``, events times subscriptions that had them; ``bytes`` of their messages."""
        return dict(self._counts)

    @property
    def latencies(self) -> Latencies:
        """From the change to the socket, of all that was no replay of what was before a subscription."""
        return self._latencies

    def following(self, subscription: Subscription) -> EncodedBatch:
        """The next run of a subscription, which must be hungry: what it is owed, else what follows its position.

        Raises ``LookupError`` where nothing is owed and the view has evicted something after the position.
        """
        return self.owed(subscription) if subscription.owed else self.after_position(subscription)

    def took(self, subscription: Subscription, run: EncodedBatch, now: float) -> None:
        """Move the cursor over its next run, which the transport has taken, and count it. ``now``: in Trio's time."""
        offsets = run.offsets
        if subscription.owed:
            for _ in offsets:
                subscription.owed.popleft()
            subscription.owed = subscription.owed or ()
        elif run.after is not None:  # one object for all with the same octets: neighbours are told by identity
            subscription.prefix = run.prefix
        subscription.position = run.position
        subscription.verdict = b""
        subscription.repeats = (
            subscription.shareable and subscription.started and run.position.offset >= subscription.live_after
        )
        if subscription.window is not None:
            subscription.window.sent(offsets)
        self._count(run, 1, int(offsets[0] > subscription.live_after), now)

    def repeated(self, run: EncodedBatch | None, times: int, now: float) -> None:
        """Count a run that so many more neighbours took, all with ``repeats``; their cursors were moved already."""
        if run is not None and times:
            self._count(run, times, times, now)

    def _count(self, run: EncodedBatch, times: int, live_times: int, now: float) -> None:
        self._counts["deliveries"] += len(run.offsets) * times
        self._counts["bytes"] += len(run.data) * times
        if live_times:
            self._latencies.observe(now - run.changed_at, len(run.offsets) * live_times)

    def owed(self, subscription: Subscription) -> EncodedBatch:
        """The next run of what a subscription is owed, whose cursor is beyond it. There must be something."""
        data, offsets, changed_at = self._join(subscription, subscription.owed)
        return EncodedBatch(data, offsets, changed_at, subscription.position)

    def after_position(self, subscription: Subscription) -> EncodedBatch:
        """The next run from the tail. The subscription must be hungry.

        Raises ``LookupError`` where the view has evicted something after the position.
        """
        if not subscription.shareable:
            return self._from_tail(subscription)
        position, view = subscription.position, subscription.view
        # With its view: of one destination not all may read the same, though they name it alike.
        key = (view, subscription.prefix, position.epoch, position.offset, view.last)
        run = self._shared.get(key)
        if run is None:
            if position.offset < view.evicted:
                message = f"{position} is before the tail"
                raise LookupError(message)
            run = self._from_tail(subscription, after=position, prefix=subscription.prefix)
            if len(self._shared) >= SHARED_RUNS_MAX:
                del self._shared[next(iter(self._shared))]
            self._shared[key] = run
        return run

    def _from_tail(
        self, subscription: Subscription, after: Position | None = None, prefix: bytes = b""
    ) -> EncodedBatch:
        position, view = subscription.position, subscription.view
        events = self._eventlog.after(view, position.offset, events_max=RUN_EVENTS_MAX, bytes_max=RUN_BYTES_MAX)
        data, offsets, changed_at = self._join(subscription, events)
        return EncodedBatch(
            data, offsets, changed_at, position.at(offsets[-1]), after, prefix, offsets[-1] >= view.last
        )

    def _join(self, subscription: Subscription, events: Iterable[StoredEvent]) -> tuple[bytes, tuple[int, ...], float]:
        """Join the first of these events up to ``RUN_BYTES_MAX`` and the room of the window, but at least one."""
        room = RUN_EVENTS_MAX if subscription.window is None else subscription.window.room
        messages: list[bytes] = []
        offsets: list[int] = []
        size = 0
        verdict = subscription.verdict
        changed_at = 0.0
        for event in events:
            if len(offsets) >= room:
                break
            message = text_message(_frame(subscription, event, verdict))
            size += len(message)
            if offsets and size > RUN_BYTES_MAX:
                break
            if not offsets:
                changed_at = self._eventlog.changed_at(event)
            messages.append(message)
            offsets.append(event.offset)
            verdict = b""
        if not offsets:  # a bug in the log or here; going on would turn in circles
            fault = f"nothing to send after {subscription.position}, though the view goes to {subscription.view.last}"
            raise RuntimeError(fault)
        return b"".join(messages), tuple(offsets), changed_at


def _frame(subscription: Subscription, event: StoredEvent, verdict: bytes) -> bytes:
    message_id = f"{subscription.position.epoch}-{event.offset}"
    head = message_head(message_id, len(event.body), truncated=event.truncated)
    ack = (
        b""
        if subscription.window is None
        else subscription.client.connection.message_ack(subscription.number, message_id)
    )
    return b"".join((subscription.prefix, head, ack, verdict, EOL, event.body, NUL))
