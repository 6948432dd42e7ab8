"""Which keys can be looked up in a column of which type: those that the database casts without fail."""

import math
import re
from typing import Final

from airy_trio.changes.rows import Value
from airy_trio.changes.tables import Column

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_INTEGER_BITS: Final = {"smallint": 16, "integer": 32, "bigint": 64}
_NUMERIC = re.compile(r"[+-]?[0-9]{1,1000}(\.[0-9]{1,1000})?")


def fits(column: Column, key: Value) -> bool:
    """Whether a key can be looked up at all: a cast that fails would fail the whole batch."""
    if key is None or isinstance(key, bytes) or (isinstance(key, float) and not math.isfinite(key)):
        return False
    match column.type:
        case "uuid":
            return _UUID.fullmatch(str(key)) is not None
        case "integer":
            half = 2 ** (_INTEGER_BITS[column.sql_type] - 1)
            return _INTEGER.fullmatch(str(key)) is not None and -half <= int(key) < half
        case "numeric":
            return _NUMERIC.fullmatch(str(key)) is not None
        case _:
            return True
