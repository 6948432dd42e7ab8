"""From a TOML document to options, or to all of its faults: one line each.

cattrs by itself converts: ``port = "8080"`` would become 8080 and ``host = 5`` the string "5". The hooks below accept a
value only if TOML gave it the type of its option. A number may also be a string with a reference to the environment:
``port = "${PORT:-8080}"``. They also expand ``${NAME}`` in strings, and run the validators of a class one option at a
time, because an attrs class stops at the first validator that fails. One pass therefore finds every fault.

A line has the path of the setting, what was found and what is expected. cattrs' own ``transform_error`` formats the
path before it asks for the message. Our lines need the path itself: to quote keys as TOML does, to hide keys and values
that may be secret, and to suggest the nearest setting.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import date, datetime, time
from functools import partial
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import is_mapping, is_sequence, list_structure_factory, mapping_structure_factory
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn, override

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import FIELDS, KINDS, WATERMARK
from airy_trio.database import URL_WORDS
from airy_trio.errors import listed
from airy_trio.options import NotAllowedError

T = TypeVar("T")

INTEGER_BITS: Final = 64
_TYPES: Final = {
    str: "a string", bool: "true or false", int: "an integer", float: "a finite number", list: "an array of strings"
}  # fmt: skip
_NUMBERS: Final = {
    int: re.compile(r"-?[0-9]{1,20}"),
    float: re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?"),
}
"""Numbers that a string may have after expansion. TOML has more forms, which no environment needs."""
_REFERENCE: Final = re.compile(
    r"\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<rest>:-(?P<default>(?:(?!\$\{)[^}])*))?\})?"
)
"""``${NAME}`` or ``${NAME:-default}``. It has no name if ``${`` begins neither."""

Hook = Callable[[Any, Any], Any]
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


@attrs.define
class ConversionError(ValueError):
    """A value of a wrong type, or out of bounds.

    ``written`` is the value as it is in the file, before expansion. ``words`` describes it without showing a secret; if
    it is None, the reader of this error decides what may be shown of ``written``.
    """

    written: object
    allowed: str
    words: str | None = None

    def __str__(self) -> str:  # without the value, which may be a secret
        return f"expected {self.allowed}"


class SettingFault(ValueError):
    """A reference to the environment that cannot be resolved, or options of a section that contradict each other.

    The message shows no value.
    """


class StrictConverter(Converter):
    """A converter for any number of documents. It generates code for each class, which takes longer than a document."""

    def __init__(self) -> None:
        super().__init__(detailed_validation=True, forbid_extra_keys=True)
        # A context variable, because cattrs passes only the value and its type to a hook, and all documents share the
        # hooks.
        self._environ: ContextVar[Mapping[str, str]] = ContextVar("environ")
        for kind in (str, bool, int, float):
            self.register_structure_hook(kind, self._scalar)
        self.register_structure_hook_func(_of(Literal), self._literal)
        self.register_structure_hook_func(_of(Union, UnionType), self._union)
        table = partial(mapping_structure_factory, converter=self, key_type=Any)  # keys are not expanded
        self.register_structure_hook_factory(is_mapping, lambda type_: _container(dict, "a table", table(type_)))
        array = partial(list_structure_factory, converter=self)
        self.register_structure_hook_factory(is_sequence, lambda type_: _container(list, "an array", array(type_)))
        self.register_structure_hook_factory(attrs.has, lambda cls: _container(dict, "a table", self._section(cls)))

    def read(self, document: object, cls: type[T], environ: Mapping[str, str]) -> T:
        """Structure a document as ``cls``. Raises what cattrs raises, with our exceptions inside."""
        before = self._environ.set(environ)
        try:
            return self.structure(document, cls)
        finally:
            self._environ.reset(before)

    def _scalar(self, written: Any, kind: Any) -> object:  # noqa: ANN401 - a TOML value, and its type
        value = written
        if kind in _NUMBERS and isinstance(written, str) and _REFERENCE.search(written):
            text = expanded(written, self._environ.get())
            if not _NUMBERS[kind].fullmatch(text):
                raise ConversionError(written, f"{_TYPES[kind]} in the environment")
            value = kind(text)
        if kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
            if not -(2 ** (INTEGER_BITS - 1)) <= value < 2 ** (INTEGER_BITS - 1):
                raise ConversionError(written, f"an integer of at most {INTEGER_BITS} bits")
            return float(value) if kind is float else value
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ConversionError(written, _TYPES[kind])
        return expanded(value, self._environ.get()) if kind is str else value

    def _literal(self, value: object, type_: Any) -> object:  # noqa: ANN401 - typing has no name for it
        choices = get_args(type_)
        text = expanded(value, self._environ.get()) if isinstance(value, str) else None
        if text not in choices:
            raise ConversionError(value, " or ".join(f'"{choice}"' for choice in choices))
        return text

    def _union(self, value: object, type_: Any) -> object:  # noqa: ANN401 - typing has no name for it
        # The type of a TOML value is unambiguous, so it selects the member. TOML has no null.
        members = {get_origin(member) or member: member for member in get_args(type_) if member is not NoneType}
        kind: type = float if type(value) is int and int not in members else type(value)
        if kind not in members:
            raise ConversionError(value, ", ".join(_TYPES[member] for member in members))
        return self.structure(value, members[kind])

    def _section(self, cls: type) -> Hook:
        hooks = {
            option.name: override(struct_hook=self._option(option)) for option in attrs.fields(attrs.resolve_types(cls))
        }
        structure: Hook = make_dict_structure_fn(cls, self, **hooks)  # type: ignore[arg-type]  # names of options only

        def checked(value: Any, target: Any) -> object:  # noqa: ANN401 - as cattrs calls it
            options: Any = structure(value, target)
            found = options.contradictions() if hasattr(cls, "contradictions") else ()
            faults = [one if isinstance(one, Exception) else SettingFault(one) for one in found]
            if faults:
                raise ExceptionGroup("contradictions", faults)
            return options

        return checked

    def _option(self, option: "attrs.Attribute[Any]") -> Hook:
        type_: Any = option.type

        def structure(value: object, _type: object) -> object:
            result: object = self.structure(value, type_)
            try:
                if option.validator is not None:
                    option.validator(None, option, result)
            except NotAllowedError as error:
                raise ConversionError(value, error.allowed, error.found) from None
            return result

        return structure


def _of(*origins: object) -> Callable[[Any], bool]:
    """Match types such as ``Literal["a"]`` by their origin."""
    return lambda type_: get_origin(type_) in origins


def _container(kind: type, words: str, structure: Hook) -> Hook:
    """Check the type of a table or array before cattrs takes it for any mapping or iterable."""

    def checked(value: object, target: Any) -> object:  # noqa: ANN401 - as cattrs calls it
        if not isinstance(value, kind):
            raise ConversionError(value, words)
        return structure(value, target)

    return checked


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """Replace every reference by its value. As in a shell, the default also replaces an empty value.

    A ``${`` in a value is not expanded again. Raises ``SettingFault``.
    """
    references = list(_REFERENCE.finditer(text))
    named = [each for each in references if each["name"] is not None]  # ``os.environ`` raises TypeError for None
    unset = [each["name"] for each in named if each["rest"] is None and each["name"] not in environ]
    if len(named) < len(references):
        fault = 'found "${" that begins neither ${NAME} nor ${NAME:-default}'
    elif unset:
        fault = f"not set in the environment: {', '.join(dict.fromkeys(unset))}"
    else:
        result = _REFERENCE.sub(lambda each: environ.get(each["name"]) or each["default"] or "", text)
        # Python decodes bytes of the environment that are not UTF-8 to lone surrogates.
        if not any("\ud800" <= character <= "\udfff" for character in result):
            return result
        fault = f"not UTF-8 in the environment: {', '.join(dict.fromkeys(each['name'] for each in references))}"
    raise SettingFault(fault)


_CONVERTER: Final = StrictConverter()


def read(document: Mapping[str, Any], cls: type[T], environ: Mapping[str, str]) -> tuple[T | None, list[str]]:
    """Structure the document as ``cls``. Return the options and no faults, or None and all faults.

    The faults are in the order of the options, followed by those of the keys of mapped tables.
    """
    structured: T | None = None
    faults: list[str] = []
    try:
        structured = _CONVERTER.read(document, cls, environ)
    except (ExceptionGroup, ConversionError) as error:
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
        # After the groups of cattrs, which are subclasses. All other groups contain contradictions, which show no
        # value.
        case ExceptionGroup():
            for inner in error.exceptions:
                yield from fault_lines(inner, root, path)
        case NotAllowedError():
            yield f"{dotted((*path, error.name))}: found {error.found}, expected {error.allowed}"
        case ConversionError():
            words = error.words or found(error.written, secret=secret)
            yield f"{dotted(path)}: found {words}, expected {error.allowed}"
        case SettingFault():
            yield f"{dotted(path)}: {error}"
        case _:
            raise error


def _class_lines(error: ClassValidationError, root: type, path: Path) -> Iterator[str]:
    noted, others = error.group_exceptions()
    options = attrs.fields_dict(error.cl)
    for inner, note in noted:
        here, option = (*path, note.name), options[note.name]
        if isinstance(inner, KeyError):  # only ``database.url`` has no default
            yield f"{dotted(here)}: missing, and it has no default; expected {URL_WORDS}"
        else:
            yield from fault_lines(inner, root, here, secret=not option.repr)
    for inner in others:
        if not isinstance(inner, ForbiddenExtraKeysError):
            yield from fault_lines(inner, root, path)
            continue
        known = [*options]
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
    meant = listed(elsewhere, NAMES_SHOWN_MAX) if likely is None else dotted((*path, likely))
    return f"did you mean {meant}?" if meant else f"allowed here: {listed(known, NAMES_SHOWN_MAX)}"


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that is most similar, if one is similar enough."""
    folded = {name.casefold(): name for name in known}
    match = difflib.get_close_matches(key.casefold()[:_TEXT_CHARS_MAX], folded, n=1)
    return folded[match[0]] if match else None
