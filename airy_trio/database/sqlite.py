"""Notice commits to an SQLite file by other processes.

The data version of an open connection changes with every commit by others. Reading it takes a thread, so
``FileVersions`` reads it after the system has reported a write to the file or its WAL (``FileEvents``). A commit
becomes visible after its data was written, mostly once it is on disk, and nothing is reported then. So the version is
read again and again: for some milliseconds after a write in one thread, which can sleep for less than the millisecond
that is Trio's shortest sleep, and then at intervals that grow with the time since the write.

If the system reports nothing (another operating system, a network file system), the version is read every 4 to 20 ms
instead. If it does, the version is also read once a second, so that no commit is missed. A commit that only such a read
finds shows that writes to this file are not reported.
"""

import ctypes
import errno
import os
import sqlite3
import struct
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
import structlog
import trio
from attrs import frozen

from airy_trio.database.connections import DatabaseUnavailable, DedicatedConnection

logger = structlog.get_logger(__name__)

LOOK_FIRST_S: Final = 0.0005
"""Between the report of a write and the first look."""
LOOK_CLOSELY_S: Final = 0.004
"""For so long after the report of a write one thread looks, every ``LOOK_EVERY_S``.

With separate looks instead, the first after ``LOOK_FIRST_S``, the median from a commit to its client was 3.3 to 3.7 ms
at 100 commits/s (three rounds), and with this 2.4 to 2.7 ms (two rounds). At 10 commits/s it changes little."""
LOOK_EVERY_S: Final = 0.0002
LOOK_SHARE: Final = 0.25
"""Between two looks after a write, of the time since that write."""
LOOK_LOCKED_MAX_S: Final = 0.1
"""Between two looks at a file that stays locked, as SQLite's own attempts."""
LOOK_UNTIL_S: Final = 0.1
"""For so long after a write its commit is expected."""
LOOK_QUIET_S: Final = 1.0
"""Between two looks without a report."""
UNREPORTED_S: Final = 5.0
"""A commit that becomes visible this long after the last report of a write was not reported."""
POLL_S: Final = 0.004
"""The pause between two reads of the version, if writes are not reported."""
POLL_SETTLED_S: Final = 0.02
"""The same, while nothing has changed for ``SETTLED_S``."""
SETTLED_S: Final = 0.05

_MODIFY: Final = 0x2
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000  # the folder is gone
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_READ_BYTES: Final = 65_536
_LIMITS: Final[Mapping[int, str]] = {
    errno.EMFILE: "this user or process has no inotify instance left (fs.inotify.max_user_instances)",
    errno.ENOSPC: "this user has no inotify watch left (fs.inotify.max_user_watches)",
}
"""What these errors mean for inotify (see inotify(7)); the system's texts for them are about files and disks."""


class FileEvents:
    """Writes to some files of one folder, by Linux's inotify. The descriptor is closed with this object.

    The folder is watched, not the file, because a file that is replaced or created again is another one. The kernel
    reports a write by any process of this machine, but none by another one to a network file system.
    """

    def __init__(self, descriptor: int, names: Collection[bytes]) -> None:
        self._descriptor = descriptor
        self._names = frozenset(names)
        self.ended = False
        """Whether no more events will come, because the folder is gone."""
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def open(cls, folder: Path, names: Collection[str]) -> Self:
        """Watch files by name; they need not exist. Raises ``OSError`` if the system cannot, or a limit is reached."""
        if not sys.platform.startswith("linux"):
            raise _refusal(errno.ENOSYS)
        library = ctypes.CDLL(None, use_errno=True)
        descriptor: int = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise _refusal(ctypes.get_errno())
        # In SQLite's default journal mode the removal of the journal is the commit.
        mask = _MODIFY | _MOVED_TO | _CREATE | _DELETE
        if library.inotify_add_watch(descriptor, os.fsencode(folder), mask) < 0:
            refusal = _refusal(ctypes.get_errno())
            os.close(descriptor)
            raise refusal
        return cls(descriptor, [os.fsencode(name) for name in names])

    async def wait(self) -> None:
        """Return when one of the files was written since the last call, or the folder is gone. For one task only."""
        while not self.take():
            await trio.lowlevel.wait_readable(self._descriptor)

    def take(self) -> bool:
        """Take all events that have arrived; return whether one is of these files."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return self.ended
        found, at = False, 0
        while at < len(data):
            _, mask, _, size = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0")
            self.ended |= bool(mask & _IGNORED)
            # An overflow means that events were lost, perhaps events of these files.
            found |= name in self._names or bool(mask & (_OVERFLOW | _IGNORED))
            at += _EVENT.size + size
        return found


def _refusal(number: int) -> OSError:
    return OSError(number, _LIMITS.get(number) or os.strerror(number))


@frozen
class FileVersion:
    """The version and the identity of a file. ``data`` is comparable within one connection (``generation``) only."""

    generation: int
    data: int
    schema: int
    file: tuple[int, int]


class FileVersions:
    """Reads the version of the file that a connection has open. For one task, which calls ``pause`` between two reads.

    ``close``: closes this connection and all others to the file. They are opened again when they are used.
    """

    def __init__(self, connection: DedicatedConnection, close: Callable[[], Awaitable[object]]) -> None:
        self._connection = connection
        self._close = close
        self._last: FileVersion | None = None
        self._path: Path | None = None  # known from the first answer on
        self._events: FileEvents | None = None
        self._polling = False  # the system does not report writes
        self._touched_at = 0.0  # when a write was last reported or, while polling, a change was found

    async def ask(self, *, closely: bool = False) -> FileVersion:
        """Return the version, which changes with every commit by others.

        If another file has taken its place, call ``close`` and return the version of the new file. ``closely``: wait
        for a version other than the one returned last, for up to ``LOOK_CLOSELY_S`` after a write. Raises
        ``DatabaseUnavailable`` if the file is gone.
        """
        closely_s = self._touched_at + LOOK_CLOSELY_S - trio.current_time() if closely else 0.0
        ask = partial(self._ask, known=self._last if closely else None, until=time.monotonic() + closely_s)
        version = await self._connection.run(ask, transaction=False)
        before, self._last = self._last, version
        # The path already leads to the new file, but the connection still has the old one open. So the versions in this
        # answer are those of the old file, and are read again.
        if before is not None and version.file != before.file:
            await self._close()
            # A symbolic link may lead to another folder now.
            self._path, self._events, self._polling = None, None, False
            return await self.ask()
        if before is not None and before.generation == version.generation and before != version:
            self._changed()
        return version

    async def wait(self, *, after_s: float = LOOK_FIRST_S) -> FileVersion:
        """Wait for a version other than the one returned last, and return it. ``after_s``: see ``pause``.

        The caller has read the file since then, so a commit that it has not read has changed the version.
        This method must not first ask for the version again: that answer might already include such a commit, and the
        caller would wait for the next one.
        """
        known = self._last
        while True:
            await self.pause(after_s=after_s)
            version = await self.ask(closely=True)
            if version != known:
                return version

    async def pause(self, *, after_s: float = LOOK_FIRST_S) -> None:
        """Sleep until the version may have changed: after something was written, and now and then.

        ``after_s``: how long after the report of a write, at least. Before the first answer each pause is short.
        """
        if self._events is None and not self._polling and self._path is not None:
            real = self._path.resolve()
            try:
                self._events = FileEvents.open(real.parent, [real.name, f"{real.name}-wal", f"{real.name}-journal"])
            except OSError as error:
                self._poll_from_now_on(error.strerror)
            self._touched_at = trio.current_time()  # something may have been written before
        since_s = trio.current_time() - self._touched_at
        if self._events is None:
            await trio.sleep(POLL_SETTLED_S if since_s > SETTLED_S else POLL_S)
            return
        look_s = max(after_s, since_s * LOOK_SHARE) if since_s < LOOK_UNTIL_S else LOOK_QUIET_S
        with trio.move_on_after(look_s):
            await self._events.wait()
            if self._events.ended:
                self._poll_from_now_on("the folder is gone")
            self._touched_at = trio.current_time()
            await trio.sleep(after_s)

    def _changed(self) -> None:
        """Record a change of the version. If no write was reported within ``UNREPORTED_S``, poll from now on."""
        now = trio.current_time()
        if self._events is None:
            self._touched_at = now
        elif now - self._touched_at > UNREPORTED_S:
            if self._events.take():  # it was reported, but there was no pause since
                self._touched_at = now
            else:
                self._poll_from_now_on("a write was not reported")

    def _poll_from_now_on(self, reason: str | None) -> None:
        message = "the system does not report writes to this file; it is polled"
        logger.info(message, path=str(self._path), reason=reason)
        self._events, self._polling = None, True

    def _ask(self, connection: sa.Connection, known: FileVersion | None, until: float) -> FileVersion:
        driver: Any = connection.connection.driver_connection
        if self._path is None:
            self._path = Path(driver.execute("PRAGMA database_list").fetchone()[2])
        named = Path(connection.engine.url.database or "")  # perhaps a symbolic link; SQLite has followed it already
        try:
            file = named.stat()
        except OSError as error:
            raise DatabaseUnavailable(f"the SQLite file {named} is gone: {error.strerror}") from None
        known_data = None if known is None or known.generation != self._connection.generation else known.data
        data, schema = _versions(driver, known_data, until)
        return FileVersion(self._connection.generation, data, schema, (file.st_dev, file.st_ino))


def _versions(driver: sqlite3.Connection, known: int | None, until: float) -> tuple[int, int]:
    """Return the versions of data and schema. Wait until ``until`` for a version of the data other than ``known``.

    Without a WAL, a commit locks the file while it is written. SQLite itself would try again after 1, 2, 5, 10 ms and
    so on, so a read during a commit of more than 3 ms would take 8 ms. This function tries again sooner. With SQLite's
    own attempts, the p99 from a commit to its client was 12.3 instead of 9.3 ms, and the median after an idle second
    12.5 instead of 8.9 ms (medians of three interleaved rounds).
    """
    ((busy_ms,),) = driver.execute("PRAGMA busy_timeout")
    driver.execute("PRAGMA busy_timeout = 0")
    begun_at = time.monotonic()
    try:
        while True:
            try:
                ((data,),) = driver.execute("PRAGMA data_version")
                if data != known or time.monotonic() >= until:
                    ((schema,),) = driver.execute("PRAGMA schema_version")
                    return int(data), int(schema)
                pause_s = LOOK_EVERY_S
            except sqlite3.OperationalError as error:
                waited_s = time.monotonic() - begun_at
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited_s * 1000 >= busy_ms:
                    raise
                pause_s = min(max(LOOK_EVERY_S, waited_s * LOOK_SHARE), LOOK_LOCKED_MAX_S)
            time.sleep(pause_s)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {busy_ms}")
