"""The event log as one node sees it: the store, its newest events in memory, and which views have grown.

One task, ``follow``, reads what other nodes append; the recorder of this node appends through ``append``. Both end
in the same place, the tail, which takes an event once. Knows nothing of clients: whoever reads a view attaches to it
and asks ``wait_grown``.
"""

import time
from collections.abc import Sequence
from typing import Literal

import structlog
import trio
from attrs import field, frozen

from airy_trio.database import POSTGRES, SQLITE, sqlite_path
from airy_trio.events.destinations import Destination
from airy_trio.log.position import Position
from airy_trio.log.store import Bounds, EventStore, NewEvent, PositionExpired, StoredEvent, StoreUnavailable
from airy_trio.log.tail import Tail, View
from airy_trio.options import at_least, one_of

logger = structlog.get_logger(__name__)

READ_EVENTS_MAX = 1000
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0


@frozen(kw_only=True)
class LogOptions:
    """Where events are kept, for how long, and how many of the newest stay in memory (settings, ``[log]``)."""

    store: Literal["memory", "sql"] = field(default="sql", validator=one_of("memory", "sql"))
    url: str = ""
    retain_s: float = field(default=86400, validator=at_least(1))
    retain_events: int = field(default=1_000_000, validator=at_least(1))
    tail_events: int = field(default=20_000, validator=at_least(1))
    tail_bytes: int = field(default=16 * 1024 * 1024, validator=at_least(1))

    def location(self, database_url: str) -> str:
        """The URL of the ``sql`` store: ours, or the application's Postgres, or a file beside its SQLite file."""
        if self.url or database_url.startswith(POSTGRES):
            return self.url or database_url
        return f"{SQLITE}:///{sqlite_path(database_url)}.airy-trio.db"


class EventLog:
    """The store and its tail. ``open`` comes first; then ``follow`` runs as a task for as long as the log is used."""

    def __init__(self, store: EventStore, options: LogOptions) -> None:
        self.store = store
        self._tail = Tail(events_max=options.tail_events, bytes_max=options.tail_bytes)
        self._tail_events = options.tail_events
        self._head: Position | None = None
        self._skew_ms = 0.0
        self._grown: set[View] = set()
        self._growth = trio.Event()

    @property
    def head(self) -> Position:
        """The newest position that this node knows."""
        assert self._head is not None, "open() comes first"
        return self._head

    @property
    def epoch(self) -> str:
        """The epoch of the head."""
        return self.head.epoch

    def statistics(self) -> dict[str, int]:
        """What the tail holds: ``events``, ``bytes`` of bodies, ``views``; and the ``head``'s offset."""
        return {**self._tail.statistics(), "head": self.head.offset}

    async def open(self) -> None:
        """Read the store's bounds and its newest events. Raises ``StoreUnavailable``."""
        self._start(await self._bounds())
        await self._read_on()

    async def append(self, expected: Position, events: Sequence[NewEvent], resume_point: str) -> Position:
        """Append after ``expected`` with the resume point, wake who reads, and give the new head.

        The writer says where it believes the head to be: this node's own ``head`` follows other writers, and would
        let pass what the store's comparison must refuse. Raises what ``EventStore.append`` does.
        """
        stored = await self.store.append(expected, events, resume_point)
        self._take(expected.epoch, stored)
        return expected.at(expected.offset + len(stored))

    async def begin_epoch(self, resume_point: str) -> None:
        """Drop everything and start a new epoch: the history of the database was lost."""
        self._start(await self.store.begin_epoch(resume_point))

    async def follow(self) -> None:
        """Take what any node appends, for ever. A store that is away is waited for; said once, and once it is back."""
        pause_s = 0.0
        while True:
            try:
                await self.store.wait(self.head)
                await self.catch_up()
            except StoreUnavailable as error:
                if not pause_s:
                    logger.warning("event store unavailable", reason=str(error))
                pause_s = min(max(2 * pause_s, BACKOFF_FIRST_S), BACKOFF_MAX_S)
                await trio.sleep(pause_s)
            else:
                if pause_s:
                    logger.info("event store available again")
                pause_s = 0.0

    async def catch_up(self) -> None:
        """Read up to the store's head, into a new epoch if there is one."""
        bounds = await self._bounds()
        if bounds.epoch != self.epoch:
            logger.warning("new epoch", epoch=bounds.epoch, was=self.epoch)
            self._start(bounds)
        await self._read_on()

    def attach(self, destination: Destination, reader: object) -> View:
        """Register a reader of a destination: its view is reported by ``wait_grown`` from now on."""
        return self._tail.attach(destination, reader)

    def detach(self, view: View, reader: object) -> None:
        """Take a reader away. Idempotent."""
        self._tail.detach(view, reader)

    def after(self, view: View, offset: int, *, events_max: int, bytes_max: int) -> Sequence[StoredEvent]:
        """The next events of a view from memory. Raises ``LookupError`` where ``offset < view.evicted``."""
        return self._tail.after(view, offset, events_max=events_max, bytes_max=bytes_max)

    async def read(self, after: Position, limit: int, destination: Destination) -> Sequence[StoredEvent]:
        """The next events of a destination from the store. Raises ``PositionExpired``, ``StoreUnavailable``."""
        return await self.store.read(after, limit, destination)

    async def recent(
        self, destination: Destination, *, age_s: float, limit: int
    ) -> tuple[Position, Sequence[StoredEvent]]:
        """The recent window of a destination: the newest event of each object, and where live goes on.

        Raises ``StoreUnavailable`` where the tail does not reach back far enough and the store is away.
        """
        while True:
            head = self.head
            since_ms = int(time.time() * 1000 + self._skew_ms - age_s * 1000)
            found = self._recent_from_tail(destination, since_ms, limit)
            if found is not None:
                return head, found
            try:
                return head, await self.store.recent(head, age_s, limit, destination)
            except PositionExpired:  # an epoch began meanwhile; the tail knows it after this
                await self.catch_up()

    async def floor(self) -> Position:
        """The oldest position after which everything is retained. Raises ``StoreUnavailable``."""
        return (await self._bounds()).floor

    async def wait_grown(self) -> frozenset[View]:
        """The views with readers that grew, or lost their past, since the last call. For one consumer."""
        await self._growth.wait()
        self._growth = trio.Event()
        grown, self._grown = frozenset(self._grown), set()
        return grown

    async def _bounds(self) -> Bounds:
        bounds = await self.store.bounds()
        self._skew_ms = bounds.now_ms - time.time() * 1000
        return bounds

    def _start(self, bounds: Bounds) -> None:
        offset = max(bounds.first - 1, bounds.last - self._tail_events)
        self._head = Position(bounds.epoch, offset)
        self._report(self._tail.start_after(offset))

    async def _read_on(self) -> None:
        while True:
            after = self.head
            try:
                events = await self.store.read(after, READ_EVENTS_MAX)
            except PositionExpired:  # this node slept through the retention, or an epoch began just now
                self._start(await self._bounds())
                continue
            self._take(after.epoch, events)
            if len(events) < READ_EVENTS_MAX:
                return

    def _take(self, epoch: str, events: Sequence[StoredEvent]) -> None:
        """Add events to the tail, unless ``follow`` must first read what lies before them."""
        if epoch != self.epoch or not events or events[0].offset > self.head.offset + 1:
            return
        self._report(self._tail.extend(events))
        self._head = self.head.at(self._tail.last)

    def _report(self, grown: set[View] | frozenset[View]) -> None:
        if grown:
            self._grown |= grown
            self._growth.set()

    def _recent_from_tail(self, destination: Destination, since_ms: int, limit: int) -> Sequence[StoredEvent] | None:
        asking = object()
        view = self._tail.attach(destination, asking)
        try:
            return self._tail.newest_of_each(view, since_ms=since_ms, limit=limit)
        finally:
            self._tail.detach(view, asking)
