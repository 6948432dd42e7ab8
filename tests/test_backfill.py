"""``airy-trio backfill``: which tables, how fast, interrupted and continued, and one line for each fault."""

import math
import re
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from attrs import define, evolve, field

from airy_trio import backfill as implementation
from airy_trio.app.build import wait_until_available
from airy_trio.backfill import BackfillOptions, BackfillTaken, Progress, TableBackfill, backfill, waiting
from airy_trio.capture.inspection import inspect
from airy_trio.database import SQLITE, DatabaseUnavailable, Names, sqlite_path
from airy_trio.errors import AiryTrioError, FaultsError
from airy_trio.settings import Settings
from airy_trio.terminal import ProgressReport
from tests.application import Application, only
from tests.command_line import CommandLine
from tests.docs.pages import parts
from tests.processes import AIRY_TRIO

TIMEOUT_S = 50.0
TAGS = only(tags="")


@define
class Lines(ProgressReport):
    """Records the output of a backfill."""

    shown: list[tuple[str, int, int | None]] = field(factory=list)
    lines: list[str] = field(factory=list)
    notes: list[str] = field(factory=list)

    def progress(self, kind: str, rows: int, about: int | None, rows_per_s: float) -> None:
        assert rows_per_s > 0
        self.shown.append((kind, rows, about))

    def line(self, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def with_tags(application: Application, count: int, more: str = TAGS) -> Settings:
    """Prepare an application with rows that are older than our triggers."""
    settings = application.migrate(more)
    with application.engine.begin() as connection:
        rows = [{"id": f"t{number:05}"} for number in range(count)]
        connection.execute(sa.text("insert into tags (id, name, color) values (:id, 'flag', 'red')"), rows)
    application.execute(f"delete from {application.log_table('change_log')}")
    return settings


def logged(application: Application) -> list[tuple[str, str, str]]:
    """Return kind, operation and first key of the change log, in order."""
    log = application.log_table("change_log")
    with application.engine.begin() as connection:
        rows = connection.execute(sa.text(f"select kind, operation, key_1 from {log} order by {application.log_order}"))
        return [(row[0], row[1], row[2]) for row in rows]


def ids(count: int) -> set[str]:
    return {f"t{number:05}" for number in range(count)}


def config_of(application: Application, folder: Path, more: str = "") -> str:
    config = folder / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "{application.url}"\n{more}\n[admin]\nport = 0\n')
    return str(config)


async def test_default_is_every_mapped_type_of_keep_current(any_application: Application) -> None:
    settings = any_application.migrate('[log]\nkeep_current = ["tag.updated", "channel.updated", "message.updated"]\n')
    any_application.message()
    any_application.channel()
    any_application.metadata("channel", "ch1", "a", "b")
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    report = Lines()
    await backfill(settings, BackfillOptions(), report)
    assert [(kind, operation) for kind, operation, _ in logged(any_application)] == [
        ("messages", "B"), ("messages", "U"), ("messages", "E"),
        ("channels", "B"), ("channels", "U"), ("channels", "E"),
        ("tags", "B"), ("tags", "E"),
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in report.lines[:3]] == ["messages", "channels", "tags"]
    assert "replay:current has message.updated, channel.updated, tag.updated completely" in report.lines[3]


@pytest.mark.parametrize("name", ["messages", "message", "message.updated"])
async def test_tables_by_kind_or_type(any_application: Application, name: str) -> None:
    settings = any_application.migrate()
    report = Lines()
    await backfill(settings, BackfillOptions(names=(name, "messages")), report)
    assert [(kind, operation) for kind, operation, _ in logged(any_application)] == [
        ("messages", "B"),
        ("messages", "E"),
    ]
    assert "not in log.keep_current" in report.lines[-1]


async def test_pages_cover_the_table(any_application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 10)
    settings = with_tags(any_application, 25)
    any_application.execute("analyze tags")
    report = Lines()
    await backfill(settings, BackfillOptions(), report)
    assert {key for _, operation, key in logged(any_application) if operation == "U"} == ids(25)
    about = None if any_application.dialect == SQLITE else 25
    assert report.shown == [("tags", rows, about) for rows in (10, 20, 25)]
    assert report.lines[0].startswith("tags: 25 rows ")


async def test_interrupted_backfill_continues(any_application: Application) -> None:
    settings = with_tags(any_application, 100)
    with trio.move_on_after(0.5) as scope:
        await backfill(settings, BackfillOptions(rate=40), Lines())
    assert scope.cancelled_caught
    before = logged(any_application)
    written = {key for _, operation, key in before if operation == "U"}
    assert 0 < len(written) < 100
    report = Lines()
    await backfill(settings, BackfillOptions(), report)
    assert re.fullmatch(r"tags: continuing after \d+ rows", report.notes[0])
    after = logged(any_application)
    assert sorted(key for _, operation, key in after if operation == "U") == sorted(ids(100))  # each once
    assert [(operation, key) for _, operation, key in after if operation != "U"] == [
        ("B", before[0][2]), ("E", before[0][2])
    ]  # fmt: skip


async def test_restart_begins_again(any_application: Application) -> None:
    settings = with_tags(any_application, 100)
    with trio.move_on_after(0.5):
        await backfill(settings, BackfillOptions(rate=40), Lines())
    report = Lines()
    await backfill(settings, BackfillOptions(restart=True), report)
    assert report.notes == []
    found = logged(any_application)
    begun = [key for _, operation, key in found if operation == "B"]
    assert (len(begun), [key for _, operation, key in found if operation == "E"]) == (2, begun[1:])
    again = [key for _, _, key in found[found.index(("tags", "B", begun[1])) + 1 : -1]]
    assert set(again) == ids(100)


async def test_rate_holds_for_each_page(any_application: Application) -> None:
    settings = with_tags(any_application, 100)
    times: list[float] = []

    class Timed(Lines):
        def progress(self, kind: str, rows: int, about: int | None, rows_per_s: float) -> None:
            times.append(trio.current_time())
            super().progress(kind, rows, about, rows_per_s)

    report = Timed()
    begun_at = trio.current_time()
    await backfill(settings, BackfillOptions(rate=100), report)
    assert trio.current_time() - begun_at >= 0.95
    pages = [rows for _, rows, _ in report.shown]
    assert pages == [50, 100]
    assert times[1] - times[0] >= 0.45


async def test_infinite_rate_is_no_limit(any_application: Application) -> None:
    report = Lines()
    await backfill(with_tags(any_application, 100), BackfillOptions(rate=math.inf), report)
    assert [rows for _, rows, _ in report.shown] == [100]


async def test_second_backfill_takes_over(any_application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 50)
    settings = with_tags(any_application, 200)
    taken: list[BackfillTaken] = []

    async def first() -> None:
        try:
            await backfill(settings, BackfillOptions(rate=40), Lines())
        except BackfillTaken as error:
            taken.append(error)

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.sleep(0.7)
            await backfill(settings, BackfillOptions(), Lines())
    assert len(taken) == 1
    found = logged(any_application)
    assert sorted(key for _, operation, key in found if operation == "U") == sorted(ids(200))
    assert [operation for _, operation, _ in found if operation != "U"] == ["B", "E"]


async def test_page_is_tried_again_after_a_long_outage(
    any_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application may hold the write lock of SQLite for longer than one attempt waits, and than two."""
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 10)
    settings = with_tags(any_application, 25)
    steps = {name: getattr(TableBackfill, name) for name in ("begin", "write_page")}
    failures = {"begin": [False, True, True, True], "write_page": [False, True, True]}

    def failing(name: str) -> Callable[..., Progress]:
        def step(unit: TableBackfill, *arguments: object, **options: object) -> Progress:
            progress: Progress = steps[name](unit, *arguments, **options)
            if failures[name] and failures[name].pop(0):
                reason = "the database is locked"
                raise DatabaseUnavailable(reason)
            return progress

        return step

    for name in steps:
        monkeypatch.setattr(TableBackfill, name, failing(name))
    report = Lines()
    with trio.fail_after(TIMEOUT_S):
        await backfill(settings, BackfillOptions(), report)
    assert failures == {"begin": [], "write_page": []}
    assert report.notes == ["tags: trying again: the database is locked"] * 2
    found = logged(any_application)
    assert [operation for _, operation, _ in found if operation != "U"] == ["B", "E"]
    assert sorted(key for _, operation, key in found if operation == "U") == sorted(ids(25))


@pytest.mark.parametrize("waiting_rows", [21, 40])  # those of the first page, and one less than those of two
async def test_waits_for_the_recorder(
    any_application: Application, monkeypatch: pytest.MonkeyPatch, waiting_rows: int
) -> None:
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 20)
    monkeypatch.setattr(implementation, "WAITING_ROWS_MAX", waiting_rows)
    settings = with_tags(any_application, 60)
    monkeypatch.setattr(implementation, "WAITING_PATIENCE_S", 0.2)
    monkeypatch.setattr(implementation, "WAITING_POLL_S", 0.05)
    report = Lines()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backfill, settings, BackfillOptions(), report)
            while not report.notes:  # noqa: ASYNC110 - the report of a backfill has no event
                await trio.sleep(0.05)
            rows = logged(any_application)
            assert len(rows) == 41  # the page that goes beyond the limit is the last one
            assert [note for note in report.notes if "no server seems to record them" in note] == report.notes
            assert len(report.notes) == 1
            any_application.execute(f"delete from {any_application.log_table('change_log')}")
    assert {key for _, operation, key in [*rows, *logged(any_application)] if operation == "U"} == ids(60)


async def test_slow_recorder_is_not_reported(any_application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server records one row between two looks at the change log."""
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 20)
    monkeypatch.setattr(implementation, "WAITING_ROWS_MAX", 30)
    settings = with_tags(any_application, 60)
    log = any_application.log_table("change_log")

    order = "seq" if any_application.dialect == SQLITE else "txid, at"

    def waiting_then_recorded(connection: sa.Connection, names: Names, limit: int) -> tuple[int, Any]:
        found = waiting(connection, names, limit)
        connection.exec_driver_sql(
            f"delete from {log} where ({order}) in (select {order} from {log} order by {order} limit 1)"
        )
        return found

    monkeypatch.setattr(implementation, "WAITING_PATIENCE_S", 0.0)
    monkeypatch.setattr(implementation, "WAITING_POLL_S", 0.0)
    monkeypatch.setattr(implementation, "waiting", waiting_then_recorded)
    report = Lines()
    with trio.fail_after(TIMEOUT_S):
        await backfill(settings, BackfillOptions(), report)
    assert report.notes == []
    assert report.lines[0].startswith("tags: 60 rows ")


async def test_page_on_sqlite_is_followed_by_as_long_a_pause(
    sqlite_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second page takes as long as the application holds the write lock."""
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 20)
    settings = with_tags(sqlite_application, 40)
    times: list[float] = []
    held_s = 0.3

    class Timed(Lines):
        def progress(self, kind: str, rows: int, about: int | None, rows_per_s: float) -> None:
            super().progress(kind, rows, about, rows_per_s)
            times.append(trio.current_time())
            if len(times) == 1:
                locking.execute("begin immediate")
                nursery.start_soon(release)

    async def release() -> None:
        await trio.sleep(held_s)
        locking.execute("rollback")

    with closing(sqlite3.connect(sqlite_path(sqlite_application.url), isolation_level=None)) as locking:
        async with trio.open_nursery() as nursery:
            await backfill(settings, BackfillOptions(), Timed())
    assert times[1] - times[0] >= 1.9 * held_s


async def until_it_waits(application: Application) -> None:
    """Return when a session waits for a lock."""
    waits = "select count(*) from pg_locks where not granted"
    while not application.scalar(waits):  # noqa: ASYNC110 - the database notifies nobody
        await trio.sleep(0.02)


async def test_last_key_is_looked_for_after_the_begin_is_committed(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is locked just after the check of the tables, so that the last key cannot be read."""
    settings = with_tags(postgres_application, 3)

    async def check_then_lock(*arguments: Any) -> Any:  # noqa: ANN401 - of any check
        checked = await wait_until_available(*arguments)
        locking.exec_driver_sql("lock table tags in access exclusive mode")
        return checked

    monkeypatch.setattr(implementation, "wait_until_available", check_then_lock)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            with postgres_application.engine.begin() as locking:
                nursery.start_soon(backfill, settings, BackfillOptions(), Lines())
                await until_it_waits(postgres_application)
                assert [operation for _, operation, _ in logged(postgres_application)] == ["B"]
    assert [operation for _, operation, _ in logged(postgres_application)] == ["B", "U", "U", "U", "E"]


async def test_direct_url_is_used_if_there_is_one(postgres_application: Application) -> None:
    settings = with_tags(postgres_application, 3)
    pooled = "postgresql://nobody@127.0.0.1:1/none"
    database = evolve(settings.database, url=pooled, direct_url=postgres_application.url)
    await backfill(evolve(settings, database=database), BackfillOptions(), Lines())
    assert len(logged(postgres_application)) == 5


async def test_isolation_level_of_the_database_does_not_matter(postgres_application: Application) -> None:
    """Another program changes the row with the progress while the backfill waits for it."""
    settings = with_tags(postgres_application, 3)
    state = postgres_application.log_table("change_state")
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    report = Lines()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            with postgres_application.engine.begin() as changing:
                changing.exec_driver_sql(f"update {state} set backfill = backfill")
                nursery.start_soon(backfill, settings, BackfillOptions(), report)
                await until_it_waits(postgres_application)
    assert (report.notes, len(logged(postgres_application))) == ([], 5)


async def test_page_that_an_outage_interrupts_is_not_written_twice(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session of the command ends while it writes a page, which is written nevertheless."""
    monkeypatch.setattr(implementation, "PAGE_ROWS_MAX", 20)
    settings = with_tags(postgres_application, 60)
    with postgres_application.engine.begin() as connection:
        unit = TableBackfill(postgres_application.names, inspect(connection, settings.tables)["tags"])

    class Interrupting(Lines):
        def progress(self, kind: str, rows: int, about: int | None, rows_per_s: float) -> None:
            super().progress(kind, rows, about, rows_per_s)
            if rows == 20:
                unit.write_page(writing, unit.begin(writing), 20)
                nursery.start_soon(interrupt)

    async def interrupt() -> None:
        await until_it_waits(postgres_application)
        postgres_application.execute("select pg_terminate_backend(pid) from pg_locks where not granted")
        writing.commit()

    report = Interrupting()
    with trio.fail_after(TIMEOUT_S), postgres_application.engine.connect() as writing:
        async with trio.open_nursery() as nursery:
            await backfill(settings, BackfillOptions(), report)
    assert [note.partition(": ")[2][:12] for note in report.notes] == ["trying again"]
    found = logged(postgres_application)
    assert [operation for _, operation, _ in found] == ["B", *["U"] * 60, "E"]
    assert {key for _, operation, key in found if operation == "U"} == ids(60)


async def test_capture_by_updated_at_has_no_backfill(any_application: Application) -> None:
    settings = any_application.settings('[changes]\ncapture = "updated_at"\n[log]\nstore = "memory"\n')
    with pytest.raises(AiryTrioError, match=r'^changes\.capture is "updated_at"'):
        await backfill(settings, BackfillOptions(), Lines())


FAULTS = {
    "unknown": (("tickets",), TAGS, '"tickets" is neither a kind (messages, metadata, channels, tags) nor a type'),
    "deleted": (("tag.deleted",), TAGS, '"tag.deleted" is neither a kind'),
    "unmapped": (("messages",), TAGS, "messages: no table is mapped (database.tables.messages.name)"),
    "none": ((), f"{only(messages='')}", "log.keep_current names no type of a mapped table"),
}


@pytest.mark.parametrize("name", list(FAULTS))
async def test_one_line_for_each_fault(any_application: Application, name: str) -> None:
    names, more, words = FAULTS[name]
    any_application.migrate()
    with pytest.raises(FaultsError) as caught:
        await backfill(any_application.settings(more), BackfillOptions(names=names), Lines())
    assert len(caught.value.faults) == 1
    assert words in caught.value.faults[0]


async def test_missing_right_is_one_line(postgres_application: Application) -> None:
    with_tags(postgres_application, 1)
    role = "airy_backfill_without_rights"
    postgres_application.execute(f"drop role if exists {role}", f"create role {role} login")
    postgres_application.execute(
        f"grant usage on schema airy_trio to {role}",
        f"grant select on all tables in schema airy_trio, public to {role}",
    )
    try:
        url = sa.make_url(postgres_application.url).set(username=role).render_as_string(hide_password=False)
        with pytest.raises(FaultsError) as caught:
            await backfill(Application(url).settings(TAGS), BackfillOptions(), Lines())
    finally:
        postgres_application.execute(f"drop owned by {role}", f"drop role {role}")
    assert len(caught.value.faults) == 1
    assert "permission denied for table change_state" in caught.value.faults[0]


async def test_rights_of_a_server_are_enough(postgres_application: Application) -> None:
    from airy_trio.migrate import migrate  # noqa: PLC0415

    settings = with_tags(postgres_application, 3)
    role = "airy_backfill_server"
    postgres_application.execute(f"drop role if exists {role}", f"create role {role} login")
    migrate(settings, grant=role)
    url = sa.make_url(postgres_application.url).set(username=role).render_as_string(hide_password=False)
    other = Application(url)
    try:
        await backfill(other.settings(TAGS), BackfillOptions(), Lines())
        assert len(logged(postgres_application)) == 5
    finally:
        other.engine.dispose()
        postgres_application.execute(f"drop owned by {role}", f"drop role {role}")


def test_command_prints_what_follows(any_application: Application, tmp_path: Path, command_line: CommandLine) -> None:
    with_tags(any_application, 3)
    ended = command_line("backfill", "tags", "--config", config_of(any_application, tmp_path, TAGS))
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first.startswith("tags: 3 rows written to the change log in ")
    assert "replay:current has tag.updated completely" in second


def test_commands_of_the_page_send_the_rows_that_they_name(
    sqlite_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    [commands] = parts("how-to/backfill.md", "sh")
    with_tags(sqlite_application, 1, "")
    sqlite_application.message()
    sent = []
    for line in commands.replace("prod.toml", config_of(sqlite_application, tmp_path)).splitlines():
        before = len(logged(sqlite_application))
        ended = command_line(*shlex.split(line, comments=True)[1:])
        assert (ended.code, ended.err) == (0, "")
        sent.append([key for _, operation, key in logged(sqlite_application)[before:] if operation == "U"])
    assert sent == [["t00000"], ["m1"], ["t00000"]]


def test_migrate_then_backfill(any_application: Application, tmp_path: Path, command_line: CommandLine) -> None:
    any_application.execute("create table tags (id text primary key, name text, color text)")
    any_application.execute("insert into tags values ('t1', 'flag', 'red')")
    ended = command_line("migrate", "--backfill", "--config", config_of(any_application, tmp_path, TAGS))
    assert ended.code == 0
    assert ended.out.startswith("watching tags\ntags: 1 row")
    assert [(operation, key) for _, operation, key in logged(any_application)][1] == ("U", "t1")


@pytest.mark.parametrize("other", ["--sql", "--remove", "--adopt-log"])
def test_migrate_backfill_excludes(
    sqlite_application: Application, tmp_path: Path, command_line: CommandLine, other: str
) -> None:
    ended = command_line("migrate", "--backfill", other, "--config", config_of(sqlite_application, tmp_path))
    assert ended.code == 2


@asynccontextmanager
async def running(config: str, rate: int) -> AsyncIterator[trio.Process]:
    """Run the command in a process of its own."""
    command = [*AIRY_TRIO, "backfill", "--rate", str(rate), "--config", config]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        with trio.move_on_after(10, shield=True):
            await process.wait()


async def until_logged(application: Application, count: int) -> None:
    """Return when the change log has ``count`` rows."""
    while len(logged(application)) < count:  # noqa: ASYNC110 - another process writes them
        await trio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_keeps_the_mark(any_application: Application, tmp_path: Path, number: signal.Signals) -> None:
    with_tags(any_application, 500)
    with trio.fail_after(TIMEOUT_S):
        async with running(config_of(any_application, tmp_path, TAGS), 50) as process:
            await until_logged(any_application, 2)
            process.send_signal(number)
            assert await process.wait() == 1
            assert process.stderr is not None
            err = b"".join([part async for part in process.stderr]).decode()
    assert err == "airy-trio: interrupted; the next run of airy-trio backfill continues\n"
    stored = any_application.scalar(f"select backfill from {any_application.log_table('change_state')}")
    assert '"tags"' in stored


async def test_killed_command_continues(any_application: Application, tmp_path: Path) -> None:
    settings = with_tags(any_application, 500)
    with trio.fail_after(TIMEOUT_S):
        async with running(config_of(any_application, tmp_path, TAGS), 100) as process:
            await until_logged(any_application, 60)
            process.kill()
        await backfill(settings, BackfillOptions(), Lines())
    found = logged(any_application)
    assert sorted(key for _, operation, key in found if operation == "U") == sorted(ids(500))
    assert found[0][2] == found[-1][2]
