"""The keys below ``[database.tables.KIND]``: they are fields of that kind, which the type of the options cannot say.

It looks at the document as written, so that its faults are told beside those of every other setting.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from airy_trio.changes.tables import FIELDS, KINDS, WATERMARK, Kind
from airy_trio.settings.words import dotted, listed, nearest

BY_FIELD: Final = ("columns", "constants", "values")
"""The options that are tables with a field of ours as key."""


def faults(document: Mapping[str, Any]) -> Iterator[str]:
    """Give a line for each key that is no field of its kind, and for each field that is mapped in two ways."""
    tables = _table(_table(document, "database"), "tables")
    watermarks = _table(document, "changes").get("capture") == "updated_at"
    for kind in KINDS:
        yield from _kind_faults(kind, _table(tables, kind), watermarks=watermarks)


def _kind_faults(kind: Kind, options: Mapping[str, Any], *, watermarks: bool) -> Iterator[str]:
    known = [field.name for field in FIELDS[kind]]
    keys = {part: list(_table(options, part)) for part in BY_FIELD}
    for part in BY_FIELD:
        for key in keys[part]:
            path = ("database", "tables", kind, part, key)
            if key == WATERMARK and part == "columns" and key not in known:
                if not watermarks:
                    yield f'{dotted(path)}: read only where changes.capture = "updated_at"'
            elif key not in known:
                likely = nearest(key, known)
                hint = f"nearest is {dotted((*path[:-1], likely))}" if likely else f"allowed here: {listed(known)}"
                yield f"{dotted(path)}: no such field of {kind}, {hint}"
            elif part != "constants" and key in keys["constants"]:
                yield f"{dotted(path)}: {key} is a constant too; allowed is one of the two"


def _table(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table below a key; empty where there is none, or something else, which is the converter's to tell."""
    child = parent.get(key)
    return child if isinstance(child, dict) else {}
