"""The next few events are read with one statement; everything else takes the regular path, with the same result."""

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
def regular(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each read of the bounds, with which the regular path begins."""
    asked: list[str] = []
    bounds = LogTables.bounds

    def noted(tables: LogTables, connection: sa.Connection) -> Any:  # noqa: ANN401 - passed on
        asked.append("bounds")
        return bounds(tables, connection)

    monkeypatch.setattr(LogTables, "bounds", noted)
    return asked


def events(count: int) -> list[NewEvent]:
    return [event(number) for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 1, EVENTS_MAX, EVENTS_MAX + 1, 100])
async def test_both_paths_return_the_same(store: EventStore, regular: list[str], count: int) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(count), "point")
    regular.clear()
    found = await store.read(before, PAGE, bytes_max=10**6)
    assert list(found) == list(stored)
    assert bool(regular) == (count > EVENTS_MAX)
    again = await store.read(before.at(max(0, count - 1)), PAGE)
    assert list(again) == list(stored)[-1:]


async def test_fast_path_pauses_until_there_are_few_events(store: EventStore, regular: list[str]) -> None:
    before = (await store.bounds()).head
    await store.append(before, events(100), "point")
    regular.clear()
    ways = []
    for offset in (0, 50, 95, 96, 97):
        await store.read(before.at(offset), PAGE)
        ways.append(len(regular))
        regular.clear()
    assert ways == [1, 1, 1, 0, 0]


async def test_events_too_large_together_take_the_regular_path(store: EventStore, regular: list[str]) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(3), "point")
    size = sum(len(one.body) for one in stored)
    regular.clear()
    assert len(await store.read(before, PAGE, bytes_max=size + 1)) == 3
    assert not regular
    assert len(await store.read(before, PAGE, bytes_max=size)) == 3
    assert len(await store.read(before, PAGE, bytes_max=size - 1)) == 2
    assert len(await store.read(before, PAGE, bytes_max=1)) == 1
    assert regular


@pytest.mark.parametrize(
    "texts", [("message:m\0", "c\0\1", "ch\1"), ("message:ä", None, None), ("tag:" + "x" * 5000, "", "\1")]
)
async def test_any_text_is_returned_unchanged(store: EventStore, texts: Sequence[str | None]) -> None:
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


async def test_expired_position_raises_as_on_the_regular_path(store: EventStore) -> None:
    before = (await store.bounds()).head
    await store.append(before, events(5), "point")
    await store.trim(age_s=3600, keep=2, limit=100, unused_s=10**6)
    with pytest.raises(PositionExpired):
        await store.read(before, PAGE)
    assert [one.offset for one in await store.read(before.at(3), PAGE)] == [4, 5]
    await store.begin_epoch(before.at(5), "point")
    with pytest.raises(PositionExpired):
        await store.read(before.at(5), PAGE)


async def test_connection_lost_while_idle_is_no_outage(
    store: EventStore, postgres_database: str, regular: list[str]
) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(3), "point")
    await store.read(before, PAGE)
    url = sa.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        assert other.execute(CUT).fetchone() == (1,)
    regular.clear()
    assert list(await store.read(before, PAGE)) == list(stored)
    assert regular
    regular.clear()
    assert list(await store.read(before, PAGE)) == list(stored)
    assert not regular


async def test_concurrent_reads_do_not_wait_for_each_other(store: EventStore, regular: list[str]) -> None:
    before = (await store.bounds()).head
    stored = await store.append(before, events(3), "point")
    await store.read(before, PAGE)
    regular.clear()
    found: list[Sequence[object]] = []

    async def read() -> None:
        found.append(await store.read(before, PAGE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
    assert [list(each) for each in found] == [list(stored)] * 2
    assert len(regular) == 1
