"""The log of a command: lines for a terminal, or JSON, on stderr; a server never waits for the reader of its stderr."""

import atexit
import contextlib
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from typing import Any, Final, Literal, TextIO, cast

import structlog

from airy_trio.terminal import coloured

logger = structlog.get_logger(__name__)

LOG_LINES_MAX: Final = 10_000
"""Written by a server and not yet taken by the reader of its stderr; further lines are dropped and counted."""
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
"""The size of those lines."""
LOG_FLUSH_S: Final = 2.0
"""How long the end of a server waits for lines to leave."""
_WRITE_BYTES: Final = select.PIPE_BUF
"""Lines are joined up to this size: it goes into a pipe whole, so lines of several processes do not mix."""


class _Stderr:
    """Where log lines go. If its reader leaves, the command goes on without a log."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class LineQueue(io.RawIOBase):
    """A file descriptor to which a thread writes, so that no caller ever waits for its reader.

    A pipe that nobody reads is full after 64 KiB, and a terminal stops at Ctrl-S: without the thread, the whole server
    would stop with it. Lines leave in order. Once the queue is full, lines are dropped until half of it has left, and
    a log line then reports how many. Lines that the system refuses (a full disk) count as dropped as well.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._full = self._writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def fileno(self) -> int:
        """Return the descriptor, for callers that ask whether it is a terminal."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True, as text streams require."""
        return True

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
        """Wait until all lines have left, or the time is over."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._lines or self._writing:
                if not self._changed.wait(deadline - time.monotonic()):
                    break

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                lines = [self._next()]
                size = len(lines[0])
                while self._lines and size + len(self._lines[0]) <= _WRITE_BYTES:
                    lines.append(self._next())
                    size += len(lines[-1])
                self._writing = True
            refused = 0 if self._write_all(b"".join(lines)) else len(lines)
            self._report(refused)

    def _next(self) -> bytes:
        line = self._lines.popleft()
        self._bytes -= len(line)
        return line

    def _write_all(self, data: bytes) -> bool:
        """Write to the descriptor, waiting as long as it takes; return False if the system refuses."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that has this pipe made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True

    def _report(self, refused: int) -> None:
        """Accept lines again once half of the queue has left; report dropped lines if the reader takes any."""
        with self._changed:
            self._dropped += refused
            if len(self._lines) > LOG_LINES_MAX // 2 or self._bytes > LOG_BYTES_MAX // 2:
                return
            self._full = False
            if refused:
                return
            dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.warning("log lines dropped; the reader of stderr is too slow", count=dropped, pid=os.getpid())


def queue_stderr() -> None:
    """Put a queue in front of stderr for the rest of this process, which waits ``LOG_FLUSH_S`` for it at its end.

    In front of all of stderr, not of the log alone: the line with the reason of a failed start, a warning or
    a traceback would stop the server just as well, and keep their place among the lines of the log.
    """
    try:
        queue = LineQueue(sys.stderr.fileno())
    except (AttributeError, OSError):  # closed, or replaced by the program around us
        return
    sys.stderr.flush()
    sys.stderr = io.TextIOWrapper(
        cast("Any", queue), sys.stderr.encoding, sys.stderr.errors, newline="\n", write_through=True
    )
    atexit.register(queue.drain, LOG_FLUSH_S)


def configure_logging(level: str, how: Literal["auto", "console", "json"]) -> None:
    """Log to stderr from ``level`` on. ``auto``: lines for a person on a terminal, else JSON."""
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
