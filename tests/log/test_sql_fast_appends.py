"""Few events are appended with one statement; everything else takes the regular path, with the same result."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import DatabaseOptions, DatabaseRefused
from airy_trio.log.position import Position, new_epoch
from airy_trio.log.sql.postgres import BYTES_MAX, EVENTS_MAX, FENCE_CLASS
from airy_trio.log.sql.tables import LogTables
from airy_trio.log.store import EventStore, NewEvent, StaleAppend, StoreUnavailable
from tests.log.places import event, open_postgres, open_sql

STATE = "airy_trio.log_state"
LOCK = f"{FENCE_CLASS}, '{STATE}'::regclass::oid::int"
OURS = "from pg_stat_activity where application_name = 'airy-trio'"
CUT = f"select pg_terminate_backend(pid, 5000) {OURS}"
WAITING = f"select count(*) {OURS} and wait_event_type = 'Lock'"


@pytest.fixture
async def store(postgres_database: str) -> AsyncIterator[EventStore]:
    async with open_postgres(postgres_database) as opened:
        yield opened


@pytest.fixture
def other(postgres_database: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    url = sa.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def regular(monkeypatch: pytest.MonkeyPatch) -> list[Position]:
    """The expected heads of all appends on the regular path."""
    compared: list[Position] = []
    compare = LogTables.move_head

    def noted(tables: LogTables, connection: sa.Connection, expected: Position, *rest: Any) -> int | None:  # noqa: ANN401 - passed on
        compared.append(expected)
        return compare(tables, connection, expected, *rest)

    monkeypatch.setattr(LogTables, "move_head", noted)
    return compared


@pytest.fixture
def patience() -> Iterator[list[str]]:
    """The time limits of all appends that had to wait at the fence."""
    limits: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, arguments: dict[str, str], *_: object) -> None:
        if "lock_timeout" in statement and arguments:
            limits.append(arguments["milliseconds"])

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield limits
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def until_one_waits(other: "psycopg.Connection[tuple[object, ...]]") -> None:
    while other.execute(WAITING).fetchone() != (1,):
        pass


def of_size(size: int) -> NewEvent:
    return NewEvent(type="t", object="o", conversation_id=None, channel_id=None, body=b"x" * size)


@pytest.mark.parametrize(
    "new, is_regular",
    [
        ([], False),
        ([event(1, object="\0\1ü", channel_id=None)], False),
        ([event(number) for number in range(EVENTS_MAX)], False),
        ([event(number) for number in range(EVENTS_MAX + 1)], True),
        ([of_size(BYTES_MAX - 1), of_size(1)], False),
        ([of_size(BYTES_MAX), of_size(1)], True),
    ],
    ids=["none", "one", "the most", "one more", "the largest", "one byte more"],
)
async def test_appended_events_are_read_unchanged(
    store: EventStore, regular: list[Position], new: list[NewEvent], is_regular: bool
) -> None:
    head = (await store.bounds()).head
    stored = await store.append(head, new, "point")
    assert bool(regular) is is_regular
    assert list(await store.read(head, 100)) == stored
    assert [one.offset for one in stored] == list(range(1, len(new) + 1))
    assert [(one.object, one.channel_id, one.body) for one in stored] == [
        (one.object, one.channel_id, one.body) for one in new
    ]
    assert await store.resume_point() == "point"


async def test_stale_append_writes_nothing(store: EventStore) -> None:
    head = (await store.bounds()).head
    await store.append(head, [event(1)], "first")
    with pytest.raises(StaleAppend):
        await store.append(head, [event(2)], "second")
    assert (await store.bounds()).last == 1
    assert await store.resume_point() == "first"


async def test_append_waits_while_another_session_is_inside_the_fence(
    store: EventStore, other: "psycopg.Connection[tuple[object, ...]]", regular: list[Position]
) -> None:
    head = (await store.bounds()).head
    other.execute(f"select pg_advisory_lock({LOCK})")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.append, head, [event(1)], "point")
            await trio.to_thread.run_sync(until_one_waits, other)
            assert not regular  # it waits at the fence and has locked nothing
            other.execute(f"select pg_advisory_unlock({LOCK})")
    assert (await store.bounds()).last == 1


async def test_successful_append_resets_the_patience(
    postgres_database: str, store: EventStore, patience: list[str]
) -> None:
    """Otherwise each session that is ended would double the patience with the next frozen writer."""
    url = sa.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    head = (await store.bounds()).head
    for number in range(2):
        with psycopg.connect(url, autocommit=True) as hanging:
            hanging.execute(f"select pg_advisory_lock({LOCK})")
            with pytest.raises(StoreUnavailable):
                await store.append(head, [event(number)], "point")
            head = head.at((await store.append(head, [event(number)], "point"))[-1].offset)
    assert len(patience) == 2
    assert len(set(patience)) == 1


async def test_fast_append_is_inside_the_fence(
    postgres_database: str, store: EventStore, other: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    """So that the next writer can end its session wherever it hangs."""
    engine = sa.create_engine(postgres_database, poolclass=sa.NullPool)
    head = (await store.bounds()).head
    with trio.fail_after(10):
        with pytest.RaisesGroup(StoreUnavailable):
            async with trio.open_nursery() as nursery:
                with engine.begin() as blocking:
                    blocking.exec_driver_sql(f"select 1 from {STATE} for update")
                    nursery.start_soon(store.append, head, [event(1)], "point")
                    await trio.to_thread.run_sync(until_one_waits, other)
                    assert other.execute(f"select pg_try_advisory_xact_lock({LOCK})").fetchone() == (False,)
                    other.execute(f"{CUT} and wait_event_type = 'Lock'")
        await store.append(head, [event(1)], "point")
    assert (await store.bounds()).last == 1


async def test_connection_lost_while_idle_is_opened_again(
    store: EventStore, other: "psycopg.Connection[tuple[object, ...]]", regular: list[Position]
) -> None:
    head = (await store.bounds()).head
    head = head.at((await store.append(head, [event(1)], "point"))[-1].offset)
    other.execute(CUT)
    assert [one.offset for one in await store.append(head, [event(2)], "point")] == [2]
    assert not regular


async def test_two_concurrent_appends_are_both_compared(store: EventStore, regular: list[Position]) -> None:
    head = (await store.bounds()).head
    with pytest.RaisesGroup(StaleAppend, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(store.append, head, [event(number)], str(number))
    assert regular
    assert (await store.bounds()).last == 1


async def test_append_is_on_disk_whatever_the_server_default(
    postgres_database: str, store: EventStore, other: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    name = sa.make_url(postgres_database).database
    other.execute(f"alter database {name} set synchronous_commit = off")
    head = (await store.bounds()).head
    flushed = 0
    for number in range(20):
        head = head.at((await store.append(head, [event(number)], "point"))[-1].offset)
        flushed += other.execute("select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()").fetchone() == (
            True,
        )
    assert flushed > 10  # the server may write WAL in between; with an asynchronous commit hardly ever


async def test_missing_tables_are_refused(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        with pytest.raises(DatabaseRefused):
            await store.append(Position(new_epoch(), 0), [event(1)], "point")
