"""The port of event stores for their authors: the verbs, the values, the errors, and helpers.

An event store contains events in one order, with the few facts that delivery needs. A class is a store if it has the
verbs of ``EventStore`` and keeps the promises under each; it need not inherit from anything. The suite in
``airy_trio.testing.event_store`` checks them, except those that it lists. To publish a store, name a function that
fulfils ``OpenEventStore`` in the entry-point group ``airy_trio.event_stores``. The entry point's name is the value of
``[log] store``. There is no such group for change feeds, which are built in.

**Writing a store.** Everything follows from one comparison. The store has a head, the position of its newest event,
and ``append`` names the head that its writer knows. In one atomic and isolated step the store compares the two, adds
the events at the offsets that follow, and stores the resume point; if the two differ, it raises ``StaleAppend``. This
alone separates two servers that both believe that they are the recorder. A transaction, a script that runs in the
database server, or a compare-and-swap each provide such a step. ``begin_epoch`` is the same step, with all events
deleted. The rest is reading: ``read`` forwards from a position, ``newest`` backwards. Both raise ``PositionExpired``
for a position of another epoch; ``read`` also raises it if the next event was trimmed, instead of skipping the event.
An offset is never used again in its epoch, so the head must be stored and not derived from the events, all of which
``trim`` may delete. Durable subscriptions are a second, small table: for each owner and name the token of the newest
claim, the furthest position, and the time of the last use. The current state is a third: the newest event of each
object of some types, and how far they are ``folded``, that is, added from the log. An append only notes which objects
have ended; ``fold`` adds the events later, and ``trim`` keeps those that are not added yet.

**How servers use a store.** Every server process opens the store once and calls it from one Trio event loop, several
verbs at a time. One process, the recorder, appends and trims. All processes read, wait, fold, and claim and acknowledge
durable subscriptions, and any may begin an epoch when it finds that the store has lost events. Run blocking calls in
``trio.to_thread.run_sync``. A verb may be cancelled at any checkpoint; its effect may then still happen, but completely
or not at all. Raise ``StoreUnavailable`` if the store cannot be reached: the caller retries with growing pauses, and
clients stay connected. Any other exception is a fault of the store, and ends the session in which it was raised, or the
server. Messages appear in logs, so they must not contain the URL and its password.

**Waking wait across processes.** Each process has one task in ``wait(head)``, and most events are appended by another
process, so a ``trio.Event`` is not enough. Use a notification, a blocking read, a change counter, or poll the head
every few milliseconds. Two rules make it correct. First subscribe, then compare the head, because an append between the
two is missed otherwise. And poll the head from time to time without a notification, because notifications are lost with
their connections: a missed one may cost a second, but must never cause a hang. ``wait`` may return although nothing has
changed, so a store that does not know returns. If a connection was lost, raise ``StoreUnavailable`` even if the next
one opens at once: the caller then compares the end of the log with the events that it has, and notices a store that was
restored without its newest events. The time from ``append`` to the return of ``wait`` in the other processes is part of
the latency of every event.

**The helpers.**

- ``stored_after`` turns new events into what ``append`` stores and returns: with their offsets and their time.
- ``covers`` returns whether an event belongs to a ``Destination``: the filter of ``read`` and ``newest`` for a store
  without an index. Filter before counting: ``limit`` and ``bytes_max`` apply to the events that are returned.
- ``up_to_bytes`` ends a sequence of events at ``bytes_max``. It takes them one by one, so no more rows of a cursor are
  fetched than needed.
- ``is_all`` returns whether a read with limits returned all events, or more must be read.
- ``new_epoch`` makes the name of an epoch. A store has one from its creation, before the first append.
"""

from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType, Within, covers
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    EventStore,
    NewEvent,
    OpenEventStore,
    Position,
    PositionExpired,
    StaleAppend,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
    StoreReplaced,
    StoreUnavailable,
    is_all,
    new_epoch,
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
    "OpenEventStore",
    "Position",
    "PositionExpired",
    "StaleAppend",
    "StateAt",
    "StateChange",
    "StoreReplaced",
    "StoreUnavailable",
    "StoredEvent",
    "StoredState",
    "Within",
    "covers",
    "is_all",
    "new_epoch",
    "stored_after",
    "up_to_bytes",
]
