"""Each reason for which a server is not ready, on a real server, and the log lines about it."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio import app, migrate
from airy_trio.admin import readiness
from airy_trio.admin.readiness import TRIGGERS_PERIOD_S, TRIGGERS_TIMEOUT_S, Readiness
from airy_trio.app import build
from airy_trio.database import SQLITE_BUSY_TIMEOUT_S, DatabaseUnavailable, sqlite_path
from airy_trio.log.memory import MemoryStore
from airy_trio.migrate import head
from airy_trio.settings import Settings
from tests.admin.serving import Port, admin, free_port, serving_all
from tests.application import Application, application
from tests.capture.watched import ONLY_TAGS, Watched
from tests.log.places import event
from tests.log.recording import Node, node, tag
from tests.memory_feed import MemoryChanges
from tests.newer_schema import MARK, move_ahead, newer, set_compatible_from, trigger_of
from tests.postgres import Postgres

QUICKLY_S = 0.1
TIMEOUT_S = 30.0


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "TRIGGERS_PERIOD_S", QUICKLY_S)
    monkeypatch.setattr(readiness, "CHANGE_PERIOD_S", QUICKLY_S)


async def test_healthy_server_is_ready(any_application: Application) -> None:
    async with serving_all(any_application.migrate(admin(free_port()))) as (_, port):
        code, found = await port.ready()
        assert (code, found.pop("ready")) == (200, True)
        assert found == {
            "listener": {"well": True, "reason": "clients can connect"},
            "feed": {"well": True, "reason": "this server records"},
            "store": {"well": True, "reason": "the event store answers"},
            "triggers": {"well": True, "reason": "in place"},
            "lag": {"well": True, "reason": "at most 10 s behind"},
        }


async def test_server_that_does_not_record_is_ready(any_application: Application) -> None:
    """Both are polled, because the recorder changes if the machine pauses for longer than its session may be idle."""
    settings = [any_application.migrate(admin(free_port())) for _ in range(2)]
    reasons = {"this server records", "another server records, or this one is about to"}
    async with serving_all(settings[0]) as (_, one), serving_all(settings[1]) as (_, other):
        with trio.fail_after(TIMEOUT_S):
            while True:
                answers = [await port.ready() for port in (one, other)]
                if {found["feed"]["reason"] for _, found in answers} == reasons:
                    break
        assert [code for code, _ in answers] == [200, 200]


@pytest.mark.usefixtures("_soon")
async def test_missing_triggers_make_the_server_not_ready(any_application: Application) -> None:
    settings = any_application.migrate(admin(free_port()))
    with capture_logs() as logs:
        async with serving_all(settings) as (_, port):
            if any_application.dialect == "postgresql":  # on SQLite the feed puts them back at once
                any_application.execute(
                    "drop table tags",
                    "create table tags (id text primary key, name text not null, color text not null)",
                )
                await port.until_not_ready("triggers", 'table "tags" (tags) has no trigger')
            any_application.execute("drop table tags")
            await port.until_not_ready("triggers", 'there is no table "tags"')
            any_application.migrate(admin(settings.admin.port))
            await port.until_ready()
    lines = [line for line in logs if line.get("part") == "triggers"]
    assert [line["event"] for line in lines] == ["not ready", "ready again"]


@pytest.mark.usefixtures("_soon")
async def test_server_stays_ready_when_schema_moves_ahead(any_application: Application) -> None:
    with capture_logs() as logs:
        async with serving_all(any_application.migrate(admin(free_port()))) as (_, port):
            move_ahead(any_application, "changes", newer("changes"))
            await port.until_not_ready("triggers", "with which this version does not work")
            with any_application.engine.begin() as connection:
                set_compatible_from(connection, any_application, "changes", head("changes"))
            await port.until_ready()
            assert MARK in (trigger_of(any_application) or "")
            if any_application.dialect == "postgresql":  # on SQLite the feed puts it back
                any_application.execute("alter table tags disable trigger airy_trio_tags_insert")
                await port.until_not_ready("triggers", "has triggers that are switched off: airy_trio_tags_insert")
                any_application.execute("drop trigger airy_trio_tags_insert on tags")
                await port.until_not_ready("triggers", "has no trigger airy_trio_tags_insert")
    assert not [line for line in logs if "of another mapping" in line.get("reason", "")]


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("files", [(), ("9999_newer.py",)], ids=["removed", "newer"])
async def test_server_stays_ready_while_another_version_is_installed(
    sqlite_application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    async with serving_all(sqlite_application.migrate(admin(free_port()))) as (_, port):
        folder = tmp_path / "migrations" / "changes"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
        monkeypatch.setattr(migrate, "migrations_folder", lambda: folder.parent)
        await trio.sleep(5 * QUICKLY_S)
        assert (await port.ready())[0] == 200


@pytest.mark.usefixtures("_soon")
async def test_attached_partition_is_logged_and_server_stays_ready(postgres_application: Application) -> None:
    postgres_application.execute(
        "create table tags (id text, name text, color text) partition by list (name)",
        "create table tags_b (like tags)",
        "insert into tags_b values ('t2', 'b', 'red')",
    )
    settings = postgres_application.migrate(admin(free_port()))
    with capture_logs() as logs:
        async with serving_all(settings) as (_, port):
            postgres_application.execute("alter table tags attach partition tags_b for values in ('b')")
            with trio.fail_after(TIMEOUT_S):
                while not any("partition" in line for line in logs):  # noqa: ASYNC110 - a log has no event for this
                    await trio.sleep(QUICKLY_S)
            assert (await port.ready())[0] == HTTPStatus.OK
    assert [line["statement"] for line in logs if "partition" in line] == ['update public.tags_b set "id" = "id"']


@pytest.mark.usefixtures("_soon")
async def test_stopped_database_makes_the_server_not_ready(own_postgres: Postgres) -> None:
    with application(own_postgres.url(own_postgres.create_database())) as writing:
        async with serving_all(writing.migrate(admin(free_port()))) as (_, port):
            await trio.to_thread.run_sync(own_postgres.stop)
            for part, words in (
                ("feed", "recording is interrupted: "),
                ("store", "the event store cannot be read: "),
                ("triggers", "the database cannot be queried: "),
            ):
                assert (await port.until_not_ready(part, words)).startswith(words)
            assert (await port.get("/livez")).status_code == 200
            await trio.to_thread.run_sync(own_postgres.start)
            await port.until_ready()


@pytest.mark.usefixtures("_soon")
async def test_unavailable_store_makes_the_server_not_ready(
    postgres_application: Application, own_postgres: Postgres
) -> None:
    url = own_postgres.url(own_postgres.create_database())
    settings = postgres_application.migrate(admin(free_port(), f'[log]\nurl = "{url}"\n'))
    async with serving_all(settings) as (_, port):
        await trio.to_thread.run_sync(own_postgres.stop)
        await port.until_not_ready("store", "the event store cannot be read: ")
        assert (await port.ready())[1]["triggers"]["well"]
        await trio.to_thread.run_sync(own_postgres.start)
        await port.until_ready()


async def test_unreadable_change_log_shows_as_lag(postgres_application: Application) -> None:
    settings = postgres_application.migrate(admin(free_port(), "lag_max_s = 0.5\n"))
    log = postgres_application.log_table("change_log")
    async with serving_all(settings) as (_, port):
        with postgres_application.engine.begin() as connection:
            connection.execute(sa.text(f"lock table {log} in access exclusive mode"))
            await port.until_not_ready("lag", "(0.5 s are allowed)")
            assert (await port.ready())[1]["store"]["well"]
        await port.until_ready()


@pytest.mark.usefixtures("_soon")
async def test_checks_that_wait_for_a_locked_table_do_not_add_up(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (readiness, build):
        monkeypatch.setattr(module, "TRIGGERS_TIMEOUT_S", QUICKLY_S)
    async with serving_all(postgres_application.migrate(admin(free_port()))) as (_, port):
        with postgres_application.engine.begin() as connection:
            connection.exec_driver_sql("lock table tags in access exclusive mode")
            await port.until_not_ready("triggers", "the database ")
            await trio.sleep(20 * QUICKLY_S)
            assert postgres_application.scalar("select count(*) from pg_locks where not granted") <= 2
        await port.until_ready()


async def test_moved_sqlite_file_makes_the_server_not_ready(sqlite_application: Application, tmp_path: Path) -> None:
    async with serving_all(sqlite_application.migrate(admin(free_port()))) as (_, port):
        (tmp_path / "app.db").rename(tmp_path / "elsewhere.db")
        await port.until_not_ready("feed", "is gone")
        (tmp_path / "elsewhere.db").rename(tmp_path / "app.db")
        await port.until_ready()


def watched(one: Node, faults: list[Sequence[str] | float | Exception]) -> Readiness:
    """Make the checks return these results in turn: faults after a delay in seconds, or an error."""

    async def trigger_faults() -> Sequence[str]:
        match faults.pop(0) if len(faults) > 1 else faults[0]:
            case Exception() as error:
                raise error
            case float(pause_s):
                await trio.sleep(pause_s)
                return ()
            case found:
                assert not isinstance(found, float)
                return found

    found = Readiness(one.recorder, one.log, trigger_faults, lag_max_s=10)
    found.listen()
    return found


async def test_check_of_the_triggers_times_out(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    one = node(MemoryChanges(), MemoryStore())
    found = watched(one, [1e9, ()])
    nursery.start_soon(found.run)
    await trio.sleep(TRIGGERS_PERIOD_S + TRIGGERS_TIMEOUT_S + 1)
    assert found.conditions()["triggers"].reason == f"the database has not answered for {TRIGGERS_TIMEOUT_S} s"
    await trio.sleep(TRIGGERS_PERIOD_S + 1)
    assert found.conditions()["triggers"].well
    nursery.cancel_scope.cancel()


async def test_part_that_is_not_ready_is_logged_once(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    one = node(MemoryChanges(), MemoryStore())
    found = watched(one, [DatabaseUnavailable("away"), DatabaseUnavailable("away"), ("a", "b"), ()])
    with capture_logs() as logs:
        nursery.start_soon(found.run)
        await trio.sleep(TRIGGERS_PERIOD_S * 6)
    assert [(line["event"], line.get("reason")) for line in logs] == [
        ("not ready", "the database cannot be queried: away"),
        ("ready again", None),
    ]
    nursery.cancel_scope.cancel()


async def test_lag_counts_from_the_first_unrecorded_change(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    changes = MemoryChanges()
    one = node(changes, MemoryStore())
    await one.log.open()
    found = watched(one, [()])
    await nursery.start(one.recorder.run)
    await trio.sleep(100)
    assert found.conditions()["lag"].well  # nothing happens
    assert one.recorder.lag_s == 0
    changes.away = True
    changes.write(tag(1))
    await trio.sleep(8)
    assert found.conditions()["lag"].well
    assert not found.conditions()["feed"].well
    await trio.sleep(4)
    assert found.conditions()["lag"].reason.endswith("(10 s are allowed)")
    changes.away = False
    await trio.sleep(2)
    assert all(condition.well for condition in found.conditions().values())
    nursery.cancel_scope.cancel()


async def test_server_behind_the_event_store_is_not_ready(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    store = MemoryStore()
    behind, recording = node(MemoryChanges(), store), node(MemoryChanges(), store)
    await behind.log.open()
    await recording.log.open()
    found = watched(behind, [()])
    nursery.start_soon(behind.log.watch_lag)
    await recording.log.append(recording.log.head, [event(1)], "point")
    await trio.sleep(9)
    assert found.conditions()["store"].well
    await trio.sleep(3)
    assert found.conditions()["store"].reason.startswith("events in the store have waited to be read for 1")
    nursery.start_soon(behind.log.follow)
    await trio.sleep(1)
    assert found.conditions()["store"].well
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("capture", ["triggers", "updated_at"])
async def test_locked_file_interrupts_recording(sqlite_application: Application, capture: str) -> None:
    if capture == "triggers":
        settings = sqlite_application.migrate(admin(free_port()))
    else:
        Watched(sqlite_application, "iso")
        more = f'{ONLY_TAGS}[changes]\ncapture = "updated_at"\n[log]\nstore = "memory"\n'
        settings = sqlite_application.settings(more + admin(free_port()))
    locking = sqlite3.connect(sqlite_path(sqlite_application.url), isolation_level=None)
    with capture_logs() as logs, closing(locking):
        async with serving_all(settings) as (_, port):
            await port.until_ready()
            locking.execute("begin exclusive")
            begun_at = trio.current_time()
            assert "locked" in await port.until_not_ready("feed", "recording is interrupted: ")
            assert trio.current_time() - begun_at < SQLITE_BUSY_TIMEOUT_S
            figures = await port.samples()
            assert figures["airy_trio_recording", ()] == 0
            assert figures["airy_trio_recorder_lag_seconds", ()] > 0
            locking.execute("commit")
            await port.until_ready()
    lines = [line["event"] for line in logs if str(line["event"]).startswith("recording")]
    assert lines == ["recording", "recording interrupted", "recording again"]


WAITING = "waiting for the database (database.url): "


@asynccontextmanager
async def start_that_waits(settings: Settings, words: str) -> AsyncIterator[None]:
    """Start a server, and delay its start during the block. After the block it becomes ready."""
    port = Port(settings.admin.port)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nursery.start, app.serve, settings)
            while not await port.is_open():
                pass
            assert (await port.until_not_ready("start", words)).startswith(WAITING)
            assert (await port.get("/livez")).status_code == 200
            assert (await port.get("/metrics")).status_code == 503
            with trio.fail_after(20):
                while not any("waits_for" in line for line in logs):
                    await port.ready()
            assert "listening" not in [line["event"] for line in logs]
            yield
            await port.until_ready()
            nursery.cancel_scope.cancel()
    assert [line["waits_for"] for line in logs if "waits_for" in line] == ["the database (database.url)"]


async def test_start_reports_that_it_waits_for_a_lock(any_application: Application) -> None:
    settings = any_application.migrate(f"connect_timeout_s = 30\n{admin(free_port())}")
    with any_application.engine.connect() as other:
        driver: Any = other.connection.driver_connection
        if any_application.dialect == "sqlite":
            driver.execute("begin exclusive")
        else:
            driver.execute("lock table messages")
        async with start_that_waits(settings, WAITING):
            driver.rollback()


async def test_start_reports_that_it_waits_for_the_database(own_postgres: Postgres) -> None:
    with application(own_postgres.url(own_postgres.create_database())) as writing:
        settings = writing.migrate(f"connect_timeout_s = 30\n{admin(free_port())}")
        own_postgres.stop()
        async with start_that_waits(settings, "OperationalError"):
            await trio.to_thread.run_sync(own_postgres.start)
