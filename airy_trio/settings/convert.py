"""Structure a TOML document as options classes with cattrs, without coercion.

cattrs by itself converts: ``port = "8080"`` would become 8080 and ``host = 5`` the string "5". The hooks below accept a
value only if TOML gave it the type of its option. They also expand ``${NAME}`` in strings, and run the validators of a
class one option at a time, because an attrs class stops at the first validator that fails. One pass therefore finds
every fault; cattrs collects them in exception groups, and ``reader`` turns these into lines.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import is_mapping, is_sequence, list_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn, override

from airy_trio.options import NotAllowedError, Validator

INTEGER_BITS: Final = 64
_KINDS: Final = {
    str: "a string", bool: "true or false", int: "an integer", float: "a finite number", list: "an array of strings"
}  # fmt: skip
_REFERENCE: Final = re.compile(
    r"\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<rest>:-(?P<default>(?:(?!\$\{)[^}])*))?\})?"
)
"""``${NAME}`` or ``${NAME:-default}``. It has no name if ``${`` begins neither."""

Hook = Callable[[Any, Any], Any]
Checks = Mapping[tuple[type, str], Validator]
"""Validators for an option (class, name), in addition to the one that its class declares."""
Contradictions = Callable[[object], Iterable[str | NotAllowedError]]
"""Checks the options of one section together. A string concerns all of them, an error one; neither shows a secret."""


class ConversionError(ValueError):
    """A value of a wrong type, or out of bounds.

    ``written`` is the value as it is in the file, before expansion. ``words`` describes it without showing a secret; if
    it is None, the reader of this error decides what may be shown of ``written``.
    """

    def __init__(self, written: object, allowed: str, words: str | None = None) -> None:
        self.written = written
        self.allowed = allowed
        self.words = words
        super().__init__(f"expected {allowed}")


class ContradictionError(ValueError):
    """Options of one section that contradict each other: ``faults``, as ``Contradictions`` returns them."""

    def __init__(self, faults: Iterable[str | NotAllowedError]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(map(str, self.faults)))


class EnvironmentFault(ValueError):
    """A reference to the environment that cannot be resolved. The message names the variable and shows no value."""


class StrictConverter(Converter):
    """The converter for one document."""

    def __init__(self, environ: Mapping[str, str], checks: Checks, contradictions: Contradictions) -> None:
        super().__init__(detailed_validation=True, forbid_extra_keys=True)
        self._environ = environ
        self._checks = checks
        self._contradictions = contradictions
        for kind in (str, bool, int, float):
            self.register_structure_hook(kind, self._scalar)
        self.register_structure_hook_func(_of(Literal), self._literal)
        self.register_structure_hook_func(_of(Union, UnionType), self._union)
        table = partial(mapping_structure_factory, converter=self, key_type=Any)  # keys are not expanded
        self.register_structure_hook_factory(is_mapping, lambda type_: _container(dict, "a table", table(type_)))
        array = partial(list_structure_factory, converter=self)
        self.register_structure_hook_factory(is_sequence, lambda type_: _container(list, "an array", array(type_)))
        self.register_structure_hook_factory(attrs.has, lambda cls: _container(dict, "a table", self._section(cls)))

    def _scalar(self, value: Any, kind: Any) -> object:  # noqa: ANN401 - a TOML value, and its type
        if kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
            if not -(2 ** (INTEGER_BITS - 1)) <= value < 2 ** (INTEGER_BITS - 1):
                raise ConversionError(value, f"an integer of at most {INTEGER_BITS} bits")
            return float(value) if kind is float else value
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ConversionError(value, _KINDS[kind])
        return expanded(value, self._environ) if kind is str else value

    def _literal(self, value: object, type_: Any) -> object:  # noqa: ANN401 - typing has no name for it
        choices = get_args(type_)
        text = expanded(value, self._environ) if isinstance(value, str) else None
        if text not in choices:
            raise ConversionError(value, " or ".join(f'"{choice}"' for choice in choices))
        return text

    def _union(self, value: object, type_: Any) -> object:  # noqa: ANN401 - typing has no name for it
        # The type of a TOML value is unambiguous, so it selects the member. TOML has no null.
        members = {get_origin(member) or member: member for member in get_args(type_) if member is not NoneType}
        kind: type = float if type(value) is int and int not in members else type(value)
        if kind not in members:
            raise ConversionError(value, ", ".join(_KINDS[member] for member in members))
        return self.structure(value, members[kind])

    def _section(self, cls: type) -> Hook:
        hooks = {
            option.name: override(struct_hook=self._option(cls, option))
            for option in attrs.fields(attrs.resolve_types(cls))
        }
        structure: Hook = make_dict_structure_fn(cls, self, **hooks)  # type: ignore[arg-type]  # names of options only

        def checked(value: Any, target: Any) -> object:  # noqa: ANN401 - as cattrs calls it
            options: object = structure(value, target)
            if faults := tuple(self._contradictions(options)):
                raise ContradictionError(faults)
            return options

        return checked

    def _option(self, cls: type, option: "attrs.Attribute[Any]") -> Hook:
        validators = [self._checks[key] for key in lineage(cls, option.name) if key in self._checks]
        if option.validator is not None:
            validators.append(option.validator)
        type_: Any = option.type

        def structure(value: object, _type: object) -> object:
            result: object = self.structure(value, type_)
            for validate in validators:
                try:
                    validate(None, option, result)
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


def lineage(cls: type, name: str) -> list[tuple[type, str]]:
    """Return the keys of an option: with its class, and with each base class."""
    return [(base, name) for base in cls.__mro__]


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """Replace every reference by its value. As in a shell, the default also replaces an empty value.

    A ``${`` in a value is not expanded again. Raises ``EnvironmentFault``.
    """
    references = list(_REFERENCE.finditer(text))
    unset = [each["name"] for each in references if each["rest"] is None and each["name"] not in environ]
    if any(each["name"] is None for each in references):
        fault = 'found "${" that begins neither ${NAME} nor ${NAME:-default}'
    elif unset:
        fault = f"not set in the environment: {', '.join(dict.fromkeys(unset))}"
    else:
        result = _REFERENCE.sub(lambda each: environ.get(each["name"]) or each["default"] or "", text)
        # Python decodes bytes of the environment that are not UTF-8 to lone surrogates.
        if not any("\ud800" <= character <= "\udfff" for character in result):
            return result
        fault = f"not UTF-8 in the environment: {', '.join(dict.fromkeys(each['name'] for each in references))}"
    raise EnvironmentFault(fault)
