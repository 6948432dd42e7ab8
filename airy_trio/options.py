"""Validators for the options classes of all packages: the bounds of a setting, and the description of these bounds.

A validator checks one value on its own: ``settings`` runs them one by one, without an instance, to report all faults at
once. Then it calls the method ``contradictions`` of a class that has one, which checks several options together.
No message shows the value, because it may be a secret. The value of an option with ``repr=False`` is never shown.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Final

from attrs import Attribute

PORT_MAX: Final = 65535

Validator = Callable[[Any, "Attribute[Any]", Any], None]
"""As ``attrs.field(validator=...)`` takes it. The instance is ignored and may be None."""


class NotAllowedError(ValueError):
    """A value that an option does not allow.

    ``allowed`` describes the allowed values. ``found`` describes the value without showing a secret; if it is None, the
    code that catches the error decides what may be shown of the value.
    """

    def __init__(self, name: str, allowed: str, found: str | None = None) -> None:
        self.name = name
        self.allowed = allowed
        self.found = found
        super().__init__(f"{name}: found {found}, expected {allowed}" if found else f"{name}: expected {allowed}")


def at_least(least: float) -> Validator:
    """Make a validator: a finite number, ``least`` or more. Raises ``NotAllowedError``."""
    return satisfying(lambda value: _finite(value) and value >= least, f"a number of at least {least}")


def more_than(bound: float) -> Validator:
    """Make a validator: a finite number above ``bound``, such as a time-out above 0. Raises ``NotAllowedError``."""
    return satisfying(lambda value: _finite(value) and value > bound, f"a number above {bound}")


def between(least: float, most: float) -> Validator:
    """Make a validator: a number from ``least`` to ``most``, both included. Raises ``NotAllowedError``."""
    return satisfying(lambda value: _finite(value) and least <= value <= most, f"a number from {least} to {most}")


def matching(pattern: str, words: str) -> Validator:
    """Make a validator: a string that matches the whole regular expression, which ``words`` describes.

    Raises ``NotAllowedError``.
    """
    compiled = re.compile(pattern)
    return satisfying(lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None, words)


def satisfying(check: Callable[[Any], bool], words: str) -> Validator:
    """Make a validator: a value for which ``check`` is true. Raises ``NotAllowedError``."""

    def validate(_instance: object, attribute: "Attribute[Any]", value: object) -> None:
        if not check(value):
            raise NotAllowedError(attribute.name, words)

    return validate


def _finite(value: object) -> bool:
    """Return whether a value is a number with an order: no bool, infinity or NaN, which TOML all has."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
