"""Capture by ``updated_at`` over SQLite and Postgres: the changes that are read, each once, and their order."""

import json
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
import trio
from attrs import evolve
from structlog.testing import capture_logs

from airy_trio.capture.change_log import SqlitePoint
from airy_trio.capture.feed import ChangedObject, Channel, ResumePointLost, Tag
from airy_trio.capture.inspection import inspect
from airy_trio.capture.polling import Mark, Watermarks
from airy_trio.capture.queries import TEXT_CHARS_MAX
from airy_trio.capture.scans import TableScan
from airy_trio.database import POSTGRES, SQLITE, DatabaseUnavailable, sqlite
from airy_trio.errors import MappingError
from tests.application import Application, application, only
from tests.capture.feeds import queued_for, read_all
from tests.capture.watched import (
    ON_SQLITE_ONLY,
    OVERLAP_S,
    SECOND_US,
    START_US,
    TIMES,
    Watched,
    names,
    settings_of,
    watching,
)
from tests.postgres import Postgres

CHANNELS = (
    "create table channels (id text, source text, source_channel_id text, connected bool, updated_at timestamptz)"
)


@pytest.mark.parametrize("first, second", [("tags", "channels"), ("channels", "tags")])
async def test_poll_that_waits_for_a_locked_table_keeps_no_other(
    postgres_application: Application, first: str, second: str
) -> None:
    """If it kept one, a migration that alters two tables in one transaction would end in a deadlock."""
    postgres_application.execute(CHANNELS)
    watched = Watched(postgres_application)
    async with watching(postgres_application, only(tags="", channels="")) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        objects: list[ChangedObject] = []

        async def read() -> None:
            objects.extend((await feed.read(after, 10)).objects)

        waits = "select count(*) from pg_locks where not granted"
        with trio.fail_after(10), postgres_application.engine.connect() as migration:
            async with trio.open_nursery() as nursery:
                migration.exec_driver_sql(f"alter table {first} add more int")
                nursery.start_soon(read)
                while not postgres_application.scalar(waits):  # noqa: ASYNC110 - Postgres does not notify of it
                    await trio.sleep(0.01)
                await trio.sleep(1.2)  # longer than Postgres waits before it looks for a deadlock
                await trio.to_thread.run_sync(migration.exec_driver_sql, f"alter table {second} add more int")
                migration.commit()
        assert names(objects) == [("t1", "flag")]


@pytest.mark.parametrize("wanted", ["tags", "channels"])
async def test_table_whose_lock_is_always_wanted_is_polled(postgres_application: Application, wanted: str) -> None:
    """Each of these sessions waits for the lock for longer than the first attempt of a poll."""
    postgres_application.execute(CHANNELS)
    watched = Watched(postgres_application)
    async with watching(postgres_application, only(tags="", channels="")) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        with queued_for(postgres_application, wanted):
            await trio.sleep(0.2)
            with trio.fail_after(10):
                assert names((await feed.read(after, 10)).objects) == [("t1", "flag")]


@pytest.fixture
def watched(any_application: Application) -> Watched:
    return Watched(any_application)


@pytest.mark.parametrize("form", [form for form in TIMES if form not in ON_SQLITE_ONLY])
async def test_rows_are_read_once_for_each_form_of_time(any_application: Application, form: str) -> None:
    await assert_each_comes_once(Watched(any_application, form))


@pytest.mark.parametrize("form", ON_SQLITE_ONLY)
async def test_column_without_a_type(sqlite_application: Application, form: str) -> None:
    await assert_each_comes_once(Watched(sqlite_application, form))


async def assert_each_comes_once(watched: Watched) -> None:
    watched.tag("before", START_US)
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US + 1000)
        watched.tag("late", START_US - 4 * SECOND_US)
        watched.tag("too late", START_US - 7 * SECOND_US)
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("late", "flag"), ("t1", "flag")]
        watched.tag("t1", START_US + 2000, "changed")
        watched.tag("later", START_US + 30 * SECOND_US)
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("t1", "changed"), ("later", "flag")]
        watched.tag("missed", START_US + 24 * SECOND_US)
        assert await read_all(feed, after) == ([], after, [await feed.read(after, 10)])


async def test_only_rows_committed_after_the_first_start_are_sent(watched: Watched) -> None:
    for number in range(5):
        watched.tag(f"before-{number}", START_US - number * SECOND_US)
    async with watching(watched.application) as feed:
        after = await feed.origin()
        assert (await feed.read(after, 10)).changes == 0
        watched.tag("open at the start", START_US - SECOND_US)
        assert names((await read_all(feed, after))[0]) == [("open at the start", "flag")]


@pytest.mark.parametrize("limit", [2, 1000])
async def test_kept_tables_are_read_from_the_beginning(watched: Watched, limit: int) -> None:
    for number in range(5):
        watched.tag(f"before-{number}", START_US + number * 10 * SECOND_US)
    async with watching(watched.application, from_the_beginning=frozenset({"tags"})) as feed:
        after = await feed.origin()
        objects, after, _ = await read_all(feed, after, limit)
        assert [name for name, _ in names(objects)] == [f"before-{number}" for number in range(5)]
        watched.tag("later", START_US + 60 * SECOND_US)
        assert names((await read_all(feed, after, limit))[0]) == [("later", "flag")]


async def test_every_row_of_a_table_that_was_empty_is_new(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US - 10**6 * SECOND_US)
        assert names((await read_all(feed, after))[0]) == [("t1", "flag")]


async def test_second_change_at_the_same_time_is_not_skipped(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US, "one")
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("t1", "one")]
        watched.tag("t1", START_US, "two")
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("t1", "two")]
        watched.tag("t1", START_US, "one")
        assert names((await read_all(feed, after))[0]) == [("t1", "one")]  # on SQLite it equals the first version


async def test_rows_that_change_back_while_a_backlog_is_read_are_sent_again(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        for name in ("one", "two", "one"):
            for id_ in ("t1", "t2"):
                watched.tag(id_, START_US, name)
            for id_ in ("t1", "t2"):
                batch = await feed.read(after, 1)
                after = batch.resume_point
                assert (names(batch.objects), batch.more) == ([(id_, name)], True)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
async def test_rows_of_one_time_come_in_pages_each_once(
    watched: Watched, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airy_trio.capture.scans.PAGE_ROWS", 2)
    async with watching(watched.application) as feed:
        after = await feed.origin()
        for number in range(7):
            watched.tag(f"t{number}", START_US)
        objects, after, batches = await read_all(feed, after, limit)
        assert [name for name, _ in names(objects)] == [f"t{number}" for number in range(7)]
        assert max(batch.changes for batch in batches) <= limit
        assert (await feed.read(after, limit)).changes == 0


@pytest.mark.parametrize("limit", [2, 3])
async def test_backlogs_of_two_tables_share_the_limit(watched: Watched, limit: int) -> None:
    """If the first table fills a batch, the batch has no row of the second one."""
    watched.application.execute(CHANNELS)
    async with watching(watched.application, only(tags="", channels="")) as feed:
        after = await feed.origin()
        for number in range(4):
            watched.tag(f"t{number}", START_US + number * SECOND_US)
            watched.application.execute(
                f"insert into channels values ('c{number}', 's', 's', true, '2020-10-25 21:24:5{number}+00:00')"
            )
        objects, after, batches = await read_all(feed, after, limit)
        found = sorted(str(one.id) for one in objects if isinstance(one, Channel | Tag))
        assert found == [f"{kind}{number}" for kind in "ct" for number in range(4)]
        assert max(batch.changes for batch in batches) == limit
        assert (await feed.read(after, limit)).changes == 0


def test_bulk_change_is_read_in_few_pages(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airy_trio.capture.scans.PAGE_ROWS", 1)
    for number in range(63):
        watched.tag(f"t{number:02}", START_US)
    with watched.application.engine.begin() as connection:
        table = inspect(connection, settings_of(watched.application).tables, watermarks=True)["tags"]
        scan, statements = TableScan(watched.application.dialect, table, TEXT_CHARS_MAX), list[str]()
        sa.event.listen(connection, "before_cursor_execute", lambda *what: statements.append(what[2]))
        assert [version.key[0] for version in scan.versions(connection, None, None, None)] == [
            f"t{number:02}" for number in range(63)
        ]
    assert len(statements) == 7  # pages of 1, 2, 4, 8, 16 and 32 rows, and an empty one


@pytest.mark.parametrize("rows", [4, 20])
async def test_equal_rows_of_a_key_that_is_not_unique_hide_no_other(any_application: Application, rows: int) -> None:
    watched = Watched(any_application)
    any_application.execute("create table copies as select * from tags")
    any_application.execute("drop table tags")
    any_application.execute("alter table copies rename to tags")
    async with watching(any_application) as feed:
        after = await feed.origin()
        one = watched.statement("same", START_US).partition(" on conflict")[0]
        any_application.execute(f"{one}, " + ", ".join([one.partition(" values ")[2]] * (rows - 1)))
        _, after, _ = await read_all(feed, after, 5)
        for number in range(4):
            any_application.execute(watched.statement(f"new{number}", START_US + 1000).partition(" on conflict")[0])
        objects, after, _ = await read_all(feed, after, 5)
        assert [name for name, _ in names(objects)] == [f"new{number}" for number in range(4)]


@pytest.mark.slow
async def test_unchanged_file_is_not_read_again(sqlite_application: Application) -> None:
    watched = Watched(sqlite_application)
    async with watching(sqlite_application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        _, after, _ = await read_all(feed, after)
        with trio.move_on_after(1) as unchanged:
            await feed.wait()
        assert unchanged.cancelled_caught
        watched.tag("t2", START_US)
        with trio.fail_after(10):
            await feed.wait()
        assert names((await read_all(feed, after))[0]) == [("t2", "flag")]


async def test_commit_while_a_backlog_is_read_is_found(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t0", START_US)
        after = (await feed.read(after, 10)).resume_point
        for number in range(1, 10):
            watched.tag(f"t{number}", START_US + number * SECOND_US // 10)
        batch = await feed.read(after, 5)
        watched.tag("late", START_US + SECOND_US // 4)
        for number in range(10, 60):  # times far beyond the overlap, before the backlog is read
            watched.tag(f"t{number}", START_US + number * SECOND_US)
        objects, _, _ = await read_all(feed, batch.resume_point, 1)
        assert sorted(name for name, _ in names([*batch.objects, *objects])) == sorted(
            ["late", *(f"t{number}" for number in range(1, 60))]
        )


async def test_rereading_returns_the_same_rows_and_new_ones(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        watched.tag("t3", START_US + 3)
        first = await feed.read(after, 2)
        watched.tag("t2", START_US + 2)  # between them, which moves t3 to the next batch
        again = await feed.read(after, 2)
        following = await feed.read(again.resume_point, 2)
    assert names(first.objects) == [("t1", "flag"), ("t3", "flag")]
    assert names(again.objects) == [("t1", "flag"), ("t2", "flag")]
    assert names(following.objects) == [("t3", "flag")]


async def test_restart_loses_nothing_and_returns_the_overlap_again(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("before the overlap", START_US - 10 * SECOND_US)
        for number in range(5):
            watched.tag(f"t{number}", START_US + number)
        batch = await feed.read(after, 4)
    async with watching(watched.application) as feed:
        watched.tag("late", START_US - SECOND_US)
        objects, after, _ = await read_all(feed, batch.resume_point)
        assert sorted({name for name, _ in names(objects)}) == ["late", "t0", "t1", "t2", "t3", "t4"]
        assert (await feed.read(after, 10)).changes == 0
    async with watching(watched.application) as feed:
        assert (await feed.read(after, 10)).changes == 6
        assert (await feed.read(after, 10)).changes == 6


async def test_batch_that_was_not_stored_is_read_again(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        stored = (await feed.read(after, 10)).resume_point
        for name in ("late", "later"):
            watched.tag(name, START_US - SECOND_US)
            objects, _, _ = await read_all(feed, stored)
            assert ("late", "flag") in names(objects)
            assert ("t1", "flag") not in names(objects)


async def test_batch_that_could_not_be_read_is_read_again(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        watched.application.execute("alter table tags rename column color to colour")
        with pytest.raises(MappingError):
            await feed.read(after, 10)
        watched.application.execute("alter table tags rename column colour to color")
        assert names((await read_all(feed, after))[0]) == [("t1", "flag")]


@pytest.mark.slow
async def test_commit_between_a_wait_and_a_read_does_not_end_the_trust_in_reports(
    sqlite_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "UNREPORTED_S", 0.1)
    watched = Watched(sqlite_application)
    async with watching(sqlite_application) as feed:
        after = (await feed.read(await feed.origin(), 10)).resume_point
        with capture_logs() as logs:
            with trio.move_on_after(1):
                await feed.wait()  # nothing is written
            watched.tag("t1", START_US)
            assert names((await read_all(feed, after))[0]) == [("t1", "flag")]
    assert logs == []


async def test_point_with_digests_of_an_older_version_is_read(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        watched.tag("t1", START_US)
        older = json.loads((await feed.read(after, 10)).resume_point) | {"digests": {"tags": "AAAAAAAAAAE="}}
        watched.tag("late", START_US - SECOND_US)
        watched.tag("too late", START_US - 7 * SECOND_US)
    async with watching(watched.application) as feed:
        objects, after, _ = await read_all(feed, json.dumps(older))
        assert names(objects) == [("late", "flag"), ("t1", "flag")]
        assert "digests" not in json.loads(after)


async def test_versions_before_the_overlap_are_forgotten(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = await feed.origin()
        for number in range(20):
            watched.tag(f"t{number}", START_US + number * SECOND_US)
            after = (await feed.read(after, 10)).resume_point
        await feed.read(after, 10)
        assert sum(map(len, feed._returned.values())) <= OVERLAP_S + 1  # noqa: SLF001 - not visible from outside


@pytest.mark.parametrize(
    "form, zone",
    [("timestamptz", "UTC"), ("spaced", "America/New_York")]
    + [(form, "Asia/Tokyo") for form in ("spaced", "iso", "offset", "digits", "milliseconds")],
)
async def test_time_far_ahead_hides_no_changes(any_application: Application, form: str, zone: str) -> None:
    watched, mapped = Watched(any_application, form), only(tags=f'time_zone = "{zone}"')
    now_us = local_now_us(any_application, zone if form == "spaced" else "UTC")
    async with watching(any_application, mapped) as feed:
        after = await feed.origin()
        watched.tag("ahead", now_us + 10**6 * SECOND_US)
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("ahead", "flag")]
        watched.tag("now", now_us)
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("now", "flag")]
        assert (await feed.read(after, 10)).changes == 0


async def test_times_ahead_are_read_in_pages_without_repetition(watched: Watched) -> None:
    now_us = local_now_us(watched.application, "UTC")
    async with watching(watched.application) as feed:
        after = await feed.origin()
        for number in range(3):
            watched.tag(f"now-{number}", now_us)
            watched.tag(f"ahead-{number}", now_us + (number + 1) * 10**6 * SECOND_US)
        objects, _, batches = await read_all(feed, after, 2)
        assert [name for name, _ in names(objects)] == [
            f"{when}-{number}" for when in ("now", "ahead") for number in range(3)
        ]
        # A bound ahead of the clock would move the watermark to the time at which the backlog has been read.
        bounds_us = [Watermarks.parse(batch.resume_point).marks["tags"].upto_us or 0 for batch in batches]
        assert 0 < max(bounds_us) < now_us + 60 * SECOND_US


@pytest.mark.parametrize("form", ["spaced", "iso", "offset", "digits", "milliseconds"])
async def test_zone_far_west_sends_no_hours_again(any_application: Application, form: str) -> None:
    watched, mapped = Watched(any_application, form), only(tags='time_zone = "Pacific/Honolulu"')
    now_us = local_now_us(any_application, "Pacific/Honolulu" if form == "spaced" else "UTC")
    watched.tag("now", now_us)
    async with watching(any_application, mapped) as feed:
        after = await feed.origin()
        watched.tag("later", now_us + SECOND_US)
        _, after, _ = await read_all(feed, after)
        any_application.execute("delete from tags")  # a scan without rows does not move the watermark back either
        _, after, _ = await read_all(feed, after)
        watched.tag("hours ago", now_us - 3 * 3600 * SECOND_US)
        assert (await feed.read(after, 10)).changes == 0


async def test_watermark_returns_with_a_clock_that_is_set_back(watched: Watched) -> None:
    now_us = local_now_us(watched.application, "UTC")
    async with watching(watched.application) as feed:
        watched.tag("before", now_us)
        recorded = Watermarks.parse(await feed.origin())
        after = str(evolve(recorded, marks={"tags": Mark(now_us + 10**6 * SECOND_US)}))
        watched.tag("now", now_us)
        after = (await feed.read(after, 10)).resume_point
        assert ("now", "flag") in names((await read_all(feed, after))[0])


def local_now_us(application: Application, zone: str) -> int:
    """The database's time as the local time of a zone, in microseconds."""
    seconds: int = application.scalar(
        "select cast(strftime('%s', 'now') as integer)"
        if application.dialect == SQLITE
        else "select cast(extract(epoch from now()) as bigint)"
    )
    offset = datetime.fromtimestamp(seconds, ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return (seconds + int(offset.total_seconds())) * SECOND_US


@pytest.mark.parametrize("form", ["timestamptz", "timestamp", "float", "numeric", "iso"])
async def test_impossible_times_are_skipped_and_hide_no_changes(any_application: Application, form: str) -> None:
    watched = Watched(any_application, form)
    postgres = any_application.dialect != SQLITE
    impossible = {
        "timestamptz": ["null", "'infinity'", "'-infinity'"],
        "timestamp": ["null", "'infinity'"],
        "float": ["null", "'NaN'", "'Infinity'", "1e300"],
        "numeric": ["null", "'NaN'", "1e30"],
        "iso": ["null", "'soon'", "''", "'2021-02-29T00:00:00Z'", "'2020-13-01'", "'now'", "'infinity'"],
    }[form]
    if not postgres:
        impossible = [value for value in impossible if "02-29" not in value]  # SQLite reads it as the first of March
        impossible += ["x'ff'", "cast(x'ff' as text)", "'soon'"]
    async with watching(any_application) as feed:
        after = await feed.origin()
        for number, value in enumerate(impossible):
            any_application.execute(f"insert into tags values ('no-{number}', 'flag', 'red', {value})")
        watched.tag("t1", START_US)
        objects, after, _ = await read_all(feed, after)
        assert ("t1", "flag") in names(objects)
        assert {name for name, _ in names(objects)} <= {"t1", "no-3"}  # for SQLite 'NaN' is text and 1e300 a time
        watched.tag("t2", START_US + 1000)
        assert ("t2", "flag") in names((await read_all(feed, after))[0])


async def test_clock_that_is_set_back_hides_no_changes(any_application: Application) -> None:
    watched = Watched(any_application, "spaced")
    async with watching(any_application, only(tags='time_zone = "Europe/Berlin"')) as feed:
        after = await feed.origin()
        watched.tag("summer", START_US)
        _, after, _ = await read_all(feed, after)
        watched.tag("winter", START_US - 3590 * SECOND_US)
        assert names((await read_all(feed, after))[0]) == [("winter", "flag")]


async def test_wait_ends_soon_after_a_commit(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        batch = await feed.read(await feed.origin(), 10)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: trio.to_thread.run_sync(watched.tag, "t1", START_US))
                while not batch.changes:
                    await feed.wait()
                    batch = await feed.read(batch.resume_point, 10)
    assert names(batch.objects) == [("t1", "flag")]


async def test_point_of_another_capture_is_lost(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        for point in (
            '[0,""]',
            "{}",
            "nothing",
            '{"identity": "x", "life": "", "serial": 1, "marks": [], "digests": {}}',
        ):
            with pytest.raises(ResumePointLost):
                await feed.read(point, 10)


async def test_point_of_another_database_is_lost(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        after = (await feed.origin()).replace('"identity":"', '"identity":"1')
        with pytest.raises(ResumePointLost, match="another one, or another file"):
            await feed.read(after, 10)


async def test_replaced_database_is_read_from_now_on(postgres: Postgres, postgres_application: Application) -> None:
    name = postgres_application.engine.url.database or ""
    Watched(postgres_application)
    async with watching(postgres_application) as feed:
        after = await feed.origin()
        postgres.drop_database(name)
        postgres.create_database(name=name)
        postgres_application.engine.dispose()
        Watched(postgres_application)
        with pytest.raises(DatabaseUnavailable):
            await feed.read(after, 10)
        with pytest.raises(ResumePointLost):
            await feed.read(after, 10)
        assert (await feed.read(await feed.restart(), 10)).changes == 0


async def test_point_of_another_source_or_capture_is_foreign(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        ours = await feed.origin()
        assert await feed.identified(ours) == ours
        of_another_history = ours.replace('"identity":"', '"identity":"1')
        assert await feed.identified(of_another_history) == of_another_history
        assert await feed.identified(ours.replace('"source":"', '"source":"1')) is None
        assert await feed.identified('[0,""]') is None
        assert await feed.identified(str(SqlitePoint(1, "token", "source"))) is None


async def test_point_of_an_older_version_gets_its_source(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        point = Watermarks.parse(await feed.origin())
        found = json.loads(str(point))
        del found["source"]
        older = json.dumps(found)
        assert Watermarks.parse(await feed.identified(older) or "") == point
        found["identity"] = "another"
        cluster = watched.application.dialect == POSTGRES
        assert (await feed.identified(json.dumps(found)) is None) == cluster  # a file may have been replaced


async def test_point_of_an_older_version_loses_nothing(watched: Watched) -> None:
    async with watching(watched.application) as feed:
        older = json.loads(await feed.origin())
    del older["source"]
    watched.tag("t1", START_US)
    async with watching(watched.application) as feed:
        batch = await feed.read(json.dumps(older), 10)
        assert batch.changes == 1
        assert Watermarks.parse(batch.resume_point).identity.source


async def test_file_that_was_moved_is_read_on(tmp_path: Path) -> None:
    with application(f"sqlite:///{tmp_path}/app.db", create=True) as before:
        watched = Watched(before)
        async with watching(before) as feed:
            point = await feed.origin()
        watched.tag("t1", START_US)
    (tmp_path / "app.db").rename(tmp_path / "moved.db")
    with application(f"sqlite:///{tmp_path}/moved.db") as moved:
        async with watching(moved) as feed:
            assert (await feed.read(point, 10)).changes == 1


async def test_file_is_the_same_source_by_each_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "app.db")
    with (
        application(f"sqlite:///{tmp_path}/app.db", create=True) as named,
        application(f"sqlite:///{tmp_path}/link.db") as linked,
    ):
        Watched(named)
        async with watching(named) as feed, watching(linked) as other:
            origin = await feed.origin()
            assert await other.identified(origin) == origin


async def test_table_that_is_mapped_later_begins_then(watched: Watched) -> None:
    none = '[database.tables.{}]\nname = ""\n'
    watched.application.execute(
        "create table channels (id text primary key, source text, source_channel_id text, connected boolean, "
        "updated_at timestamp)",
        "insert into channels values ('old', 's', 'c', true, '2020-01-01 00:00:00')",
    )
    async with watching(watched.application) as feed:
        after = await feed.origin()
    async with watching(watched.application, none.format("messages") + none.format("metadata")) as feed:
        assert (await feed.read(after, 10)).changes == 0
        after = (await feed.read(after, 10)).resume_point
        watched.application.execute("insert into channels values ('new', 's', 'c', true, '2020-01-01 00:00:01')")
        [channel] = (await read_all(feed, after))[0]
        assert getattr(channel, "id", None) == "new"


async def test_date_beyond_the_range_of_timestamps_hides_no_row(postgres_application: Application) -> None:
    postgres_application.execute("create table tags (id text, name text, color text, updated_at date)")
    insert = "insert into tags values ('{}', 'flag', 'red', '{}')"
    postgres_application.execute(insert.format("before", "5874897-12-31"))
    async with watching(postgres_application) as feed:
        after = await feed.origin()
        dates = "5874897-12-31", "infinity", "-infinity", "2020-10-25"
        postgres_application.execute(*(insert.format(date, date) for date in dates))
        assert names((await read_all(feed, after))[0]) == [("2020-10-25", "flag")]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "Pacific/Honolulu"])
async def test_dates_of_today_and_of_the_overlap_are_read(postgres_application: Application, zone: str) -> None:
    postgres_application.execute("create table tags (id text, name text, color text, updated_at date)")
    insert = f"insert into tags values ('{{}}', 'flag', 'red', cast(now() at time zone '{zone}' as date) + {{}})"
    async with watching(postgres_application, only(tags=f'time_zone = "{zone}"')) as feed:
        after = await feed.origin()
        postgres_application.execute(insert.format("today", 0))
        _, after, _ = await read_all(feed, after)
        postgres_application.execute(insert.format("before midnight", -1))
        objects, after, _ = await read_all(feed, after)
        assert names(objects) == [("before midnight", "flag")]
        postgres_application.execute(insert.format("ahead", 30))
        _, after, _ = await read_all(feed, after)
        postgres_application.execute(insert.format("today again", 0))
        assert names((await read_all(feed, after))[0]) == [("today again", "flag")]
