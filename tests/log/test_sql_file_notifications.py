"""Notifications of an event log in an SQLite file: every commit by others, and always an answer in the end."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from airy_trio.database.sqlite import SETTLED_S
from airy_trio.log.sql.sqlite import WRITER_LOOK_S, FileNotifications

TIMEOUT_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma journal_mode = wal")
    write(path, "create table events (x)")
    return path


def write(path: Path, statement: str = "insert into events values (1)") -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


async def notified(notifications: FileNotifications, *, within_s: float = TIMEOUT_S, seldom: bool = False) -> bool:
    with trio.move_on_after(within_s) as scope:
        await notifications.wait(seldom=seldom)
    return not scope.cancelled_caught


async def test_wait_returns_once_for_each_commit(path: Path) -> None:
    notifications = FileNotifications(path)
    assert await notified(notifications), "everything may be new at first"
    assert not await notified(notifications, within_s=2 * SETTLED_S)
    write(path)
    assert await notified(notifications)
    assert not await notified(notifications, within_s=2 * SETTLED_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notified, notifications)
        await trio.sleep(2 * SETTLED_S)
        write(path)  # while it is waited for
    assert not await notified(notifications, within_s=2 * SETTLED_S)
    write(path)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            write(path)
            assert await notified(notifications, seldom=True)
        nursery.start_soon(partial(notified, notifications, seldom=True))
        await trio.sleep(2 * WRITER_LOOK_S)
        write(path)
    await notifications.aclose()


async def test_wait_returns_if_the_file_is_missing_or_unreadable(path: Path) -> None:
    notifications = FileNotifications(path)
    assert await notified(notifications)
    remove(path)
    for _ in range(3):
        assert await notified(notifications)
    await notifications.aclose()
    notifications = FileNotifications(path)
    spoil(path)
    for _ in range(3):
        assert await notified(notifications)
    await notifications.aclose()
