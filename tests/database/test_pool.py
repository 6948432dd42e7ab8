"""One hop, one transaction, and what is closed when."""

import threading

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from airy_trio.database import Database, DatabaseRefused, engines
from tests.application import Application
from tests.database.abandoned import Held


async def test_a_unit_of_work_commits_in_a_thread_of_its_own(application: Application, database: Database) -> None:
    def work(connection: sa.Connection) -> int:
        connection.exec_driver_sql("create table t (x int)")
        connection.exec_driver_sql("insert into t values (1)")
        return threading.get_ident()

    assert await database.write(work) != threading.get_ident()
    assert application.scalar("select count(*) from t") == 1


async def test_a_unit_that_fails_leaves_nothing_and_its_own_error_goes_through(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("create table t (x int)")
        raise KeyError(1)

    for run_it in (database.run, database.write):
        with pytest.raises(KeyError):
            await run_it(work)
        with pytest.raises(DatabaseRefused):
            await run_it(lambda connection: connection.exec_driver_sql("select * from t").all())
    await database.aclose()


async def test_cancellation_is_heard_while_a_unit_is_under_way(application: Application, database: Database) -> None:
    session, held = application.reading(), Held()
    for run_it in (database.run, database.write, session.run):
        await held.abandon(run_it)
    held.let_go()
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
    held.let_go()
    assert await trio.to_thread.run_sync(held.closed.wait, 10)


async def test_closing_waits_for_a_unit_under_way(database: Database) -> None:
    held = Held()
    await held.abandon(database.run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.aclose)
        await trio.testing.wait_all_tasks_blocked(0.05)
        held.let_go()
    assert held.closed.is_set()


async def test_closing_in_a_cancelled_scope_closes_idle_connections(database: Database) -> None:
    closed = threading.Event()
    sa.event.listen(database.engine, "close", lambda _connection, _record: closed.set())
    await database.run(lambda _connection: None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await database.aclose()
    assert closed.is_set()


async def test_late_unit_of_before_a_closing_leaves_no_later_connection_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that is replaced while a unit has a connection of it would never see that connection closed."""
    monkeypatch.setattr(engines, "GRACE_S", 0)
    opened, closed, early, late = list[object](), list[object](), Held(), Held()
    sa.event.listen(database.engine, "connect", lambda connection, _record: opened.append(connection))
    sa.event.listen(database.engine, "close", lambda connection, _record: closed.append(connection))
    await early.abandon(database.run)
    await database.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.run, database.run)
        await trio.to_thread.run_sync(late.under_way.wait)
        early.let_go()
        assert await trio.to_thread.run_sync(early.closed.wait, 10)
        late.let_go()
    monkeypatch.undo()
    await database.aclose()
    assert closed == opened
