"""From the raw value of a column to the value in an event (wire contract, "Events").

The functions take the name of the column for the message of ``UnfitValueError``, which is all that they raise. Times
are in ``times``.

The second half is about strict JSON text (RFC 8259): is it valid, how deep does it nest, what are its members. JSON is
never reformatted. Python's parser checks it with its leniencies disabled: ``NaN`` and ``Infinity`` are errors, and
numbers stay text, so a number of any length is as valid here as in the database.

A row that cannot become an event is a ``RowFault``: table, key and column, without content of the row, so it can be
logged.
"""

import json
import re
from json.encoder import encode_basestring

from attrs import frozen

from airy_trio.capture.feed import ContentForm, Value
from airy_trio.events.models import Json

ANONYMOUS = "airy-core-anonymous"
"""The sender id of a message without a sender."""

DELIVERY_STATES = frozenset({"pending", "failed", "delivered"})
_DELIVERY_STATES: dict[Value, str] = {state: state for state in DELIVERY_STATES}
SUBJECTS = frozenset({"conversation", "channel", "message"})

COLOR_PREFIX = "tag-"
_BARE_WORD = re.compile(r"[\w-]+")

_FLAGS = {"0": False, "1": True, "f": False, "t": True, "false": False, "true": True}
_BITS = {0: False, 1: True}
_CONNECTED = {**_FLAGS, "disconnected": False, "connected": True}

_EXACT_FLOAT_MAX = 2**53  # larger floats stand for several integers, and an id must be unique
PRINTABLE_CHARACTERS_MAX = 80
_INTEGER_BITS_MAX = 128
NESTING_MAX = 500
"""Maximum nesting of embedded arrays and objects.

With the three levels of an event around it this stays below 512, the limit of the parsers of several clients.
"""

_SPACE = " \t\n\r"
_SPACES = re.compile(r"[ \t\n\r]*")
# A string that is not closed matches to the end. The pattern cannot fail once begun, so it is linear on any text.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class UnfitValueError(ValueError):
    """A raw value that its column must not hold. The message names the column and the problem, never the value."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"{column} {problem}")


@frozen(kw_only=True)
class RowFault:
    """A row that was skipped (wire contract, "Events").

    ``table``: the kind as in the settings (``messages``, ``metadata``, ``channels``, ``tags``). ``key``: printable and
    short. ``reason`` names the column.
    """

    table: str
    key: str
    reason: str


def text(value: Value, column: str) -> str:
    """Return text unchanged, and an integer in decimal, also if the database stores it as a float."""
    if isinstance(value, str):
        if value.isascii() or is_encodable(value):  # the first saves a call
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
    """Return text that names an object or a destination. It has no NUL, which Postgres cannot store."""
    if isinstance(value, str) and value.isascii() and "\0" not in value:  # fast path
        return value
    found = text(value, column)
    if "\0" in found:
        raise UnfitValueError(column, "has a NUL")
    return found


def optional_identity(value: Value, column: str) -> str | None:
    """Return an identity; NULL is None."""
    return None if value is None else identity(value, column)


def sender(value: Value) -> str:
    """Return the sender's id; NULL is ``ANONYMOUS``."""
    return ANONYMOUS if value is None else text(value, "sender_id")


def flag(value: Value, column: str) -> bool:
    """Read a boolean, 0 or 1, or the text 0, 1, f, t, false or true in any case."""
    return _flag(value, column, _FLAGS)


def connected(value: Value) -> bool:
    """Read a flag, or ``CONNECTED`` or ``DISCONNECTED`` in any case."""
    return _flag(value, "connected", _CONNECTED)


def delivery_state(value: Value) -> str:
    """Read one of ``DELIVERY_STATES``, in any case."""
    exact = _DELIVERY_STATES.get(value)
    if exact is not None:
        return exact
    column = "delivery_state"
    lower = text(value, column).lower()
    if lower in DELIVERY_STATES:
        return lower
    raise UnfitValueError(column, "is not pending, failed or delivered")


def subject(value: Value) -> str:
    """Read one of ``SUBJECTS``, in lower case only."""
    column = "subject"
    found = text(value, column)
    if found in SUBJECTS:
        return found
    raise UnfitValueError(column, "is not conversation, channel or message")


def color(value: Value) -> str:
    """Return a color in lower case; a bare word gets the prefix ``tag-`` unless it has it.

    A bare word is letters, digits and underscores of any script, and hyphens: ``red`` and ``light-blue`` are,
    ``#ff0000`` and ``rgb(1, 2, 3)`` are not.
    """
    lower = text(value, "color").lower()
    if lower.startswith(COLOR_PREFIX) or not _BARE_WORD.fullmatch(lower):
        return lower
    return COLOR_PREFIX + lower


def content(value: Value, form: ContentForm) -> Json:
    """Return the source's payload as JSON. NULL is ``null`` in every form.

    "json": the text itself after a check; a number or a boolean, into which SQLite converts the text of a JSON column,
    is that JSON value. "text": a JSON string. "auto": the text itself if it is a valid JSON object or array, otherwise
    (or if it is nested too deep) a JSON string.
    """
    if value is None:
        return Json("null")
    column = "content"
    plain = raw_text(value, column)
    if form == "json" or (form == "auto" and (is_object(plain) or is_array(plain))):
        try:
            return check(plain)
        except InvalidJsonError as error:
            if form == "json":
                raise UnfitValueError(column, str(error)) from None
    return quoted(plain)


def raw_text(value: Value, column: str) -> str:
    """Return any value but NULL as text, numbers and booleans as JSON writes them."""
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
    except ValueError:  # Python does not convert beyond some thousand digits
        raise UnfitValueError(column, "has too many digits") from None


def printable(value: Value) -> str:
    """Return a key for the log: one line of at most ``PRINTABLE_CHARACTERS_MAX`` characters."""
    match value:
        case None:
            shown = "NULL"
        case str():
            head = value[: PRINTABLE_CHARACTERS_MAX + 1]
            shown = head if head.isprintable() else ascii(head)
        case bytes():
            shown = repr(value[:PRINTABLE_CHARACTERS_MAX])
        case int() if value.bit_length() > _INTEGER_BITS_MAX:  # Python does not print very long ones
            shown = f"an integer of {value.bit_length()} bits"
        case _:
            shown = repr(value)
    return shown if len(shown) <= PRINTABLE_CHARACTERS_MAX else shown[: PRINTABLE_CHARACTERS_MAX - 1] + "…"


class InvalidJsonError(ValueError):
    """The text is not strict JSON, or is nested too deep. The message says which, without quoting the text."""


def check(text: str, nesting_max: int = NESTING_MAX) -> Json:
    """Return the text if it is one valid JSON value that is not nested too deep. Raises ``InvalidJsonError``."""
    if is_deeper(text, nesting_max):
        message = f"is nested deeper than {nesting_max}"
        raise InvalidJsonError(message)
    value = text.strip(_SPACE)
    try:
        is_whole = _DECODER.raw_decode(value)[1] == len(value)
    except ValueError:
        is_whole = False
    except RecursionError:  # a small recursion limit, or a caller with a deep stack
        message = "is nested deeper than this interpreter can read"
        raise InvalidJsonError(message) from None
    if not is_whole:
        message = "is not valid JSON"
        raise InvalidJsonError(message)
    return Json(text)


def is_deeper(text: str, limit: int) -> bool:
    """Return whether brackets outside strings nest deeper than ``limit``; for any text, without recursion."""
    if len(text) <= limit or text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        match token[0][0]:
            case "[" | "{":
                depth += 1
                if depth > limit:
                    return True
            case "]" | "}":
                depth -= 1
            case _:  # a string
                pass
    return False


def is_object(text: str) -> bool:
    """Return whether a text, if it is JSON, is an object."""
    return text.lstrip(_SPACE)[:1] == "{"


def is_array(text: str) -> bool:
    """Return whether a text, if it is JSON, is an array."""
    return text.lstrip(_SPACE)[:1] == "["


def members(text: Json) -> dict[str, Json]:
    """Return the members of an object, each value as written. Of a repeated name the last counts."""
    found: dict[str, Json] = {}
    at = _past_spaces(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _past_spaces(text, _past_spaces(text, at) + 1)  # the colon
        _, at = _DECODER.raw_decode(text, start)
        found[name] = Json(text[start:at])
        at = _past_spaces(text, at)
        if text[at] == ",":
            at = _past_spaces(text, at + 1)
    return found


def quoted(text: str) -> Json:
    """Return the text as a JSON string, with only the necessary escapes."""
    return Json(encode_basestring(text))


def quoted_name(name: str) -> Json:
    """Return a member's name as a JSON string. A lone surrogate, which came from an escape, is escaped again."""
    return Json(encode_basestring(name) if is_encodable(name) else json.dumps(name))


def is_encodable(text: str) -> bool:
    """Return whether the text can be encoded as UTF-8: it has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _past_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    return found.end() if found else at


def _refuse(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=str, parse_float=str)
