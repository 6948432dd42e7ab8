"""A dedicated connection: its generation, its errors, its closing, and pipelines on it."""

from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from airy_trio.database import DatabaseRefused, DatabaseUnavailable, DedicatedConnection, engines
from airy_trio.database.postgres import Pipeline, Statement
from tests.application import Application
from tests.database.abandoned_unit import Held


async def test_lost_connection_changes_the_generation(postgres_application: Application) -> None:
    session = postgres_application.reading()

    def pid(connection: sa.Connection) -> int:
        found: int = connection.exec_driver_sql("select pg_backend_pid()").scalar_one()
        return found

    first = await session.run(pid)
    generation = session.generation
    assert await session.run(pid) == first
    assert session.generation == generation
    postgres_application.execute(f"select pg_terminate_backend({first}, 5000)")
    with pytest.raises(DatabaseUnavailable):
        await session.run(pid)
    assert session.generation > generation
    generation = session.generation
    assert await session.run(pid) != first
    assert session.generation > generation
    await session.aclose()
    await session.aclose()


async def test_idle_timeout_error_names_this_process(postgres_application: Application) -> None:
    session = postgres_application.reading()

    def be_idle(connection: sa.Connection) -> int:
        connection.exec_driver_sql("set idle_session_timeout = '10ms'")
        pid: int = connection.exec_driver_sql("select pg_backend_pid()").scalar_one()
        return pid

    pid = await session.run(be_idle)
    gone = f"select count(*) = 0 from pg_stat_activity where pid = {pid}"
    while not postgres_application.scalar(gone):  # noqa: ASYNC110 - Postgres has no event for this
        await trio.lowlevel.checkpoint()
    with pytest.raises(DatabaseUnavailable, match="57P05: this process was too busy to use its session within idle_"):
        await session.run(be_idle)
    await session.aclose()


async def test_exception_of_a_unit_does_not_close_the_connection(application: Application) -> None:
    session = application.reading()

    def fail(_connection: sa.Connection) -> None:
        raise KeyError(1)

    await session.run(lambda _connection: None)
    generation = session.generation
    with pytest.raises(KeyError):
        await session.run(fail)
    assert session.generation == generation
    assert await session.run(lambda connection: connection.exec_driver_sql("select 1").scalar()) == 1
    await session.aclose()


async def test_errors_of_the_driver_are_translated(application: Application) -> None:
    session = application.reading()

    def ask(connection: sa.Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute("select * from nowhere")

    with pytest.raises(DatabaseRefused, match="nowhere"):
        await session.run(ask, transaction=False)
    await session.aclose()


async def test_unit_that_outlives_the_closing_closes_the_connection(
    any_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing does not wait for a unit that computes for a long time."""
    monkeypatch.setattr(engines, "GRACE_S", 0)
    any_application.execute("select 1")
    session = any_application.reading()
    held = Held()
    await held.abandon(session.run)
    await session.aclose()
    assert not held.closed.is_set()
    held.release()
    assert await trio.to_thread.run_sync(held.closed.wait, 10)


def test_unused_connection_can_be_closed(any_application: Application) -> None:
    session = any_application.reading()
    trio.run(session.aclose)
    assert isinstance(session, DedicatedConnection)


ONE = Statement("select 1")
BEGIN = Statement("begin")
DIVIDE = Statement("select 1 / $1::int8")


async def test_pipeline_needs_an_open_connection(postgres_application: Application) -> None:
    session = postgres_application.reading()

    async def ask(pipeline: Pipeline) -> list[list[tuple[Any, ...]]]:
        return await pipeline.run((ONE, ()))

    with pytest.raises(DatabaseUnavailable):
        await session.run_pipeline(ask)
    await session.run(lambda _connection: None)
    generation = session.generation
    assert await session.run_pipeline(ask) == [[(1,)]]
    assert session.generation == generation
    await session.aclose()
    with pytest.raises(DatabaseUnavailable):
        await session.run_pipeline(ask)


async def test_failed_or_cancelled_pipeline_closes_the_connection(postgres_application: Application) -> None:
    session = postgres_application.reading()

    async def divide(pipeline: Pipeline) -> None:
        await pipeline.run((DIVIDE, [b"0"]))

    async def begin(pipeline: Pipeline) -> None:
        await pipeline.run((BEGIN, ()))

    async def fail(_pipeline: Pipeline) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError(1)

    for talk, raised, is_closed in ((divide, DatabaseRefused, True), (begin, None, True), (fail, KeyError, False)):
        await session.run(lambda _connection: None)
        generation = session.generation
        with pytest.raises(raised) if raised else nullcontext():
            await session.run_pipeline(talk)
        assert (session.generation != generation) is is_closed
    await session.aclose()


async def test_statements_of_pipelines_outlive_a_rollback(postgres_application: Application) -> None:
    """Also after units that the driver would prepare by itself, such as many attempts to acquire the lease."""
    session = postgres_application.reading()

    async def ask(pipeline: Pipeline) -> list[list[tuple[Any, ...]]]:
        return await pipeline.run((ONE, ()))

    def fail(connection: sa.Connection) -> None:
        connection.exec_driver_sql("select 1")
        raise KeyError(1)

    for _ in range(10):
        await session.run(lambda connection: connection.exec_driver_sql("select 2"))
    assert await session.run_pipeline(ask) == [[(1,)]]
    with pytest.raises(KeyError):
        await session.run(fail)
    assert await session.run_pipeline(ask) == [[(1,)]]
    await session.aclose()


async def test_pipeline_and_unit_wait_for_each_other(postgres_application: Application) -> None:
    session = postgres_application.reading()
    await session.run(lambda _connection: None)
    order: list[str] = []

    async def sleep(pipeline: Pipeline) -> None:
        order.append("asked")
        await pipeline.run((Statement("select pg_sleep(0.1)"), ()))
        order.append("answered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run_pipeline, sleep)
        await trio.testing.wait_all_tasks_blocked()
        await session.run(lambda _connection: order.append("unit"))
    assert order == ["asked", "answered", "unit"]
    await session.aclose()


async def test_pipeline_that_outlives_the_closing_closes_the_connection(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "GRACE_S", 0)
    session = postgres_application.reading()
    await session.run(lambda _connection: None)
    generation, held = session.generation, trio.Event()

    async def hold(_pipeline: Pipeline) -> None:
        await held.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run_pipeline, hold)
        await trio.testing.wait_all_tasks_blocked()
        await session.aclose()
        assert session.generation == generation
        held.set()
    assert session.generation != generation
