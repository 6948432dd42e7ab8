"""Woken by a commit, without a timer: each test here would wait for ever if a wake-up were lost."""

import random
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
import trio
from psycopg import sql

from airy_trio.capture import postgres, wakeup
from airy_trio.capture.feed import Batch
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.database import DatabaseUnavailable
from tests.application import Application
from tests.capture.feeds import AnyFeed, feed_of
from tests.postgres import Postgres

NEVER_S = 1000.0
PATIENCE_S = 20.0
BELL = "select count(*) from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' and granted"


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "HEARTBEAT_S", NEVER_S)


@pytest.fixture
def application(postgres_application: Application) -> Application:
    postgres_application.migrate()
    return postgres_application


@pytest.fixture
def heard(application: Application) -> Iterator[psycopg.Connection]:
    """Another session that listens, to know who rings."""
    with raw_connection(application) as connection:
        connection.execute("listen airy_trio_changes")
        yield connection


def raw_connection(application: Application) -> psycopg.Connection:
    url = sa.make_url(application.url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def rings(listener: psycopg.Connection) -> int:
    return len(list(listener.notifies(timeout=0.05)))


async def asleep(feed: AnyFeed, after: str) -> str:
    """Read and wait until the bell is armed, as a recorder does; the point reached."""
    assert isinstance(feed, PostgresFeed)
    with trio.fail_after(PATIENCE_S):
        while not feed.bell.armed:
            await feed.wait()
            after = (await feed.read(after, 100)).resume_point
    return after


async def next_batch(feed: AnyFeed, after: str) -> Batch:
    with trio.fail_after(PATIENCE_S):
        while True:
            await feed.wait()
            batch = await feed.read(after, 100)
            if batch.changes:
                return batch


@pytest.mark.parametrize("seldom", [True, False])
async def test_only_rings_soon_after_each_other_stop_the_ringing(
    application: Application, heard: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, *, seldom: bool
) -> None:
    monkeypatch.setattr(wakeup, "HURRY_S", 0.0 if seldom else NEVER_S)
    async with feed_of(application, application.settings()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await asleep(feed, await feed.origin())
        for number in (1, 2):
            assert feed.bell.armed
            application.tag(f"t{number}")
            batch = await next_batch(feed, after)
            assert len(batch.objects) == 1
            assert rings(heard) == 1
            await feed.bell.wait(0.01)
            assert not feed.bell.rung  # the read has answered the ring
            after = batch.resume_point
        for number in range(10):
            application.tag(f"later-{number}")
        assert rings(heard) == (10 if seldom else 0)
        assert feed.bell.armed is seldom
        assert (await feed.read(after, 100)).changes == 10


async def test_a_ring_for_nothing_keeps_the_bell(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await asleep(feed, await feed.origin())
        application.execute("notify airy_trio_changes")
        await feed.wait()
        assert feed.bell.rung
        assert (await feed.read(after, 100)).changes == 0
        assert feed.bell.armed
        application.tag()
        assert (await next_batch(feed, after)).changes == 1


def test_nobody_rings_without_a_sleeper(application: Application, heard: psycopg.Connection) -> None:
    application.tag()
    application.execute("update tags set name = 'x'", "truncate tags")
    assert rings(heard) == 0


async def test_what_changes_nothing_wakes_nobody(application: Application, heard: psycopg.Connection) -> None:
    async with feed_of(application, application.settings()) as feed:
        await asleep(feed, await feed.origin())
        application.execute("update tags set name = 'x'", "delete from tags")
        with application.engine.connect() as connection, connection.begin() as transaction:
            connection.exec_driver_sql("insert into tags values ('t1', 'flag', 'red')")
            transaction.rollback()
        assert rings(heard) == 0


async def test_nobody_sleeps_while_a_transaction_is_open_that_did_not_ring(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await feed.origin()
        with application.engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("insert into tags values ('open', 'flag', 'red')")
            for _ in range(10):
                await feed.wait()
                assert not feed.bell.armed
                after = (await feed.read(after, 100)).resume_point
        assert (await next_batch(feed, after)).changes == 1


async def test_a_transaction_that_began_to_write_during_the_sleep_rings_when_it_commits(
    application: Application,
) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await asleep(feed, await feed.origin())
        with application.engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("insert into tags values ('open', 'flag', 'red')")
            with trio.move_on_after(0.2) as waiting:
                await feed.wait()
            assert waiting.cancelled_caught
        assert (await next_batch(feed, after)).changes == 1


async def test_a_ring_that_came_along_with_another_answer_is_heard(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await asleep(feed, await feed.origin())
        application.tag()
        await feed.consumer()
        await feed.consumer()
        assert (await next_batch(feed, after)).changes == 1


async def test_a_session_that_is_cut_off_wakes_too_and_has_no_bell_any_more(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await asleep(feed, await feed.origin())
        application.execute(  # and waits for its end: the assertion below counts locks
            "select pg_terminate_backend(pid, 20000) from pg_locks "
            "where mode = 'ExclusiveLock' and locktype = 'advisory'"
        )
        with pytest.raises(DatabaseUnavailable):
            await next_batch(feed, after)
        assert isinstance(feed, PostgresFeed)
        assert not feed.bell.armed
        application.tag()
        assert (await next_batch(feed, after)).changes == 1
        await asleep(feed, after)
        assert application.scalar(BELL) == 1
    with trio.fail_after(PATIENCE_S):
        while application.scalar(BELL):  # noqa: ASYNC110 - until the server has seen the session end
            await trio.sleep(0.01)


async def test_a_heartbeat_comes_all_the_same(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    async with feed_of(application, application.settings()) as feed:
        await asleep(feed, await feed.origin())
        monkeypatch.setattr(postgres, "HEARTBEAT_S", 0.05)
        with trio.fail_after(PATIENCE_S):
            await feed.wait()


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.05])
async def test_of_many_commits_none_is_overslept(application: Application, pause_s: float) -> None:
    writers, commits = 3, 40

    def write(writer: int) -> None:
        chance = random.Random(writer)
        with raw_connection(application) as connection:
            for number in range(commits):
                connection.execute("insert into tags values (%s, 'flag', 'red')", [f"{writer}-{number}"])
                time.sleep(chance.random() * pause_s)

    async with feed_of(application, application.settings()) as feed:
        after, seen = await feed.origin(), 0
        threads = [threading.Thread(target=write, args=[writer]) for writer in range(writers)]
        for thread in threads:
            thread.start()
        while seen < writers * commits:
            batch = await next_batch(feed, after)
            seen += batch.changes
            after = batch.resume_point
        for thread in threads:
            thread.join()
    assert seen == writers * commits


@pytest.mark.slow
async def test_an_application_that_prepares_transactions_still_can(own_postgres: Postgres) -> None:
    own_postgres.execute(sql.SQL("alter system set max_prepared_transactions = 5"))
    own_postgres.stop()
    own_postgres.start()
    application = Application(own_postgres.url(own_postgres.create_database()))
    settings = application.migrate()
    async with feed_of(application, settings) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await feed.origin()
        for _ in range(10):
            await feed.wait()
            after = (await feed.read(after, 100)).resume_point
        assert not feed.bell.armed
        with raw_connection(application) as connection:
            connection.execute("begin")
            connection.execute("insert into tags values ('t1', 'flag', 'red')")
            connection.execute("prepare transaction 'p'")
            connection.execute("commit prepared 'p'")
        assert (await next_batch(feed, after)).changes == 1
    application.engine.dispose()
