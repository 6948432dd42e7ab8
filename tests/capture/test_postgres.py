"""The Postgres feed: overlapping transactions, and resume points of other histories."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
import trio
from attrs import evolve

from airy_trio.capture.change_log import PostgresPoint
from airy_trio.capture.feed import ChangedObject, ResumePointLost, Tag, TagGone
from airy_trio.capture.lease import OwnLease
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.events.translate import EventsOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.recorder import Recorder, RecorderOptions
from airy_trio.log.store import StoredEvent, StoreUnavailable
from airy_trio.settings import Settings
from tests.application import Application
from tests.capture import schedules
from tests.capture.feeds import feed_of, read_all, source_of
from tests.delegating_store import Append, DelegatingStore
from tests.drill.wrong_server import TimeFeed
from tests.log.recording import until
from tests.postgres import Postgres

SEEDS = range(6)


def maker(application: Application, kind: type[PostgresFeed]) -> Callable[[], PostgresFeed]:
    settings = application.migrate()
    return lambda: kind(source_of(application, settings))


def copy_folder(source: Path, target: Path) -> None:
    subprocess.run(["/bin/cp", "-a", source, target], check=True)  # with owners, which Postgres checks


def ids(objects: Sequence[ChangedObject]) -> list[object]:
    return [changed.id for changed in objects if isinstance(changed, Tag)]


@contextmanager
def transaction(application: Application, *statements: str) -> Iterator[sa.Connection]:
    """Run these statements in an open transaction, and commit it at the end."""
    with application.engine.connect() as connection, connection.begin():
        for statement in statements:
            connection.exec_driver_sql(statement)
        yield connection


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_interleaving_loses_repeats_or_reorders_changes(postgres_application: Application, seed: int) -> None:
    await schedules.run(postgres_application.url, seed, maker(postgres_application, PostgresFeed))


async def test_check_detects_a_feed_that_reads_by_time(postgres_application: Application) -> None:
    make = maker(postgres_application, TimeFeed)
    wrong = 0
    for seed in SEEDS:
        postgres_application.execute("truncate tags", "truncate airy_trio.change_log")
        try:
            await schedules.run(postgres_application.url, seed, make)
        except AssertionError:
            wrong += 1
    assert wrong > len(SEEDS) // 2


async def test_first_to_write_may_be_last_to_commit(postgres_application: Application) -> None:
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


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_reads_use_the_index_without_statistics(postgres_application: Application, mode: str) -> None:
    """As after one large transaction, before the first ``analyze``."""
    settings = postgres_application.migrate()
    postgres_application.execute(
        "alter table airy_trio.change_log set (autovacuum_enabled = off)",
        "insert into tags select 't' || n, 'flag', 'red' from generate_series(1, 10000) n",
    )
    feed = PostgresFeed(source_of(postgres_application, settings))
    difference, page = feed._difference.sql, feed._page.sql  # noqa: SLF001 - their plans
    await feed.aclose()
    setting = f"set local plan_cache_mode = {mode}"
    prepared = f"prepare difference as {difference}", f"prepare page as {page}"
    with transaction(postgres_application, setting, *prepared) as own:

        def plan_of(execute: str) -> str:
            return "\n".join(own.exec_driver_sql(f"explain execute {execute}").scalars())

        now = own.exec_driver_sql("select pg_snapshot_xmax(pg_current_snapshot())").scalar_one()
        for in_progress in ("", "100", ",".join(map(str, range(100, 150)))):
            plan = plan_of(f"difference(5001, '{now}', '{{{in_progress}}}')")
            assert "Index" in plan
            assert "Seq Scan" not in plan
        for _ in range(2):
            plan = plan_of(f"page(50, '{int(now) - 1}', '0', '{now}:{now}:', '1:1:')")
            _, _, first = plan.rpartition("Limit")  # of the rows, before they are put in order
            assert "Index" in first
            assert "Sort" not in first
            own.exec_driver_sql("analyze airy_trio.change_log")


async def test_no_page_ends_between_rows_of_the_same_time(postgres_application: Application) -> None:
    """The next page continues after a transaction and a time."""
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        postgres_application.execute("insert into tags select 't' || n, 'flag', 'red' from generate_series(1, 9) n")
        postgres_application.execute(
            "update airy_trio.change_log set at = now() where key_1 in ('t2', 't3', 't4')",
            "update airy_trio.change_log set at = now() + interval '1 s' where key_1 in ('t8', 't9')",
        )
        for limit in range(1, 10):
            objects, after, batches = await read_all(feed, start, limit)
            assert sorted(map(str, ids(objects))) == [f"t{n}" for n in range(1, 10)]
            assert any({"t2", "t3", "t4"} <= set(ids(batch.objects)) for batch in batches)
            assert (await feed.read(after, limit)).changes == 0


async def test_set_back_clock_keeps_the_present_state(postgres_application: Application) -> None:
    """Later changes of the same rows have earlier times."""
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        postgres_application.tag("t1")
        postgres_application.execute("insert into tags values ('t2', 'flag', 'red')", "delete from tags")
        postgres_application.tag("t1", name="new")
        postgres_application.execute("update airy_trio.change_log set at = now() - (at - now())")
        for limit in (1, 2, 10):
            objects, after, _ = await read_all(feed, start, limit)
            last = {changed.id: changed for changed in objects if isinstance(changed, Tag | TagGone)}
            assert last == {"t1": Tag(id="t1", name="new", color="tag-red"), "t2": TagGone(id="t2")}
            assert (await feed.read(after, 10)).changes == 0


async def test_open_transaction_delays_no_other(postgres_application: Application) -> None:
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


async def test_page_boundary_within_an_open_transaction(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        after = await feed.origin()
        with transaction(postgres_application, "insert into tags values ('open', 'flag', 'red')"):
            for number in range(4):
                postgres_application.tag(f"t{number}")
            batch = await feed.read(
                after, 3
            )  # the difference is now fixed; it lacks "open", which has the lowest number
            assert (ids(batch.objects), batch.more) == (["t0", "t1", "t2"], True)
        postgres_application.tag("t4")
        objects, _, batches = await read_all(feed, batch.resume_point, 3)
    assert ids(objects) == ["t3", "open", "t4"]
    assert [batch.changes for batch in batches] == [1, 2]


async def test_pages_continue_in_a_new_feed(postgres_application: Application) -> None:
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


async def test_rows_of_a_full_last_page_can_be_trimmed(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        after = await feed.origin()
        postgres_application.tags(range(4))
        for _ in range(2):
            after = (await feed.read(after, 2)).resume_point
        assert await feed.trim(after, 100) == 4


async def test_trim_spares_rows_of_an_open_transaction(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        with transaction(postgres_application, "insert into tags values ('open', 'flag', 'red')"):
            postgres_application.tag("closed")
            _, after, _ = await read_all(feed, await feed.origin())
            assert await feed.trim(after, 100) == 1, "an open transaction must not let the change log grow"
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
async def test_point_of_another_history_is_lost(postgres_application: Application, changed: dict[str, Any]) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        point = PostgresPoint.parse(await feed.origin())
        with pytest.raises(ResumePointLost):
            await feed.read(str(evolve(point, **changed)), 10)
        assert (await feed.read(str(point), 10)).changes == 0


async def test_trim_does_not_wait_for_the_disk(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        after = await feed.origin()
        unwritten = 0
        for number in range(10):
            postgres_application.tag(f"t{number}")
            after = (await feed.read(after, 10)).resume_point
            assert await feed.trim(after, 10) == 1
            waiting = "select cast(pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() as int)"
            unwritten += int(str(postgres_application.scalar(waiting)))
        assert unwritten  # Postgres may write its WAL earlier than it must


async def test_point_before_trimmed_rows_is_lost(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        before = await feed.origin()
        postgres_application.tag("trimmed")
        _, after, _ = await read_all(feed, before)
        assert await feed.trim(after, 10) == 1
    async with feed_of(postgres_application, settings) as feed:  # as with a store that was restored from a copy
        with pytest.raises(ResumePointLost, match="trimmed"):
            await feed.read(before, 10)
        assert (await feed.read(after, 10)).changes == 0


async def test_point_before_trimmed_rows_is_lost_despite_an_open_transaction(postgres_application: Application) -> None:
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
async def test_older_copy_of_the_cluster_is_noticed(own_postgres: Postgres) -> None:
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
        with pytest.raises(ResumePointLost, match="older state"):
            await feed.read(after, 10)
        after = await feed.restart()
        application.tag("new")
        assert ids((await read_all(feed, after))[0]) == ["new"]
    application.engine.dispose()


IMPOSSIBLE = (
    "insert into airy_trio.change_log (txid, kind, operation, key_1) "
    "select cast('4000000000' as xid8), 'tags', 'I', 'of another cluster'"
)


async def test_change_of_a_future_transaction_is_rejected(postgres_application: Application) -> None:
    """As after loading a dump of another cluster: without a check, each read would return the change again."""
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        after = (await feed.read(await feed.origin(), 1000)).resume_point
        postgres_application.execute(IMPOSSIBLE)
        for _ in range(2):  # on an open connection, and on a new one
            with pytest.raises(ResumePointLost, match="have not begun"):
                await feed.read(after, 1000)
            await feed.aclose()
        with structlog.testing.capture_logs() as logs:
            after = await feed.restart()
        assert [line["rows"] for line in logs] == [1]
        postgres_application.tag("new")
        assert ids((await read_all(feed, after))[0]) == ["new"]


async def test_page_before_an_impossible_change_is_read_first(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    for number in range(3):
        postgres_application.tag(f"t{number}")
    postgres_application.execute(IMPOSSIBLE)
    async with feed_of(postgres_application, settings) as feed:
        batch = await feed.read(await feed.origin(), 2)
        with pytest.raises(ResumePointLost, match="have not begun"):
            await read_all(feed, batch.resume_point, 2)


def sealing(application: Application, settings: Settings) -> PostgresFeed:
    """Return a feed whose event log is in another database."""
    return PostgresFeed(evolve(source_of(application, settings), seals=True))


async def test_seal_is_durable_even_if_commits_are_not(postgres_application: Application) -> None:
    """Everything committed before it is durable too, because Postgres writes its WAL in order."""
    settings = postgres_application.migrate()
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f'alter database "{name}" set synchronous_commit = off')
    postgres_application.engine.dispose()
    feed = sealing(postgres_application, settings)
    try:
        after = await feed.origin()
        for number in range(10):
            postgres_application.tag(f"t{number}")
            batch = await feed.read(after, 10)
            committed = postgres_application.scalar("select pg_current_wal_insert_lsn()")
            after = await feed.seal(after, batch.resume_point)
            assert postgres_application.scalar(f"select pg_current_wal_flush_lsn() >= '{committed}'")
    finally:
        await feed.aclose()


async def test_only_the_two_newest_sealed_points_are_accepted(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    feed = sealing(postgres_application, settings)
    points = [await feed.origin()]
    for number in range(3):
        postgres_application.tag(f"t{number}")
        batch = await feed.read(points[-1], 10)
        points.append(await feed.seal(points[-1], batch.resume_point))

    async def accepted() -> list[bool]:
        """Return the sealed points that a new connection accepts."""
        found = []
        for point in points[1:]:
            await feed.aclose()
            try:
                await feed.read(point, 10)
                found.append(True)
            except ResumePointLost:
                found.append(False)
        return found

    assert await accepted() == [False, True, True]
    await feed.settle(points[-1])
    assert await accepted() == [False, False, True]
    assert PostgresPoint.parse(await feed.origin()).mark == ""
    await feed.aclose()


class FailingStore(DelegatingStore):
    """An event store that fails at the second append, before or after the append has taken effect."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.appends = 0
        self._after = after

    async def on_append(self, call: Append) -> Sequence[StoredEvent]:
        self.appends += 1
        if self.appends == 2 and not self._after:
            raise StoreUnavailable("away before")
        stored = await super().on_append(call)
        if self.appends == 2:
            raise StoreUnavailable("away after")
        return stored


def _appended(store: FailingStore, before: int, recorder: Recorder, restart: bool) -> bool:
    return store.appends > before and (recorder.recording or restart)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("after", [False, True])
async def test_append_of_unknown_outcome_needs_no_new_epoch(
    postgres_application: Application, *, after: bool, restart: bool
) -> None:
    settings, store = postgres_application.migrate(), FailingStore(after=after)
    epoch = ""
    with trio.fail_after(30):
        for tags in (["one", "two"], ["three"]):
            feed = sealing(postgres_application, settings)
            log = EventLog(store, LogOptions(store="memory"))
            options = RecorderOptions(batch_rows_max=10, body_bytes_max=1000, events=EventsOptions(), store="ours")
            recorder = Recorder(feed, OwnLease(), log, options)
            await log.open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recorder.ahead.run)
                await nursery.start(recorder.run)
                for tag in tags:
                    before = store.appends
                    postgres_application.tag(tag)
                    await until(partial(_appended, store, before, recorder, restart))
                epoch = epoch or (await store.bounds()).epoch
                nursery.cancel_scope.cancel()
            await feed.aclose()
            if not restart:
                break
    events = await store.read((await store.bounds()).floor, 10)
    assert [event.object for event in events] == [f"tag:{tag}" for tag in (["one", "two"] + ["three"] * restart)]
    assert (await store.bounds()).epoch == epoch
