"""Few events are appended in one statement; whatever that cannot do goes the long way, and ends alike."""

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
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Position]:
    """The heads that the long way has compared with."""
    compared: list[Position] = []
    compare = LogTables.move_head

    def noted(tables: LogTables, connection: sa.Connection, expected: Position, *rest: Any) -> int | None:  # noqa: ANN401 - whatever is handed on
        compared.append(expected)
        return compare(tables, connection, expected, *rest)

    monkeypatch.setattr(LogTables, "move_head", noted)
    return compared


@pytest.fixture
def patience() -> Iterator[list[str]]:
    """For how long each append that had to wait at the fence was to wait there."""
    told: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, arguments: dict[str, str], *_: object) -> None:
        if "lock_timeout" in statement and arguments:
            told.append(arguments["milliseconds"])

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield told
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def until_one_waits(other: "psycopg.Connection[tuple[object, ...]]") -> None:
    while other.execute(WAITING).fetchone() != (1,):
        pass


def of_size(size: int) -> NewEvent:
    return NewEvent(type="t", object="o", conversation_id=None, channel_id=None, body=b"x" * size)


@pytest.mark.parametrize(
    "new, is_long",
    [
        ([], False),
        ([event(1, object="\0\1ü", channel_id=None)], False),
        ([event(number) for number in range(EVENTS_MAX)], False),
        ([event(number) for number in range(EVENTS_MAX + 1)], True),
        ([of_size(BYTES_MAX - 1), of_size(1)], False),
        ([of_size(BYTES_MAX), of_size(1)], True),
    ],
    ids=["none", "one", "as many as go", "one more", "as large as goes", "one octet more"],
)
async def test_what_is_appended_is_read_as_it_was_given(
    store: EventStore, long_ways: list[Position], new: list[NewEvent], is_long: bool
) -> None:
    head = (await store.bounds()).head
    stored = await store.append(head, new, "point")
    assert bool(long_ways) is is_long
    assert list(await store.read(head, 100)) == stored
    assert [one.offset for one in stored] == list(range(1, len(new) + 1))
    assert [(one.object, one.channel_id, one.body) for one in stored] == [
        (one.object, one.channel_id, one.body) for one in new
    ]
    assert await store.resume_point() == "point"


async def test_who_is_late_has_written_nothing(store: EventStore) -> None:
    head = (await store.bounds()).head
    await store.append(head, [event(1)], "first")
    with pytest.raises(StaleAppend):
        await store.append(head, [event(2)], "second")
    assert (await store.bounds()).last == 1
    assert await store.resume_point() == "first"


async def test_while_another_is_inside_the_fence_it_waits_there_like_any_append(
    store: EventStore, other: "psycopg.Connection[tuple[object, ...]]", long_ways: list[Position]
) -> None:
    head = (await store.bounds()).head
    other.execute(f"select pg_advisory_lock({LOCK})")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.append, head, [event(1)], "point")
            await trio.to_thread.run_sync(until_one_waits, other)
            assert not long_ways  # it waits at the fence, with nothing locked
            other.execute(f"select pg_advisory_unlock({LOCK})")
    assert (await store.bounds()).last == 1


async def test_patience_with_who_hangs_inside_ends_with_an_append_that_succeeds(
    postgres_database: str, store: EventStore, patience: list[str]
) -> None:
    """Else each cut in a server's life would double what the next writer that is frozen may take."""
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


async def test_it_is_inside_the_fence_itself(
    postgres_database: str, store: EventStore, other: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    """So that the next writer can cut it off, wherever the server keeps it."""
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


async def test_a_connection_that_was_cut_while_idle_is_opened_again_unnoticed(
    store: EventStore, other: "psycopg.Connection[tuple[object, ...]]", long_ways: list[Position]
) -> None:
    head = (await store.bounds()).head
    head = head.at((await store.append(head, [event(1)], "point"))[-1].offset)
    other.execute(CUT)
    assert [one.offset for one in await store.append(head, [event(2)], "point")] == [2]
    assert not long_ways


async def test_two_at_once_are_both_compared(store: EventStore, long_ways: list[Position]) -> None:
    head = (await store.bounds()).head
    with pytest.RaisesGroup(StaleAppend, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(store.append, head, [event(number)], str(number))
    assert long_ways
    assert (await store.bounds()).last == 1


async def test_it_is_on_disk_whatever_the_default_of_the_database(
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
    assert flushed > 10  # the server may write something of its own in between; without it hardly ever


async def test_tables_that_are_missing_are_no_outage(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        with pytest.raises(DatabaseRefused):
            await store.append(Position(new_epoch(), 0), [event(1)], "point")
