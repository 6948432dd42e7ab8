"""A read of Postgres takes two round trips and no thread, whatever happens between the two."""

from collections.abc import Awaitable, Iterator

import pytest
import sqlalchemy as sa
import trio
from attrs import evolve

from airy_trio.capture.change_log import PostgresPoint
from airy_trio.capture.feed import ResumePointLost, Tag, Unreadable
from airy_trio.capture.postgres import FEW, PostgresFeed
from airy_trio.database import DatabaseUnavailable
from airy_trio.database.postgres import Pipeline
from airy_trio.errors import MappingError
from tests.application import Application
from tests.capture.feeds import AnyFeed, before_objects, feed_of, queued_for
from tests.capture.test_postgres import ids, transaction

LIMIT = 10 * FEW
COUNTS = pytest.mark.parametrize("count", [1, FEW, FEW + 1, LIMIT - 1])
LOCKS = "select count(*) from pg_locks where locktype = 'advisory'"
TERMINATE = (
    "select pg_terminate_backend(pid, 20000) from pg_stat_activity "
    "where pid <> pg_backend_pid() and xact_start is not null"
)
FAILS_ON_SECRET = '[database.tables.tags]\nwhere = "cast(color as int) > 0"\n'


@pytest.fixture
def threads() -> Iterator[list[str]]:
    """Collect an entry for each transaction that begins through SQLAlchemy, in a thread."""
    begun: list[str] = []

    def begin(_connection: object) -> None:
        begun.append("begin")

    sa.event.listen(sa.Engine, "begin", begin)
    yield begun
    sa.event.remove(sa.Engine, "begin", begin)


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the number of statements in each round trip."""
    made: list[int] = []
    run = Pipeline.run

    def counted(pipeline: Pipeline, *queries: tuple[object, object]) -> Awaitable[object]:
        made.append(len(queries))
        return run(pipeline, *queries)  # type: ignore[arg-type]

    monkeypatch.setattr(Pipeline, "run", counted)
    return made


async def opened(feed: AnyFeed) -> str:
    """Return a point after which there is nothing to read. The first read compares the history, in a thread."""
    assert isinstance(feed, PostgresFeed)
    return (await feed.read(await feed.origin(), LIMIT)).resume_point


def tags(count: int) -> str:
    return f"insert into tags select 't' || n, 'x', 'red' from generate_series(1, {count}) n"


@COUNTS
async def test_read_takes_few_round_trips_and_no_thread(
    postgres_application: Application, threads: list[str], round_trips: list[int], count: int
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.execute(tags(count))
        threads.clear()
        round_trips.clear()
        batch = await feed.read(point, LIMIT)
        assert threads == []
        assert len(round_trips) == 2
        assert ids(batch.objects) == [f"t{number}" for number in range(1, count + 1)]
        assert (batch.changes, batch.more) == (count, False)
        assert (await feed.read(batch.resume_point, LIMIT)).changes == 0
        assert not threads


async def test_pages_of_a_large_difference_take_no_thread(
    postgres_application: Application, threads: list[str]
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.execute(tags(2 * LIMIT + 1))
        threads.clear()
        seen, more = list[object](), True
        while more:
            batch = await feed.read(point, LIMIT)
            seen += ids(batch.objects)
            point, more = batch.resume_point, batch.more
        assert seen == [f"t{number}" for number in range(1, 2 * LIMIT + 2)]
        assert not threads


@COUNTS
async def test_read_releases_the_wake_up_lock(postgres_application: Application, count: int) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        assert isinstance(feed, PostgresFeed)
        assert await feed.wakeup.arm()
        point = (await feed.read(point, LIMIT)).resume_point
        assert postgres_application.scalar(LOCKS) == 1  # there was no change
        postgres_application.execute(tags(count))
        await feed.read(point, LIMIT)
        assert postgres_application.scalar(LOCKS) == 0
        assert await feed.wakeup.arm()


@pytest.mark.parametrize("count, kept", [(FEW, 1), (FEW + 1, 0)])
async def test_lock_is_released_after_many_changes_though_notifications_are_rare(
    postgres_application: Application, count: int, kept: int
) -> None:
    """During a backlog every writer would notify."""
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        assert isinstance(feed, PostgresFeed)
        assert await feed.wakeup.arm()
        postgres_application.execute(tags(count))
        with trio.fail_after(5):
            await feed.wakeup.wait(60)
        assert (await feed.read(point, LIMIT)).changes == count
        assert postgres_application.scalar(LOCKS) == kept


async def test_notification_that_arrives_with_an_answer_is_not_lost(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        assert isinstance(feed, PostgresFeed)
        assert await feed.wakeup.arm()
        with transaction(postgres_application, "insert into tags values ('t1', 'flag', 'red')"):
            pass  # it has notified
        postgres_application.execute("truncate airy_trio.change_log")
        assert (await feed.read(point, LIMIT)).changes == 0
        assert feed.wakeup.armed
        with trio.fail_after(5):
            await feed.wakeup.wait(60)


async def test_point_of_another_history_is_rejected_on_the_same_connection(
    postgres_application: Application, threads: list[str]
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = PostgresPoint.parse(await opened(feed))
        threads.clear()
        far = 1 << 40
        for other in (
            evolve(point, timeline="another"),
            evolve(point, place="1.1"),
            evolve(point, snapshot=f"{far}:{far}:"),
        ):
            with pytest.raises(ResumePointLost):
                await feed.read(str(other), LIMIT)
        await feed.read(str(point), LIMIT)
        assert not threads


@pytest.mark.parametrize("count", [1, LIMIT - 1])
async def test_cancelled_read_can_be_repeated(postgres_application: Application, count: int) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.execute(tags(count))
        for tenths_ms in range(0, 50, 2):
            with trio.move_on_after(tenths_ms / 10_000):
                await feed.read(point, LIMIT)
            with trio.fail_after(10):
                assert len((await feed.read(point, LIMIT)).objects) == count


@pytest.mark.parametrize("count", [1, FEW + 1])
async def test_connection_lost_between_the_round_trips_loses_no_change(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.execute(tags(count))
        before_objects(monkeypatch, lambda: postgres_application.execute(TERMINATE))
        with pytest.raises(DatabaseUnavailable):
            await feed.read(point, LIMIT)
        assert len((await feed.read(point, LIMIT)).objects) == count


async def test_snapshot_held_for_too_long_is_closed_and_read_again(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process got no processor time: Postgres ends the session, and the lease with it."""
    settings = postgres_application.migrate()
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f'alter database "{name}" set idle_in_transaction_session_timeout = 50')
    async with feed_of(postgres_application, settings) as feed:
        point = await opened(feed)
        postgres_application.tag("t1")
        before_objects(monkeypatch, lambda: postgres_application.scalar("select pg_sleep(0.5)"))
        with pytest.raises(DatabaseUnavailable):
            await feed.read(point, LIMIT)
        assert ids((await feed.read(point, LIMIT)).objects) == ["t1"]


@COUNTS
async def test_key_refused_by_the_database_is_found_in_the_same_snapshot(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch, threads: list[str], count: int
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate(FAILS_ON_SECRET)) as feed:
        point = await opened(feed)
        assert isinstance(feed, PostgresFeed)
        assert await feed.wakeup.arm()
        postgres_application.execute(
            f"insert into tags select 't' || n, 'x', case when n % 3 = 1 then 'secret' else '1' end "
            f"from generate_series(1, {count}) n"
        )
        later = "update tags set name = 'later', color = '2'"
        before_objects(monkeypatch, lambda: postgres_application.execute(later))
        threads.clear()
        batch = await feed.read(point, LIMIT)
        following = await feed.read(batch.resume_point, LIMIT)
        assert len(threads) == 1, "only the update used a thread: the feed has kept its connection"
        refused = [changed.key for changed in batch.objects if isinstance(changed, Unreadable)]
        assert refused == [(f"t{number}",) for number in range(1, count + 1) if number % 3 == 1]
        read = [changed.name for changed in batch.objects if isinstance(changed, Tag)]
        assert read == ["x"] * (count - len(refused))
        assert ids(following.objects) == [f"t{n}" for n in range(1, count + 1)]
        assert not feed.wakeup.armed
        assert postgres_application.scalar(LOCKS) == 0


async def test_missing_column_is_reported(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.tag("t1")
        postgres_application.execute("alter table tags rename column color to colour")
        with pytest.raises(MappingError, match="without its columns color"):
            await feed.read(point, LIMIT)
        postgres_application.execute("alter table tags rename column colour to color")
        assert (await feed.read(point, LIMIT)).changes == 1


async def test_locked_table_does_not_delay_events_of_other_tables(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await opened(feed)
        postgres_application.tag("t1")
        after = (await feed.read(after, LIMIT)).resume_point
        while not feed.wakeup.armed:
            await feed.wait()
            after = (await feed.read(after, LIMIT)).resume_point
        with transaction(postgres_application, "lock table tags in access exclusive mode"), trio.fail_after(5):
            postgres_application.channel()
            await feed.wait()
            assert feed.wakeup.notified
            assert len((await feed.read(after, LIMIT)).objects) == 1


async def test_read_that_waits_for_a_locked_table_keeps_no_other(postgres_application: Application) -> None:
    """If it kept one, a migration that alters two tables in one transaction would end in a deadlock."""
    waits = "select count(*) from pg_locks where not granted and relation = 'tags'::regclass"
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await opened(feed)
        assert await feed.wakeup.arm()
        postgres_application.message()
        postgres_application.tag("t1")
        objects: list[object] = []

        async def read() -> None:
            objects.extend((await feed.read(after, LIMIT)).objects)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                with transaction(postgres_application, "alter table tags add more int") as migration:
                    nursery.start_soon(read)
                    while not postgres_application.scalar(waits):  # noqa: ASYNC110 - Postgres does not notify of it
                        await trio.sleep(0.01)
                    await trio.sleep(1.2)  # longer than Postgres waits before it looks for a deadlock
                    await trio.to_thread.run_sync(migration.exec_driver_sql, "alter table messages add more int")
        assert len(objects) == 2
        assert not feed.wakeup.armed
        assert postgres_application.scalar(LOCKS) == 0


async def test_table_whose_lock_is_always_wanted_is_read(postgres_application: Application) -> None:
    """Each of these sessions waits for the lock for longer than the first attempt of a read."""
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        after = await opened(feed)
        postgres_application.message()
        postgres_application.tag("t1")
        with queued_for(postgres_application, "tags"):
            await trio.sleep(0.2)
            with trio.fail_after(10):
                assert len((await feed.read(after, LIMIT)).objects) == 2


async def test_feed_reads_again_soon_after_a_change_and_then_sleeps(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await opened(feed)
        postgres_application.tag("t1")
        reads = 0
        while not feed.wakeup.armed:
            after = (await feed.read(after, LIMIT)).resume_point
            with trio.fail_after(5):
                await feed.wait()
            reads += 1
        assert reads > 2
