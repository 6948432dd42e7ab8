"""A cattrs converter that takes nothing for something else: each TOML value has the type of its option, or is refused.

It expands ``${NAME}`` in texts and runs the validators of the options classes one option at a time, so that one
structuring finds every fault. It knows types, and refuses to know paths and wording.

``${NAME}`` and ``${NAME:-default}`` in a text, taken from the environment. It knows no setting.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import is_mapping, is_sequence, list_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn, override

from airy_trio.options import NotAllowedError, Validator

_REFERENCE: Final = re.compile(
    r"\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<rest>:-(?P<default>(?:(?!\$\{)[^}])*))?\})?"
)
"""The name is absent where ``${`` begins nothing that can be read."""


class EnvironmentFault(ValueError):
    """A reference that cannot be followed; the message names the variable and never holds a value."""


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """Replace every reference. The default also serves where the variable is empty, as in a shell.

    What comes from the environment is taken as it is: a ``${`` in it is text. Raises ``EnvironmentFault``.
    """
    references = list(_REFERENCE.finditer(text))
    if any(reference["name"] is None for reference in references):
        message = 'found "${" that begins neither ${NAME} nor ${NAME:-default}'
        raise EnvironmentFault(message)
    unset = dict.fromkeys(each["name"] for each in references if each["rest"] is None and each["name"] not in environ)
    if unset:
        message = f"not set in the environment: {', '.join(unset)}"
        raise EnvironmentFault(message)
    result = _REFERENCE.sub(lambda reference: _value(reference, environ), text)
    if not _is_unicode(result):
        names = ", ".join(dict.fromkeys(each["name"] for each in references))
        message = f"not UTF-8 in the environment: {names}"
        raise EnvironmentFault(message)
    return result


def _value(reference: re.Match[str], environ: Mapping[str, str]) -> str:
    value = environ.get(reference["name"], "")
    return value or reference["default"] or ""


def _is_unicode(text: str) -> bool:
    """Whether no byte of the environment was smuggled in as a lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


INTEGER_BITS: Final = 64

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
Checks = Mapping[tuple[type, str], Validator]
"""Validators for an option (class, name) beside the one that its class declares."""
Contradictions = Callable[[object], Iterable[str | NotAllowedError]]
"""Checks the options of one class together. A line is about all of them, an error about one; free of secrets."""


class ConversionError(ValueError):
    """A value that is refused: as it is written in the file, and what is allowed instead.

    ``words``: for what was found, free of secrets; None where the value speaks for itself.
    """

    def __init__(self, written: object, allowed: str, words: str | None = None) -> None:
        self.written = written
        self.allowed = allowed
        self.words = words
        super().__init__(f"allowed is {allowed}")


class ContradictionError(ValueError):
    """Options of one class that do not go together: ``faults``, as ``Contradictions`` gives them."""

    def __init__(self, faults: Iterable[str | NotAllowedError]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(map(str, self.faults)))


def strict_converter(environ: Mapping[str, str], checks: Checks, contradictions: Contradictions) -> Converter:
    """Make the converter for one reading. Refusals come in the exception groups of cattrs, all of them."""
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)

    def text(value: object, _type: object) -> str:
        return expanded(_expect(value, str, "a text"), environ)

    converter.register_structure_hook(str, text)
    converter.register_structure_hook(bool, _boolean)
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_factory(_is_literal, lambda type_: _literal_hook(type_, environ))
    converter.register_structure_hook_factory(_is_union, lambda type_: _union_hook(type_, converter))
    converter.register_structure_hook_factory(is_mapping, lambda type_: _mapping_hook(type_, converter))
    converter.register_structure_hook_factory(is_sequence, lambda type_: _array_hook(type_, converter))
    converter.register_structure_hook_factory(
        attrs.has, lambda type_: _class_hook(type_, converter, checks, contradictions)
    )
    return converter


def lineage(cls: type, name: str) -> tuple[tuple[type, str], ...]:
    """The option as its class and each class above it would name it."""
    return tuple((parent, name) for parent in cls.__mro__)


def _expect(value: object, type_: type[T], allowed: str) -> T:
    if not isinstance(value, type_):
        raise ConversionError(value, allowed)
    return value


def _boolean(value: object, _type: object) -> bool:
    return _expect(value, bool, "true or false")


def _integer(value: object, _type: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConversionError(value, "an integer")
    if not -(2 ** (INTEGER_BITS - 1)) <= value < 2 ** (INTEGER_BITS - 1):
        raise ConversionError(value, f"an integer of at most {INTEGER_BITS} bits")
    return value


def _number(value: object, _type: object) -> float:
    number = float(_integer(value, int)) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(number, float) or not math.isfinite(number):
        raise ConversionError(value, "a finite number")
    return number


def _is_literal(type_: Any) -> bool:  # noqa: ANN401 - a predicate over types of any form
    return get_origin(type_) is Literal


def _is_union(type_: Any) -> bool:  # noqa: ANN401 - a predicate over types of any form
    return get_origin(type_) in (Union, UnionType)


def _literal_hook(type_: Any, environ: Mapping[str, str]) -> Hook:  # noqa: ANN401 - typing has no name for it
    choices = get_args(type_)
    allowed = " or ".join(f'"{choice}"' for choice in choices)

    def structure(value: object, _type: object) -> str:
        if isinstance(value, str):
            text = expanded(value, environ)
            if text in choices:
                return text
        raise ConversionError(value, allowed)

    return structure


_UNION_WORDS: Final = {
    str: "a text", bool: "true or false", int: "an integer", float: "a number", list: "an array of texts"
}  # fmt: skip


def _union_hook(type_: Any, converter: Converter) -> Hook:  # noqa: ANN401 - typing has no name for it
    """TOML tells its types apart, so the value's own type says which member is meant; TOML has no None."""
    members = {get_origin(member) or member: member for member in get_args(type_) if member is not NoneType}
    allowed = ", ".join(_UNION_WORDS.get(kind, kind.__name__) for kind in members)

    def structure(value: object, _type: object) -> Any:  # noqa: ANN401 - one of the members
        kind = float if type(value) is int and int not in members else type(value)
        if kind not in members:
            raise ConversionError(value, allowed)
        return converter.structure(value, members[kind])

    return structure


def _mapping_hook(type_: Any, converter: Converter) -> Hook:  # noqa: ANN401 - typing has no name for it
    structure_items = mapping_structure_factory(type_, converter, key_type=Any)  # keys stand as written

    def structure(value: object, target: Any) -> Any:  # noqa: ANN401 - the mapping
        return structure_items(_expect(value, dict, "a table"), target)

    return structure


def _array_hook(type_: Any, converter: Converter) -> Hook:  # noqa: ANN401 - typing has no name for it
    structure_items = list_structure_factory(type_, converter)

    def structure(value: object, target: Any) -> Any:  # noqa: ANN401 - the array
        return structure_items(_expect(value, list, "an array"), target)

    return structure


def _class_hook(type_: type, converter: Converter, checks: Checks, contradictions: Contradictions) -> Hook:
    attrs.resolve_types(type_)
    overrides = {
        option.name: override(struct_hook=_option_hook(type_, option, converter, checks))
        for option in attrs.fields(type_)
    }
    structure_options: Hook = make_dict_structure_fn(
        type_,
        converter,
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=True,
        **overrides,  # type: ignore[arg-type]  # names of options, none of its own parameters
    )

    def structure(value: object, target: Any) -> Any:  # noqa: ANN401 - the class
        options = structure_options(_expect(value, dict, "a table"), target)
        faults = tuple(contradictions(options))
        if faults:
            raise ContradictionError(faults)
        return options

    return structure


def _option_hook(cls: type, option: "attrs.Attribute[Any]", converter: Converter, checks: Checks) -> Hook:
    """Structure one option and run its validators at once: the class itself would stop at the first that fails."""
    validators = [validator for key in lineage(cls, option.name) if (validator := checks.get(key))]
    if option.validator is not None:
        validators.append(option.validator)
    type_: Any = option.type

    def structure(value: object, _type: object) -> Any:  # noqa: ANN401 - of the option's type
        result = converter.structure(value, type_)
        for validate in validators:
            try:
                validate(None, option, result)
            except NotAllowedError as error:
                raise ConversionError(value, error.allowed, error.found) from None
        return result

    return structure
