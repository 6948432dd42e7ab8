"""The log of a command, which several processes write at a time."""

import io
import sys

import pytest
import structlog

from airy_trio.cli.logs import configure_logging


class Pieces(io.StringIO):
    """What came in each write."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def write(self, text: str) -> int:
        self.all.append(text)
        return len(text)


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the lines of workers would stand within each other."""
    pieces = Pieces()
    monkeypatch.setattr(sys, "stderr", pieces)
    before = structlog.get_config()
    try:
        configure_logging("info", "json")
        structlog.get_logger().info("one")
        structlog.get_logger().info("two", text="a\nb")
    finally:
        structlog.configure(**before)
    assert [piece.count("\n") for piece in pieces.all] == [1, 1]
    assert all(piece.endswith("}\n") for piece in pieces.all)
