"""An event store in one SQLite file, for the processes of one machine: ``acme:///var/lib/acme/events.db``."""

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from functools import cached_property
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import trio

from airy_trio import stores
from airy_trio.errors import AiryTrioError
from airy_trio.stores import (
    Acknowledgement,
    Bounds,
    Claim,
    Destination,
    NewEvent,
    Position,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
)

P = ParamSpec("P")
T = TypeVar("T")
Of = Destination | None
Verb = Coroutine[Any, Any, T]
SCHEMA = """
    create table if not exists log (epoch, trimmed, last, at_ms, point, generation, marks, folded);
    create table if not exists events
        (id integer primary key, at_ms, type, object, conversation, channel, body, cut, age);
    create table if not exists current
        (id integer primary key, at_ms, type, object unique, conversation, channel, body, cut, age);
    create table if not exists ended (object primary key, id);
    create table if not exists durables (owner, name, token, epoch, id, used_ms, primary key (owner, name));
"""
APPEND = """update log set last = last + ?, at_ms = max(at_ms, ?), point = ?
    where epoch = ? and last = ? and point is coalesce(?, point) returning at_ms, generation"""
BEGIN_EPOCH = """update log set epoch = ?, trimmed = 0, last = 0, point = ?, generation = null
    where epoch = ? and last = ? returning epoch"""
INSERT = "insert or replace into {} values (?, ?, ?, ?, ?, ?, ?, ?, ?)"
SWEEP = """insert into ended select object, max(events.id) from events, log
    where type = ? and events.id <= ? and events.id > folded group by object
    on conflict do update set id = max(id, excluded.id)"""
OVER = "select * from ended where ended.object = current.object and ended.id >= current.id"
CLAIM = """insert into durables values (?, ?, ?, null, null, ?) on conflict
    do update set token = excluded.token, used_ms = excluded.used_ms returning epoch, id"""
ACKNOWLEDGE = """insert into durables values (?, ?, ?, ?, ?, ?) on conflict do update set epoch = excluded.epoch,
    id = iif(epoch = excluded.epoch, max(id, excluded.id), excluded.id), used_ms = excluded.used_ms
    where token = excluded.token returning owner"""


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[stores.EventStore]:
    path = urlsplit(url).path
    if not path:
        raise AiryTrioError("log.url: expected acme:///FILE")
    with closing(AcmeStore(path)) as store:
        yield store


def transaction(work: Callable[Concatenate["AcmeStore", P], T]) -> Callable[Concatenate["AcmeStore", P], Verb[T]]:
    """Make a verb of work that one thread does in one transaction, so that it happens whole or not at all."""

    async def verb(store: "AcmeStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        def whole() -> T:
            store.db.execute("begin")  # work that writes writes first, which locks the file until the commit
            with store.db:  # commits, or rolls back if the work raises
                return work(store, *args, **kwargs)

        try:
            return await trio.to_thread.run_sync(whole, limiter=store.turn)
        except sqlite3.OperationalError as error:
            raise stores.StoreUnavailable(f"the file cannot be used: {error}") from None

    return verb


class AcmeStore:
    def __init__(self, path: str) -> None:
        self.path = path
        self.turn = trio.CapacityLimiter(1)  # one thread at a time uses the connection

    @cached_property
    def db(self) -> sqlite3.Connection:
        """Connect in the first verb, so that the server retries if the file cannot be used yet."""
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        db.executescript(f"pragma journal_mode = wal; {SCHEMA}")
        db.execute(
            "insert into log select ?, 0, 0, 0, null, null, null, 0 where not exists (select * from log)",
            [stores.new_epoch()],
        )
        return db

    def close(self) -> None:
        if "db" in vars(self):
            self.db.close()

    @transaction
    def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        row = self.row(APPEND, len(events), now_ms(), resume_point, expected.epoch, expected.offset, replaces)
        if row is None:
            raise stores.StaleAppend(f"the head is not {expected}, or the resume point is another one")
        stored = stores.stored_after(expected, events, row[0])
        self.db.executemany(INSERT.format("events"), stored)
        self.change(row[1], state, expected.offset, expected.offset + len(stored))
        return stored

    def change(self, generation: str | None, state: StateChange | None, before: int, last: int) -> None:
        new, marks = (None, None) if state is None else (state.generation, state.marks)
        self.db.execute("update log set generation = ?, marks = ?", [new, marks])
        if generation != new:
            self.db.execute("update log set folded = ?", [before])
            self.db.execute("delete from current")
            self.db.execute("delete from ended")
        if state is not None:
            if not state.folds:
                self.db.execute("update log set folded = ? where folded = ?", [last, before])
            self.db.executemany("delete from current where type = ? and id <= ?", state.swept.items())
            self.db.executemany(SWEEP, state.swept.items())
            self.db.executemany("insert or replace into ended values (?, ?)", [[one, last] for one in state.ended])

    @transaction
    def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        self.db.execute("update log set folded = folded")  # locks the file
        known, folded, last = self.row("select generation, folded, last from log")
        if known != generation:
            return False
        upto = min(folded + limit, last)
        events = self.events(None, "events where id > ? and id <= ? order by id", folded, upto)
        self.db.executemany(INSERT.format("current"), [event for event in list(events) if event.type in types])
        self.db.execute("update log set folded = ?", [upto])
        self.db.execute(f"delete from current where exists ({OVER}) and id <= ?", [upto])
        self.db.execute("delete from ended where id <= ?", [upto])
        return bool(upto < last)

    @transaction
    def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        row = self.row(BEGIN_EPOCH, stores.new_epoch(), resume_point, expected.epoch, expected.offset)
        if row is None:
            raise stores.StaleAppend(f"the head is not {expected}")
        self.db.execute("delete from events")
        return Bounds(epoch=row[0], first=1, last=0, now_ms=now_ms())

    @transaction
    def read(
        self, after: Position, limit: int, destination: Of = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        epoch, trimmed = self.row("select epoch, trimmed from log")
        if after.epoch != epoch or after.offset < trimmed:
            raise stores.PositionExpired(f"{after} is before {epoch}-{trimmed}")
        found = self.events(destination, "events where id > ? order by id", after.offset)
        return list(stores.up_to_bytes(islice(found, limit), bytes_max))

    @transaction
    def current(
        self, state: StateAt, after: Position, limit: int, destination: Of = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        epoch, generation, folded = self.row("select epoch, generation, folded from log")
        if (state.until.epoch, state.generation) != (epoch, generation) or folded < state.until.offset:
            raise stores.PositionExpired(f"the state {state.generation} up to {state.until} is gone")
        where = f"current where id > ? and id <= ? and not exists ({OVER}) order by id"
        found = self.events(destination, where, after.offset, state.until.offset)
        return list(stores.up_to_bytes(islice(found, limit), bytes_max))

    @transaction
    def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        if until.epoch != self.row("select epoch from log")[0]:
            raise stores.PositionExpired(f"{until} is of another epoch")
        return next(self.events(destination, "events where id <= ? order by id desc", until.offset), None)

    @transaction
    def since(self, age_s: float) -> Position:
        old = "select epoch, max(trimmed, coalesce((select max(id) from events where at_ms < ?), 0)) from log"
        return Position(*self.row(old, now_ms() - age_s * 1000))

    @transaction
    def bounds(self) -> Bounds:
        epoch, trimmed, last, *state = self.row("select epoch, trimmed, last, generation, marks, folded from log")
        kept = StoredState(*state) if state[0] else None
        return Bounds(epoch=epoch, first=trimmed + 1, last=last, now_ms=now_ms(), state=kept)

    @transaction
    def resume_point(self) -> str | None:
        return cast("str | None", self.row("select point from log")[0])

    async def wait(self, after: Position) -> None:
        while (await self.bounds()).head == after:  # noqa: ASYNC110 - an append elsewhere sets no event here
            await trio.sleep(0.02)

    @transaction
    def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        self.db.execute("delete from durables where used_ms < ?", [now_ms() - unused_s * 1000])
        trimmed, last, free = self.row("select trimmed, last, iif(generation is null, last, folded) from log")
        old = self.row("select max(id) from events where at_ms < ?", now_ms() - age_s * 1000)[0] or 0
        count: int = max(0, min(max(old, last - keep) - trimmed, free - trimmed, limit))
        self.db.execute("delete from events where id <= ?", [trimmed + count])
        self.db.execute("update log set trimmed = ?", [trimmed + count])  # and `last` stays
        return count

    @transaction
    def acknowledged(self, owner: str, name: str) -> Position | None:
        return position(self.row("select epoch, id from durables where owner = ? and name = ?", owner, name))

    @transaction
    def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        return [position(self.row(CLAIM, one.owner, one.name, one.token, now_ms())) for one in claims]

    @transaction
    def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        def keep(claim: Claim, at: Position) -> Any:
            return self.row(ACKNOWLEDGE, claim.owner, claim.name, claim.token, at.epoch, at.offset, now_ms())

        return [one.claim for one in acknowledgements if not keep(one.claim, one.position)]

    def events(self, destination: Of, where: str, *values: object) -> Iterator[StoredEvent]:
        for *fields, cut, age in self.db.execute(f"select * from {where}", values):
            event = StoredEvent._make([*fields, bool(cut), age])
            if destination is None or stores.covers(destination, event):
                yield event

    def row(self, query: str, *values: object) -> Any:
        return self.db.execute(query, values).fetchone()


def position(row: Any) -> Position | None:
    return Position(*row) if row and row[0] else None


def now_ms() -> int:
    return int(time.time() * 1000)
