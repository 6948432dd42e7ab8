"""An event as one line for the terminal."""

import json
from datetime import datetime
from typing import Any, Final

import click

from airy_trio.stomp.frames import Frame

_COLOURS: Final = {"message": "green", "metadata": "cyan", "channel": "yellow", "tag": "magenta"}
_TEXT_MAX: Final = 80


def line(message: Frame) -> str:
    """A MESSAGE frame as a line: when, where in the log, what happened."""
    event = json.loads(message.body)
    kind = event["type"].partition(".")[0]
    now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
    name = click.style(f"{event['type']:<17}", fg=_COLOURS.get(kind))
    return f"{now}  {message.get('message-id'):<12} {name} {_told(event['type'], event['payload'])}"


def _told(type_: str, payload: dict[str, Any]) -> str:
    match type_:
        case "message.updated":
            message = payload["message"]
            who = "contact" if message["from_contact"] else "agent"
            return f"{payload['conversation_id']}  {who}: {_text(message['content'])}  ({message['delivery_state']})"
        case "metadata.updated":
            metadata = json.dumps(payload["metadata"], ensure_ascii=False)
            return f"{payload['subject']} {payload['identifier']}  {_short(metadata)}"
        case "channel.updated":
            return f"{payload['id']}  {payload['source']}  {'connected' if payload['connected'] else 'disconnected'}"
        case "tag.updated":
            return f"{payload['name']}  {payload['color']}"
        case _:
            return _short(json.dumps(payload, ensure_ascii=False))


def _text(content: object) -> str:
    """The content's text, or its JSON; on one line, and nothing that a terminal would obey."""
    match content:
        case {"text": str(text)} | str(text):
            return _short("".join(letter if letter.isprintable() else " " for letter in text))
        case _:
            return _short(json.dumps(content, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"
