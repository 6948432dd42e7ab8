"""Runs: complete WebSocket messages, each one MESSAGE frame, joined into one piece to write.

A run is made from events after a position, and shared by all subscriptions that would get the same octets. Nothing
is sent here, and no cursor moves.
"""

from collections.abc import Iterable
from typing import Final

import trio
from attrs import frozen

from airy_trio.log.eventlog import EventLog
from airy_trio.log.latencies import Latencies
from airy_trio.log.store import StoredEvent
from airy_trio.stomp.encoder import EOL, NUL, message_head
from airy_trio.websocket.framing import text_message
from airy_trio.websocket.subscriptions import Subscription

RUN_BYTES_MAX: Final = 64 * 1024
RUN_EVENTS_MAX: Final = 1024
SHARED_RUNS_MAX: Final = 64
"""Runs of distinct subscriptions would otherwise hold 64 KiB for each client."""


@frozen
class Run:
    """Octets to write, and the offsets of the events in them, at least one, in order.

    ``changed_at``: when what the first of them tells was changed, in Trio's time.
    """

    data: bytes
    offsets: tuple[int, ...]
    changed_at: float


class Runs:
    """Makes runs, remembers the newest few, and counts what was sent. ``latencies``: from the change to the socket."""

    def __init__(self, eventlog: EventLog) -> None:
        self._eventlog = eventlog
        self._shared: dict[tuple[bytes, str, int, int], Run] = {}
        self._counts = {"deliveries": 0, "bytes": 0}
        self.latencies = Latencies()

    def statistics(self) -> dict[str, int]:
        """Since the start: ``deliveries``, events times subscriptions that had them; ``bytes`` of their messages."""
        return dict(self._counts)

    def sent(self, subscription: Subscription, run: Run) -> None:
        """Count a run that was given to the socket; its latency only where it is no replay of what was before."""
        self._counts["deliveries"] += len(run.offsets)
        self._counts["bytes"] += len(run.data)
        if run.offsets[0] > subscription.live_after:
            self.latencies.observe(trio.current_time() - run.changed_at, len(run.offsets))

    def owed(self, subscription: Subscription) -> Run:
        """The next run of what a subscription is owed. There must be something."""
        return self._run(subscription, subscription.owed)

    def after_position(self, subscription: Subscription) -> Run:
        """The next run from the tail. The subscription must be hungry.

        Raises ``LookupError`` where the view has evicted something after the position.
        """
        if not subscription.shareable:
            return self._run(subscription, self._events(subscription))
        position, view = subscription.position, subscription.view
        key = (subscription.prefix, position.epoch, position.offset, view.last)
        run = self._shared.get(key)
        if run is None:
            if position.offset < view.evicted:
                message = f"{position} is before the tail"
                raise LookupError(message)
            run = self._run(subscription, self._events(subscription))
            if len(self._shared) >= SHARED_RUNS_MAX:
                del self._shared[next(iter(self._shared))]
            self._shared[key] = run
        return run

    def _events(self, subscription: Subscription) -> Iterable[StoredEvent]:
        return self._eventlog.after(
            subscription.view, subscription.position.offset, events_max=RUN_EVENTS_MAX, bytes_max=RUN_BYTES_MAX
        )

    def _run(self, subscription: Subscription, events: Iterable[StoredEvent]) -> Run:
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
        return Run(b"".join(messages), tuple(offsets), changed_at)


def _frame(subscription: Subscription, event: StoredEvent, verdict: bytes) -> bytes:
    message_id = f"{subscription.position.epoch}-{event.offset}"
    head = message_head(message_id, len(event.body), truncated=event.truncated)
    ack = (
        b""
        if subscription.window is None
        else subscription.client.connection.message_ack(subscription.number, message_id)
    )
    return b"".join((subscription.prefix, head, ack, verdict, EOL, event.body, NUL))
