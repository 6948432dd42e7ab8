"""A recorder over real databases, interrupted at any moment: every change is in the log once, in order."""

from pathlib import Path
from random import Random

import pytest
import trio

from airy_trio.capture.lease import FileLease
from airy_trio.database import DatabaseOptions
from airy_trio.events.translate import EventsOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.recorder import Recorder, RecorderOptions, Retention
from airy_trio.settings import Settings
from tests.application import Application
from tests.capture.feeds import feed_of
from tests.log.places import open_sql
from tests.log.recording import recorded

CHANGES = 150
OPTIONS = RecorderOptions(batch_rows_max=7, body_bytes_max=60_000, events=EventsOptions(), store="the store")
pytestmark = pytest.mark.slow


async def record(application: Application, settings: Settings, lock: Path, until: int | None, moments: Random) -> None:
    """Run one server until its log has ``until`` events, or until a random moment."""
    options = DatabaseOptions(url=settings.log.location(application.url))
    lease = FileLease(lock)
    try:
        async with open_sql(options) as store, feed_of(application, settings) as feed:
            log = EventLog(store, LogOptions())
            await log.open()
            recorder = Recorder(feed, lease, log, OPTIONS)
            retention = Retention(store, feed, recorder, LogOptions())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recorder.ahead.run)
                await nursery.start(recorder.run)
                nursery.start_soon(log.follow)
                nursery.start_soon(retention.run)
                if until is None:
                    await trio.sleep(moments.uniform(0, 0.3))  # it must end at a random moment
                else:
                    await reach(log, until)
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await lease.release()


async def reach(log: EventLog, offset: int) -> None:
    while log.head.offset < offset:
        await log.store.wait(log.head)
        await log.catch_up()


async def change(application: Application) -> None:
    for number in range(CHANGES):
        await trio.to_thread.run_sync(application.tag, f"t{number}")


async def test_interrupted_recorder_records_every_change_once(any_application: Application, tmp_path: Path) -> None:
    settings = any_application.migrate()
    moments = Random(3)
    lock = tmp_path / "lock"
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, any_application)
            for _ in range(8):
                await record(any_application, settings, lock, None, moments)
        await record(any_application, settings, lock, CHANGES, moments)
        async with open_sql(DatabaseOptions(url=settings.log.location(any_application.url))) as store:
            assert await recorded(store) == [f"tag:t{number}" for number in range(CHANGES)]
