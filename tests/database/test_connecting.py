"""Opening a connection can be cancelled, and closing never hangs."""

import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from airy_trio.database import Database, DatabaseUnavailable, DedicatedConnection, PipelinePool, postgres_engine
from airy_trio.database.postgres import Statement

CONNECTED = "select count(*) from pg_stat_activity where application_name = 'airy-trio'"
CUT_SLEEPING = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'airy-trio' "
    "and state = 'active' and query like '%%pg_sleep%%' and wait_event = 'PgSleep'"
)
ONE = Statement("select 1")
PID = Statement("select pg_backend_pid()")
SLEEP = Statement("select pg_sleep(0.3)")


@pytest.fixture
def engine(postgres_database: str) -> Iterator[sa.Engine]:
    made = postgres_engine(postgres_database, connect_timeout_s=5)
    yield made
    made.dispose()


@pytest.mark.slow
async def test_connecting_to_an_unresponsive_server_can_be_cancelled() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"
        pool = PipelinePool(postgres_engine(url, connect_timeout_s=60), 1)
        with trio.fail_after(3), trio.move_on_after(0.1) as given_up:
            await pool.run((ONE, ()))
        assert given_up.cancelled_caught
        with trio.fail_after(3):
            await pool.aclose()


async def test_connection_opened_after_the_closing_is_closed(engine: sa.Engine, postgres_database: str) -> None:
    begun, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(*_: object) -> None:
        token.run_sync_soon(begun.set)
        assert go_on.wait(30)

    sa.event.listen(engine, "checkout", slow)
    pool = PipelinePool(engine, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, (ONE, ()))
        await begun.wait()
        nursery.cancel_scope.cancel()
    await pool.aclose()
    looking = sa.create_engine(postgres_database, poolclass=sa.NullPool)
    with looking.connect() as connection:
        go_on.set()
        with trio.fail_after(10):
            while connection.exec_driver_sql(CONNECTED).scalar_one():
                connection.rollback()
                await trio.lowlevel.checkpoint()


async def test_pool_uses_the_last_connection_and_no_more_than_needed(engine: sa.Engine) -> None:
    pool = PipelinePool(engine, 3)
    pids = {rows[0][0] for _ in range(5) for rows in await pool.run((PID, ()))}
    assert len(pids) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, (SLEEP, ()))
        await trio.testing.wait_all_tasks_blocked()
        [[(pid,)]] = await pool.run((PID, ()))
        assert pid not in pids
    await pool.aclose()
    [[(pid,)]] = await pool.run((PID, ()))
    assert pid not in pids
    await pool.aclose()


async def test_lost_connection_fails_a_write_and_not_a_read(engine: sa.Engine, postgres_database: str) -> None:
    """The connection is cut in the middle of a statement, so its loss cannot be detected earlier."""
    pool = PipelinePool(engine, 1)
    looking = sa.create_engine(postgres_database, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with looking.connect() as connection, trio.fail_after(10):
        for repeatable in (False, True):
            await pool.run((PID, ()))
            with nullcontext() if repeatable else pytest.RaisesGroup(DatabaseUnavailable):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(pool.run, (SLEEP, ()), repeatable=repeatable))
                    while not connection.exec_driver_sql(CUT_SLEEPING).scalar_one():  # noqa: ASYNC110 - Postgres has no event for this
                        await trio.sleep(0.01)
    await pool.aclose()


Run = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]


@pytest.fixture(params=["pool", "session"])
def closable(request: pytest.FixtureRequest, engine: sa.Engine) -> Database | DedicatedConnection:
    """A pool, then a dedicated connection, to Postgres."""
    return Database(engine) if request.param == "pool" else DedicatedConnection(engine)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a server process, so that it does not answer while its socket stays open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def hang(run: Run, statement: str) -> tuple[int, threading.Event]:
    """Abandon a running statement; return its pid, and an event that is set when its thread ends."""
    begun, ended, pids = trio.Event(), threading.Event(), list[int]()
    token = trio.lowlevel.current_trio_token()

    def work(connection: sa.Connection) -> None:
        pids.append(connection.exec_driver_sql("select pg_backend_pid()").scalar_one())
        token.run_sync_soon(begun.set)
        try:
            connection.exec_driver_sql(statement)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, work)
        await begun.wait()
        nursery.cancel_scope.cancel()
    return pids[0], ended


async def test_closing_frees_a_thread_that_waits_for_a_lock(
    closable: Database | DedicatedConnection, postgres_database: str
) -> None:
    with sa.create_engine(postgres_database, poolclass=sa.NullPool).connect() as other:
        other.exec_driver_sql("create table t (x int)")
        other.commit()
        other.exec_driver_sql("lock table t")
        _, ended = await hang(closable.run, "select * from t")
        with trio.fail_after(10):
            await closable.aclose()
        assert ended.is_set()


async def test_closing_frees_the_thread_of_an_unresponsive_server(closable: Database | DedicatedConnection) -> None:
    pid, ended = await hang(closable.run, "select pg_sleep(60)")
    with stopped(pid), trio.fail_after(10):
        await closable.aclose()
        assert ended.is_set()


async def test_closing_frees_a_thread_that_hangs_before_its_first_statement(engine: sa.Engine) -> None:
    """The pool tests a connection that was idle."""
    opened, closed = list[object](), list[object]()
    sa.event.listen(engine, "connect", lambda connection, _record: opened.append(connection))
    sa.event.listen(engine, "close", lambda connection, _record: closed.append(connection))
    database = Database(engine)
    pid = await database.run(lambda connection: connection.exec_driver_sql("select pg_backend_pid()").scalar_one())
    with stopped(pid), trio.fail_after(10):
        with trio.move_on_after(0.1):
            await database.run(lambda _connection: None)
        await database.aclose()
    assert closed == opened
