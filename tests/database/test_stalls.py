"""A server that stops answering while its connections stay open, and one that is only slow."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
import trio
from psycopg.sql import SQL

from airy_trio.database import Database, DatabaseUnavailable, DedicatedConnection, postgres_engine
from airy_trio.database.engines import THREADS_MAX
from airy_trio.database.postgres import MonitoredConnection, Statement
from tests.pgbouncer import through
from tests.postgres import SUPERUSER, Postgres
from tests.stalling_proxy import StallingProxy, stalling

LIMIT_S = 0.5
CONNECT_TIMEOUT_S = 2.0
SLOW_S = 4 * LIMIT_S
TIMEOUT_S = 20.0

ACTIVE = sa.text("select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'")

Ask = Callable[[str], Awaitable[object]]


@pytest.fixture
async def proxy(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StallingProxy]:
    monkeypatch.setattr(MonitoredConnection, "answer_timeout_s", LIMIT_S)
    async with stalling(postgres_database) as proxy:
        yield proxy


@pytest.fixture(params=["database", "session", "pipeline"])
async def ask(request: pytest.FixtureRequest, proxy: StallingProxy) -> AsyncIterator[Ask]:
    """Run a statement that returns one value, in each of the three ways."""
    engine = postgres_engine(proxy.url, connect_timeout_s=CONNECT_TIMEOUT_S)
    database, session = Database(engine), DedicatedConnection(engine)

    def value(connection: sa.Connection, sql: str) -> object:
        return connection.execute(sa.text(sql)).scalar()

    async def in_pipeline(sql: str) -> object:
        if not session.is_open:
            await session.run(lambda _connection: None)
        [[(found,)]] = await session.run_pipeline(lambda pipeline: pipeline.run((Statement(sql), [])))
        return found

    ways: dict[str, Ask] = {
        "database": lambda sql: database.run(lambda connection: value(connection, sql)),
        "session": lambda sql: session.run(lambda connection: value(connection, sql)),
        "pipeline": in_pipeline,
    }
    yield ways[request.param]
    await session.aclose()
    await database.aclose()


async def test_unanswered_statement_fails_and_the_next_one_reconnects(ask: Ask, proxy: StallingProxy) -> None:
    with trio.fail_after(TIMEOUT_S):
        first = await ask("select pg_backend_pid()")
        proxy.stall()
        with pytest.raises(DatabaseUnavailable):
            await ask("select 1")
        proxy.flow()
        assert await ask("select pg_backend_pid()") != first


async def test_slow_statement_is_waited_for(ask: Ask) -> None:
    assert await ask(f"select cast(pg_sleep({SLOW_S}) as text)") == ""


async def test_slow_statement_is_waited_for_under_set_role(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MonitoredConnection, "answer_timeout_s", LIMIT_S)
    roles = "create role airy_owner; create role airy_login login in role airy_owner"
    postgres.execute(SQL(f"{roles}; alter role airy_login set role = airy_owner"))
    url = f"postgresql://airy_login@127.0.0.1:{postgres.port}/postgres"
    session = DedicatedConnection(postgres_engine(url, connect_timeout_s=CONNECT_TIMEOUT_S))
    slow = sa.text(f"select current_user || pg_sleep({SLOW_S})")
    with trio.fail_after(TIMEOUT_S):
        assert await session.run(lambda connection: connection.scalar(slow)) == "airy_owner"
    await session.aclose()
    postgres.execute(SQL("drop role airy_login, airy_owner"))


def test_check_through_a_pooler_leaves_the_role_of_the_session(
    postgres: Postgres, postgres_database: str, pgbouncer: int
) -> None:
    """The pooler lends it to other programs, which rely on the role."""
    url = sa.make_url(postgres_database).set(drivername="postgresql", port=pgbouncer)
    setting = f"alter role {SUPERUSER} in database {url.database} set role = airy_lent"
    postgres.execute(SQL(f"create role airy_lent; {setting}"))
    with MonitoredConnection.opened(url.render_as_string()) as checked:
        checked.is_working()
        assert checked.execute("select current_user").fetchall() == [("airy_lent",)]
    postgres.execute(SQL("drop role airy_lent"))


async def test_check_reaches_the_server_of_the_connection(
    postgres: Postgres, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MonitoredConnection, "answer_timeout_s", LIMIT_S)
    own_postgres.stop()
    hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in (own_postgres, postgres))
    session = DedicatedConnection(
        postgres_engine(f"postgresql://{SUPERUSER}@/postgres?{hosts}", connect_timeout_s=CONNECT_TIMEOUT_S)
    )
    with trio.fail_after(TIMEOUT_S):
        await session.run(lambda _connection: None)
        own_postgres.start()
        slow = sa.text(f"select cast(pg_sleep({SLOW_S}) as text)")
        assert await session.run(lambda connection: connection.scalar(slow)) == ""
    await session.aclose()


def check_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each check begin only after the statement has ended."""
    check = MonitoredConnection.is_working

    def is_working(connection: MonitoredConnection) -> bool:
        time.sleep(2 * LIMIT_S)
        return check(connection)

    monkeypatch.setattr(MonitoredConnection, "is_working", is_working)


async def test_statement_that_ends_during_the_check_is_answered(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    check_late(monkeypatch)
    assert await ask(f"select cast(pg_sleep({1.5 * LIMIT_S}) as text)") == ""


async def test_next_statement_is_sent_if_one_ends_during_the_check(
    proxy: StallingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_late(monkeypatch)
    session = DedicatedConnection(postgres_engine(proxy.url, connect_timeout_s=CONNECT_TIMEOUT_S))
    await session.run(lambda _connection: None)
    large = b"x" * 40_000_000
    sleep = Statement(f"select pg_sleep({1.5 * LIMIT_S})::text")
    measure = Statement("select octet_length($1::bytea)", frozenset({0}))
    with trio.fail_after(TIMEOUT_S):
        found = await session.run_pipeline(lambda pipeline: pipeline.run((sleep, []), (measure, [large])))
    assert found == [[("",)], [(len(large),)]]
    await session.aclose()


async def test_lock_of_another_transaction_is_waited_for(ask: Ask, postgres_database: str) -> None:
    other = postgres_engine(postgres_database, connect_timeout_s=CONNECT_TIMEOUT_S)
    with trio.fail_after(TIMEOUT_S), other.connect() as holder:
        holder.execute(sa.text("select pg_advisory_lock(1)"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "select cast(pg_advisory_lock(1) as text)")
            await trio.sleep(SLOW_S)
            holder.execute(sa.text("select pg_advisory_unlock(1)"))
    other.dispose()


@contextmanager
def accepting_nothing(postgres: Postgres) -> Iterator[None]:
    """Stop the process that accepts connections for a second; connections that are open go on.

    Another process ends that, because this one may stop as well.
    """
    os.kill(postgres.pid, signal.SIGSTOP)
    with subprocess.Popen(["/bin/sh", "-c", f"sleep {SLOW_S / 2}; kill -CONT {postgres.pid}"]):
        yield


async def test_other_threads_run_while_a_request_to_end_a_statement_has_no_answer(
    postgres: Postgres, postgres_database: str
) -> None:
    engine = postgres_engine(postgres_database, connect_timeout_s=CONNECT_TIMEOUT_S)
    session, database = DedicatedConnection(engine), Database(engine)
    await session.run(lambda _connection: None)
    await database.run(lambda connection: connection.scalar(ACTIVE))
    with accepting_nothing(postgres):
        with trio.move_on_after(LIMIT_S / 5):
            await session.run_pipeline(lambda pipeline: pipeline.run((Statement("select pg_sleep(60)"), [])))
        begun_at = trio.current_time()
        for _ in range(100):
            await trio.to_thread.run_sync(int)
        took_s = trio.current_time() - begun_at
    assert took_s < LIMIT_S
    with trio.fail_after(TIMEOUT_S):
        while await database.run(lambda connection: connection.scalar(ACTIVE)):
            pass
    await database.aclose()


async def test_threads_do_not_pile_up(proxy: StallingProxy) -> None:
    database = Database(postgres_engine(proxy.url, connect_timeout_s=CONNECT_TIMEOUT_S))
    await database.run(lambda connection: connection.exec_driver_sql("select 1"))
    proxy.stall()
    ended: list[str] = []

    async def fail() -> None:
        with pytest.raises(DatabaseUnavailable) as caught:
            await database.run(lambda connection: connection.exec_driver_sql("select 1"))
        ended.append(str(caught.value))

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(THREADS_MAX + 1):
                nursery.start_soon(fail)
    assert len(ended) == THREADS_MAX + 1
    assert database._limiter.borrowed_tokens == 0  # noqa: SLF001 - no thread waits any more
    await database.aclose()


async def test_error_states_the_reason(proxy: StallingProxy) -> None:
    """Also if the driver itself was used, and the transaction then cannot be rolled back."""
    database = Database(postgres_engine(proxy.url, connect_timeout_s=CONNECT_TIMEOUT_S))
    for at_driver in (False, True):

        def work(connection: sa.Connection, *, at_driver: bool = at_driver) -> None:
            connection.exec_driver_sql("select 1")
            trio.from_thread.run_sync(proxy.stall)
            if at_driver:
                driver: MonitoredConnection = connection.connection.driver_connection  # type: ignore[assignment]
                driver.execute("select 1")
            connection.exec_driver_sql("select 1")

        with trio.fail_after(TIMEOUT_S), pytest.raises(DatabaseUnavailable, match=r"no answer for 0\.5 s"):
            await database.run(work)
        proxy.flow()
    await database.aclose()


async def test_slow_statement_has_more_time_behind_a_pooler(
    postgres_database: str, pgbouncer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server process id does not exist, so the server cannot be checked."""
    monkeypatch.setattr(MonitoredConnection, "answer_timeout_s", LIMIT_S)
    url = through(postgres_database, pgbouncer)
    database = Database(postgres_engine(url, connect_timeout_s=CONNECT_TIMEOUT_S))
    with trio.fail_after(TIMEOUT_S):
        slow = sa.text(f"select 'done' from pg_sleep({SLOW_S})")
        assert await database.run(lambda connection: connection.execute(slow).scalar()) == "done"
        await database.aclose()
