"""The bell of an event log in an SQLite file: it is heard of every commit by others, and never silent for good."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from airy_trio.database.sqlite import SETTLED_S
from airy_trio.log.sql.sqlite import WRITER_POLL_S, FileNotifications

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


async def heard(bell: FileNotifications, *, within_s: float = TIMEOUT_S, seldom: bool = False) -> bool:
    with trio.move_on_after(within_s) as scope:
        await bell.wait(seldom=seldom)
    return not scope.cancelled_caught


async def test_it_is_heard_once_for_what_has_been_committed_since(path: Path) -> None:
    bell = FileNotifications(path)
    assert await heard(bell), "before anything was asked, all may be new"
    assert not await heard(bell, within_s=2 * SETTLED_S)
    write(path)
    assert await heard(bell)
    assert not await heard(bell, within_s=2 * SETTLED_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heard, bell)
        await trio.sleep(2 * SETTLED_S)
        write(path)  # while it is waited for
    assert not await heard(bell, within_s=2 * SETTLED_S)
    write(path)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            write(path)
            assert await heard(bell, seldom=True)
        nursery.start_soon(partial(heard, bell, seldom=True))
        await trio.sleep(2 * WRITER_POLL_S)
        write(path)
    await bell.aclose()


async def test_all_who_wait_hear_it(path: Path) -> None:
    bell = FileNotifications(path)
    assert await heard(bell)
    told: list[bool] = []

    async def wait() -> None:
        told.append(await heard(bell))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(SETTLED_S)
        write(path)
    assert told == [True] * 3
    await bell.aclose()


async def test_a_file_that_is_gone_or_cannot_be_read_is_left_to_who_looks(path: Path) -> None:
    bell = FileNotifications(path)
    assert await heard(bell)
    remove(path)
    for _ in range(3):
        assert await heard(bell)
    await bell.aclose()
    bell = FileNotifications(path)
    spoil(path)
    for _ in range(3):
        assert await heard(bell)
    await bell.aclose()
