"""The fast path reads few changes in two round trips without a thread, and returns what the regular path returns."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
import trio
from attrs import evolve

from airy_trio.capture.feed import ResumePointLost
from airy_trio.capture.postgres import CHANGES_MAX, PostgresFeed
from airy_trio.capture.resume_points import PostgresPoint
from airy_trio.errors import MappingError
from tests.application import Application
from tests.capture.feeds import AnyFeed, feed_of
from tests.capture.test_postgres import transaction

MANY = 10 * CHANGES_MAX
PAIRS = ("conversation", "c1"), ("message", "m1"), ("channel", "ch1"), ("other", "1")
OF_EVERY_KIND = (
    "insert into messages values ('m1', 'c1', 'ch1', 'ü😀', 'pending', true, now(), 'facebook', 'x')",
    "insert into channels values ('ch1', 'facebook', '1', true)",
    "insert into tags values ('t1', 'flag', 'red'), ('t2', 'gone', 'blue'), ('it''s \"%$1', 'odd', 'red')",
    *(f"insert into metadata values ('{subject}', '{id_}', 'a', 'x')" for subject, id_ in PAIRS),
    "delete from tags where id = 't2'",
)


@pytest.fixture
def threads() -> Iterator[list[str]]:
    """An entry for each transaction begun through SQLAlchemy, which only the regular path does, in a thread."""
    asked: list[str] = []

    def begin(_connection: object) -> None:
        asked.append("begin")

    sa.event.listen(sa.Engine, "begin", begin)
    yield asked
    sa.event.remove(sa.Engine, "begin", begin)


async def opened(feed: AnyFeed) -> str:
    """A point from which the fast path can read. The first read compares the history, on the regular path."""
    assert isinstance(feed, PostgresFeed)
    return (await feed.read(await feed.origin(), MANY)).resume_point


async def test_fast_path_finds_what_the_regular_path_finds(
    postgres_application: Application, threads: list[str]
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        start = await opened(feed)
        postgres_application.execute(*OF_EVERY_KIND)
        threads.clear()
        fast = await feed.read(start, MANY)
        assert not threads
        regular = await feed.read(start, CHANGES_MAX)
        assert threads
    assert fast.objects == regular.objects
    assert len(fast.objects) == 9
    assert (fast.changes, fast.more) == (regular.changes, regular.more)
    assert PostgresPoint.parse(fast.resume_point).place == PostgresPoint.parse(regular.resume_point).place


@pytest.mark.parametrize("more", [0, 1])
async def test_many_changes_take_the_regular_path_until_there_are_few(
    postgres_application: Application, threads: list[str], more: int
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        tags = f"insert into tags select 't' || n, 'x', 'red' from generate_series(1, {CHANGES_MAX + more}) n"
        postgres_application.execute(tags)
        threads.clear()
        batch = await feed.read(point, MANY)
        assert bool(threads) is bool(more)
        assert len(batch.objects) == batch.changes == CHANGES_MAX + more
        assert not batch.more
        assert (await feed.read(batch.resume_point, MANY)).changes == 0
        threads.clear()
        assert (await feed.read(batch.resume_point, MANY)).changes == 0
        assert not threads


async def test_fast_path_releases_the_wake_up_lock(postgres_application: Application) -> None:
    locks = "select count(*) from pg_locks where locktype = 'advisory'"
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        assert isinstance(feed, PostgresFeed)
        assert await feed.wakeup.arm()
        point = (await feed.read(point, MANY)).resume_point
        assert postgres_application.scalar(locks) == 1  # there was no change
        postgres_application.tag("t1")
        await feed.read(point, MANY)
        assert postgres_application.scalar(locks) == 0
        assert await feed.wakeup.arm()


@pytest.mark.parametrize("limit", [CHANGES_MAX, MANY], ids=["regular", "fast"])
async def test_notification_that_arrives_with_an_answer_is_not_lost(
    postgres_application: Application, limit: int
) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        assert isinstance(feed, PostgresFeed)
        assert await feed.wakeup.arm()
        with transaction(postgres_application, "insert into tags values ('t1', 'flag', 'red')"):
            pass  # it has notified
        postgres_application.execute("truncate airy_trio.change_log")
        assert (await feed.read(point, limit)).changes == 0
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
                await feed.read(str(other), MANY)
        await feed.read(str(point), MANY)
        assert not threads


async def test_cancelled_read_can_be_repeated(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.tag("t1")
        for checkpoints in range(6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed.read, point, MANY)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            with trio.fail_after(10):
                assert [changed.id for changed in (await feed.read(point, MANY)).objects] == ["t1"]  # type: ignore[union-attr]


async def test_missing_column_is_reported(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        point = await opened(feed)
        postgres_application.tag("t1")
        postgres_application.execute("alter table tags rename column color to colour")
        with pytest.raises(MappingError, match="without its columns color"):
            await feed.read(point, MANY)
        postgres_application.execute("alter table tags rename column colour to color")
        assert (await feed.read(point, MANY)).changes == 1


async def test_locked_table_does_not_delay_events_of_other_tables(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        assert isinstance(feed, PostgresFeed)
        after = await opened(feed)
        postgres_application.tag("t1")
        after = (await feed.read(after, MANY)).resume_point
        while not feed.wakeup.armed:
            await feed.wait()
            after = (await feed.read(after, MANY)).resume_point
        with transaction(postgres_application, "lock table tags in access exclusive mode"), trio.fail_after(5):
            postgres_application.channel()
            await feed.wait()
            assert feed.wakeup.notified
            assert len((await feed.read(after, MANY)).objects) == 1
