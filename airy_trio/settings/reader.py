"""From a parsed TOML document to options, or to its faults: one line each, with path, what was found, what is allowed.

The work is the converter's; here its exceptions become sentences. It refuses to know which sections there are.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import attrs
from cattrs.errors import BaseValidationError, ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from airy_trio.options import NotAllowedError
from airy_trio.settings import mapping
from airy_trio.settings.bounds import CHECKS, REQUIRED, SECRETS, contradictions
from airy_trio.settings.converter import ContradictionError, RefusedError, lineage, strict_converter
from airy_trio.settings.environment import EnvironmentFault
from airy_trio.settings.words import Path, dotted, found, listed, nearest

T = TypeVar("T")


def read(document: Mapping[str, Any], cls: type[T], environ: Mapping[str, str]) -> tuple[T | None, list[str]]:
    """Structure the document as ``cls``: the options and no fault, or None and all faults.

    The faults come in the order of the options, those of a mapping's keys last.
    """
    structured: T | None = None
    faults: list[str] = []
    try:
        structured = strict_converter(environ, CHECKS, contradictions).structure(document, cls)
    except (BaseValidationError, RefusedError) as error:
        faults.extend(_Faults(cls).told(error))
    faults.extend(mapping.faults(document))
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
        case RefusedError():
            yield f"found {error.words or found(error.written, secret=secret)}, allowed is {error.allowed}"
        case EnvironmentFault():
            yield str(error)
        case _:
            raise error
