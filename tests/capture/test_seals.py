"""Sealed resume points, for an event log in another database: which of them are accepted, on both databases."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from attrs import evolve

from airy_trio.capture.change_log import MARKS_CHARS_MAX, ChangeLog, PostgresPoint, SqlitePoint
from airy_trio.capture.feed import ResumePointLost
from airy_trio.capture.lease import OwnLease
from airy_trio.capture.postgres import PostgresFeed
from airy_trio.capture.sqlite import SqliteFeed
from airy_trio.database import SQLITE, sqlite_path
from airy_trio.database.engines import SQLITE_BUSY_TIMEOUT_S
from airy_trio.errors import MappingError
from airy_trio.events.translate import EventsOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.leadership import ForeignLogError
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.recorder import Recorder, RecorderOptions
from airy_trio.settings import Settings
from tests.application import Application
from tests.capture.feeds import AnyFeed, feed_of
from tests.capture.feeds import source_of as changes_of
from tests.log.recording import until

TIMEOUT_S = 30.0
OPTIONS = RecorderOptions(batch_rows_max=10, body_bytes_max=1000, events=EventsOptions(), store="ours", shareable=True)


@pytest.fixture
def settings(any_application: Application) -> Settings:
    return any_application.migrate()


@pytest.fixture
async def feed(any_application: Application, settings: Settings) -> AsyncIterator[AnyFeed]:
    """Return a feed whose event log is in another database."""
    kind = SqliteFeed if any_application.dialect == SQLITE else PostgresFeed
    feed = kind(evolve(changes_of(any_application, settings), seals=True))
    try:
        yield feed
    finally:
        await feed.aclose()


async def sealed_after(application: Application, feed: AnyFeed, point: str, tag: str) -> str:
    """Seal the point after one more change, as before an append."""
    application.tag(tag)
    return await feed.seal(point, (await feed.read(point, 10)).resume_point)


async def is_accepted(feed: AnyFeed, point: str) -> bool:
    """Return whether a new connection accepts a point."""
    await feed.aclose()
    try:
        await feed.read(point, 10)
    except ResumePointLost:
        return False
    return True


async def test_append_that_happens_after_the_next_seal_needs_no_epoch(
    any_application: Application, feed: AnyFeed
) -> None:
    origin = await feed.origin()
    recorded = await sealed_after(any_application, feed, origin, "recorded")
    late = await sealed_after(any_application, feed, recorded, "of unknown outcome")
    again = await feed.seal(recorded, late)
    assert [await is_accepted(feed, point) for point in (recorded, late, again)] == [True, True, True]
    await feed.settle(recorded)
    assert await is_accepted(feed, late), "another point was sealed meanwhile"
    following = await sealed_after(any_application, feed, again, "following")
    assert [await is_accepted(feed, point) for point in (recorded, late, again)] == [False, False, True]
    await feed.settle(following)
    assert [await is_accepted(feed, point) for point in (again, following)] == [False, True]


async def test_the_recorded_point_is_accepted_after_any_number_of_seals(
    any_application: Application, feed: AnyFeed
) -> None:
    recorded = await sealed_after(any_application, feed, await feed.origin(), "recorded")
    points = [await feed.seal(recorded, recorded) for _ in range(60)]
    assert [await is_accepted(feed, point) for point in (recorded, points[-1], points[-2])] == [True, True, True]
    with any_application.engine.begin() as connection:
        history = ChangeLog(any_application.names).history(connection)
    assert history is not None
    assert len(history.replaced_mark) <= 17 + MARKS_CHARS_MAX


async def test_a_restart_without_a_new_epoch_loses_the_old_point(any_application: Application, feed: AnyFeed) -> None:
    """If the store fails during a restart, the change log no longer has the changes, so the old epoch must end."""
    recorded = await sealed_after(any_application, feed, await feed.origin(), "recorded")
    for number in range(2):
        any_application.tag(f"unrecorded {number}")
    await feed.restart()
    any_application.tag("later")
    with pytest.raises(ResumePointLost):
        await feed.read(recorded, 10)


async def test_nothing_is_sealed_for_an_event_log_in_the_same_database(any_application: Application) -> None:
    """Sealing and settling would cost the application's disk two more commits for each batch."""
    state = any_application.log_table("change_state")
    async with feed_of(any_application, any_application.migrate()) as feed:
        point = await feed.origin()
        any_application.execute(f"update {state} set replaced_mark = 'other'")
        assert await feed.seal(point, point) == point
        await feed.settle(point)
    assert any_application.scalar(f"select replaced_mark from {state}") == "other"


@pytest.mark.slow
async def test_settling_gives_up_on_a_locked_file_and_succeeds_later(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    state = sqlite_application.log_table("change_state")
    is_settled = f"select mark = replaced_mark from {state}"
    feed = SqliteFeed(evolve(changes_of(sqlite_application, sqlite_application.settings()), seals=True))
    with trio.fail_after(TIMEOUT_S):
        sealed = await sealed_after(sqlite_application, feed, await feed.origin(), "one")
        locking = sqlite3.connect(sqlite_path(sqlite_application.url), isolation_level=None)
        locking.execute("begin immediate")
        with trio.fail_after(2 * SQLITE_BUSY_TIMEOUT_S):
            await feed.settle(sealed)
        assert not sqlite_application.scalar(is_settled)
        assert (await feed.read(sealed, 10)).changes == 0
        locking.close()
        await feed.settle(sealed)
    assert sqlite_application.scalar(is_settled)
    await feed.aclose()


async def test_point_of_an_older_version_gets_an_identity(any_application: Application, feed: AnyFeed) -> None:
    """So no other database can take the log first. A running server whose log is taken is interrupted, not ended."""
    store = MemoryStore()
    kind = SqlitePoint if any_application.dialect == SQLITE else PostgresPoint
    log = EventLog(store, LogOptions(store="memory"))
    await log.open()

    async def rewrite(*, source: str) -> None:
        """Store the same resume point with another identity and no mark."""
        stored = await store.resume_point() or ""
        point = str(evolve(kind.parse(stored), source=source, mark=""))
        await store.append((await store.bounds()).head, (), point, replaces=stored)

    @asynccontextmanager
    async def recording() -> AsyncIterator[Recorder]:
        async with trio.open_nursery() as nursery:
            recorder = Recorder(feed, OwnLease(), log, OPTIONS)
            nursery.start_soon(recorder.ahead.run)
            await nursery.start(recorder.run)
            yield recorder
            nursery.cancel_scope.cancel()

    with trio.fail_after(TIMEOUT_S):
        async with recording():
            pass
        await rewrite(source="")
        async with recording() as recorder:
            assert kind.parse(await store.resume_point() or "").source
            await rewrite(source="another")
            any_application.tag("refused")
            await until(partial(_is_refused, recorder))
        with pytest.raises(ForeignLogError):
            await Recorder(feed, OwnLease(), log, OPTIONS).run()


def _is_refused(recorder: Recorder) -> bool:
    return "another database" in (recorder.interruption or "")


@pytest.mark.parametrize("limit", [10, 1000])
async def test_a_missing_column_is_reported_with_its_setting(
    any_application: Application, feed: AnyFeed, limit: int
) -> None:
    after = (await feed.read(await feed.origin(), limit)).resume_point
    any_application.tag("t1")
    after = (await feed.read(after, limit)).resume_point
    any_application.tag("t2")
    any_application.execute("alter table tags rename column color to colour")
    with pytest.raises(MappingError, match=r'database\.tables\.tags: the table "tags" is without its columns color'):
        await feed.read(after, limit)
