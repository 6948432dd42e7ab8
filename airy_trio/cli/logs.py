"""The log of a command: lines for a terminal, or JSON, on stderr. A server never waits for the reader of its stderr."""

import atexit
import contextlib
import io
import logging
import os
import select
import sys
import threading
from collections import deque
from itertools import accumulate, islice, takewhile
from typing import Any, Final, Literal, TextIO, cast

import structlog

from airy_trio.terminal import coloured

logger = structlog.get_logger(__name__)

LOG_LINES_MAX: Final = 10_000
"""The most lines that a server queues for the reader of its stderr; further lines are dropped and counted."""
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
"""The most bytes that it queues."""
LOG_FLUSH_S: Final = 2.0
"""How long a server waits at its end until the queue is written."""
_WRITE_BYTES: Final = select.PIPE_BUF
"""Lines are written together up to this size: a pipe takes it atomically, so lines of several processes do not mix."""


class _Stderr:
    """The stream of the log. If stderr cannot be written any more, the command continues without a log."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class LineQueue(io.FileIO):
    """A file descriptor to which a thread writes, so that no caller ever waits for its reader.

    A pipe that is not read is full after 64 KiB, and a terminal stops at Ctrl-S: without the thread, the whole server
    would stop too. Lines are written in order. Once the queue is full, lines are dropped until half of it is written;
    then a log line reports how many. Lines that the system refuses (a full disk) count as dropped as well.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._descriptor = descriptor  # queued lines are written even if this object was closed
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._full = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        """Queue one line, or drop it if the queue is full."""
        line = bytes(data)
        with self._changed:
            self._full |= len(self._lines) >= LOG_LINES_MAX or self._bytes + len(line) > LOG_BYTES_MAX
            if self._full:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify_all()
        return len(line)

    def drain(self, timeout_s: float) -> None:
        """Wait until all lines are written, at most ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                sizes = accumulate(map(len, self._lines))
                count = max(1, sum(1 for _ in takewhile(lambda size: size <= _WRITE_BYTES, sizes)))
                data = b"".join(islice(self._lines, count))
            written = self._write_all(data)
            with self._changed:
                for _ in range(count):
                    self._lines.popleft()
                self._bytes -= len(data)
                self._changed.notify_all()
                self._dropped += 0 if written else count
                dropped = 0
                if len(self._lines) <= LOG_LINES_MAX // 2 and self._bytes <= LOG_BYTES_MAX // 2:
                    self._full = False
                    if written:  # otherwise this line would be refused too
                        dropped, self._dropped = self._dropped, 0
            if dropped:
                logger.warning("log lines dropped; the reader of stderr is too slow", count=dropped, pid=os.getpid())

    def _write_all(self, data: bytes) -> bool:
        """Write to the descriptor, waiting as long as it takes; return False if the system refuses."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that shares this pipe has made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


def queue_stderr() -> None:
    """Put a queue in front of stderr for the rest of this process, which waits ``LOG_FLUSH_S`` for it at its end.

    It is for all of stderr, not only for the log: the reason of a failed start, a warning or a traceback could block
    the server too, and keep their place among the lines of the log.
    """
    try:
        queue = LineQueue(sys.stderr.fileno())
    except (AttributeError, OSError):  # closed, or replaced by an embedding program
        return
    sys.stderr.flush()
    sys.stderr = io.TextIOWrapper(queue, sys.stderr.encoding, sys.stderr.errors, newline="\n", write_through=True)
    atexit.register(queue.drain, LOG_FLUSH_S)


def configure_logging(level: str, how: Literal["auto", "console", "json"]) -> None:
    """Log to stderr from ``level`` on. ``auto``: readable lines on a terminal, else JSON."""
    on_terminal = how == "console" or (how == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer()
    if on_terminal:
        renderer = structlog.dev.ConsoleRenderer(colors=coloured(sys.stderr))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Stderr())),
    )
