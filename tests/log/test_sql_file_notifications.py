"""``wait`` of an event log in an SQLite file returns after each commit, and if the version cannot be read."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from airy_trio.database import DatabaseOptions, DatabaseUnavailable
from airy_trio.database.sqlite import SETTLED_S, FileVersion, FileVersions
from airy_trio.log.sql.sqlite import WRITER_LOOK_S
from airy_trio.log.store import EventStore, Position
from tests.log.places import event, migrate_new_file, open_sql

TIMEOUT_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[EventStore]:
    options = DatabaseOptions(url=f"sqlite:///{path}")
    await trio.to_thread.run_sync(migrate_new_file, options)
    async with open_sql(options) as opened:
        yield opened


def write(path: Path) -> None:
    """Commit something that does not move the head."""
    with closing(sqlite3.connect(path, timeout=TIMEOUT_S)) as connection, connection:
        connection.execute("insert into airy_trio_acknowledged select hex(randomblob(8)), '', '', '', 0, 0")


async def notified(store: EventStore, head: Position, *, within_s: float = TIMEOUT_S) -> bool:
    with trio.move_on_after(within_s) as scope:
        await store.wait(head)
    return not scope.cancelled_caught


@pytest.mark.parametrize("appended", [False, True])
async def test_wait_returns_once_for_each_commit(store: EventStore, path: Path, appended: bool) -> None:
    head = (await store.bounds()).head
    if appended:  # by this process, which then looks less often
        head = head.at((await store.append(head, [event(1)], "point"))[-1].offset)
    assert await notified(store, head), "the first wait has no version to compare"
    quiet = partial(notified, store, head, within_s=2 * (SETTLED_S + WRITER_LOOK_S))
    assert not await quiet()
    for _ in range(2):
        write(path)
        assert await notified(store, head)
    assert not await quiet()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notified, store, head)
        await trio.sleep(2 * SETTLED_S)
        write(path)  # while a task waits
    assert not await quiet()


async def test_wait_returns_if_the_version_cannot_be_read(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(_versions: FileVersions, *, closely: bool = False) -> FileVersion:  # noqa: ASYNC124 - awaited
        raise DatabaseUnavailable("locked")

    head = (await store.bounds()).head
    assert await notified(store, head)
    monkeypatch.setattr(FileVersions, "ask", unavailable)
    for _ in range(3):
        assert await notified(store, head)
