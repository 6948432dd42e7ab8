"""Linux's notifications of writes to files: inotify, by the functions of the C library.

The folder is watched, not the file, because a file that is replaced or created again is another one. The kernel
reports a write by any process of this machine. It reports nothing for a network file system that another machine
writes to.
"""

import ctypes
import os
import struct
import sys
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Final, Self

import trio

_MODIFY: Final = 0x2
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000  # the folder is gone
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_READ_BYTES: Final = 65_536


class FileEvents:
    """Writes to some files of one folder. The descriptor is closed with this object."""

    def __init__(self, descriptor: int, names: Collection[bytes]) -> None:
        self._descriptor = descriptor
        self._names = frozenset(names)
        self._count = 0  # of calls that have found a write
        self._reading: trio.Event | None = None  # while a task waits for the descriptor, which only one may
        self.ended = False
        """Whether no more events will come, because the folder is gone."""
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def open(cls, folder: Path, names: Collection[str]) -> Self | None:
        """Watch the files of these names, which need not exist. None: this system cannot, or allows no more."""
        if not sys.platform.startswith("linux"):
            return None
        library = ctypes.CDLL(None)
        descriptor: int = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            return None
        mask = _MODIFY | _MOVED_TO | _CREATE | _DELETE
        if library.inotify_add_watch(descriptor, os.fsencode(folder), mask) < 0:
            os.close(descriptor)
            return None
        return cls(descriptor, [os.fsencode(name) for name in names])

    async def wait(self) -> None:
        """Return when one of the files was written since the last call, or when the folder is gone.

        Several tasks may wait; all of them return.
        """
        before = self._count
        while self._count == before and not self.ended:
            if self._reading is not None:
                await self._reading.wait()
                continue
            self._reading = trio.Event()
            try:
                while not self._take():
                    await trio.lowlevel.wait_readable(self._descriptor)
                self._count += 1
            finally:
                self._reading.set()
                self._reading = None

    def _take(self) -> bool:
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
            found |= name in self._names or bool(mask & (_OVERFLOW | _IGNORED))
            at += _EVENT.size + size
        return found
