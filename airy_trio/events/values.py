"""From the raw value of a column to the value in an event (wire contract, "Events").

The functions take the name of the column for the message of ``UnfitValueError``, which is all that they raise.

Times, as the wire contract writes them and as a number to sort by: integers, floats and digits are epoch milliseconds,
all other text is ISO 8601 (or SQL's form of it), in the given time zone if the text has none. A local time that occurs
twice, because clocks are set back, is the earlier one. Digits beyond the precision of the result are cut off toward the
past.

JSON is strict text (RFC 8259): is it valid, how deep does it nest, what are its members. JSON is
never reformatted. Python's parser checks it with its leniencies disabled: ``NaN`` and ``Infinity`` are errors, and
numbers stay text, so a number of any length is as valid here as in the database.

A row that cannot become an event is a ``RowFault``: table, key and column, without content of the row, so it can be
logged.
"""

import json
import math
import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
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
        try:
            return str(value)
        except ValueError:  # Python does not convert beyond some thousand digits
            raise UnfitValueError(column, "has too many digits") from None
    raise UnfitValueError(column, "is neither text nor an integer")


def identity(value: Value, column: str) -> str:
    """Return text that names an object or a destination. It has no NUL, which Postgres cannot store."""
    if isinstance(value, str) and value.isascii() and "\0" not in value:  # fast path
        return value
    id_ = text(value, column)
    if "\0" in id_:
        raise UnfitValueError(column, "has a NUL")
    return id_


def optional_identity(value: Value, column: str) -> str | None:
    """Return an identity; NULL is None."""
    return None if value is None else identity(value, column)


def sender(value: Value) -> str:
    """Return the sender's id; NULL is ``ANONYMOUS``."""
    return ANONYMOUS if value is None else text(value, "sender_id")


def from_contact(value: Value) -> bool:
    """Read a boolean, 0 or 1, or the text 0, 1, f, t, false or true in any case."""
    return _flag(value, "from_contact", _FLAGS)


def connected(value: Value) -> bool:
    """Read the same as ``from_contact``, or ``CONNECTED`` or ``DISCONNECTED`` in any case."""
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
    subject_ = text(value, column)
    if subject_ in SUBJECTS:
        return subject_
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
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else text(value, column)


def _flag(value: Value, column: str, spellings: dict[str, bool]) -> bool:
    if isinstance(value, bool):
        return value
    flag = None
    if isinstance(value, int):
        flag = _BITS.get(value)
    elif isinstance(value, str):
        flag = spellings.get(value.lower())
    if flag is None:
        raise UnfitValueError(column, "is NULL" if value is None else "is not a boolean")
    return flag


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
        raise InvalidJsonError(f"is nested deeper than {nesting_max}")
    # ``raw_decode`` skips no spaces before a value and ignores everything after it. JSON has only the four spaces in
    # ``_SPACE``; ``strip`` alone would remove others as well.
    value = text.strip(_SPACE)
    try:
        is_whole = _DECODER.raw_decode(value)[1] == len(value)
    except ValueError:
        is_whole = False
    except RecursionError:  # a small recursion limit, or a caller with a deep stack
        raise InvalidJsonError("is nested deeper than this interpreter can read") from None
    if not is_whole:
        raise InvalidJsonError("is not valid JSON")
    return Json(text)


def is_deeper(text: str, limit: int) -> bool:
    """Return whether brackets outside strings nest deeper than ``limit``; for any text, without recursion."""
    # Brackets within strings are counted too, so the depth is at most this, and nearly every text needs no scan.
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
    by_name: dict[str, Json] = {}
    at = _past_spaces(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _past_spaces(text, _past_spaces(text, at) + 1)  # the colon
        _, at = _DECODER.raw_decode(text, start)
        by_name[name] = Json(text[start:at])
        at = _past_spaces(text, at)
        if text[at] == ",":
            at = _past_spaces(text, at + 1)
    return by_name


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
    spaces = _SPACES.match(text, at)
    return spaces.end() if spaces else at


def _refuse(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=str, parse_float=str)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_UTC_UNMARKED = _EPOCH.replace(tzinfo=None)
_MICROSECOND = timedelta(microseconds=1)
_WIRE_US_MIN = -62_135_596_800_000_000  # 0001-01-01T00:00:00.000000Z
_WIRE_US_MAX = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z

_MILLISECONDS_DIGITS = 14  # every such number is before the year 9999
WIRE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
"""The form of a time in an event."""
_DAYS_REMEMBERED = 1024
_MINUTE_TEXTS = tuple(f"{hour:02}:{minute:02}:" for hour in range(24) for minute in range(60))
_SECOND_TEXTS = tuple(f"{second:02}." for second in range(60))
_MILLISECOND_TEXTS = tuple(f"{millisecond:03}Z" for millisecond in range(1000))
_DIGITS = re.compile(r"([+-]?[0-9]{1,18})(?:\.([0-9]*))?")
_ANY_YEAR = re.compile(r"([0-9]{4,6})(-[0-9]{2}-[0-9]{2}.*?)( BC)?")
_INFINITIES = {"infinity": math.inf, "-infinity": -math.inf}
_CYCLE_YEARS = 400  # after which the calendar repeats
_CYCLE_US = 146_097 * 86_400 * 1_000_000


def wire_time(value: Value, time_zone: tzinfo, column: str) -> str:
    """Return a time as ``2020-10-25T21:24:54.560Z``, years 1 to 9999. Raises ``UnfitValueError``."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= _MILLISECONDS_DIGITS:
        return _wire_time_of(int(value))  # fast path: the form of every Postgres timestamp
    if isinstance(value, str) and _is_iso(value):
        try:
            read = _read(value, time_zone)
            if WIRE_TIME.fullmatch(value):
                return value
            moment = _EPOCH_UTC_UNMARKED + (read - _EPOCH)
        except (ValueError, OverflowError):
            raise UnfitValueError(column, "is not a time between the years 1 and 9999") from None
    else:
        epoch_us = instant(value, time_zone, column)
        if not _WIRE_US_MIN <= epoch_us <= _WIRE_US_MAX:
            raise UnfitValueError(column, "is not a time between the years 1 and 9999")
        moment = _EPOCH_UTC_UNMARKED + timedelta(microseconds=epoch_us)
    # Half the time of isoformat with a zone and keywords; this runs for every message.
    return moment.isoformat("T", "milliseconds") + "Z"


def _wire_time_of(epoch_ms: int) -> str:
    """Concatenate precomputed parts, in half the time of ``datetime``."""
    return (
        _day_text(epoch_ms // 86_400_000)
        + _MINUTE_TEXTS[epoch_ms // 60_000 % 1440]
        + _SECOND_TEXTS[epoch_ms // 1000 % 60]
        + _MILLISECOND_TEXTS[epoch_ms % 1000]
    )


@lru_cache(maxsize=_DAYS_REMEMBERED)
def _day_text(days: int) -> str:
    return f"{(_EPOCH + timedelta(days=days)).date()}T"


def instant(value: Value, time_zone: tzinfo, column: str) -> int | float:
    """Return epoch microseconds to sort by, unbounded: ``infinity`` and years BC are accepted.

    Beyond the years 1 to 9999 a text without zone is read by the zone's rules of another year, which may be off by an
    hour. Raises ``UnfitValueError``.
    """
    match value:
        case None:
            raise UnfitValueError(column, "is NULL")
        case bool() | bytes():
            raise UnfitValueError(column, "is not a time")
        case int():
            return value * 1000
        case float():
            return _float_us(value, column)
        case _:
            return _text_us(value, time_zone, column)


def _float_us(epoch_ms: float, column: str) -> int | float:
    if math.isnan(epoch_ms):
        raise UnfitValueError(column, "is not a time")
    if math.isinf(epoch_ms):
        return epoch_ms
    # In two parts, because the product of a float and 1000 may be rounded up, to a microsecond of the future.
    return math.floor(epoch_ms) * 1000 + math.floor(epoch_ms % 1 * 1000)


def _text_us(value: str, time_zone: tzinfo, column: str) -> int | float:
    if not _is_iso(value) and (digits := _DIGITS.fullmatch(value)):
        whole, fraction = int(digits[1]) * 1000, digits[2] or ""
        part = int(fraction[:3].ljust(3, "0"))
        if not value.startswith("-"):
            return whole + part
        # Rounded toward the past, as all times are: further digits make a negative time earlier.
        return whole - part - (1 if fraction[3:].strip("0") else 0)
    try:
        return (_read(value, time_zone) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return _any_year_us(value, time_zone, column)


def _any_year_us(value: str, time_zone: tzinfo, column: str) -> int | float:
    """Read infinity, or a time outside the years of ``datetime``: as the same time in an equal year of the calendar."""
    if (infinity := _INFINITIES.get(value.lower())) is not None:
        return infinity
    parts = _ANY_YEAR.fullmatch(value)
    if not parts:
        raise UnfitValueError(column, "is not a time")
    # 1 BC is the year before 1, so it is 0 here.
    year = 1 - int(parts[1]) if parts[3] else int(parts[1])
    equal_year = 2000 + year % _CYCLE_YEARS
    try:
        moment = _read(f"{equal_year}{parts[2]}", time_zone)
    except (ValueError, OverflowError):
        raise UnfitValueError(column, "is not a time") from None
    return (moment - _EPOCH) // _MICROSECOND + (year - equal_year) // _CYCLE_YEARS * _CYCLE_US


def _is_iso(value: str) -> bool:
    # The first test is a fast path: a number has no hyphen there.
    return value[4:5] == "-" or not _DIGITS.fullmatch(value)


def _read(value: str, time_zone: tzinfo) -> datetime:
    moment = datetime.fromisoformat(value)
    # A local time that occurs twice is the earlier one, because its ``fold`` is 0.
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=time_zone)
