"""Commits to an SQLite file are detected soon, and an idle file is seldom read."""

import errno
import os
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from airy_trio.database import DatabaseUnavailable, DedicatedConnection, sqlite, sqlite_engine
from airy_trio.database.sqlite import (
    LOOK_LOCKED_MAX_S,
    LOOK_QUIET_S,
    LOOK_SHARE,
    LOOK_UNTIL_S,
    FileEvents,
    FileVersion,
    FileVersions,
)
from tests.descriptors import no_descriptor_left

SOON_S = 0.3
"""Much less than ``LOOK_QUIET_S``."""
LOCKED_S = 0.02
LATE_S = 0.007
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs inotify")


class Follower:
    """Waits for commits as a feed does, and counts its reads."""

    def __init__(self, path: Path) -> None:
        self._connection = DedicatedConnection(sqlite_engine(path))
        self.versions = FileVersions(self._connection, self._connection.aclose)
        self._seen: FileVersion | None = None
        self.looks = 0

    async def begin(self) -> None:
        self._seen = await self.versions.ask()

    async def next(self) -> None:
        """Return after the next commit."""
        while True:
            await self.versions.pause(after_s=0.0)
            self.looks += 1
            version = await self.versions.ask(closely=True)
            if version != self._seen:
                self._seen = version
                return

    async def aclose(self) -> None:
        await self._connection.aclose()


@pytest.fixture(params=["wal", "delete"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    write_table(path, request.param)
    return path


def write_table(path: Path, journal_mode: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"pragma journal_mode = {journal_mode}")
        connection.execute("create table t (x)")


@pytest.fixture
async def follower(path: Path) -> AsyncGenerator[Follower]:
    follower = Follower(path)
    await follower.begin()
    yield follower
    await follower.aclose()


def write(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("insert into t values (1)")


def replace_by_a_copy(path: Path, copy: Path) -> None:
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def link_to_a_copy(link: Path, path: Path, copy: Path) -> None:
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    new = link.with_suffix(".new")
    new.symlink_to(copy)
    new.replace(link)


async def quiet(follower: Follower, seconds: float = 2 * LOOK_UNTIL_S) -> None:
    with trio.move_on_after(seconds):
        await follower.next()
        pytest.fail("nothing was written")


@linux_only
async def test_every_commit_is_noticed_by_a_report(follower: Follower, path: Path) -> None:
    for _ in range(20):
        await trio.to_thread.run_sync(write, path)
        with trio.fail_after(SOON_S):
            await follower.next()
    await quiet(follower)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.next)
        await trio.sleep(SOON_S)
        await trio.to_thread.run_sync(write, path)
        nursery.cancel_scope.deadline = trio.current_time() + SOON_S
    assert not nursery.cancel_scope.cancelled_caught


@linux_only
async def test_commit_that_locks_the_file_is_noticed_when_it_ends(follower: Follower, path: Path) -> None:
    """SQLite's own waits for a lock would end 33 ms after the first attempt."""
    late_s = []
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        for _ in range(10):
            writer.execute("begin exclusive")
            writer.execute("insert into t values (1)")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.next)
                await trio.sleep(LOCKED_S)
                writer.execute("commit")
                committed_at = trio.current_time()
            late_s.append(trio.current_time() - committed_at)
    assert min(late_s) < LATE_S


async def test_file_that_stays_locked_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    write_table(path, "delete")
    connection = DedicatedConnection(sqlite_engine(path, busy_timeout_s=LOCKED_S))
    versions = FileVersions(connection, connection.aclose)
    await versions.ask()
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin exclusive")
        begun_at = trio.current_time()
        with pytest.raises(DatabaseUnavailable, match="locked"):
            await versions.ask()
        assert LOCKED_S <= trio.current_time() - begun_at < LOOK_QUIET_S
    await versions.ask()
    await connection.aclose()


@pytest.mark.slow
async def test_long_lock_is_looked_at_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []
    sleep = time.sleep

    def sleep_noted(pause_s: float) -> None:
        pauses_s.append(pause_s)
        sleep(pause_s)

    path = tmp_path / "app.db"
    write_table(path, "delete")
    connection = DedicatedConnection(sqlite_engine(path, busy_timeout_s=2.5 * LOOK_LOCKED_MAX_S / LOOK_SHARE))
    versions = FileVersions(connection, connection.aclose)
    await versions.ask()
    monkeypatch.setattr(time, "sleep", sleep_noted)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin exclusive")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            await versions.ask()
    assert max(pauses_s) == LOOK_LOCKED_MAX_S
    await connection.aclose()


@pytest.mark.slow
@linux_only
async def test_idle_file_is_looked_at_once_a_second(follower: Follower, path: Path) -> None:
    await quiet(follower)
    (path.parent / "another").write_bytes(b"x")
    before = follower.looks
    await quiet(follower, 2.5 * LOOK_QUIET_S)
    assert follower.looks - before <= 3


@linux_only
async def test_commit_long_after_its_write_is_noticed_soon(follower: Follower, path: Path) -> None:
    await quiet(follower)
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        connection.execute("pragma cache_size = 1")  # so that it writes before the commit
        connection.execute("begin")
        connection.executemany("insert into t values (?)", ((number,) for number in range(5000)))
        await quiet(follower, LOOK_UNTIL_S / 2)
        connection.execute("commit")
        with trio.fail_after(SOON_S):
            await follower.next()


@pytest.mark.slow
async def test_look_after_a_write_lasts_until_the_commit(
    follower: Follower, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For up to ``LOOK_CLOSELY_S``, so that a commit just after its write needs no second look."""
    monkeypatch.setattr(sqlite, "LOOK_CLOSELY_S", 1.0)
    known = await follower.versions.ask()
    await follower.versions.pause(after_s=0.0)  # the first one, which counts as a write
    begun_at = trio.current_time()
    assert await follower.versions.ask(closely=True) == known
    assert trio.current_time() - begun_at > 0.5
    begun_at = trio.current_time()
    assert await follower.versions.ask(closely=True) == known
    assert trio.current_time() - begun_at < 0.5, "long after a write a look does not wait"
    write(path)
    assert await follower.versions.ask(closely=True) != known


@linux_only
async def test_file_that_is_replaced_is_noticed(follower: Follower, path: Path, tmp_path: Path) -> None:
    await quiet(follower)
    replace_by_a_copy(path, tmp_path / "copy.db")
    with trio.fail_after(SOON_S):
        await follower.next()


@linux_only
async def test_symbolic_link_to_another_file_is_noticed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    follower = Follower(link)
    await follower.begin()
    link_to_a_copy(link, path, tmp_path / "other" / "app.db")
    with trio.fail_after(2 * LOOK_QUIET_S):
        await follower.next()
    await quiet(follower)
    write(link)
    with trio.fail_after(SOON_S):
        await follower.next()
    await follower.aclose()


@pytest.mark.slow
async def test_without_reports_the_file_is_polled(
    follower: Follower, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(FileEvents, "open", refuse)
    with capture_logs() as logs:
        await quiet(follower)
        for _ in range(3):
            await trio.to_thread.run_sync(write, path)
            with trio.fail_after(SOON_S):
                await follower.next()
            await quiet(follower)
    assert [line["event"] for line in logs] == ["the system does not report writes to this file; it is polled"]


@pytest.mark.slow
@linux_only
async def test_reports_that_do_not_come_are_noticed(
    follower: Follower, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "UNREPORTED_S", 2 * LOOK_UNTIL_S)
    monkeypatch.setattr(FileEvents, "take", lambda _events: False)  # as on a network file system
    with capture_logs() as logs:
        await quiet(follower, 3 * LOOK_UNTIL_S)
        await trio.to_thread.run_sync(write, path)
        with trio.fail_after(2 * LOOK_QUIET_S):
            await follower.next()
        await trio.to_thread.run_sync(write, path)
        with trio.fail_after(SOON_S):
            await follower.next()
    assert [line["event"] for line in logs] == ["the system does not report writes to this file; it is polled"]


@linux_only
async def test_reached_limit_of_inotify_is_logged(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = FileEvents.open
    with pytest.raises(OSError, match="No such file or directory"):
        opened(tmp_path / "no folder", ["a"])

    def open_at_limit(folder: Path, names: list[str]) -> FileEvents:
        with no_descriptor_left():
            return opened(folder, names)

    monkeypatch.setattr(FileEvents, "open", open_at_limit)
    with capture_logs() as logs:
        await quiet(follower)
    [line] = [line for line in logs if line["event"].endswith("; it is polled")]
    assert line["reason"] == "this user or process has no inotify instance left (fs.inotify.max_user_instances)"


@linux_only
async def test_folder_that_is_removed_ends_the_reports(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    events = FileEvents.open(folder, ["a"])
    assert events is not None
    folder.rmdir()
    with trio.fail_after(SOON_S):
        await events.wait()
    assert events.ended


@linux_only
async def test_other_files_are_not_reported(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"1")
    events = FileEvents.open(tmp_path, ["a"])
    assert events is not None
    (tmp_path / "b").write_bytes(b"2")
    with trio.move_on_after(SOON_S):
        await events.wait()
        pytest.fail("that is another file")


@linux_only
@pytest.mark.parametrize("change", [Path.touch, lambda path: path.write_bytes(b"x"), Path.unlink])
async def test_every_change_of_a_named_file_is_reported(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "a").write_bytes(b"1")
    events = FileEvents.open(tmp_path, ["a"])
    assert events is not None
    if change == Path.touch:
        (tmp_path / "a").unlink()
    change(tmp_path / "a")
    with trio.fail_after(SOON_S):
        await events.wait()
