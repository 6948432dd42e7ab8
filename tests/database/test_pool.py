"""One hop, one transaction, and what is closed when."""

import threading

import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import (
    Database,
    DatabaseRefused,
)
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


async def test_what_a_unit_holds_beyond_the_closing_is_closed_after_it(database: Database) -> None:
    held = Held()
    await held.abandon(database.run)
    await database.aclose()
    assert not held.closed.is_set()
    held.let_go()
    assert await trio.to_thread.run_sync(held.closed.wait, 10)
