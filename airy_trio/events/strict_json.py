"""Strict JSON text (RFC 8259): whether a text is one, how deep it is, what its members are. It never reformats.

Python's parser is used to check, with its leniencies taken out: no ``NaN`` or ``Infinity``, and numbers stay text, so
that a number of any length is as good here as in the database.
"""

import json
import re
from json.encoder import encode_basestring

from airy_trio.events.models import Json

NESTING_MAX = 500
"""How deep arrays and objects may lie in each other in what is embedded.

With our own three levels around it an event stays below 512, where several clients' parsers stop.
"""

_SPACE = " \t\n\r"
_SPACES = re.compile(r"[ \t\n\r]*")
# A string that is not closed runs to the end: the pattern cannot fail once begun, so that this is linear on any text.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class InvalidJsonError(ValueError):
    """The text is not strict JSON, or is nested too deep. The message says which, and never quotes the text."""


def check(text: str, nesting_max: int = NESTING_MAX) -> Json:
    """Give the text back if a strict parser accepts it as one value that is not nested too deep.

    Raises ``InvalidJsonError``.
    """
    if is_deeper(text, nesting_max):
        message = f"is nested deeper than {nesting_max}"
        raise InvalidJsonError(message)
    value = text.strip(_SPACE)
    try:
        is_whole = _DECODER.raw_decode(value)[1] == len(value)
    except ValueError:
        is_whole = False
    except RecursionError:  # an interpreter with a small limit, or a caller that is deep in calls itself
        message = "is nested deeper than this interpreter can read"
        raise InvalidJsonError(message) from None
    if not is_whole:
        message = "is not valid JSON"
        raise InvalidJsonError(message)
    return Json(text)


def is_deeper(text: str, limit: int) -> bool:
    """Whether arrays and objects lie in each other deeper than ``limit``; of any text, without recursion."""
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
    """Whether a text, if it is JSON, is an object."""
    return text.lstrip(_SPACE)[:1] == "{"


def is_array(text: str) -> bool:
    """Whether a text, if it is JSON, is an array."""
    return text.lstrip(_SPACE)[:1] == "["


def members(text: Json) -> dict[str, Json]:
    """The members of an object, each value as it stands in the text; of a repeated name the last."""
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
    """The text as a JSON string; what is not ASCII stands as itself."""
    return Json(encode_basestring(text))


def quoted_name(name: str) -> Json:
    """A member's name as a JSON string. Read from an escape it may hold half a pair, which only an escape can write."""
    return Json(encode_basestring(name) if is_encodable(name) else json.dumps(name))


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: it has no half of a surrogate pair."""
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
