"""Random schedules of transactions over several connections, and a check of what a feed reads of them.

The model records every committed change. Each change must be read exactly once, in whatever order transactions commit.
The versions read of one object must never decrease, and the last one must be the one committed last.
"""

import random
from collections import Counter
from collections.abc import Callable

import psycopg
import sqlalchemy as sa
from attrs import Factory, define, field

from airy_trio.capture.feed import Tag, TagGone
from airy_trio.capture.postgres import PostgresFeed

CONNECTIONS = 5
OBJECTS = 8

Write = tuple[str, int]
"""An object and its new version; 0 if it was deleted."""


@define
class Transaction:
    """An open transaction, its writes so far, and the number of writes at each savepoint."""

    connection: psycopg.Connection
    writes: list[Write] = field(factory=list)
    savepoints: list[int] = field(factory=list)


@define
class Model:
    """The committed versions, and those that have been read."""

    committed: dict[str, int] = Factory(dict)
    changes: int = 0
    read: dict[str, int] = Factory(dict)
    changes_read: int = 0


class Schedule:
    """One random run. Each connection writes only objects that no other open transaction has locked."""

    def __init__(self, url: str, seed: int) -> None:
        conninfo = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._random = random.Random(seed)
        self._connections = [psycopg.connect(conninfo, autocommit=True) for _ in range(CONNECTIONS)]
        self._open: dict[int, Transaction] = {}
        self._version = 0
        self.model = Model()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def step(self) -> None:
        number = self._random.randrange(CONNECTIONS)
        transaction = self._open.get(number)
        if transaction is None:
            self._open[number] = transaction = Transaction(self._connections[number])
            transaction.connection.execute("begin")
        what = self._random.random()
        if what < 0.55:
            self._write(transaction)
        elif what < 0.65:
            transaction.connection.execute(f"savepoint s{len(transaction.savepoints)}")
            transaction.savepoints.append(len(transaction.writes))
        elif what < 0.75 and transaction.savepoints:
            kept = transaction.savepoints.pop()
            transaction.connection.execute(f"rollback to s{len(transaction.savepoints)}")
            del transaction.writes[kept:]
        elif what < 0.95:
            self._commit(number)
        else:
            transaction.connection.execute("rollback")
            del self._open[number]

    def commit_all(self) -> None:
        for number in list(self._open):
            self._commit(number)

    def _write(self, transaction: Transaction) -> None:
        others = {name for other in self._open.values() if other is not transaction for name, _ in other.writes}
        # a rollback to a savepoint releases the locks taken after it, so the locked objects are those in `writes`
        free = [name for name in (f"t{number}" for number in range(OBJECTS)) if name not in others]
        if not free:
            return
        name = self._random.choice(free)
        written = dict(self.model.committed) | dict(transaction.writes)
        if written.get(name) and self._random.random() < 0.2:
            transaction.connection.execute("delete from tags where id = %s", [name])
            transaction.writes.append((name, 0))
            return
        self._version += 1
        transaction.connection.execute(
            "insert into tags values (%s, %s, 'red') on conflict (id) do update set name = excluded.name",
            [name, str(self._version)],
        )
        transaction.writes.append((name, self._version))

    def _commit(self, number: int) -> None:
        transaction = self._open.pop(number)
        transaction.connection.execute("commit")
        self.model.committed.update(transaction.writes)
        self.model.changes += len(transaction.writes)


async def run(url: str, seed: int, make_feed: Callable[[], PostgresFeed], steps: int = 200) -> None:
    """Write, commit and roll back at random, and read in between. Raises ``AssertionError`` if the feed is wrong.

    From time to time the feed is replaced, as by a restart, or a batch is discarded, as by a crash before storing;
    then the next read is after the same point again.
    """
    chance = random.Random(seed)
    schedule = Schedule(url, seed)
    model = schedule.model
    feed = make_feed()
    try:
        point = await feed.origin()
        for _ in range(steps):
            schedule.step()
            if chance.random() < 0.1:
                await feed.aclose()
                feed = make_feed()
            if chance.random() < 0.3:
                point = await _read(feed, point, chance.choice([1, 2, 3, 1000]), model, lost=chance.random() < 0.2)
        schedule.commit_all()
        before, first = model.changes_read, True
        while first or model.changes_read > before:
            before, first = model.changes_read, False
            point = await _read(feed, point, 1000, model)
            point = await _read(feed, point, 1000, model)
        assert model.changes_read == model.changes
        assert {name: version for name, version in model.read.items() if version} == {
            name: version for name, version in model.committed.items() if version
        }
    finally:
        schedule.close()
        await feed.aclose()


async def _read(feed: PostgresFeed, point: str, limit: int, model: Model, *, lost: bool = False) -> str:
    batch = await feed.read(point, limit)
    assert batch.changes <= limit
    names = Counter(changed.id for changed in batch.objects if isinstance(changed, Tag | TagGone))
    assert all(count == 1 for count in names.values())
    if lost:
        return point
    for changed in batch.objects:
        assert isinstance(changed, Tag | TagGone)
        version = int(str(changed.name)) if isinstance(changed, Tag) else 0
        assert version == model.committed[str(changed.id)], "the version read is the one committed now"
        assert not version or version >= model.read.get(str(changed.id), 0), "an older version after a newer one"
        model.read[str(changed.id)] = version
    model.changes_read += batch.changes
    return batch.resume_point
