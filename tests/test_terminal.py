"""Events as lines of a terminal. No text or id in an event can control the terminal."""

import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from airy_trio.errors import AiryTrioError
from airy_trio.terminal import Stdout, coloured, line

AT = datetime(2020, 10, 25, 21, 24, 54, 560_999, UTC)


def line_of(type_: str, payload: dict[str, Any]) -> str:
    """Return the line without its colours and without the time."""
    body = json.dumps({"type": type_, "payload": payload}).encode()
    shown = click.unstyle(line("k7f3q9-1", body, AT))
    time, _, rest = shown.partition("  ")
    assert time == AT.astimezone().strftime("%H:%M:%S.") + "560"
    return rest


def message(content: object, *, from_contact: bool = True) -> dict[str, Any]:
    state = {"content": content, "from_contact": from_contact, "delivery_state": "pending"}
    return {"conversation_id": "c1", "message": state}


@pytest.mark.parametrize(
    "type_, payload, shown",
    [
        ("message.updated", message({"text": "Hello"}), "c1  contact: Hello  (pending)"),
        ("message.updated", message("plain", from_contact=False), "c1  agent: plain  (pending)"),
        ("message.updated", message({"text": "x" * 81}), f"c1  contact: {'x' * 79}…  (pending)"),
        ("message.updated", message({"text": "x" * 80}), f"c1  contact: {'x' * 80}  (pending)"),
        ("message.updated", message({"image": "i.png"}), 'c1  contact: {"image": "i.png"}  (pending)'),
        ("message.updated", message(None), "c1  contact: null  (pending)"),
        (
            "metadata.updated",
            {"subject": "conversation", "identifier": "c1", "metadata": {"contact": {"displayName": "Tomás"}}},
            'conversation c1  {"contact": {"displayName": "Tomás"}}',
        ),
        ("channel.updated", {"id": "ch1", "source": "facebook", "connected": True}, "ch1  facebook  connected"),
        ("channel.updated", {"id": "ch1", "source": "facebook", "connected": False}, "ch1  facebook  disconnected"),
        ("tag.updated", {"id": "t1", "name": "flag", "color": "tag-red"}, "flag  tag-red"),
        ("tag.deleted", {"id": "t1"}, '{"id": "t1"}'),
    ],
)
def test_each_event_is_one_line(type_: str, payload: dict[str, Any], shown: str) -> None:
    assert line_of(type_, payload) == f"k7f3q9-1     {type_:<17} {shown}"


def test_text_cannot_control_the_terminal() -> None:
    shown = line_of("message.updated", message({"text": "a\nb\x1b[2Jc"}))
    assert shown.endswith("contact: a b [2Jc  (pending)")


def test_ids_cannot_control_the_terminal() -> None:
    payload = message("Hello") | {"conversation_id": "c1\x1b[2J\n\x9b2J"}
    assert line_of("message.updated", payload).endswith(" c1 [2J  2J  contact: Hello  (pending)")
    tag = {"id": "t1", "name": "flag\x1b]0;x\x07", "color": "tag-red"}
    assert line_of("tag.updated", tag).endswith(" flag ]0;x   tag-red")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stream, no_color, term, wanted",
    [
        (Terminal(), "", "xterm", True),
        (Terminal(), "1", "xterm", False),
        (Terminal(), "", "dumb", False),
        (io.StringIO(), "", "xterm", False),
    ],
)
def test_colours_only_for_terminals_that_want_them(
    stream: io.StringIO, no_color: str, term: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    assert coloured(stream) is wanted


def test_full_disk_ends_the_output_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(AiryTrioError, match="cannot write to stdout: No space left on device"):
            Stdout().write("an event")
        assert sys.stdout is not full, "Python flushes it at the exit"
        sys.stdout.close()
        with pytest.raises(OSError, match="No space left"):
            full.close()
