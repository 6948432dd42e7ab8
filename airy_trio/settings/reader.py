"""From a parsed TOML document to options, or to its faults: one line each, with path, what was found, what is allowed.

The work is the converter's; here its exceptions become sentences. It refuses to know which sections there are.

The keys below ``[database.tables.KIND]``: they are fields of that kind, which the type of the options cannot say.

It looks at the document as written, so that its faults are told beside those of every other setting.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import attrs
from cattrs.errors import BaseValidationError, ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from airy_trio.capture.mapping import FIELDS, KINDS, WATERMARK, Kind
from airy_trio.options import NotAllowedError
from airy_trio.settings.convert import ContradictionError, ConversionError, EnvironmentFault, lineage, strict_converter
from airy_trio.settings.cross_checks import CHECKS, REQUIRED, SECRETS, section_contradictions
from airy_trio.settings.messages import Path, dotted, found, listed, nearest

BY_FIELD: Final = ("columns", "constants", "values")
"""The options that are tables with a field of ours as key."""


def mapping_faults(document: Mapping[str, Any]) -> Iterator[str]:
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


T = TypeVar("T")


def read(document: Mapping[str, Any], cls: type[T], environ: Mapping[str, str]) -> tuple[T | None, list[str]]:
    """Structure the document as ``cls``: the options and no fault, or None and all faults.

    The faults come in the order of the options, those of a mapping's keys last.
    """
    structured: T | None = None
    faults: list[str] = []
    try:
        structured = strict_converter(environ, CHECKS, section_contradictions).structure(document, cls)
    except (BaseValidationError, ConversionError) as error:
        faults.extend(_Faults(cls).told(error))
    faults.extend(mapping_faults(document))
    return (None, faults) if faults else (structured, [])


def options_of(cls: type, path: Path = ()) -> Iterator[Path]:
    """The paths of all options below an options class, sections included."""
    attrs.resolve_types(cls)
    for option in attrs.fields(cls):
        here = (*path, option.name)
        yield here
        if option.type is not None and attrs.has(option.type):
            yield from options_of(option.type, here)


class _Faults:
    """The sentences for what cattrs raised while it structured ``root``."""

    def __init__(self, root: type) -> None:
        self._root = root

    def told(self, error: Exception, path: Path = (), *, secret: bool = False) -> Iterator[str]:
        """Give a line for each leaf of the tree. ``secret``: what stands at this path is not to be shown."""
        if isinstance(error, ClassValidationError):
            yield from self._of_class(error, path)
        elif isinstance(error, IterableValidationError):
            for inner, item in error.group_exceptions()[0]:
                yield from self.told(inner, (*path, item.index), secret=secret)
        elif isinstance(error, ContradictionError):
            for fault in error.faults:
                if isinstance(fault, NotAllowedError):
                    yield f"{dotted((*path, fault.name))}: found {fault.found}, allowed is {fault.allowed}"
                else:
                    yield f"{dotted(path)}: {fault}"
        else:
            yield from (f"{dotted(path)}: {line}" for line in _lines(error, secret=secret))

    def _of_class(self, error: ClassValidationError, path: Path) -> Iterator[str]:
        noted, others = error.group_exceptions()
        for inner, option in noted:
            here = (*path, option.name)
            keys = lineage(error.cl, option.name)
            if isinstance(inner, KeyError):  # what the options class itself asks for
                words = next(REQUIRED[key] for key in keys if key in REQUIRED)
                yield f"{dotted(here)}: missing, and it has no default; allowed is {words}"
            else:
                yield from self.told(inner, here, secret=any(key in SECRETS for key in keys))
        for inner in others:
            if isinstance(inner, ForbiddenExtraKeysError):
                yield from (self._unknown(key, path, inner.cl) for key in sorted(inner.extra_fields))
            else:
                yield from self.told(inner, path)

    def _unknown(self, key: str, path: Path, cls: type) -> str:
        known = [option.name for option in attrs.fields(cls)]
        likely = nearest(key, known)
        if likely is not None:
            hint = f"nearest is {dotted((*path, likely))}"
        else:
            elsewhere = [dotted(other) for other in options_of(self._root) if other[-1] == key]
            hint = f"there is {listed(elsewhere)}" if elsewhere else f"allowed here: {listed(known)}"
        return f"{dotted((*path, key))}: unknown setting, {hint}"


def _lines(error: Exception, *, secret: bool) -> Iterator[str]:
    match error:
        case ConversionError():
            yield f"found {error.words or found(error.written, secret=secret)}, allowed is {error.allowed}"
        case EnvironmentFault():
            yield str(error)
        case _:
            raise error
