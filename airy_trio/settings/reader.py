"""From a TOML document to options, or to all of its faults: one line each.

A line has the path of the setting, what was found and what is expected. cattrs' own ``transform_error`` formats the
path before it asks for the message. Our lines need the path itself: to quote keys as TOML does, to hide keys and values
that may be secret, and to suggest the nearest setting.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from typing import Any, Final, TypeVar

import attrs
from cattrs.errors import BaseValidationError, ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from airy_trio.capture.mapping import FIELDS, KINDS, WATERMARK, Kind
from airy_trio.options import NotAllowedError
from airy_trio.settings.convert import ContradictionError, ConversionError, EnvironmentFault, StrictConverter, lineage
from airy_trio.settings.cross_checks import CHECKS, REQUIRED, SECRETS, section_contradictions

T = TypeVar("T")

Path = tuple[str | int, ...]
"""A place in the file: keys of tables and indices of arrays."""

NAMES_SHOWN_MAX: Final = 16
_TEXT_CHARS_MAX: Final = 60
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")
_KINDS: Final = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    datetime: "a date and time",
    date: "a date",
    time: "a time of day",
    list: "an array",
    dict: "a table",
}
_SHOWABLE: Final = re.compile(rf"[\w .,:/+*()$'{{}}-]{{0,{_TEXT_CHARS_MAX}}}")
"""Strings that a fault may show. Without ``@``, ``=`` and quotes, a string is neither a URL with a password nor a
connection string, in whichever setting it was put by mistake."""
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


def fault_lines(error: Exception, root: type, path: Path = (), *, secret: bool = False) -> Iterator[str]:
    """Yield a line for each leaf of the exceptions that structuring ``root`` raised.

    ``secret``: the value at ``path`` must not be shown.
    """
    match error:
        case ClassValidationError():
            yield from _class_lines(error, root, path)
        case IterableValidationError():
            for inner, item in error.group_exceptions()[0]:
                yield from fault_lines(inner, root, (*path, item.index), secret=secret)
        case ContradictionError():
            for fault in error.faults:
                if isinstance(fault, NotAllowedError):
                    yield f"{dotted((*path, fault.name))}: found {fault.found}, expected {fault.allowed}"
                else:
                    yield f"{dotted(path)}: {fault}"
        case ConversionError():
            words = error.words or found(error.written, secret=secret)
            yield f"{dotted(path)}: found {words}, expected {error.allowed}"
        case EnvironmentFault():
            yield f"{dotted(path)}: {error}"
        case _:
            raise error


def _class_lines(error: ClassValidationError, root: type, path: Path) -> Iterator[str]:
    noted, others = error.group_exceptions()
    for inner, option in noted:
        here, keys = (*path, option.name), lineage(error.cl, option.name)
        if isinstance(inner, KeyError):
            words = next(REQUIRED[key] for key in keys if key in REQUIRED)
            yield f"{dotted(here)}: missing, and it has no default; expected {words}"
        else:
            yield from fault_lines(inner, root, here, secret=any(key in SECRETS for key in keys))
    for inner in others:
        if not isinstance(inner, ForbiddenExtraKeysError):
            yield from fault_lines(inner, root, path)
            continue
        known = [option.name for option in attrs.fields(error.cl)]
        for key in sorted(inner.extra_fields):
            elsewhere = (dotted(other) for other in options_of(root) if other[-1] == key)
            yield f"{dotted((*path, key))}: unknown setting; {suggestion(key, known, path, elsewhere)}"


def options_of(cls: type, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all options below an options class, sections included."""
    for option in attrs.fields(attrs.resolve_types(cls)):
        here = (*path, option.name)
        yield here
        if option.type is not None and attrs.has(option.type):
            yield from options_of(option.type, here)


def dotted(path: Path) -> str:
    """Return the path as TOML writes it: ``database.tables.messages.name[1]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else shown(part)
            text += f".{key}" if text else key
    return text


def found(value: object, *, secret: bool) -> str:
    """Describe a TOML value by its type, and by the value itself unless it is or may be a secret."""
    kind = _KINDS.get(type(value), type(value).__name__)
    if secret or isinstance(value, dict | list):
        return kind
    if isinstance(value, str):
        return f"{kind} {shown(value)}"
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return f"{kind} {text}" if len(text) <= _TEXT_CHARS_MAX else kind


def shown(text: str) -> str:
    """Return a string in quotes if it is short and harmless, else "(not shown)"."""
    if _SHOWABLE.fullmatch(text) and "://" not in text:
        return json.dumps(text, ensure_ascii=not text.isprintable())
    return "(not shown)"


def suggestion(key: str, known: list[str], path: Path, elsewhere: Iterable[str] = ()) -> str:
    """Suggest what an unknown key of the table at ``path`` may have been meant to be."""
    likely = nearest(key, known)
    meant = listed(elsewhere) if likely is None else dotted((*path, likely))
    return f"did you mean {meant}?" if meant else f"allowed here: {listed(known)}"


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that is most similar, if one is similar enough."""
    folded = {name.casefold(): name for name in known}
    match = difflib.get_close_matches(key.casefold()[:_TEXT_CHARS_MAX], folded, n=1)
    return folded[match[0]] if match else None


def listed(names: Iterable[str]) -> str:
    """Join names for a message; beyond ``NAMES_SHOWN_MAX`` give only their number."""
    every = list(names)
    more = f" and {len(every) - NAMES_SHOWN_MAX} more" if len(every) > NAMES_SHOWN_MAX else ""
    return ", ".join(every[:NAMES_SHOWN_MAX]) + more
