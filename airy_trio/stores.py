"""What the author of an event store needs: the port, the values in its verbs, its errors, and helpers.

An event store keeps events in one order, with the few facts that delivery needs, and knows nothing else about them. A
class is a store if it has the verbs of ``EventStore`` and keeps the promises under each; it inherits from nothing.
``airy_trio.testing.event_store`` checks every promise. To publish a store, name a function in the entry-point group
``airy_trio.event_stores``. The function takes ``[log] url`` as the settings have it, which may be empty and may have
any scheme, and returns an async context manager that gives the store. The entry point's name is the value of ``[log]
store``. There is no such group for change feeds: the ways to notice changes are built in.

**How a store is written.** Everything follows from one comparison. The store has a head, the position of its newest
event, and ``append`` names the head that its writer knows. In one step that happens whole or not at all, and that no
other process can come between, the store compares the two, adds the events at the offsets that follow, and stores the
resume point; if the two differ, it raises ``StaleAppend``. This alone keeps apart two servers that both believe to be
the recorder. A transaction, a script in the server of the place, or a compare-and-swap each do. ``begin_epoch`` is
the same step with all events removed. The rest is reading: ``read`` forward from a position, ``recent`` backward from
one. Both refuse a position of another epoch, and ``read`` refuses one whose next event was trimmed instead of
skipping it. An offset is never used again in its epoch, so the head must be stored and not be derived from the
events: ``trim`` may delete them all. Durable subscriptions are a second, small table: for each owner and name the
token of the newest claim, the furthest position, and the time of the last use.

**How a store is used.** Every server process opens the store once and calls it from one Trio event loop, several
verbs at a time. One process, the recorder, appends and trims. All of them read, wait and keep durable subscriptions,
and any may begin an epoch when it sees that the store has lost events. Everything blocking belongs in
``trio.to_thread.run_sync``. A verb may be cancelled at any checkpoint; what was under way then may still happen, but
whole. Raise ``StoreUnavailable`` if the place is away: the caller retries with growing pauses, and clients stay
connected. Any other exception counts as a fault of the store: it ends the session that met it, or the server.
Messages appear in logs, so keep the URL and its password out of them.

**How wait is woken across processes.** Each process has one task in ``wait(head)``, and what it waits for is mostly
appended by another process, so an event inside the process is not enough. Use what the place has: a notification, a
blocking read, a change counter, or a look at the head every few milliseconds. Two rules keep it correct. Subscribe
first and compare the head afterwards, because an append between the two is lost otherwise. And look at the head now
and then without a notification, because notifications get lost with their connections: a missed one may cost a
second, but never a hang. ``wait`` may return although nothing has changed, so a store that cannot tell returns. If a
connection was lost, raise ``StoreUnavailable`` even if the next one opens at once: the caller then compares the end
of the log with what it knows, and notices a place that was restored without its newest events. The time from
``append`` to the return of ``wait`` in the other processes is part of the latency of every event.

**What the helpers are for.**

- ``stored_after`` gives new events their offsets and their time: what ``append`` writes and returns.
- ``covers`` says whether an event belongs to a ``Destination``: the filter of ``read`` and ``recent`` if the place
  has no index for it. Filter before counting: ``limit`` and ``bytes_max`` are about the events that are returned.
- ``up_to_bytes`` ends a sequence of events at ``bytes_max``. It takes them one by one, so a cursor is read no
  further.
- ``newest_of_each`` keeps the newest event of each object, of events from the newest on: ``recent``, before its
  limit.
- ``is_all`` tells a reader with a limit whether it has everything that there was, or must read on.
- ``new_epoch`` makes the name of an epoch. A store has one from its creation on, before the first append.
"""

from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType, Within, covers
from airy_trio.log.position import Position, new_epoch
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    EventStore,
    NewEvent,
    PositionExpired,
    StaleAppend,
    StoredEvent,
    StoreReplaced,
    StoreUnavailable,
    is_all,
    newest_of_each,
    stored_after,
    up_to_bytes,
)

__all__ = [
    "Acknowledgement",
    "Bounds",
    "Claim",
    "Destination",
    "EventStore",
    "Everything",
    "NewEvent",
    "OfChannel",
    "OfConversation",
    "OfType",
    "Position",
    "PositionExpired",
    "StaleAppend",
    "StoreReplaced",
    "StoreUnavailable",
    "StoredEvent",
    "Within",
    "covers",
    "is_all",
    "new_epoch",
    "newest_of_each",
    "stored_after",
    "up_to_bytes",
]
