"""The SQLite feed: replaced files, restored triggers, and writers that it must not block."""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
import trio

from airy_trio.capture.feed import ChangedObject, ResumePointLost, Tag, TagGone
from airy_trio.capture.queries import BoundQuery, Query
from airy_trio.database import DatabaseUnavailable, sqlite_path
from tests.application import Application
from tests.capture.feeds import feed_of, read_all


@pytest.fixture(params=["wal", "delete"])
def application(request: pytest.FixtureRequest, sqlite_application: Application) -> Application:
    """An application in either journal mode, which is a property of the file."""
    sqlite_application.migrate()
    with sqlite3.connect(sqlite_path(sqlite_application.url)) as connection:
        connection.execute(f"pragma journal_mode = {request.param}")
    connection.close()
    return sqlite_application


@pytest.fixture
def log_output() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as entries:
        yield entries  # type: ignore[misc]


def ids(objects: Sequence[ChangedObject]) -> list[object]:
    return [changed.id for changed in objects if isinstance(changed, Tag)]


def copy_of(application: Application, name: str) -> Path:
    """Make a consistent copy of the file, with SQLite's own backup."""
    path = sqlite_path(application.url)
    copy = path.with_name(name)
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    source.backup(target)
    source.close()
    target.close()
    return copy


def restore(copy: Path, application: Application) -> None:
    """Overwrite the file with the copy, as SQLite's ``.restore`` does."""
    source, target = sqlite3.connect(copy), sqlite3.connect(sqlite_path(application.url))
    source.backup(target)
    source.close()
    target.close()


@pytest.mark.parametrize("rows_after", [0, 1, 5])
async def test_restored_older_copy_is_noticed(application: Application, rows_after: int) -> None:
    async with feed_of(application, application.settings()) as feed:
        application.tag("kept")
        _, after, _ = await read_all(feed, await feed.origin())
        copy = copy_of(application, "copy.db")
        application.tag("lost")
        _, after, _ = await read_all(feed, after)
        restore(copy, application)
        for number in range(rows_after):
            application.tag(f"t{number}")  # these rows get the numbers of rows that were read before
        with pytest.raises(ResumePointLost):
            await feed.read(after, 10)
        after = await feed.restart()
        application.tag("new")
        assert ids((await read_all(feed, after))[0]) == ["new"]


async def test_restored_present_copy_is_the_same_history(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        application.tag("t1")
        _, after, _ = await read_all(feed, await feed.origin())
        restore(copy_of(application, "copy.db"), application)
        application.tag("t2")
        assert ids((await read_all(feed, after))[0]) == ["t2"]


async def test_file_in_place_of_another_is_noticed_while_waiting(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        copy = copy_of(application, "copy.db")
        application.tag("lost")
        _, after, _ = await read_all(feed, await feed.origin())
        application.engine.dispose()
        await feed.read(after, 10)
        for rest in sqlite_path(application.url).parent.glob("app.db-*"):
            rest.unlink()  # otherwise SQLite would apply the journal of the old file to the new one
        copy.replace(sqlite_path(application.url))
        with trio.fail_after(5):
            await feed.wait()
        with pytest.raises(ResumePointLost):
            await feed.read(after, 10)
        after = await feed.restart()
        application.tag("new")
        assert ids((await read_all(feed, after))[0]) == ["new"]


async def test_missing_file_is_unavailable_until_it_is_back(application: Application) -> None:
    path = sqlite_path(application.url)
    async with feed_of(application, application.settings()) as feed:
        start = await feed.origin()
        await feed.read(start, 10)
        application.tag("t1")
        application.engine.dispose()
        shutil.move(path, path.with_name("away.db"))
        with pytest.raises(DatabaseUnavailable, match="is gone"):
            await feed.wait()
        assert not path.exists()
        shutil.move(path.with_name("away.db"), path)
        assert ids((await read_all(feed, start))[0]) == ["t1"]


async def test_reading_does_not_lock_out_an_impatient_application(sqlite_application: Application) -> None:
    """With a busy time-out of 0 it would fail at once with "database is locked". In WAL mode readers lock nothing."""
    commits = 300
    hasty = sqlite3.connect(
        sqlite_path(sqlite_application.url), timeout=0, isolation_level=None, check_same_thread=False
    )
    hasty.execute("pragma journal_mode = wal")
    settings = sqlite_application.migrate()

    def write() -> None:
        for number in range(commits):
            hasty.execute("insert into tags values (?, 'flag', 'red')", [f"t{number}"])

    async with feed_of(sqlite_application, settings) as feed:
        after = await feed.origin()
        seen: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, write)
            with trio.fail_after(30):
                while len(seen) < commits:
                    objects, after, _ = await read_all(feed, after, 7)
                    seen += ids(objects)
                    if not objects:
                        await feed.wait()
    hasty.close()
    assert seen == [f"t{number}" for number in range(commits)]


async def test_large_transaction_of_a_writer_delays_reading(sqlite_application: Application) -> None:
    """In rollback-journal mode a large transaction locks readers out until it commits."""
    settings = sqlite_application.migrate()
    writer = sqlite3.connect(sqlite_path(sqlite_application.url), isolation_level=None)
    async with feed_of(sqlite_application, settings) as feed:
        after = await feed.origin()
        await feed.read(after, 10)
        writer.execute("begin exclusive")
        writer.execute("insert into tags values ('t1', 'flag', 'red')")
        with trio.move_on_after(0.1) as waiting:
            await feed.wait()
        assert waiting.cancelled_caught
        writer.execute("commit")
        with trio.fail_after(5):
            await feed.wait()
        assert ids((await read_all(feed, after))[0]) == ["t1"]
    writer.close()


async def test_odd_keys_do_not_fail_a_batch(application: Application) -> None:
    async with feed_of(application, application.settings()) as feed:
        start = await feed.origin()
        application.execute(
            "insert into tags values (cast(x'ff41' as text), 'flag', 'red')",
            "insert into tags values (x'00ff', 'flag', 'red')",
            "insert into tags values (9e999, 'flag', 'red')",
            "insert into tags values ('good', cast(x'ff' as text), 'red')",
            "insert into messages (id, conversation_id, channel_id, delivery_state, from_contact, sent_at, source) "
            "values (cast(x'fe' as text), 'c1', 'ch1', 'pending', true, 'x', 'y')",
            "insert into metadata (subject, identifier, key) values ('message', cast(x'fd' as text), 'k')",
        )
        objects, _, _ = await read_all(feed, start)
    assert {str(changed.id) for changed in objects if isinstance(changed, Tag)} == {
        "b'\\xffA'",
        "b'\\x00\\xff'",
        "Inf",
        "good",
    }
    assert len(objects) == 6


def test_no_key_counts_as_refused_after_an_outage(sqlite_application: Application) -> None:
    """The recorder skips the object of a refused key permanently."""
    bound = BoundQuery(Query(sa.text("select value from json_each(:keys)")), ["one", "two"])
    with sqlite_application.engine.connect() as connection:
        interrupts = iter([1])
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: next(interrupts, 0), 1)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            bound.answer(connection)
        assert bound.answer(connection).rows == [("one",), ("two",)]


RECREATED = (
    "create table new_tags (id text primary key, name text unique, color text, more text)",
    "insert into new_tags select id, name, color, null from tags",
    "drop table tags",
    "alter table new_tags rename to tags",
)


@pytest.mark.parametrize("name", ["tags", "Tags"])
async def test_triggers_of_a_recreated_table_are_restored(
    application: Application, log_output: list[dict[str, Any]], name: str
) -> None:
    """Also if the new name differs in case."""
    async with feed_of(application, application.settings()) as feed:
        application.tag("t1", name="one")
        _, after, _ = await read_all(feed, await feed.origin())
        application.execute(*RECREATED[:-1], f"alter table new_tags rename to {name}")
        await feed.wait()
        assert (await feed.read(after, 10)).changes == 0
        application.tag("t2", name="two")
        objects, after, _ = await read_all(feed, after)
        assert ids(objects) == ["t2"]
        application.execute("replace into tags (id, name) values ('t3', 'two')")  # the name has become unique
        objects, after, _ = await read_all(feed, after)
        assert objects == [TagGone(id="t2"), Tag(id="t3", name="two", color=None)]
    assert [(entry["log_level"], entry["event"]) for entry in log_output] == [
        ("warning", "triggers restored; rows written without them were not captured")
    ]
    assert "airy_trio_tags_delete, airy_trio_tags_insert, airy_trio_tags_update" in log_output[0]["triggers"][0]


async def test_triggers_without_a_mapped_column_are_not_restored(
    application: Application, log_output: list[dict[str, Any]]
) -> None:
    """They would make the application's writes fail."""
    async with feed_of(application, application.settings()) as feed:
        application.channel()
        _, after, _ = await read_all(feed, await feed.origin())
        application.execute(*(step.replace("color", "colour") for step in RECREATED[:1]))
        application.execute("drop table tags", "alter table new_tags rename to tags")
        for _ in range(2):
            assert (await feed.read(after, 10)).changes == 0
        application.execute("insert into tags (id) values ('t1')", "update channels set connected = false")
        assert len((await read_all(feed, after))[0]) == 1
    (entry,) = log_output
    assert (entry["log_level"], entry["event"]) == ("error", "triggers are missing and cannot be restored")
    assert entry["reason"] == 'database.tables.tags: the table "tags" is without its columns color'


async def test_other_changes_of_the_schema_are_ignored(
    application: Application, log_output: list[dict[str, Any]]
) -> None:
    async with feed_of(application, application.settings()) as feed:
        after = await feed.origin()
        await feed.read(after, 10)
        application.execute("create table other (x)", "alter table tags add column more text")
        application.tag()
        assert len((await read_all(feed, after))[0]) == 1
    assert log_output == []
