"""From a TOML document to options, or to all of its faults."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from cattrs.errors import BaseValidationError

from airy_trio.capture.mapping import FIELDS, KINDS, WATERMARK, Kind
from airy_trio.settings.convert import ConversionError, StrictConverter
from airy_trio.settings.cross_checks import CHECKS, section_contradictions
from airy_trio.settings.messages import dotted, fault_lines, suggestion

T = TypeVar("T")

BY_FIELD: Final = ("columns", "constants", "values")
"""The options of a mapped table that are tables keyed by our fields."""


def read(document: Mapping[str, Any], cls: type[T], environ: Mapping[str, str]) -> tuple[T | None, list[str]]:
    """Structure the document as ``cls``. Return the options and no faults, or None and all faults.

    The faults are in the order of the options, followed by those of the keys of mapped tables.
    """
    structured: T | None = None
    faults: list[str] = []
    try:
        structured = StrictConverter(environ, CHECKS, section_contradictions).structure(document, cls)
    except (BaseValidationError, ConversionError) as error:
        faults.extend(fault_lines(error, cls))
    tables = _table(_table(document, "database"), "tables")
    watermarks = _table(document, "changes").get("capture") == "updated_at"
    for kind in KINDS:
        faults.extend(_mapping_faults(kind, _table(tables, kind), watermarks=watermarks))
    return (None, faults) if faults else (structured, [])


def _mapping_faults(kind: Kind, options: Mapping[str, Any], *, watermarks: bool) -> Iterator[str]:
    """Yield a line for each key that is not a field of its kind, and for each field that is mapped in two ways.

    The allowed keys depend on the kind, which the type of the options does not express. This reads the document as
    written, so these faults are reported together with those of the conversion.
    """
    known = [field.name for field in FIELDS[kind]]
    for part in BY_FIELD:
        for key in _table(options, part):
            parent = ("database", "tables", kind, part)
            path = dotted((*parent, key))
            if key == WATERMARK and part == "columns" and key not in known:
                if not watermarks:
                    yield f'{path}: used only if changes.capture is "updated_at"'
            elif key not in known:
                yield f"{path}: no such field of {kind}; {suggestion(key, known, parent)}"
            elif part != "constants" and key in _table(options, "constants"):
                yield f"{path}: {key} is in constants too; remove one of the two"


def _table(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table at a key; empty if it is missing, or no table, which the converter reports."""
    child = parent.get(key)
    return child if isinstance(child, dict) else {}
