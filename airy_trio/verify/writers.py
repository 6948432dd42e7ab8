"""Writers that change a table under adverse conditions, and the ledger of what they committed and a client received.

Both are for ``verify`` and for the drills in ``tests/drill``.

The writers are independent of airy-trio and send plain SQL, as an application does. Each has a thread and a connection
of its own. Its transactions have random length and random pauses, so transactions often commit in another order than
they began. They change objects that all writers contend for and objects that only one writer changes; some are rolled
back, completely or to a savepoint. One further transaction stays open for long. SQLite admits one writer at a time, so
there the transactions run one after the other.

Each object has a version. Every change increments it under the lock of the object's row, so in commit order it only
grows. An event carries the current state of its object, not the change that caused it: a version may be skipped if a
newer one of the same object follows. The last committed version must arrive, none may arrive twice, and none may arrive
after a newer one.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, field, frozen
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import POSTGRES, discard

CONTESTED: Final = 20
"""Objects that all writers change; also how many objects of its own a writer may delete, the newest."""
LONG_OBJECTS: Final = 20
"""Objects that the long transaction changes at its beginning, and as many again at its end."""
STATEMENTS_MAX: Final = 5
RECONNECT_S: Final = 0.05
ROLLBACK_CHANCE: Final = 0.15
SAVEPOINT_CHANCE: Final = 0.15

GONE: Final = 2**62
"""The version of a deleted object. Deleted objects are not created again."""

Change = tuple[str, int]
"""An object and its version."""


def change_of(body: bytes | str) -> Change:
    """Return the object and the version in the body of an event about a tag that a writer changed."""
    event: dict[str, Any] = json.loads(body)
    version = GONE if event["type"] == "tag.deleted" else int(event["payload"]["name"])
    return event["payload"]["id"], version


@frozen(kw_only=True)
class LossCertificate:
    """The result of a verification. Latencies are in seconds, from the COMMIT to the client.

    ``lost``: objects whose last committed version is not the last one received; ``missing``: the number of positions
    that were skipped. ``duplicated``, ``reordered``: the faulty events, in words.
    """

    counts: Mapping[str, int]
    received: int
    lost: Sequence[str]
    missing: int
    duplicated: Sequence[str]
    reordered: Sequence[str]
    latencies_s: Sequence[float]

    @property
    def clean(self) -> bool:
        """Whether changes were committed, and none was lost, duplicated or reordered."""
        return bool(self.counts["changes"]) and not (self.lost or self.missing or self.duplicated or self.reordered)

    def latency_s(self, share: float) -> float | None:
        """Return the latency that this share of the changes did not exceed, or None if nothing was received."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Ledger:
    """A thread-safe record of commits and events, which are compared at the end. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._committing: dict[Change, float] = {}
        self._committed: set[str] = set()
        self._received: list[tuple[int, Change, float]] = []

    @property
    def counts(self) -> Counter[str]:
        """A copy of what was counted so far, with "changes" and "transactions" that were committed."""
        with self._lock:
            return Counter(self._counts)

    def count(self, occurrence: str) -> None:
        """Count one occurrence."""
        with self._lock:
            self._counts[occurrence] += 1

    def committing(self, changes: Iterable[Change], now: float) -> None:
        """Record that the COMMIT of these changes is sent now, which starts the latency."""
        with self._lock:
            self._committing.update(dict.fromkeys(changes, now))

    def committed(self, changes: Sequence[Change]) -> None:
        """Record that the database has confirmed the COMMIT."""
        with self._lock:
            self._committed.update(object_ for object_, _ in changes)
            self._counts.update(changes=len(changes), transactions=1)

    def received(self, offset: int, change: Change, now: float) -> None:
        """Record an event and its position."""
        self._received.append((offset, change, now))

    def certificate(self, rows: Mapping[str, int]) -> LossCertificate:
        """Compare the events with the final ``rows``: the version of each object that was not deleted.

        The rows decide, not the confirmed commits: a writer that lost its connection during COMMIT does not know
        whether its changes were committed. Call this when every writer has ended or was abandoned.
        """
        newest, last = dict[str, int](), dict[str, int]()  # version of each object
        offsets, changes = set[int](), set[Change]()
        duplicated, reordered = list[str](), list[str]()
        last_offset = missing = 0
        for offset, change, _ in self._received:
            object_, version = change
            if offset not in offsets and (offset < last_offset or version < newest.get(object_, 0)):
                reordered.append(f"{object_}, at offset {offset}")
            elif offset in offsets or change in changes:
                duplicated.append(f"{object_}, at offset {offset}")
            missing += max(0, offset - last_offset - 1)
            last_offset = max(last_offset, offset)
            offsets.add(offset)
            changes.add(change)
            newest[object_] = max(newest.get(object_, 0), version)
            last[object_] = version
        with self._lock:
            sent_at, objects = dict(self._committing), {*rows, *self._committed, *last}
        return LossCertificate(
            counts=self.counts,
            received=len(self._received),
            lost=sorted(object_ for object_ in objects if last.get(object_) != rows.get(object_, GONE)),
            missing=missing,
            duplicated=tuple(duplicated),
            reordered=tuple(reordered),
            latencies_s=tuple(now - sent_at[change] for _, change, now in self._received if change in sent_at),
        )


class ApplicationTable:
    """A table with columns ``id``, ``name`` and ``color``, whose ``name`` holds the version of each object.

    ``engine`` must be in AUTOCOMMIT, because the writers send BEGIN and COMMIT themselves. ``application_name``: of the
    sessions on Postgres.
    """

    def __init__(self, engine: sa.Engine, name: str = "tags", application_name: str = "") -> None:
        self._engine = engine
        postgres = engine.dialect.name == POSTGRES
        parameter = "%s" if postgres else "?"
        # On SQLite a transaction that first reads and then writes fails if another one has written meanwhile.
        self._begin = "begin" if postgres else "begin immediate"
        self._change = (
            f"insert into {name} (id, name, color) values ({parameter}, '1', 'red') "  # noqa: S608 - quoted by the caller
            "on conflict (id) do update set name = cast(cast(tags.name as integer) + 1 as text) returning name"
        )
        self._delete = f"delete from {name} where id = {parameter}"  # noqa: S608 - the same
        self._select = f"select id, name from {name}"  # noqa: S608 - the same
        self._application_name = application_name

    @contextmanager
    def session(self, *, named: bool = True) -> Iterator[sa.Connection]:
        """Open a connection, and close it without ending its transaction first. ``named``: set the name."""
        connection = self._engine.connect()
        try:
            if named and self._application_name:
                connection.exec_driver_sql(f"set application_name = '{self._application_name}'")
            yield connection
        finally:
            discard(connection)

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that is going to write."""
        connection.exec_driver_sql(self._begin)

    def change(self, connection: sa.Connection, id_: str) -> Change:
        """Create an object, or increment its version."""
        return id_, int(connection.exec_driver_sql(self._change, (id_,)).scalar_one())

    def delete(self, connection: sa.Connection, id_: str) -> Change:
        """Delete an object."""
        connection.exec_driver_sql(self._delete, (id_,))
        return id_, GONE

    def versions(self) -> dict[str, int]:
        """Return the version of each object."""
        with self.session(named=False) as connection:
            return {id_: int(version) for id_, version in connection.exec_driver_sql(self._select)}


@define
class Writer:
    """One writer, with ``number`` in the names of its objects. ``chance`` decides what it does, ``over`` ends it.

    It pauses for up to ``delay_max_s`` after each statement, and for up to ``rest_max_s`` after each transaction.
    """

    number: int
    table: ApplicationTable
    ledger: Ledger
    over: threading.Event
    delay_max_s: float
    rest_max_s: float
    chance: random.Random = field(factory=random.Random)
    _made: int = field(default=0, init=False)
    _own: list[str] = field(factory=list, init=False)

    def run(self) -> None:
        """Run transactions until ``over`` is set, on a new connection after each failure."""
        while not self.over.is_set():
            try:
                with self.table.session() as connection:
                    while not self.over.is_set():
                        self._transact(connection)
                        self.over.wait(self.chance.uniform(0, self.rest_max_s))
            except SQLAlchemyError:
                # The connection was lost. The transaction is rolled back, unless it was in its COMMIT: then only the
                # rows show whether it was committed.
                self.ledger.count("connections lost")
                self.over.wait(RECONNECT_S)

    def _transact(self, connection: sa.Connection) -> None:
        self.table.begin(connection)
        changes: list[Change] = []
        contested = sorted(self.chance.sample(range(CONTESTED), STATEMENTS_MAX))  # sorted, to avoid deadlocks
        for number in contested[: self.chance.randint(1, STATEMENTS_MAX)]:
            discarded = self.chance.random() < SAVEPOINT_CHANCE
            if discarded:
                connection.exec_driver_sql("savepoint s")
            change = self._change(connection, number)
            self.over.wait(self.chance.uniform(0, self.delay_max_s))
            if discarded:
                connection.exec_driver_sql("rollback to savepoint s")
                self.ledger.count("savepoints rolled back")
            else:
                changes.append(change)
        if self.chance.random() < ROLLBACK_CHANCE:
            connection.exec_driver_sql("rollback")
            self.ledger.count("rolled back")
            return
        _commit(connection, self.ledger, changes)
        last = dict(changes)
        own = [id_ for id_ in {*self._own, *last} if id_.startswith("own ") and last.get(id_) != GONE]
        self._own = own[-CONTESTED:]

    def _change(self, connection: sa.Connection, contested: int) -> Change:
        kind = self.chance.random()
        if kind < 0.4:  # noqa: PLR2004 - 40 % contested, 50 % new, 10 % deleted
            return self.table.change(connection, f"contested {contested}")
        if kind < 0.9 or not self._own:  # noqa: PLR2004 - the same
            self._made += 1
            return self.table.change(connection, f"own {self.number}-{self._made}")
        # Not deleted twice, and not created again, even if this deletion is rolled back.
        return self.table.delete(connection, self._own.pop(self.chance.randrange(len(self._own))))


def transact_long(table: ApplicationTable, ledger: Ledger, over: threading.Event, seconds: float) -> None:
    """Run the transaction that writes early and commits late, and count it as "long". Raises ``SQLAlchemyError``."""
    with table.session(named=False) as connection:
        table.begin(connection)
        changes = [table.change(connection, f"long early {number}") for number in range(LONG_OBJECTS)]
        over.wait(seconds)
        changes += [table.change(connection, f"long late {number}") for number in range(LONG_OBJECTS)]
        _commit(connection, ledger, changes)
    ledger.count("long")


def _commit(connection: sa.Connection, ledger: Ledger, changes: Sequence[Change]) -> None:
    # If a transaction changes an object several times, only the last version can become an event.
    final = list(dict(changes).items())
    ledger.committing(final, time.monotonic())
    connection.exec_driver_sql("commit")
    ledger.committed(final)
