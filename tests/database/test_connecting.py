"""A connection that nobody waits for any more is closed, whenever it is there."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import connected, postgres_engine

CONNECTED = "select count(*) from pg_stat_activity where application_name = 'airy-trio'"


@pytest.fixture
def engine(postgres_database: str) -> Iterator[sa.Engine]:
    made = postgres_engine(postgres_database, connect_timeout_s=5)
    yield made
    made.dispose()


async def test_a_server_that_does_not_answer_holds_up_no_cancellation() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"
        with trio.fail_after(3), trio.move_on_after(0.1) as given_up:
            await connected(postgres_engine(url, connect_timeout_s=60))
    assert given_up.cancelled_caught


async def test_what_is_opened_after_it_was_given_up_is_closed(engine: sa.Engine, postgres_database: str) -> None:
    begun, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(*_: object) -> None:
        token.run_sync_soon(begun.set)
        assert go_on.wait(30)

    sa.event.listen(engine, "checkout", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connected, engine)
        await begun.wait()
        nursery.cancel_scope.cancel()
    looking = sa.create_engine(postgres_database, poolclass=sa.NullPool)
    with looking.connect() as connection:
        assert connection.exec_driver_sql(CONNECTED).scalar_one() == 1
        go_on.set()
        with trio.fail_after(10):
            while connection.exec_driver_sql(CONNECTED).scalar_one():
                connection.rollback()
                await trio.lowlevel.checkpoint()


async def test_what_cannot_be_prepared_is_closed(engine: sa.Engine, postgres_database: str) -> None:
    with pytest.raises(sa.exc.ProgrammingError):
        await connected(engine, lambda connection: connection.exec_driver_sql("not sql"))
    with sa.create_engine(postgres_database, poolclass=sa.NullPool).connect() as looking, trio.fail_after(10):
        while looking.exec_driver_sql(CONNECTED).scalar_one():
            looking.rollback()
            await trio.lowlevel.checkpoint()


async def test_what_was_opened_is_used(engine: sa.Engine) -> None:
    connection = await connected(engine)
    assert connection.exec_driver_sql("select 1").scalar_one() == 1
    connection.close()
