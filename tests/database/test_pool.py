"""A unit of work on a pool is one transaction in a thread, and closing leaves no connection open."""

import threading

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from airy_trio.database import Database, DatabaseRefused, engines
from tests.application import Application
from tests.database.abandoned_unit import Held


async def test_unit_of_work_commits_in_a_thread(application: Application, database: Database) -> None:
    def work(connection: sa.Connection) -> int:
        connection.exec_driver_sql("create table t (x int)")
        connection.exec_driver_sql("insert into t values (1)")
        return threading.get_ident()

    assert await database.write(work) != threading.get_ident()
    assert application.scalar("select count(*) from t") == 1


async def test_failed_unit_rolls_back_and_raises_its_own_error(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("create table t (x int)")
        raise KeyError(1)

    for run_it in (database.run, database.write):
        with pytest.raises(KeyError):
            await run_it(work)
        with pytest.raises(DatabaseRefused):
            await run_it(lambda connection: connection.exec_driver_sql("select * from t").all())
    await database.aclose()


async def test_running_unit_can_be_cancelled(application: Application, database: Database) -> None:
    session, held = application.reading(), Held()
    for run_it in (database.run, database.write, session.run):
        await held.abandon(run_it)
    held.release()
    assert await session.run(lambda connection: connection.exec_driver_sql("select 1").scalar()) == 1
    await session.aclose()
    await database.aclose()


async def test_unit_that_outlives_the_closing_closes_its_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "GRACE_S", 0)
    held = Held()
    await held.abandon(database.run)
    await database.aclose()
    assert not held.closed.is_set()
    held.release()
    assert await trio.to_thread.run_sync(held.closed.wait, 10)


async def test_closing_waits_for_a_running_unit(database: Database) -> None:
    held = Held()
    await held.abandon(database.run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.aclose)
        await trio.testing.wait_all_tasks_blocked(0.05)
        held.release()
    assert held.closed.is_set()


async def test_closing_in_a_cancelled_scope_closes_idle_connections(database: Database) -> None:
    closed = threading.Event()
    sa.event.listen(database.engine, "close", lambda _connection, _record: closed.set())
    await database.run(lambda _connection: None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await database.aclose()
    assert closed.is_set()


async def test_unit_from_before_a_closing_leaves_no_connection_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the pool were replaced while a unit has one of its connections, that connection would stay open."""
    monkeypatch.setattr(engines, "GRACE_S", 0)
    opened, closed, early, late = list[object](), list[object](), Held(), Held()
    sa.event.listen(database.engine, "connect", lambda connection, _record: opened.append(connection))
    sa.event.listen(database.engine, "close", lambda connection, _record: closed.append(connection))
    await early.abandon(database.run)
    await database.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.run, database.run)
        await trio.to_thread.run_sync(late.running.wait)
        early.release()
        assert await trio.to_thread.run_sync(early.closed.wait, 10)
        late.release()
    monkeypatch.undo()
    await database.aclose()
    assert closed == opened
