"""Events as lines for a terminal, with colours if it wants them, and stdout and stderr of a command."""

import json
import os
import sys
from datetime import datetime
from typing import Any, Final, TextIO

import click

from airy_trio.errors import AiryTrioError

COLOURS: Final = {"message": "green", "metadata": "cyan", "channel": "yellow", "tag": "magenta"}


def coloured(stream: TextIO) -> bool:
    """Return whether to write colours: the stream is a terminal, and ``NO_COLOR`` is not set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def discard_stdout() -> None:
    """Write to the null device from now on: Python flushes stdout when it exits, and would print a traceback again."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the program exits


def unwritable(error: OSError) -> str:
    """Describe an error of writing; without a name of a file it is one of stdout."""
    return f"cannot write to {error.filename or 'stdout'}: {error.strerror}"


class Stdout:
    """Writes results to stdout, flushed line by line, and notes to stderr."""

    def __init__(self) -> None:
        self._coloured = coloured(sys.stdout)
        self._closed = False

    def write(self, text: str) -> bool:
        """Write a line; return False if the reader of a pipe has closed it, now or before.

        Raises ``AiryTrioError`` if the system refuses the line, as on a full disk.
        """
        try:
            click.echo(text, color=self._coloured)
        except BrokenPipeError:
            discard_stdout()
            self._closed = True
        except OSError as error:
            discard_stdout()
            raise AiryTrioError(unwritable(error)) from None
        return not self._closed

    def note(self, text: str) -> None:
        """Write a line for the operator."""
        click.echo(f"airy-trio: {text}", err=True)


class ProgressReport:
    """Receives the reports of a backfill and discards them. A subclass shows them."""

    def progress(self, kind: str, rows: int, about: int | None, rows_per_s: float) -> None:
        """Receive how many rows of a table are done, the approximate total, and the rate."""

    def line(self, text: str) -> None:
        """Receive a result."""

    def note(self, text: str) -> None:
        """Receive a line for the operator."""


def line(position: str, body: bytes, at: datetime) -> str:
    """Return an event as one line with colours: local time, position in the log, type, summary of the payload."""
    event = json.loads(body)
    kind = event["type"].partition(".")[0]
    time = at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    name = click.style(f"{event['type']:<17}", fg=COLOURS.get(kind))
    return f"{time}  {position:<12} {name} {one_line(_summary(event['type'], event['payload']))}"


def _summary(type_: str, payload: dict[str, Any]) -> str:
    match type_:
        case "message.updated":
            message = payload["message"]
            who = "contact" if message["from_contact"] else "agent"
            return f"{payload['conversation_id']}  {who}: {_text(message['content'])}  ({message['delivery_state']})"
        case "metadata.updated":
            metadata = json.dumps(payload["metadata"], ensure_ascii=False)
            return f"{payload['subject']} {payload['identifier']}  {shortened(metadata)}"
        case "channel.updated":
            return f"{payload['id']}  {payload['source']}  {'connected' if payload['connected'] else 'disconnected'}"
        case "tag.updated":
            return f"{payload['name']}  {payload['color']}"
        case _:
            return shortened(json.dumps(payload, ensure_ascii=False))


def _text(content: object) -> str:
    """Return the text of a content if it has one, otherwise its JSON."""
    match content:
        case {"text": str(text)} | str(text):
            return shortened(text)
        case _:
            return shortened(json.dumps(content, ensure_ascii=False))


def shortened(text: str, chars_max: int = 80) -> str:
    """Cut a text to at most ``chars_max`` characters; an ellipsis at its end marks the cut."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def one_line(text: str) -> str:
    """Replace what would break the line or control the terminal: ids and texts are untrusted."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
