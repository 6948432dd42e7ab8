"""The log of a command: lines for a terminal, or JSON, on stderr."""

import contextlib
import logging
import sys
from typing import Any, Literal, TextIO, cast

import structlog

from airy_trio.terminal import coloured


class _Stderr:
    """Where log lines go; who reads them may leave, and a server goes on without."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


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
