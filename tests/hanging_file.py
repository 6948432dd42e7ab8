"""A file that blocks its reader, like one on an unavailable mount: a pipe that is not open for writing."""

import os
from pathlib import Path

import trio

TIMEOUT_S = 20.0


def make_hang(path: Path) -> None:
    """Put a pipe without a writer at this path. Replaces a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


async def open_writer(pipe: Path) -> int:
    """Open the pipe for writing once it has a reader. The reader hangs until this descriptor is closed."""
    with trio.fail_after(TIMEOUT_S):
        while True:
            try:
                return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nothing reports that a pipe has a reader
                await trio.sleep(0.01)
