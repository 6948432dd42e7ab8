"""Wake-up by a commit, without a timer: each test here would time out if a wake-up were lost."""

import random
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
import trio
from psycopg import sql

from airy_trio.capture import postgres
from airy_trio.capture.feed import Batch
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.database import DatabaseUnavailable
from tests.application import Application
from tests.capture.feeds import AnyFeed, feed_of
from tests.postgres import Postgres

NEVER_S = 1000.0
PATIENCE_S = 20.0
LOCKS = "select count(*) from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' and granted"


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "HEARTBEAT_S", NEVER_S)


@pytest.fixture
def application(postgres_application: Application) -> Application:
    postgres_application.migrate()
    return postgres_application


@pytest.fixture
def listener(application: Application) -> Iterator[psycopg.Connection]:
    """Another connection that listens, to count notifications."""
    with raw_connection(application) as connection:
        connection.execute("listen airy_trio_changes")
        yield connection


def raw_connection(application: Application) -> psycopg.Connection:
    url = sa.make_url(application.url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def notifications(listener: psycopg.Connection) -> int:
    return len(list(listener.notifies(timeout=0.05)))


async def asleep(feed: AnyFeed, after: str) -> str:
    """Read, then wait as a recorder does until writers must notify; return the point reached."""
    assert isinstance(feed, PostgresFeed)
    with trio.fail_after(PATIENCE_S):
        while not feed.wakeup.armed:
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


@pytest.mark.parametrize("rare", [True, False])
async def test_lock_is_released_only_if_notifications_are_frequent(
    application: Application, listener: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, *, rare: bool
) -> None:
    monkeypatch.setattr(postgres, "FREQUENT_S", 0.0 if rare else NEVER_S)
    async with feed_of(application, application.settings()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await asleep(feed, await feed.origin())
        for number in (1, 2):
            assert feed.wakeup.armed
            application.tag(f"t{number}")
            batch = await next_batch(feed, after)
            assert len(batch.objects) == 1
            assert notifications(listener) == 1
            await feed.wakeup.wait(0.01)
            assert not feed.wakeup.notified  # the read has answered it
            after = batch.resume_point
        for number in range(10):
            application.tag(f"later-{number}")
        assert notifications(listener) == (10 if rare else 0)
        assert feed.wakeup.armed is rare
        assert (await feed.read(after, 100)).changes == 10


async def test_notification_without_a_change_keeps_the_lock(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await asleep(feed, await feed.origin())
        application.execute("notify airy_trio_changes")
        await feed.wait()
        assert feed.wakeup.notified
        assert (await feed.read(after, 100)).changes == 0
        assert feed.wakeup.armed
        application.tag()
        assert (await next_batch(feed, after)).changes == 1


def test_writers_do_not_notify_an_awake_recorder(application: Application, listener: psycopg.Connection) -> None:
    application.tag()
    application.execute("update tags set name = 'x'", "truncate tags")
    assert notifications(listener) == 0


async def test_statement_without_rows_and_rollback_do_not_notify(
    application: Application, listener: psycopg.Connection
) -> None:
    async with feed_of(application, application.settings()) as feed:
        await asleep(feed, await feed.origin())
        application.execute("update tags set name = 'x'", "delete from tags")
        with application.engine.connect() as connection, connection.begin() as transaction:
            connection.exec_driver_sql("insert into tags values ('t1', 'flag', 'red')")
            transaction.rollback()
        assert notifications(listener) == 0


async def test_recorder_polls_while_a_transaction_will_not_notify(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        assert isinstance(feed, PostgresFeed)
        after, begun_at = await feed.origin(), trio.current_time()
        with application.engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("insert into tags values ('open', 'flag', 'red')")
            for _ in range(10):
                await feed.wait()
                assert not feed.wakeup.armed
                after = (await feed.read(after, 100)).resume_point
            # The pauses grow. Without them the recorder would use a whole core while the transaction is open.
            assert trio.current_time() - begun_at > 3 * postgres.POLL_MAX_S
        assert (await next_batch(feed, after)).changes == 1


async def test_transaction_that_writes_during_the_sleep_notifies_at_its_commit(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await asleep(feed, await feed.origin())
        with application.engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("insert into tags values ('open', 'flag', 'red')")
            with trio.move_on_after(0.2) as waiting:
                await feed.wait()
            assert waiting.cancelled_caught
        assert (await next_batch(feed, after)).changes == 1


async def test_notification_that_arrives_with_another_answer_is_not_lost(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await asleep(feed, await feed.origin())
        application.tag()
        await feed.consumer()
        await feed.consumer()
        assert (await next_batch(feed, after)).changes == 1


async def test_lost_connection_ends_the_wait_and_the_lock(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await asleep(feed, await feed.origin())
        application.execute(  # and wait for its end, because the assertion below counts locks
            "select pg_terminate_backend(pid, 20000) from pg_locks "
            "where mode = 'ExclusiveLock' and locktype = 'advisory'"
        )
        with pytest.raises(DatabaseUnavailable):
            await next_batch(feed, after)
        assert isinstance(feed, PostgresFeed)
        assert not feed.wakeup.armed
        application.tag()
        assert (await next_batch(feed, after)).changes == 1
        await asleep(feed, after)
        assert application.scalar(LOCKS) == 1
    with trio.fail_after(PATIENCE_S):
        while application.scalar(LOCKS):  # noqa: ASYNC110 - until the server has noticed the end
            await trio.sleep(0.01)


async def test_wait_ends_after_the_heartbeat_at_the_latest(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with feed_of(application, application.settings()) as feed:
        await asleep(feed, await feed.origin())
        monkeypatch.setattr(postgres, "HEARTBEAT_S", 0.05)
        with trio.fail_after(PATIENCE_S):
            await feed.wait()


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.05])
async def test_no_commit_of_many_is_missed(application: Application, pause_s: float) -> None:
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
async def test_application_can_still_prepare_transactions(own_postgres: Postgres) -> None:
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
        assert not feed.wakeup.armed
        with raw_connection(application) as connection:
            connection.execute("begin")
            connection.execute("insert into tags values ('t1', 'flag', 'red')")
            connection.execute("prepare transaction 'p'")
            connection.execute("commit prepared 'p'")
        assert (await next_batch(feed, after)).changes == 1
    application.engine.dispose()
