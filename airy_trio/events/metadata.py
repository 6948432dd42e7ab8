"""Combine the rows of one metadata pair into one JSON object (wire contract, "Events"): order, types, nesting.

A row that cannot be used becomes a row fault; the other rows still apply.
"""

import math
import re
from collections.abc import Iterable, Iterator
from datetime import tzinfo

from attrs import frozen

from airy_trio.capture.feed import MetadataEntry, Value
from airy_trio.events import values
from airy_trio.events.models import Json
from airy_trio.events.times import instant
from airy_trio.events.values import RowFault, UnfitValueError, printable

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": Json("true"), "1": Json("true"), "false": Json("false"), "0": Json("false")}
_NULLS = ("", "null")
_NULL = Json("null")

Tree = dict[str, "Tree | Json"]
_Members = Iterator[tuple[str, Tree | Json]]


_Row = tuple[bool, int | float, str, Json, bool]
"""Has a time, the time, key, value, fits its type. Rows apply in the sort order of these tuples.

That is by time and then by key. Rows that are equal in both are ordered by value, so that the result is deterministic.
"""


@frozen(kw_only=True)
class Nested:
    """The object, the faults of skipped rows, and the number of values that became strings because they did not fit."""

    metadata: Json
    faults: tuple[RowFault, ...]
    misfits: int


def nest(entries: Iterable[MetadataEntry], time_zone: tzinfo, pair: str) -> Nested:
    """Apply the rows in the order of their time, NULL first. ``pair`` is the prefix of the keys of faults.

    Each dot in a key descends one level; an empty part is a name like any other. A later row replaces the value at its
    key, and any value on the path that is not an object. An object on the path gets the new member.
    """
    rows: list[_Row] = []
    faults: list[RowFault] = []
    for entry in entries:
        try:
            rows.append(_row(entry, time_zone))
        except UnfitValueError as error:
            key = f"{pair}:{printable(entry.key)}"
            faults.append(RowFault(table="metadata", key=key, reason=str(error)))
    rows.sort()
    tree: Tree = {}
    misfits = 0
    for _, _, key, value, fits in rows:
        _plant(tree, key.split("."), value)
        misfits += not fits
    return Nested(metadata=_written(tree), faults=tuple(faults), misfits=misfits)


def _row(entry: MetadataEntry, time_zone: tzinfo) -> _Row:
    column = "key"
    key = values.text(entry.key, column)
    depth = key.count(".") + 1
    if depth > values.NESTING_MAX:
        raise UnfitValueError(column, f"is nested deeper than {values.NESTING_MAX}")
    known = entry.updated_at is not None
    time = instant(entry.updated_at, time_zone, "updated_at") if known else -math.inf
    if entry.value is None:
        return known, time, key, _NULL, True
    raw = values.raw_text(entry.value, "value")
    value = _typed(raw, entry.value_type, values.NESTING_MAX - depth)
    if value is None:
        return known, time, key, values.quoted(raw), False
    return known, time, key, value, True


def _typed(raw: str, value_type: Value, nesting_max: int) -> Json | None:
    """Return the value in the form of its type; None if it does not fit."""
    found: Json | None = None
    match value_type:
        case None | "text":
            found = values.quoted(raw)
        case "number" if _NUMBER.fullmatch(raw):
            found = Json(raw)
        case "bool":
            found = _BOOLEANS.get(raw.lower())
        case "nullValue" if raw in _NULLS:
            found = _NULL
        case "array" if values.is_array(raw):
            found = _checked(raw, nesting_max)
        case "object" if values.is_object(raw):
            found = _checked(raw, nesting_max)
        case _:
            pass  # it does not fit, or the type is unknown; the caller counts it
    return found


def _checked(raw: str, nesting_max: int) -> Json | None:
    try:
        return values.check(raw, nesting_max)
    except values.InvalidJsonError:
        return None


def _plant(tree: Tree, path: list[str], value: Json) -> None:
    for name in path[:-1]:
        below = tree.get(name)
        if not isinstance(below, dict):
            is_object = below is not None and values.is_object(below)
            below = {**values.members(below)} if below is not None and is_object else {}
            tree[name] = below
        tree = below
    tree[path[-1]] = value


def _written(tree: Tree) -> Json:
    """Write the tree as JSON, without recursion, because it may be deeper than the stack allows."""
    parts = ["{"]
    open_objects: list[_Members] = [iter(tree.items())]
    while open_objects:
        for name, value in open_objects[-1]:
            comma = "" if parts[-1] == "{" else ","
            if isinstance(value, dict):
                parts += (f"{comma}{values.quoted_name(name)}:", "{")
                open_objects.append(iter(value.items()))
                break
            parts.append(f"{comma}{values.quoted_name(name)}:{value}")
        else:
            parts.append("}")
            open_objects.pop()
    return Json("".join(parts))
