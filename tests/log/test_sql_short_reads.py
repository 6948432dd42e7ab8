"""What few events come next is read in one statement; whatever that cannot tell goes the long way, and ends alike."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import trio

from airy_trio.log.sql.postgres import EVENTS_MAX
from airy_trio.log.sql.tables import LogTables
from airy_trio.log.store import EventStore, NewEvent, PositionExpired
from tests.log.places import event, open_postgres

PAGE = 1000
CUT = """
select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
where query like '%limit 9%' and pid <> pg_backend_pid()
"""


@pytest.fixture
async def store(postgres_database: str) -> AsyncIterator[EventStore]:
    async with open_postgres(postgres_database) as opened:
        yield opened


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each time that the bounds were asked for, which the long way does first."""
    asked: list[str] = []
    bounds = LogTables.bounds

    def noted(tables: LogTables, connection: sa.Connection) -> Any:  # noqa: ANN401 - whatever it is
        asked.append("bounds")
        return bounds(tables, connection)

    monkeypatch.setattr(LogTables, "bounds", noted)
    return asked


def events(count: int) -> list[NewEvent]:
    return [event(number) for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 1, EVENTS_MAX, EVENTS_MAX + 1, 100])
async def test_both_ways_tell_the_same(store: EventStore, long_ways: list[str], count: int) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(count), "point")
    long_ways.clear()
    found = await store.read(before, PAGE, bytes_max=10**6)
    assert list(found) == list(stored)
    assert bool(long_ways) == (count > EVENTS_MAX)
    again = await store.read(before.at(max(0, count - 1)), PAGE)
    assert list(again) == list(stored)[-1:]


async def test_after_a_page_of_many_the_next_goes_the_long_way_until_there_are_few(
    store: EventStore, long_ways: list[str]
) -> None:
    before = (await store.bounds()).head
    await store.append(before, events(100), "point")
    long_ways.clear()
    ways = []
    for offset in (0, 50, 95, 96, 97):
        await store.read(before.at(offset), PAGE)
        ways.append(len(long_ways))
        long_ways.clear()
    assert ways == [1, 1, 1, 0, 0]


async def test_what_is_too_large_together_goes_the_long_way(store: EventStore, long_ways: list[str]) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(3), "point")
    size = sum(len(one.body) for one in stored)
    long_ways.clear()
    assert len(await store.read(before, PAGE, bytes_max=size + 1)) == 3
    assert not long_ways
    assert len(await store.read(before, PAGE, bytes_max=size)) == 3
    assert len(await store.read(before, PAGE, bytes_max=size - 1)) == 2
    assert len(await store.read(before, PAGE, bytes_max=1)) == 1
    assert long_ways


@pytest.mark.parametrize(
    "texts", [("message:m\0", "c\0\1", "ch\1"), ("message:ä", None, None), ("tag:" + "x" * 5000, "", "\1")]
)
async def test_any_text_comes_back(store: EventStore, texts: Sequence[str | None]) -> None:
    object_, conversation_id, channel_id = texts
    new = NewEvent(
        type="message.updated",
        object=str(object_),
        conversation_id=conversation_id,
        channel_id=channel_id,
        body=bytes(range(256)),
        truncated=True,
    )
    before = (await store.bounds()).head
    stored = await store.append(before, [new], "point")
    assert list(await store.read(before, PAGE)) == list(stored)


async def test_a_position_that_is_gone_is_told_as_by_the_long_way(store: EventStore) -> None:
    before = (await store.bounds()).head
    await store.append(before, events(5), "point")
    await store.trim(age_s=3600, keep=2, limit=100, unused_s=10**6)
    with pytest.raises(PositionExpired):
        await store.read(before, PAGE)
    assert [one.offset for one in await store.read(before.at(3), PAGE)] == [4, 5]
    await store.begin_epoch(before.at(5), "point")
    with pytest.raises(PositionExpired):
        await store.read(before.at(5), PAGE)


async def test_a_connection_that_was_cut_off_while_idle_is_no_outage(
    store: EventStore, postgres_database: str, long_ways: list[str]
) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(3), "point")
    await store.read(before, PAGE)
    url = sa.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        assert other.execute(CUT).fetchone() == (1,)
    long_ways.clear()
    assert list(await store.read(before, PAGE)) == list(stored)
    assert long_ways
    long_ways.clear()
    assert list(await store.read(before, PAGE)) == list(stored)
    assert not long_ways


async def test_two_who_read_at_once_do_not_wait_for_each_other(store: EventStore, long_ways: list[str]) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(3), "point")
    await store.read(before, PAGE)
    long_ways.clear()
    found: list[Sequence[object]] = []

    async def read() -> None:
        found.append(await store.read(before, PAGE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
    assert [list(each) for each in found] == [list(stored)] * 2
    assert len(long_ways) == 1
