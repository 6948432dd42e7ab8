"""When it is worth asking an SQLite file whether it has changed: it tells nobody, but its times and its WAL's do.

Asking for them costs microseconds and no thread. They stand still for some milliseconds, and a commit is seen after
what it has written; so they are a hint, and whoever waits looks by itself as well.
"""

from pathlib import Path
from typing import Final

import trio

POLL_S: Final = 0.001  # for the file's times
POLL_SETTLED_S: Final = 0.002
SETTLED_S: Final = 0.05  # without anything written
COMMIT_S: Final = 0.006  # from what is written to where it is seen, mostly: it goes to the disk first
LOOK_S: Final = 0.004  # for its version whatever its times say
LOOK_SETTLED_S: Final = 0.05  # a file system may keep its times to itself

_Written = tuple[int, int] | None


class SqliteWatch:
    """The pauses between the looks of one task. ``path``: of the file, once that is known; until then each is short."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._written: tuple[_Written, _Written] | None = None
        self._touched_at = 0.0
        self._looked_at = 0.0

    def begin(self) -> None:
        """Take it that something was written just now."""
        self._touched_at = trio.current_time()
        self._looked_at = 0.0

    async def pause(self) -> None:
        """Sleep until it is worth looking: when something has been written, and now and then."""
        while True:
            settled = trio.current_time() - self._touched_at > SETTLED_S
            await trio.sleep(POLL_SETTLED_S if settled else POLL_S)
            now = trio.current_time()
            if self.touched():
                self._touched_at = now
            elif now - self._touched_at > COMMIT_S and now - self._looked_at < (LOOK_SETTLED_S if settled else LOOK_S):
                continue
            self._looked_at = now
            return

    def touched(self) -> bool:
        """Whether the file or its WAL was written since this was last asked, as their times tell."""
        if self.path is None:
            return True
        before, self._written = self._written, (_written(self.path), _written(Path(f"{self.path}-wal")))
        return self._written != before


def _written(path: Path) -> _Written:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
