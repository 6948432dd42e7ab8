"""From a column's raw value to what the wire promises of it (wire contract, "Events"); it knows no rows.

Every function names the column only to say which one is at fault, and raises ``UnfitValueError`` and nothing else.
Times have a module of their own.
"""

import re

from airy_trio.changes.rows import ContentForm, Value
from airy_trio.events import strict_json
from airy_trio.events.faults import UnfitValueError
from airy_trio.events.models import Json

ANONYMOUS = "airy-core-anonymous"
"""The sender of a message that has none."""

DELIVERY_STATES = frozenset({"pending", "failed", "delivered"})
_DELIVERY_STATES: dict[Value, str] = {state: state for state in DELIVERY_STATES}
SUBJECTS = frozenset({"conversation", "channel", "message"})

COLOR_PREFIX = "tag-"
_BARE_WORD = re.compile(r"[\w-]+")

_FLAGS = {"0": False, "1": True, "f": False, "t": True, "false": False, "true": True}
_BITS = {0: False, 1: True}
_CONNECTED = {**_FLAGS, "disconnected": False, "connected": True}

_EXACT_FLOAT_MAX = 2**53  # beyond this a float stands for several integers, and an id for one thing only


def text(value: Value, column: str) -> str:
    """Text as it is, an integer in decimal, also one that the database keeps as a float."""
    if isinstance(value, str):
        if value.isascii() or strict_json.is_encodable(value):  # the first only spares a call
            return value
        raise UnfitValueError(column, "is not UTF-8 text")
    if value is None:
        raise UnfitValueError(column, "is NULL")
    if isinstance(value, bytes):
        raise UnfitValueError(column, "is not UTF-8 text")
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT_MAX:
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return _decimal(value, column)
    raise UnfitValueError(column, "is neither text nor an integer")


def identity(value: Value, column: str) -> str:
    """Text that names an object or a destination: without NUL, which no text of Postgres can hold, nor a log in it."""
    if isinstance(value, str) and value.isascii() and "\0" not in value:  # only spares what follows
        return value
    found = text(value, column)
    if "\0" in found:
        raise UnfitValueError(column, "has a NUL")
    return found


def optional_identity(value: Value, column: str) -> str | None:
    """The same; NULL is None."""
    return None if value is None else identity(value, column)


def sender(value: Value) -> str:
    """The sender's id, or ``ANONYMOUS``."""
    return ANONYMOUS if value is None else text(value, "sender_id")


def flag(value: Value, column: str) -> bool:
    """A boolean, 0 or 1, or the text 0, 1, f, t, false or true in any case."""
    return _flag(value, column, _FLAGS)


def connected(value: Value) -> bool:
    """A flag, or ``CONNECTED`` or ``DISCONNECTED`` in any case."""
    return _flag(value, "connected", _CONNECTED)


def delivery_state(value: Value) -> str:
    """One of ``DELIVERY_STATES``, written in any case."""
    as_it_is = _DELIVERY_STATES.get(value)
    if as_it_is is not None:
        return as_it_is
    column = "delivery_state"
    lower = text(value, column).lower()
    if lower in DELIVERY_STATES:
        return lower
    raise UnfitValueError(column, "is not pending, failed or delivered")


def subject(value: Value) -> str:
    """One of ``SUBJECTS``, exactly."""
    column = "subject"
    found = text(value, column)
    if found in SUBJECTS:
        return found
    raise UnfitValueError(column, "is not conversation, channel or message")


def color(value: Value) -> str:
    """In lower case; one bare word gets the prefix ``tag-`` unless it has it.

    A bare word is letters, digits and underscores of any script, and hyphens: ``red`` and ``light-blue`` are,
    ``#ff0000`` and ``rgb(1, 2, 3)`` are not.
    """
    lower = text(value, "color").lower()
    if lower.startswith(COLOR_PREFIX) or not _BARE_WORD.fullmatch(lower):
        return lower
    return COLOR_PREFIX + lower


def content(value: Value, form: ContentForm) -> Json:
    """Return the source's payload as JSON. NULL is ``null`` in every form.

    "json": the text itself, once it is checked; a number or a boolean, which SQLite makes of a JSON column's text, is
    that JSON value. "text": a JSON string. "auto": the text itself if it is a JSON object or array, else, or if it is
    nested too deep, a JSON string.
    """
    if value is None:
        return Json("null")
    column = "content"
    plain = raw_text(value, column)
    if form == "json" or (form == "auto" and (strict_json.is_object(plain) or strict_json.is_array(plain))):
        try:
            return strict_json.check(plain)
        except strict_json.InvalidJsonError as error:
            if form == "json":
                raise UnfitValueError(column, str(error)) from None
    return strict_json.quoted(plain)


def raw_text(value: Value, column: str) -> str:
    """Any value but NULL as text, as JSON would write it where it has a form for it."""
    match value:
        case str():
            return text(value, column)
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case int():
            return _decimal(value, column)
        case _:
            return text(value, column)


def _flag(value: Value, column: str, words: dict[str, bool]) -> bool:
    if isinstance(value, bool):
        return value
    found = None
    if isinstance(value, int):
        found = _BITS.get(value)
    elif isinstance(value, str):
        found = words.get(value.lower())
    if found is None:
        raise UnfitValueError(column, "is NULL" if value is None else "is not a boolean")
    return found


def _decimal(value: int, column: str) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses beyond some thousand digits
        raise UnfitValueError(column, "has too many digits") from None
