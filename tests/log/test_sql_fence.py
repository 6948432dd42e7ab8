"""The next append ends the session of a writer that hangs in the middle of one, and has patience with a slow one."""

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import DatabaseOptions, Names
from airy_trio.log.sql.postgres import FENCE_CLASS, PATIENCE_FIRST_S, PATIENCE_MAX_S, Fence
from airy_trio.log.store import StoreUnavailable
from airy_trio.migrate import migrate_log
from tests.log.places import event, open_sql

STATE = "airy_trio.log_state"
ENTER = f"select pg_advisory_xact_lock({FENCE_CLASS}, '{STATE}'::regclass::oid::int), * from {STATE} for update"


@pytest.fixture
def hanging(postgres_database: str) -> Iterator[None]:
    """A session in the middle of an append, waiting for rows that never arrive, as from a frozen process."""
    migrate_log(postgres_database, DatabaseOptions(url=postgres_database))
    url = sa.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("set idle_in_transaction_session_timeout = '50ms'")  # has no effect during a COPY
        connection.execute(ENTER)
        connection.pgconn.exec_(b"copy airy_trio.event_log from stdin")
        yield
        connection.close()


@pytest.mark.usefixtures("hanging")
async def test_next_append_ends_the_session_that_hangs(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        head = (await store.bounds()).head
        with trio.fail_after(10):
            with pytest.raises(StoreUnavailable):
                await store.append(head, [event(1)], "point")
            assert [stored.offset for stored in await store.append(head, [event(1)], "point")] == [1]
            assert await store.resume_point() == "point"


@pytest.mark.usefixtures("hanging")
async def test_new_epoch_ends_the_session_that_hangs(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        head = (await store.bounds()).head
        with trio.fail_after(10):
            with pytest.raises(StoreUnavailable):
                await store.begin_epoch(head, "point")
            assert (await store.begin_epoch(head, "point")).epoch != head.epoch


async def test_slow_append_that_ends_in_time_is_left_alone(postgres_database: str) -> None:
    await trio.to_thread.run_sync(migrate_log, postgres_database, DatabaseOptions(url=postgres_database))
    engine = sa.create_engine(postgres_database)
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        head = (await store.bounds()).head
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                with engine.begin() as slow:
                    slow.execute(sa.text(ENTER.replace(":", r"\:")))
                    nursery.start_soon(store.append, head, [event(1)], "point")
                    await trio.sleep(PATIENCE_FIRST_S / 3)  # the append waits meanwhile
        assert (await store.bounds()).last == 1
    engine.dispose()


def test_patience_doubles_until_an_append_succeeds(postgres_database: str) -> None:
    migrate_log(postgres_database, DatabaseOptions(url=postgres_database))
    engine = sa.create_engine(postgres_database)
    fence = Fence(Names.of(postgres_database, "airy_trio"))
    with engine.begin() as connection:
        assert fence.end_session_inside(connection) == 0
        assert fence.patience_s == 2 * PATIENCE_FIRST_S
        for _ in range(20):
            fence.end_session_inside(connection)
        assert fence.patience_s == PATIENCE_MAX_S
    fence.passed()
    assert fence.patience_s == PATIENCE_FIRST_S
    engine.dispose()
