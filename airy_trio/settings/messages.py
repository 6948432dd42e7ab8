"""How faults are worded: paths, what was found, the nearest key. It shows nothing that might be a secret."""

import difflib
import json
import re
from collections.abc import Iterable
from datetime import date, datetime, time
from typing import Final

Path = tuple[str | int, ...]
"""Where in the file: keys of tables, indices of arrays."""

NAMES_SHOWN_MAX: Final = 16
_TEXT_CHARS_MAX: Final = 60
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")
_KINDS: Final = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    datetime: "a date and time",
    date: "a date",
    time: "a time of day",
    list: "an array",
    dict: "a table",
}
_SHOWABLE: Final = re.compile(rf"[\w .,:/+*()$'{{}}-]{{0,{_TEXT_CHARS_MAX}}}")
"""No ``@``, ``=`` or quote: neither a URL with a password nor a connection string passes for another setting."""


def dotted(path: Path) -> str:
    """The path as it would stand in TOML: ``database.tables.messages.name[1]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else shown(part)
            text += f".{key}" if text else key
    return text


def found(value: object, *, secret: bool) -> str:
    """What stands in the file: its kind, and its value unless it is, or may be, a secret."""
    kind = kind_of(value)
    if secret or isinstance(value, dict | list):
        return kind
    if isinstance(value, str):
        return f"{kind} {shown(value)}"
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return f"{kind} {text}" if len(text) <= _TEXT_CHARS_MAX else kind


def kind_of(value: object) -> str:
    """The kind of a TOML value, with its article where it has one."""
    return _KINDS.get(type(value), type(value).__name__)


def shown(text: str) -> str:
    """A text in quotes if it is short and plain, else that it is not shown."""
    if _SHOWABLE.fullmatch(text) and "://" not in text:
        return json.dumps(text, ensure_ascii=not text.isprintable())
    return "(not shown)"


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that is most like this one, if one is like it at all."""
    folded = {name.casefold(): name for name in known}
    match = difflib.get_close_matches(key.casefold()[:_TEXT_CHARS_MAX], folded, n=1)
    return folded[match[0]] if match else None


def listed(names: Iterable[str]) -> str:
    """Names for a message, in order, cut where there are too many."""
    every = list(names)
    more = f" and {len(every) - NAMES_SHOWN_MAX} more" if len(every) > NAMES_SHOWN_MAX else ""
    return ", ".join(every[:NAMES_SHOWN_MAX]) + more
