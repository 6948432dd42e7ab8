"""Random schedules of transactions that commit late, read by ``updated_at``: nothing is lost.

Nothing is repeated either, except after a restart. The application's clock advances by small steps; each transaction is
open for less than the overlap.
"""

import random
from collections import Counter

import psycopg
import pytest
import sqlalchemy as sa
from attrs import define, field

from airy_trio.capture.feed import Batch, Tag
from airy_trio.capture.polling import UpdatedAtFeed
from tests.application import Application
from tests.capture.watched import ONLY_TAGS, OVERLAP_S, SECOND_US, START_US, Watched, feed_by_updated_at, settings_of

OBJECTS = 12
CONNECTIONS = 4
STEPS = 250


@define
class Open:
    """An open transaction: the time of its first write, and the versions that it wrote."""

    connection: psycopg.Connection
    since_us: int
    writes: dict[str, int] = field(factory=dict)


class Schedule:
    """The application: several connections, a clock, and the committed versions. No version is written twice."""

    def __init__(self, watched: Watched, chance: random.Random) -> None:
        url = sa.make_url(watched.application.url).set(drivername="postgresql")
        conninfo = url.render_as_string(hide_password=False)
        self._connections = [psycopg.connect(conninfo, autocommit=True) for _ in range(CONNECTIONS)]
        self._watched = watched
        self._chance = chance
        self._open: dict[int, Open] = {}
        self._version = 0
        self.now_us = START_US
        self.committed: dict[str, int] = {}

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def step(self) -> None:
        self.now_us += self._chance.choice([0, 0, 0, 1000, SECOND_US // 2])  # many changes at one time
        for number, transaction in list(self._open.items()):
            if self.now_us - transaction.since_us > (OVERLAP_S - 1) * SECOND_US:
                self._end(number, commit=True)
        number = self._chance.randrange(CONNECTIONS)
        if number not in self._open:
            self._open[number] = Open(self._connections[number], self.now_us)
            self._connections[number].execute("begin")
        what = self._chance.random()
        if what < 0.6:
            self._write(self._open[number])
        else:
            self._end(number, commit=what < 0.95)

    def end(self) -> None:
        for number in list(self._open):
            self._end(number, commit=True)

    def _write(self, transaction: Open) -> None:
        locked = {name for other in self._open.values() if other is not transaction for name in other.writes}
        free = [name for name in (f"t{number}" for number in range(OBJECTS)) if name not in locked]
        if free:
            name = self._chance.choice(free)
            self._version += 1
            transaction.connection.execute(self._watched.statement(name, self.now_us, str(self._version)).encode())
            transaction.writes[name] = self._version

    def _end(self, number: int, *, commit: bool) -> None:
        transaction = self._open.pop(number)
        transaction.connection.execute("commit" if commit else "rollback")
        if commit:
            self.committed.update(transaction.writes)


@define
class Recorder:
    """Reads with a feed, which is sometimes replaced, and reads again after batches that it did not store.

    ``read``: number of the feed, object, version.
    """

    application: Application
    feed: UpdatedAtFeed
    point: str
    feeds: int = 1
    read: list[tuple[int, str, int]] = field(factory=list)

    async def step(self, chance: random.Random) -> None:
        if chance.random() < 0.1:
            await self.feed.aclose()
            self.feed = feed_by_updated_at(self.application, settings_of(self.application))
            self.feeds += 1
        batch = await self.feed.read(self.point, chance.choice([1, 2, 3, 1000]))
        if chance.random() < 0.8:
            self.take(batch)

    def take(self, batch: Batch) -> None:
        self.point = batch.resume_point
        self.read += [(self.feeds, str(tag.id), int(str(tag.name))) for tag in batch.objects if isinstance(tag, Tag)]


@pytest.mark.parametrize("form", ["timestamptz", "milliseconds", "iso"])
@pytest.mark.parametrize("seed", range(6))
async def test_commits_out_of_order_within_the_overlap_are_not_lost(
    postgres_application: Application, form: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr("airy_trio.capture.scans.PAGE_ROWS", chance.choice([1, 3, 500]))
    watched = Watched(postgres_application, form)
    feed = feed_by_updated_at(
        postgres_application,
        postgres_application.settings(f'{ONLY_TAGS}[changes]\ncapture = "updated_at"\n[log]\nstore = "memory"\n'),
    )
    schedule = Schedule(watched, chance)
    recorder = Recorder(postgres_application, feed, await feed.origin())
    try:
        for _ in range(STEPS):
            schedule.step()
            if chance.random() < 0.4:
                await recorder.step(chance)
        schedule.end()
        more = True
        while more:
            batch = await recorder.feed.read(recorder.point, 5)
            recorder.take(batch)
            more = batch.more
    finally:
        schedule.close()
        await recorder.feed.aclose()
    newest = {name: version for _, name, version in recorder.read}
    assert newest == schedule.committed, "the last committed state of every object"
    assert max(Counter(recorder.read).values()) == 1, "no version twice by one feed"
    for name in schedule.committed:
        versions = [version for _, read, version in recorder.read if read == name]
        assert versions == sorted(versions), "an older version after a newer one"
