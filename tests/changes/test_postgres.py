"""What only the Postgres feed has to get right: transactions that overlap, and histories that are not its own."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from attrs import evolve

from airy_trio.changes.feed import ResumePointLost
from airy_trio.changes.objects import COLUMNS
from airy_trio.changes.points import PostgresPoint
from airy_trio.changes.postgres import PostgresFeed
from airy_trio.changes.rows import ChangedObject, Tag
from tests.application import Application
from tests.changes import schedules
from tests.changes.feeds import feed_of, read_all, source_of
from tests.postgres import Postgres

SEEDS = range(6)


class NaiveFeed(PostgresFeed):
    """What everybody tries first: changes with a greater number than the last one. It loses changes."""

    async def _read_few(self, *_: object) -> None:
        """Everything goes the long way, which is the wrong one."""

    def _rows(
        self, connection: sa.Connection, point: PostgresPoint, now: PostgresPoint, limit: int
    ) -> tuple[Sequence[tuple[Any, ...]], PostgresPoint]:
        log = self._log.rows
        columns = (*(log.c[name] for name in (*COLUMNS, "seq")), sa.literal(0.0))
        rows = connection.execute(sa.select(*columns).where(log.c.seq > point.seq).order_by("seq").limit(limit)).all()
        return [tuple(row) for row in rows], evolve(now, seq=rows[-1].seq) if rows else point


def maker(application: Application, kind: type[PostgresFeed]) -> Callable[[], PostgresFeed]:
    settings = application.migrate()
    return lambda: kind(source_of(application, settings))


def copy_folder(source: Path, target: Path) -> None:
    subprocess.run(["/bin/cp", "-a", source, target], check=True)  # with owners, which Postgres looks at


def ids(objects: Sequence[ChangedObject]) -> list[object]:
    return [changed.id for changed in objects if isinstance(changed, Tag)]


@contextmanager
def transaction(application: Application, *statements: str) -> Iterator[sa.Connection]:
    """An open transaction that has run these statements; committed at the end."""
    with application.engine.connect() as connection, connection.begin():
        for statement in statements:
            connection.exec_driver_sql(statement)
        yield connection


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_interleaving_of_transactions_makes_it_skip_repeat_or_reorder(
    postgres_application: Application, seed: int
) -> None:
    await schedules.run(postgres_application.url, seed, maker(postgres_application, PostgresFeed))


async def test_the_same_check_catches_a_feed_that_reads_by_number(postgres_application: Application) -> None:
    make = maker(postgres_application, NaiveFeed)
    wrong = 0
    for seed in SEEDS:
        postgres_application.execute("truncate tags", "truncate airy_trio.change_log restart identity")
        try:
            await schedules.run(postgres_application.url, seed, make)
        except AssertionError:
            wrong += 1
    assert wrong > len(SEEDS) // 2


async def test_the_first_to_write_may_be_the_last_to_commit(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        with transaction(postgres_application, "insert into tags values ('first', 'flag', 'red')"):
            postgres_application.tag("second")
            objects, after, _ = await read_all(feed, start)
            assert ids(objects) == ["second"]
            assert (await feed.read(after, 10)).changes == 0
        objects, after, _ = await read_all(feed, after)
        assert ids(objects) == ["first"]
        assert (await feed.read(after, 10)).changes == 0


async def test_an_open_transaction_delays_nobody(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        after = await feed.origin()
        with transaction(
            postgres_application,
            "set transaction isolation level repeatable read",
            "insert into tags values ('open', 'flag', 'red')",
            "select * from messages",
        ):
            for number in range(5):
                postgres_application.tag(f"t{number}")
                objects, after, _ = await read_all(feed, after)
                assert ids(objects) == [f"t{number}"]


async def test_a_page_boundary_inside_an_open_transaction(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        after = await feed.origin()
        with transaction(postgres_application, "insert into tags values ('open', 'flag', 'red')"):
            for number in range(4):
                postgres_application.tag(f"t{number}")
            batch = await feed.read(
                after, 3
            )  # the difference is now fixed, "open" has the lowest number and is not in it
            assert (ids(batch.objects), batch.more) == (["t0", "t1", "t2"], True)
        postgres_application.tag("t4")
        objects, _, batches = await read_all(feed, batch.resume_point, 3)
    assert ids(objects) == ["t3", "open", "t4"]
    assert [batch.changes for batch in batches] == [1, 2]


async def test_pages_go_on_in_a_new_feed(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    for number in range(10):
        postgres_application.tag(f"t{number}")
    seen = []
    async with feed_of(postgres_application, settings) as feed:
        after = await feed.origin()
    for _ in range(5):
        async with feed_of(postgres_application, settings) as feed:
            batch = await feed.read(after, 3)
        seen += ids(batch.objects)
        after = batch.resume_point
    assert seen == [f"t{number}" for number in range(10)]


async def test_trimming_spares_what_an_open_transaction_wrote(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        with transaction(postgres_application, "insert into tags values ('open', 'flag', 'red')"):
            postgres_application.tag("closed")
            _, after, _ = await read_all(feed, await feed.origin())
            assert await feed.trim(after, 100) == 1, "somebody's open transaction lets the change log grow"
        assert await feed.trim(after, 100) == 0
        assert ids((await read_all(feed, after))[0]) == ["open"]


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "1"},
        {"timeline": "00000009"},
        {"place": "1.1"},
        {"snapshot": "4000000000:4000000000:"},
        {"snapshot": "700:4000000000:"},
    ],
)
async def test_a_point_of_another_history_is_refused(
    postgres_application: Application, changed: dict[str, Any]
) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        point = PostgresPoint.parse(await feed.origin())
        with pytest.raises(ResumePointLost):
            await feed.read(str(evolve(point, **changed)), 10)
        assert (await feed.read(str(point), 10)).changes == 0


async def test_trimming_does_not_wait_for_the_disk(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        after = await feed.origin()
        unwritten = 0
        for number in range(10):
            postgres_application.tag(f"t{number}")
            after = (await feed.read(after, 10)).resume_point
            assert await feed.trim(after, 10) == 1
            waiting = "select cast(pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() as int)"
            unwritten += int(str(postgres_application.scalar(waiting)))
        assert unwritten  # a server may always write sooner than it must


async def test_a_point_from_before_what_was_trimmed_is_refused(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        before = await feed.origin()
        postgres_application.tag("trimmed")
        _, after, _ = await read_all(feed, before)
        assert await feed.trim(after, 10) == 1
    async with feed_of(postgres_application, settings) as feed:  # as of a store that was put back from a copy
        with pytest.raises(ResumePointLost, match="trimmed"):
            await feed.read(before, 10)
        assert (await feed.read(after, 10)).changes == 0


async def test_so_it_is_where_a_transaction_is_open_all_the_time(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        with transaction(postgres_application, "insert into tags values ('open', 'flag', 'red')"):
            with transaction(postgres_application, "insert into tags values ('trimmed', 'flag', 'red')"):
                postgres_application.tag("trimmed too")
                before = (await feed.read(await feed.origin(), 10)).resume_point
            after = (await feed.read(before, 10)).resume_point
            assert PostgresPoint.parse(before).next_transaction == PostgresPoint.parse(after).next_transaction
            assert await feed.trim(after, 10) == 2
    async with feed_of(postgres_application, settings) as feed:
        with pytest.raises(ResumePointLost, match="trimmed"):
            await feed.read(before, 10)
        assert ids((await read_all(feed, await feed.origin()))[0]) == ["open"]


@pytest.mark.slow
async def test_an_older_copy_of_the_cluster_is_noticed(own_postgres: Postgres) -> None:
    application = Application(own_postgres.url(own_postgres.create_database()))
    settings = application.migrate()
    application.engine.dispose()
    own_postgres.stop()
    data, copy = own_postgres.folder / "data", own_postgres.folder / "copy"
    copy_folder(data, copy)
    own_postgres.start()
    async with feed_of(application, settings) as feed:
        application.tag("lost")
        _, after, _ = await read_all(feed, await feed.origin())
    application.engine.dispose()
    own_postgres.stop()
    shutil.rmtree(data)
    copy.rename(data)
    own_postgres.start()
    async with feed_of(application, settings) as feed:
        with pytest.raises(ResumePointLost, match="gone back"):
            await feed.read(after, 10)
        after = await feed.restart()
        application.tag("new")
        assert ids((await read_all(feed, after))[0]) == ["new"]
    application.engine.dispose()
